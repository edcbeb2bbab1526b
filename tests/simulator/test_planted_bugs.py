"""Planted mistakes are seen with every seed; the same kernels without them are right."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.simulating import Simulated

KERNELS = [
    "block_sum", "tile", "wait_for_copy", "shared_bounds", "global_bounds", "divergent", "phases", "histogram", "far_behind",
    "far_before",
]  # fmt: skip
VALUES = (np.random.default_rng(0).integers(0, 50, 4096)).astype(np.float32)


def run(planted: Simulated, name: str, bug: bool, seed: int) -> tuple[int, np.ndarray]:
    planted.configure(seed)
    out = np.zeros({"phases": 2048, "histogram": 4}.get(name, 256), np.float32)
    return planted.call("run_planted", KERNELS.index(name), int(bug), VALUES, len(VALUES), out, out.size), out


def expected(name: str) -> np.ndarray:
    if name == "block_sum":
        return np.full(256, VALUES.sum())
    if name == "tile":
        return VALUES.reshape(16, 16, 16).sum(0).T.ravel()
    if name == "wait_for_copy":
        return VALUES.reshape(-1, 256).sum(0)
    if name == "phases":
        return np.concatenate([VALUES[1023::-1] + 4096, VALUES[:1024] + 4096])
    if name == "histogram":
        return np.full(4, 1024)
    return VALUES[255::-1] if name == "divergent" else VALUES[:256]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KERNELS)
def test_the_right_kernel_is_right(planted: Simulated, name: str, seed: int) -> None:
    status, out = run(planted, name, False, seed)
    assert status == 0, planted.report()
    np.testing.assert_array_equal(out, expected(name))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["block_sum", "tile", "wait_for_copy", "phases", "histogram"])
def test_a_race_gives_wrong_numbers(planted: Simulated, name: str, seed: int) -> None:
    status, out = run(planted, name, True, seed)
    assert status == 0, planted.report()
    assert not np.array_equal(out, expected(name))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shared_bounds", "wrote out of bounds of static shared memory of 1024 bytes, at byte 1024"),
        ("global_bounds", "wrote out of bounds of global memory of 1024 bytes, at byte 1024"),
        ("far_behind", "store of 4 bytes at byte "),
        ("far_before", "store of 4 bytes at byte -"),
        ("divergent", "17 of 256 threads wait at __syncthreads ("),
    ],
)
def test_a_broken_rule_is_a_launch_failure_with_a_report(planted: Simulated, name: str, text: str, seed: int) -> None:
    status, _ = run(planted, name, True, seed)
    assert status == 719
    assert "choose(which, bug != 0)" in planted.report()  # the kernel, as the launch names it
    assert text in planted.report()
