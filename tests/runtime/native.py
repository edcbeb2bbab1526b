"""How the C++ probes of this folder are compiled: the runtime's own headers, the flags a step is compiled with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "runtime" / "include"
FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
# Lanes, the architecture flag that goes with them, and the CPU features that a machine needs to run the result.
WIDTHS = {
    16: ("-march=native", {"avx512f", "avx512dq", "avx512vl", "avx512bw"}),
    8: ("-march=x86-64-v3", {"avx2", "fma", "bmi2"}),
    4: ("-march=x86-64-v2", {"sse4_2", "popcnt"}),
    1: ("-march=native", set()),
}


def cpu_features() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())


def compile_cpp(arguments: list[str]) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ on this machine")
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
