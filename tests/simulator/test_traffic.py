"""Counters of memory traffic, pinned for kernels whose traffic is known on paper."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.simulating import Simulated

N = 2048


def counted(device: Simulated, name: str, *arguments: np.ndarray | int, seed: int = 0) -> dict[str, int]:
    device.configure(seed, traffic=True)
    assert device.call(name, *arguments) == 0, device.report()
    return device.statistics()


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (32, 32)])
def test_a_warp_loads_as_many_sectors_as_its_stride_spreads_over(device: Simulated, stride: int, sectors: int) -> None:
    values, out = np.arange(N * stride, dtype=np.float32), np.zeros(N, np.float32)
    seen = counted(device, "run_copy", values, out, N, stride)
    np.testing.assert_array_equal(out, values[::stride])
    warps = N // 32
    assert (seen["loads"], seen["load_sectors"]) == (warps, warps * sectors)
    assert (seen["stores"], seen["store_sectors"]) == (warps, warps * 4)


def test_vectors_of_16_bytes_need_a_quarter_of_the_loads(device: Simulated) -> None:
    values, out = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    seen = counted(device, "run_copy_vectors", values, out)
    assert (seen["loads"], seen["load_sectors"], seen["stores"], seen["store_sectors"]) == (2, 32, 2, 32)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("padded", "conflicts"), [(0, 31), (1, 0)])
def test_a_padded_transpose_has_no_bank_conflicts(device: Simulated, padded: int, conflicts: int, seed: int) -> None:
    values, out = np.arange(64 * 64, dtype=np.float32).reshape(64, 64), np.zeros((64, 64), np.float32)
    seen = counted(device, "run_transpose", values, out, 64, padded, seed=seed)
    np.testing.assert_array_equal(out, values.T)
    rows = 4 * 32  # four tiles of 32 rows; each row is one access of one warp, written and read
    assert seen["shared_accesses"] == 2 * rows
    assert seen["bank_conflicts"] == rows * conflicts
    assert (seen["loads"], seen["load_sectors"], seen["store_sectors"]) == (rows, 4 * rows, 4 * rows)
    assert seen["barriers"] == 4


def test_launches_copies_and_bytes_are_counted_and_reset(device: Simulated) -> None:
    values, out = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    seen = counted(device, "run_copy", values, out, N, 1)
    assert (seen["launches"], seen["kernels"], seen["graph_launches"]) == (1, 1, 0)
    assert (seen["copies_to_device"], seen["bytes_to_device"]) == (1, 4 * N)
    assert (seen["copies_to_host"], seen["bytes_to_host"]) == (1, 4 * N)
    assert (seen["allocated"], seen["peak_allocated"]) == (0, 8 * N)
    assert set(device.statistics().values()) == {0}


def test_traffic_is_counted_on_request_only(device: Simulated) -> None:
    device.configure(0)
    values, out = np.arange(N, dtype=np.float32), np.zeros(N, np.float32)
    assert device.call("run_copy", values, out, N, 1) == 0
    seen = device.statistics()
    assert (seen["launches"], seen["loads"], seen["stores"], seen["shared_accesses"]) == (1, 0, 0, 0)
