"""The thread pool under a stress program, plain and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.runtime.native import HERE, INCLUDE, compile_cpp
from tests.sanitizing import THREAD, find_sanitizer


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=100)


def test_regions_barriers_sleep_growth_callers_and_fork(tmp_path: Path) -> None:
    program = tmp_path / "pool"
    compile_cpp(
        [
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{INCLUDE}",
            str(HERE / "pool_stress.cpp"),
            "-pthread",
            "-o",
            str(program),
        ]
    )
    done = run(program)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr


def test_no_data_race_under_thread_sanitizer(tmp_path: Path) -> None:
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-I{INCLUDE}"]
    program = find_sanitizer(THREAD, tmp_path).build(tmp_path / "pool", [*flags, str(HERE / "pool_stress.cpp")])
    done = run(program, "no-fork")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr
