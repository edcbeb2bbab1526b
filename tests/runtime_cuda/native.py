"""How the CUDA probes of this folder are compiled: by g++ against the simulator, and by nvcc as a checker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INCLUDE = HERE.parents[1] / "runtime" / "include"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"]


def compile_probe(name: str, library: Path) -> None:
    """Compile ``<name>.cu`` of this folder, simulator included, into a shared library."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ on this machine")
    command = [compiler, *FLAGS, f"-I{INCLUDE}", "-shared", "-x", "c++", str(HERE / f"{name}.cu"), "-o", str(library)]
    done = subprocess.run([*command, "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


@dataclass(frozen=True, slots=True)
class KernelUse:
    """What ptxas reports of one kernel."""

    name: str
    registers: int
    spilled_bytes: int


def compile_with_nvcc(name: str, arch: str, folder: Path) -> list[KernelUse]:
    """Compile ``<name>.cu`` for ``arch``; return what its kernels use."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc on this machine")
    code = f"arch=compute_{arch},code=sm_{arch}"
    command = [nvcc, "-std=c++17", "-gencode", code, "-Xptxas", "-v", f"-I{INCLUDE}", "-c", str(HERE / f"{name}.cu")]
    done = subprocess.run([*command, "-o", str(folder / f"{name}_{arch}.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    report = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.S,
    )
    return [
        KernelUse(kernel, int(registers), int(stores) + int(loads))
        for kernel, stores, loads, registers in report.findall(done.stderr)
    ]
