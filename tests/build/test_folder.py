"""Cache folders that cannot be used: said once, and the step runs all the same."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from pathlib import Path

import pytest

from pequegrad import config
from pequegrad.build import cache, folder, toolchain
from pequegrad.errors import PequegradWarning
from tests.build.helpers import build, run_affine, run_python, step_source


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Forget which folders were opened and what was said."""
    monkeypatch.setattr(folder, "_opened", {})
    monkeypatch.setattr(folder, "_said", set())


@pytest.fixture
def quick_temporary(root, monkeypatch, tmp_path):
    """The temporary folder, with the binding in it."""
    lent = tmp_path / "lent"
    shutil.copytree(root / folder.BINDINGS, lent / folder.BINDINGS)
    folder._opened[("", "temporary", os.getpid())] = folder.Root(str(lent), is_writable=True, is_temporary=True)
    return lent


def builds_in_temporary_folder(scale: int, expected_warning: str, temporary: Path) -> None:
    with pytest.warns(PequegradWarning, match=expected_warning) as caught:
        built = build(step_source("affine", SCALE=scale))
    assert len([warning for warning in caught if warning.category is PequegradWarning]) == 1
    assert temporary in built.path.parents
    run_affine(built, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        run_affine(build(step_source("affine", SCALE=scale + 1)), scale + 1)


def test_a_world_writable_folder_is_refused(root, quick_temporary):
    root.chmod(0o777)
    builds_in_temporary_folder(10, "chmod go-w", quick_temporary)
    assert not (root / "steps").exists()


def test_modules_in_a_world_writable_folder_are_not_loaded(root, quick_temporary):
    assert build(step_source("affine", SCALE=11)).origin == "compiled"
    cache.forget_loaded()
    folder._opened.pop((str(root), "on", os.getpid()))
    root.chmod(0o777)
    with pytest.warns(PequegradWarning):
        assert build(step_source("affine", SCALE=11)).origin == "compiled"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(root, quick_temporary):
    os.chown(root, 12345, -1)
    builds_in_temporary_folder(12, "another user", quick_temporary)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_read_only_folder_costs_a_warning_not_the_step(root, quick_temporary, monkeypatch, number):
    real = os.mkdir

    def mkdir(path, *arguments, **keywords):
        if Path(path).is_relative_to(root):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "mkdir", mkdir)
    builds_in_temporary_folder(13, os.strerror(number), quick_temporary)


def test_a_disk_that_fills_up_while_the_compiler_writes_costs_a_warning(root, quick_temporary, monkeypatch):
    compile_objects = toolchain.compile_objects

    def fill(compiler, flags, includes, source, outputs):
        if Path(outputs[0]).is_relative_to(root):
            text = "as: fatal error: closing step1.o: No space left on device"
            return [toolchain.CommandResult(("g++",), 1, text, 0.1)]
        return compile_objects(compiler, flags, includes, source, outputs)

    monkeypatch.setattr(toolchain, "compile_objects", fill)
    builds_in_temporary_folder(15, "No space left", quick_temporary)


def test_a_place_where_no_folder_can_be_made_costs_a_warning(root, quick_temporary, monkeypatch):
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", "/proc/no-such-place/cache")
    builds_in_temporary_folder(17, "is not used", quick_temporary)


def test_a_read_only_folder_still_serves_what_it_holds(root, monkeypatch):
    build(step_source("affine", SCALE=19))
    cache.forget_loaded()

    def refuse(*arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "utime", "replace", "rename", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(step_source("affine", SCALE=19)).origin == "disk"


def test_readonly_mode_reads_hits_and_writes_nothing(root, quick_temporary):
    build(step_source("affine", SCALE=20))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    cache.forget_loaded()
    with config(cache="readonly"):
        assert build(step_source("affine", SCALE=20)).origin == "disk"
        missed = build(step_source("affine", SCALE=21))
        assert missed.origin == "compiled" and quick_temporary in missed.path.parents
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_off_writes_nothing_into_the_cache_and_leaves_no_temporary_folder(root):
    before = sorted(root.rglob("*"))
    printed = run_python(
        f"""
        import shutil
        from pathlib import Path
        from pequegrad import config
        from pequegrad.build import folder
        from tests.build.helpers import build, step_source
        config.cache = "off"
        shutil.copytree({str(root / folder.BINDINGS)!r}, Path(folder.temporary_root().path, folder.BINDINGS))
        built = build(step_source("affine", SCALE=22))
        assert built.origin == "compiled" and built.path.exists()
        print(built.path)
        """
    )
    assert sorted(root.rglob("*")) == before
    place = Path(printed.strip())
    assert not place.exists() and not place.parents[3].exists()


def test_the_code_of_a_template_is_believed_only_while_it_is_whole(root):
    opened, code = folder.open_root(), bytes(range(200))
    opened.keep_code("ab12", code)
    assert opened.recall_code("ab12") == code
    assert opened.recall_code("ab13") is None
    place = root / folder.CODES / "ab" / "ab12"
    for damaged in (place.read_bytes()[:-1], place.read_bytes()[:8], place.read_bytes()[:-1] + b"x"):
        place.write_bytes(damaged)
        assert opened.recall_code("ab12") is None
        opened.keep_code("ab12", code)
        assert opened.recall_code("ab12") == code
    cache.clear()
    assert not place.exists()
