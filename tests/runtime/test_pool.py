"""The thread pool under a stress program, plain and under ThreadSanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.runtime.native import HERE, INCLUDE, compile_cpp


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
    probe, program = tmp_path / "probe.cpp", tmp_path / "pool"
    probe.write_text("int main() { return 0; }\n")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    try:
        compile_cpp([*flags, str(probe), "-o", str(tmp_path / "probe")])
        works = run(tmp_path / "probe").returncode == 0
    except AssertionError:
        works = False
    if not works:
        pytest.skip("ThreadSanitizer does not work here")
    compile_cpp([*flags, f"-I{INCLUDE}", str(HERE / "pool_stress.cpp"), "-o", str(program)])
    done = run(program, "no-fork")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr
