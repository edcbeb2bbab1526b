"""The compiler: found or missed with the cure, its errors quoted, killed with its caller."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.build import cache, programs, toolchain
from pequegrad.errors import ToolchainError
from tests.build.helpers import build, run_affine, start_python, step_source
from tests.build.test_cache import wait_for


def test_a_compiler_error_shows_the_message_and_where_source_and_log_lie(root):
    with pytest.raises(ToolchainError) as caught:
        build(step_source("broken"))
    message = str(caught.value)
    assert re.search("this_name_is_missing.* was not declared", message)
    paths = dict(line.split(":", 1) for line in message.splitlines() if line.startswith(("source:", "log:")))
    assert "this_name_is_missing" in Path(paths["source"].strip()).read_text()
    assert "this_name_is_missing" in Path(paths["log"].strip()).read_text()
    assert "-O2" in message


def test_no_compiler_names_the_cure(root, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"looked for g\+\+, c\+\+, clang\+\+.*apt install g\+\+.*CXX"):
        build(step_source("affine", SCALE=2))


def test_a_cxx_that_is_not_there_is_named(root, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(ToolchainError, match="CXX is 'no-such-compiler -m64'"):
        build(step_source("affine", SCALE=2))


def test_a_cxx_that_does_not_run_is_named(root, monkeypatch, tmp_path):
    script = tmp_path / "bad"
    script.write_text("#!/bin/sh\necho out of order; exit 3\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(ToolchainError, match=r"does not run(.|\n)*out of order"):
        build(step_source("affine", SCALE=2))


def test_cxx_may_carry_arguments_and_cxxflags_reach_the_compiler(root, compiler, monkeypatch):
    monkeypatch.setenv("CXX", f"{compiler.script} -DFROM_CXX=1")
    monkeypatch.setenv("CXXFLAGS", '-DSCALE=6 "-DTEXT=a b"')
    run_affine(build(step_source("affine")), 6)
    assert "-DFROM_CXX=1" in compiler.calls[0] and "-DTEXT=a b" in compiler.calls[0]


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++ on this machine")
def test_clang_builds_a_step_and_what_all_steps_share(root, monkeypatch):
    """To clang a specialization of a variable is a definition in each file, and linking them failed."""
    monkeypatch.setenv("CXX", "clang++")
    x, w = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((5, 7), (7, 3)))
    step = pg.compile(lambda x, w: (x @ w).relu().sum(), strict=True)
    assert step(pg.Tensor(x), pg.Tensor(w)).item() == pytest.approx(np.maximum(x @ w, 0).sum(), rel=1e-5)


def test_ctrl_c_kills_the_compiler_and_leaves_no_half_build(root, compiler):
    compiler.pause.touch()
    process = start_python(
        """
        import signal
        from tests.build.helpers import build, step_source
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us ignore it
        try:
            build(step_source("affine", SCALE=2))
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    compiler_process = int(wait_for(compiler.waiting))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out.strip() == "interrupted", err
    deadline = time.monotonic() + 10
    while Path(f"/proc/{compiler_process}").exists():
        assert time.monotonic() < deadline, "the compiler lives on"
        time.sleep(0.02)
    assert not cache.entries() and not list(root.glob("steps/*/.tmp-*"))


def test_a_step_of_two_objects_is_one_module_and_leaves_no_object(root):
    built = build(step_source("twofold", SCALE=3))
    run_affine(built, 3)
    log = (built.path.parent / "build.log").read_text()
    assert "-DPG_OBJECT=1" in log and "-DPG_OBJECT=2" in log and log.count("[exit status 0") == 3
    assert list(built.path.parent.glob("*.o")) == []


def test_an_error_in_the_second_object_is_the_step_s_and_keeps_its_source(root):
    with pytest.raises(ToolchainError, match=r"this_name_is_missing.* was not declared") as caught:
        build(step_source("twofold", SCALE=3, BROKEN=1))
    assert "-DPG_OBJECT=2" in str(caught.value)
    assert not cache.entries() and not list(root.glob("steps/*/.tmp-*"))


def test_commands_run_at_the_same_time(tmp_path):
    """Each waits for what the other writes."""
    results = toolchain.run_commands(
        [
            ["sh", "-c", f"touch {tmp_path / mine}; until [ -e {tmp_path / other} ]; do sleep 0.01; done; echo {mine}"]
            for mine, other in (("a", "b"), ("b", "a"))
        ]
    )
    assert [(result.status, result.output) for result in results] == [(0, "a\n"), (0, "b\n")]


def test_ctrl_c_kills_all_commands_that_run(tmp_path):
    process = start_python(
        f"""
        import signal
        from pequegrad.build import toolchain
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            toolchain.run_commands([["sh", "-c", f"echo $$ > {tmp_path}/{{name}}; sleep 60"] for name in "ab"])
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    commands = [int(wait_for(tmp_path / name)) for name in "ab"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out.strip() == "interrupted", err
    assert not [number for number in commands if Path(f"/proc/{number}").exists()]


def test_a_command_that_cannot_start_ends_those_that_run(tmp_path):
    running = tmp_path / "running"
    with pytest.raises(ToolchainError, match="cannot start"):
        toolchain.run_commands([["sh", "-c", f"echo $$ > {running}; sleep 60"], [str(tmp_path / "missing")]])
    if running.exists() and running.read_text():
        assert not Path(f"/proc/{running.read_text().strip()}").exists()


def test_missing_python_headers_name_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ToolchainError, match="python3-dev"):
        toolchain.python_include_folders()


def test_the_stamp_of_a_command_follows_the_compiler_behind_a_launcher(tmp_path, monkeypatch):
    for name in ("launcher", "realcxx"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    command = (str(tmp_path / "launcher"), "realcxx")
    before = programs.command_stamp(command)
    (tmp_path / "realcxx").write_text("#!/bin/sh\n# upgraded\n")
    assert programs.command_stamp(command) != before
