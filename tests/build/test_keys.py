"""Cache keys: whatever could change a module changes its key, and what cannot does not."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from pequegrad import targets
from pequegrad.build import cache, keys, programs
from pequegrad.records import replace


class NoMemo:
    """A memo that forgets."""

    def get(self, name, stamp):
        return None

    def put(self, name, stamp, value):
        pass


class DictionaryMemo(dict):
    """A memo in memory."""

    def get(self, name, stamp):
        return super().get((name, stamp))

    def put(self, name, stamp, value):
        self[name, stamp] = value


def digest(plan="plan", target=None, name="step"):
    return cache.make_key(plan, target or targets.get("cpp"), name=name).digest


def test_the_key_is_the_same_for_the_same_things_whatever_the_step_is_called(root):
    assert digest() == digest(name="another name")


def test_the_plan_changes_the_key(root):
    assert digest("plan") != digest("another plan")


def test_flags_and_instruction_set_change_the_key(root, monkeypatch):
    target = targets.get("cpp")
    seen = {digest(), digest(target=replace(target, flags=(*target.flags, "-g")))}
    seen |= {digest(target=targets.get("cpp", instruction_set=each.name)) for each in targets.INSTRUCTION_SETS}
    monkeypatch.setenv("CXXFLAGS", "-DEXTRA=1")
    seen.add(digest())
    assert len(seen) == 3 + len(targets.INSTRUCTION_SETS)


def test_the_version_of_the_compiler_changes_the_key(root, compiler):
    first = digest()
    assert digest() == first
    compiler.set_version("watched g++ 2.0")
    assert digest() != first


def test_the_processor_changes_the_key_of_native_code_only(root, monkeypatch):
    native, portable = digest(), digest(target=targets.get("cpp", instruction_set="scalar"))
    monkeypatch.setattr(targets, "host_processor", lambda: "another processor")
    assert digest() != native
    assert digest(target=targets.get("cpp", instruction_set="scalar")) == portable


def test_the_python_and_pybind11_change_the_key(root, monkeypatch):
    first = digest()
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_pybind11_version", lambda memo: "0.0")
        second = digest()
    monkeypatch.setattr(programs, "python_tag", lambda: ".another-python.so")
    assert len({first, second, digest()}) == 3


@pytest.mark.parametrize("part", ["include/pequegrad/step.h", "binding/binding.cpp"])
def test_an_edited_header_changes_the_key(root, tmp_path, monkeypatch, part):
    runtime = tmp_path / "runtime"
    shutil.copytree(keys.runtime_folder(), runtime)
    monkeypatch.setattr(keys, "runtime_folder", lambda: str(runtime))
    first = digest()
    header = runtime / part
    header.write_text(header.read_text() + "// an edit\n")
    assert digest() != first


@pytest.mark.parametrize("room", ["templates", "codegen", "ops"])
def test_an_edited_template_or_generator_changes_the_key(root, tmp_path, monkeypatch, room):
    package = tmp_path / "package"
    (package / room).mkdir(parents=True)
    runtime = keys.runtime_folder()
    monkeypatch.setattr(keys, "runtime_folder", lambda: runtime)
    monkeypatch.setattr(keys, "_PACKAGE", str(package))
    before = digest()
    (package / room / "kernel.py").write_text("first = 1\n")
    first = digest()
    (package / room / "kernel.py").write_text("first = 2\n")
    assert len({before, first, digest()}) == 3


def test_a_folder_is_read_again_only_when_a_file_in_it_has_changed(tmp_path, monkeypatch):
    file = tmp_path / "a.h"
    file.write_text("one")
    monkeypatch.setattr(keys, "_SETTLED_SECONDS", 0.0)
    time.sleep(0.05)
    memo = DictionaryMemo()
    first = keys.hash_folders(memo, str(tmp_path))
    assert len(memo) == 1
    monkeypatch.setattr("builtins.open", None)  # a reader would fail
    assert keys.hash_folders(memo, str(tmp_path)) == first
    monkeypatch.undo()
    status = file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same mtime
    assert keys.hash_folders(memo, str(tmp_path)) != first


def test_a_file_that_was_written_a_moment_ago_is_not_trusted_to_its_stamp(tmp_path):
    (tmp_path / "a.h").write_text("one")
    memo = DictionaryMemo()
    keys.hash_folders(memo, str(tmp_path))
    assert not memo


def test_names_count_as_well_as_contents_and_hidden_files_do_not(tmp_path):
    (tmp_path / "a.h").write_text("one")
    first = keys.hash_folders(NoMemo(), str(tmp_path))
    (tmp_path / ".a.h.swp").write_text("editor")
    assert keys.hash_folders(NoMemo(), str(tmp_path)) == first
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    assert keys.hash_folders(NoMemo(), str(tmp_path)) != first


def test_the_binding_is_compiled_again_for_every_header_that_it_includes():
    runtime = Path(keys.runtime_folder())
    included, waiting = set(), ["binding/binding.cpp"]
    while waiting:
        name = waiting.pop()
        included.add(name)
        text = (runtime / name).read_text()
        for header in re.findall(r'#include (?:"|<pequegrad/)([\w./]+)[">]', text):
            beside = f"{name.rpartition('/')[0]}/{header}"
            path = beside if (runtime / beside).exists() else f"include/pequegrad/{header}"
            waiting += [path] if path not in included else []
    assert included == set(keys.BINDING_SOURCES)
