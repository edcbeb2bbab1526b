"""The texts that the simulator runs compile with nvcc, byte for byte the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.simulator.simulating import HERE, INCLUDE


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("name", ["device", "planted", "host"])
def test_nvcc_takes_the_same_text(name: str, architecture: str, tmp_path: Path) -> None:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if not nvcc:
        pytest.skip("no nvcc on this machine")
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, "-std=c++17", "-gencode", target, "-Xptxas=-v", "-Werror=all-warnings", "-diag-suppress=177"]
    command += [f"-I{INCLUDE}", "-c", str(HERE / f"{name}.cu"), "-o", str(tmp_path / f"{name}.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    assert "spill stores" not in done.stderr.replace("0 bytes spill stores", ""), done.stderr
