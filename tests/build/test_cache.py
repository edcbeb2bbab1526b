"""The disk cache: hits, races, killed builds, broken files, eviction."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from pequegrad import config, targets
from pequegrad.build import cache, folder
from tests.build.helpers import build, run_affine, run_python, start_python, step_source

BUILD_AND_PRINT = """
import json, sys
import numpy
from pequegrad import targets
from pequegrad.build import cache
started = []
sys.addaudithook(lambda event, details: started.append(event) if event == "subprocess.Popen" else None)
from tests.build.helpers import step_source
source, rendered = step_source("affine", SCALE={scale}), []
def render():
    rendered.append(1)
    return source
key = cache.make_key(source, targets.get("cpp"), name="affine")
built = cache.get_or_build(key, render, targets.get("cpp"))
built.module.configure([(1024, False), (1024, True)], 1024)
out = numpy.zeros(256, numpy.float32)
built.module.run([numpy.ones(256, numpy.float32), out], 1)
heavy = [name for name in ("jinja2", "pybind11", "filelock", "importlib.metadata") if name in sys.modules]
print(json.dumps(dict(
    origin=built.origin, rendered=len(rendered), heavy=heavy, started=len(started), out=float(out[7])
)))
"""


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text().strip()


def entry_folder(root: Path) -> Path:
    (found,) = (root / folder.STEPS).glob("*/*")
    return found


def test_a_step_comes_from_the_compiler_then_from_memory_then_from_disk(root):
    source = step_source("affine", SCALE=2)
    assert build(source).origin == "compiled"
    assert build(source).origin == "memory"
    cache.forget_loaded()
    again = build(source)
    assert again.origin == "disk"
    run_affine(again, 2)


def test_a_hit_in_a_new_process_renders_nothing_imports_no_build_tool_and_starts_no_process(root):
    first = json.loads(run_python(BUILD_AND_PRINT.format(scale=2)))
    assert first["origin"] == "compiled" and first["rendered"] == 1 and first["started"] > 0
    second = json.loads(run_python(BUILD_AND_PRINT.format(scale=2)))
    assert second == {"origin": "disk", "rendered": 0, "heavy": [], "started": 0, "out": 3.0}


def test_an_entry_holds_source_log_module_and_a_readable_key(root):
    built = build(step_source("affine", SCALE=2), name="Model.train_step")
    names = {path.name for path in built.path.parent.iterdir()}
    assert names == {"Model.train_step.cpp", "build.log", "key.json", built.path.name}
    key = json.loads((built.path.parent / "key.json").read_text())["key"]
    assert {
        "plan",
        "templates",
        "headers",
        "compiler_version",
        "flags",
        "processor",
        "python",
        "pybind11",
    } <= set(key)
    assert "-O2" in (built.path.parent / "build.log").read_text()


def test_two_processes_that_want_one_step_make_one_build_and_are_both_right(root, compiler):
    compiler.pause.touch()
    first = start_python(BUILD_AND_PRINT.format(scale=3))
    wait_for(compiler.waiting)
    second = start_python(BUILD_AND_PRINT.format(scale=3))
    time.sleep(0.5)  # let it come to the lock; were it late, it would still have to find the finished entry
    compiler.pause.unlink()
    results = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert [result["out"] for result in results] == [4.0, 4.0]
    assert sorted(result["origin"] for result in results) == ["compiled", "disk"]
    assert len(compiler.calls) == 1


def test_a_build_that_was_killed_half_way_is_taken_over_and_swept(root, compiler):
    compiler.pause.touch()
    process = start_python(BUILD_AND_PRINT.format(scale=4))
    compiler_process = int(wait_for(compiler.waiting))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    os.kill(compiler_process, signal.SIGKILL)  # nobody is left to do that
    assert list(root.glob("steps/*/.tmp-*")), "the killed build should have left its folder"
    assert not cache.entries()
    compiler.pause.unlink()
    built = build(step_source("affine", SCALE=4))
    assert built.origin == "compiled"
    run_affine(built, 4)
    assert not list(root.glob("steps/*/.tmp-*"))


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied", "removed", "another_step"])
def test_a_damaged_module_is_built_again_and_never_loaded(root, damage):
    source = step_source("affine", SCALE=5)
    path = build(source).path
    data = path.read_bytes()
    # Replaced, not written over: the file is mapped into this process.
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "another_step":
        path.write_bytes(build(step_source("affine", SCALE=50)).path.read_bytes())
    problems = {info.digest: info.problem for info in cache.verify()}
    assert problems[path.parent.name] is not None
    cache.forget_loaded()
    again = build(source)
    assert again.origin == "compiled"
    run_affine(again, 5)
    assert all(info.problem is None for info in cache.verify())


@pytest.mark.parametrize("record", ["", "[1, 2]", "{}", '{"key": {"plan": "another"}}'])
def test_an_entry_with_a_damaged_record_is_built_again(root, record):
    source = step_source("affine", SCALE=6)
    (build(source).path.parent / "key.json").write_text(record)
    assert [info.problem for info in cache.verify()] != [None]
    cache.forget_loaded()
    assert build(source).origin == "compiled"


def test_a_truncated_binding_is_built_again(root, compiler):
    build(step_source("affine", SCALE=7))
    binding = max(root.glob("bindings/*/*/binding.o"), key=lambda path: path.stat().st_mtime)
    binding.write_bytes(binding.read_bytes()[:1000])
    run_affine(build(step_source("affine", SCALE=8)), 8)


def test_the_least_recently_used_entry_is_evicted_and_the_one_in_use_is_not(root):
    sources = [step_source("gather", NUMBER=number) for number in range(4)]
    built = [build(source) for source in sources[:3]]
    for age, step in zip((300, 200, 100), built):
        os.utime(step.path.parent / "key.json", (time.time() - age,) * 2)
    cache.forget_loaded()
    assert build(sources[0]).origin == "disk"  # so the second is now the one that waits longest
    in_use = filelock.FileLock(root / "locks" / f"{built[2].path.parent.name}.lock")
    with in_use, config(cache_size_mb=2):
        filler = built[1].path.parent / "filler"
        filler.write_bytes(bytes(2 * 2**20))
        build(sources[3])
    left = {info.folder for info in cache.entries()}
    assert built[1].path.parent not in left
    assert {built[0].path.parent, built[2].path.parent} <= left and len(left) == 3


def test_a_lock_held_elsewhere_protects_an_entry_from_eviction(root):
    kept, evicted, new = (step_source("gather", NUMBER=number) for number in range(3))
    folders = []
    for age, source in ((300, kept), (200, evicted)):
        folders.append(build(source).path.parent)
        (folders[-1] / "filler").write_bytes(bytes(2**20))
        os.utime(folders[-1] / "key.json", (time.time() - age,) * 2)
    with filelock.FileLock(root / "locks" / f"{folders[0].name}.lock"), config(cache_size_mb=1):
        build(new)
    assert folders[0].exists() and not folders[1].exists()


def test_a_failed_build_leaves_no_entry_and_the_next_try_builds(root):
    target = targets.get("cpp")
    key = cache.make_key("a plan", target, name="step")
    with pytest.raises(Exception, match="this_name_is_missing"):
        cache.get_or_build(key, lambda: step_source("broken"), target)
    assert not cache.entries() and not list(root.glob("steps/*/.tmp-*"))
    built = cache.get_or_build(key, lambda: step_source("affine", SCALE=9), target)
    run_affine(built, 9)


def test_clear_removes_steps_and_bindings_and_says_how_much(root):
    build(step_source("affine", SCALE=2))
    assert cache.stats().entries == 1
    freed = cache.clear()
    assert freed > 100_000
    stats = cache.stats()
    assert (stats.entries, stats.bindings) == (0, 0)


def test_an_instruction_set_that_this_processor_lacks_is_refused_before_building(root):
    other = targets.get("cpp", instruction_set="neon" if targets.host_machine() == "x86_64" else "x86-64-v3")
    with pytest.raises(Exception, match="cannot run on this processor"):
        build(step_source("affine", SCALE=2), target=other)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v2", "scalar"])
def test_a_step_is_right_on_narrower_instruction_sets(root, name):
    target = targets.get("cpp", instruction_set=name)
    if not target.instruction_set.runs_on(targets.host_machine(), targets.host_features()):
        pytest.skip(f"this processor lacks {name}")
    run_affine(build(step_source("affine", SCALE=2), target=target), 2)


def test_the_parts_that_depend_on_no_graph_are_compiled_once_for_all_steps(root, tmp_path):
    """A step with a product has the micro-kernels from the object that steps share, and not from its own text."""
    source = step_source("product")
    built = build(source)
    log = (built.path.parent / "build.log").read_text()
    assert "-DPG_PARTS_APART" in log and "parts.o" in log
    # Of other instruction sets too, where tests before had them built.
    before = sorted(root.glob("bindings/*/*/parts.o"))
    assert before
    build(step_source("product", SCALE=2))
    assert sorted(root.glob("bindings/*/*/parts.o")) == before
    a, b, out = (
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.eye(4, dtype=np.float32),
        np.zeros((3, 4), np.float32),
    )
    built.module.configure([(48, False), (64, False), (48, True)], 1024)
    built.module.run([a, b, out], 1)
    np.testing.assert_array_equal(out, a)
