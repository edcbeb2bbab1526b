"""How the `.cu` texts of this folder are compiled for the simulator, and what its plain C functions say.

Invariant: the text that g++ gets here is the text that nvcc gets in test_nvcc.py.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "runtime" / "include"
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
LIBRARY_FLAGS = ["-fPIC", "-shared", "-fvisibility=hidden"]

# The order of `enum pg_sim_statistic`.
# fmt: off
STATISTICS = [
    "launches", "graph_launches", "kernels", "copies_to_device", "bytes_to_device", "copies_to_host",
    "bytes_to_host", "copies_on_device", "bytes_on_device", "memsets", "loads", "load_sectors", "stores",
    "store_sectors", "shared_accesses", "bank_conflicts", "barriers", "grid_barriers", "synchronizations",
    "allocated", "peak_allocated", "switches",
]
# fmt: on


def compile_text(source: Path, output: Path, *flags: str) -> Path:
    """Compile a `.cu` as C++ with g++; skip the test where there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ on this machine")
    done = subprocess.run([compiler, *FLAGS, *flags, str(source), "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return output


class Simulated:
    """One compiled text: its functions by name, and the simulator inside it."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.pg_sim_last_report.restype = ctypes.c_char_p

    def configure(self, seed: int, *, traffic: bool = False, memory: int = 0) -> None:
        """Set the seed, zero the statistics, forget a failure."""
        self.library.pg_sim_configure(ctypes.c_ulong(seed), int(traffic), ctypes.c_long(memory))
        self.statistics()

    def statistics(self) -> dict[str, int]:
        """Return what was counted since the last call."""
        counted = (ctypes.c_long * len(STATISTICS))()
        self.library.pg_sim_statistics(counted, len(STATISTICS), 1)
        return dict(zip(STATISTICS, counted))

    def report(self) -> str:
        return self.library.pg_sim_last_report().decode()

    def call(self, name: str, *arguments: np.ndarray | int) -> int:
        """Call an exported function: arrays go as pointers, numbers as int."""
        converted = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments]
        return int(getattr(self.library, name)(*converted))
