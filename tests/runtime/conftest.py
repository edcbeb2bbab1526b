"""Build the C++ probes of this folder, once per vector width, and hand them over as ctypes libraries.

Invariant: every probe includes the runtime's own headers and is compiled with the flags a step is compiled with.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "runtime" / "include"
FLAGS = (
    "-std=c++17 -O2 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fPIC -fvisibility=hidden "
    "-Wall -Wextra -Werror -Wno-psabi"
).split()
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


@pytest.fixture(params=sorted(WIDTHS, reverse=True), ids=lambda lanes: f"lanes{lanes}", scope="session")
def lanes(request: pytest.FixtureRequest) -> int:
    march, features = WIDTHS[request.param]
    if request.param > 1 and platform.machine() not in ("x86_64", "AMD64"):
        if request.param != 4:
            pytest.skip(f"{march} is for x86-64")
    elif not features <= cpu_features():
        pytest.skip(f"this CPU lacks {sorted(features - cpu_features())}")
    return int(request.param)


@pytest.fixture(scope="session")
def build(lanes: int, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """Return a function that compiles `<name>.cpp` of this folder for `lanes` and loads it."""
    folder = tmp_path_factory.mktemp(f"lanes{lanes}")
    march = WIDTHS[lanes][0] if platform.machine() in ("x86_64", "AMD64") else "-O2"
    loaded: dict[str, ctypes.CDLL] = {}

    def load(name: str) -> ctypes.CDLL:
        if name not in loaded:
            library = folder / f"{name}.so"
            compile_cpp(
                [*FLAGS, march, f"-DPG_LANES={lanes}", f"-I{INCLUDE}", "-shared", str(HERE / f"{name}.cpp"), "-o", str(library)]
            )
            loaded[name] = ctypes.CDLL(str(library))
        return loaded[name]

    return load
