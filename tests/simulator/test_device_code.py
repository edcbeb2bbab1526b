"""Every name of device code does what CUDA's does, in any order of threads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.simulator.simulating import Simulated

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


@SEEDS
def test_shuffles_and_votes_give_what_the_manual_says(device: Simulated, seed: int) -> None:
    device.configure(seed)
    values = np.arange(64, dtype=np.int32) * 3 + 1
    out = np.zeros((64, 12), np.int32)
    assert device.call("run_warp_values", values, out) == 0, device.report()
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    source = {
        0: warp + 5,
        1: warp + lane // 8 * 8 + (lane + 1) % 8,
        2: warp + (lane ^ 3),
        3: warp + np.where(lane % 16 + 4 < 16, lane + 4, lane),
        4: warp + np.where(lane % 16 >= 4, lane - 4, lane),
        8: warp + np.where(lane < 16, lane ^ 1, lane ^ 2),
    }
    for column, lanes in source.items():
        np.testing.assert_array_equal(out[:, column], values[lanes], err_msg=f"column {column}")
    ballot = sum(1 << i for i in range(32) if i % 3 == 0)
    np.testing.assert_array_equal(out[:, 5].view(np.uint32), ballot)
    np.testing.assert_array_equal(out[:, [6, 7, 9, 10, 11]], np.broadcast_to([1, 0, 1, 1, 16], (64, 5)))


def test_atomics_lose_nothing_and_threads_run_in_another_order_for_each_seed(device: Simulated) -> None:
    orders = []
    for seed in range(3):
        device.configure(seed)
        out, total = np.zeros(1 + 32 * 5, np.int32), np.zeros(1, np.float32)
        assert device.call("run_tickets", out, total, 5) == 0
        assert out[0] == 160 and total[0] == 80.0
        assert sorted(out[1:]) == list(range(160))
        orders.append(out[1:].reshape(5, 32))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert any(np.argsort(order.min(1)).tolist() != [0, 1, 2, 3, 4] for order in orders), "blocks in order"


def test_the_same_seed_gives_the_same_order(device: Simulated) -> None:
    seen = []
    for _ in range(2):
        device.configure(7)
        out, total = np.zeros(1 + 32 * 5, np.int32), np.zeros(1, np.float32)
        device.call("run_tickets", out, total, 5)
        seen.append(out)
    np.testing.assert_array_equal(*seen)


def test_maximum_minimum_exchange_and_wide_atomics(device: Simulated) -> None:
    device.configure(1)
    values = np.random.default_rng(0).permutation(64).astype(np.int32) - 20
    out = np.zeros(8, np.int32)
    assert device.call("run_other_atomics", values, out) == 0
    assert out[:2].tolist() == [43, -20]
    assert out[2] == out[3] and out[2] in values
    assert out[4:6].view(np.int64)[0] == 64 << 33
    assert out[6:8].view(np.float64)[0] == 16.0


@SEEDS
def test_static_and_dynamic_shared_memory_are_the_blocks_own(device: Simulated, seed: int) -> None:
    device.configure(seed)
    values = np.random.default_rng(0).random(128, np.float32)
    out = np.zeros(128, np.float32)
    assert device.call("run_reverse", values, out) == 0, device.report()
    np.testing.assert_array_equal(out, values[::-1])


def test_memory_that_nobody_wrote_is_nan(device: Simulated) -> None:
    device.configure(0)
    out = np.zeros(3, np.uint32)
    assert device.call("run_read_unwritten", out) == 0
    assert np.isnan(out.view(np.float32)).all() and set(out) == {0xFFFFFFFF}


@SEEDS
def test_a_grid_barrier_orders_the_blocks_of_a_cooperative_launch(device: Simulated, seed: int) -> None:
    device.configure(seed)
    values, out = np.arange(512, dtype=np.int32), np.zeros(512, np.int32)
    assert device.call("run_neighbours", values, out, 8, 3, 1, 0) == 0, device.report()
    np.testing.assert_array_equal(out, np.roll(values, -3) + 3)
    assert device.statistics()["grid_barriers"] == 6


def test_a_grid_barrier_needs_a_cooperative_launch_and_a_counter_of_zero(device: Simulated) -> None:
    values, out = np.arange(128, dtype=np.int32), np.zeros(128, np.int32)
    device.configure(0)
    assert device.call("run_neighbours", values, out, 2, 1, 0, 0) == 719
    assert "in a launch that is not cooperative" in device.report()
    device.configure(0)
    assert device.call("run_neighbours", values, out, 2, 1, 1, 5) == 719
    assert "the counter holds 5, it must start at 0" in device.report()
    device.configure(0)
    assert device.call("run_neighbours", values, out, 2, 1, 1, 0x80000000 - (1 << 32)) == 0, device.report()


@SEEDS
def test_cp_async_lands_in_order_and_fills_with_zeros(device: Simulated, seed: int) -> None:
    device.configure(seed)
    values = np.random.default_rng(0).random((7, 128), np.float32)
    out = np.zeros((7, 128), np.float32)
    assert device.call("run_pipeline", values, out, 7) == 0, device.report()
    expected = values.copy()
    expected[6, -2:] = 0
    np.testing.assert_array_equal(out, expected[:, ::-1])


@SEEDS
def test_ldmatrix_and_mma_bf16_use_the_true_fragments(device: Simulated, seed: int) -> None:
    device.configure(seed)
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((16, 16)).astype(ml_dtypes.bfloat16)
    b = generator.standard_normal((16, 8)).astype(ml_dtypes.bfloat16)
    packed = np.concatenate([a.ravel(), b.T.ravel()]).view(np.uint16)
    out = np.zeros((16, 8), np.float32)
    assert device.call("run_multiply_bf16", packed, out) == 0, device.report()
    np.testing.assert_allclose(out, a.astype(np.float64) @ b.astype(np.float64) + 1, rtol=1e-6, atol=1e-6)


def test_mma_tf32_rounds_its_operands(device: Simulated) -> None:
    device.configure(0)
    generator = np.random.default_rng(0)
    a = generator.standard_normal((16, 8)).astype(np.float32)
    b = generator.standard_normal((8, 8)).astype(np.float32)
    out = np.zeros((16, 8), np.float32)
    assert device.call("run_multiply_tf32", np.concatenate([a.ravel(), b.T.ravel()]), out) == 0, device.report()

    def rounded(x: np.ndarray) -> np.ndarray:
        return ((x.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64)

    np.testing.assert_allclose(out, rounded(a) @ rounded(b), rtol=1e-6, atol=1e-6)
    assert np.abs(out - a.astype(np.float64) @ b).max() > 1e-4


def test_conversions_round_as_the_ptx_manual_says(device: Simulated) -> None:
    device.configure(0)
    values = np.array(
        [1.0, 1.00390625, 1.01171875, 3.4e38, np.inf, np.nan, -0.0, 1e-40, 1 + 2**-11, 1 + 2**-12], np.float32
    )
    out = np.zeros((len(values), 2), np.uint32)
    assert device.call("run_round_floats", values, out, len(values)) == 0
    low, high = (out[:, 0] & 0xFFFF).astype(np.uint16), (out[:, 0] >> 16).astype(np.uint16)
    expected = values.astype(ml_dtypes.bfloat16)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(low[number], expected.view(np.uint16)[number])
    np.testing.assert_array_equal(high[number], (-expected).view(np.uint16)[number])
    assert (low[~number] == 0x7FFF).all() and (out[~number, 1] == 0x7FFFFFFF).all()
    tf32 = out[:, 1].copy().view(np.float32)
    assert tf32[8] == 1 + 2**-10 and tf32[9] == 1.0 and np.isinf(tf32[4]) and np.signbit(tf32[6])


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (0, "lane 0 is not in its own mask fffffffe"),
        (1, "misaligned load of 4 bytes"),
        (2, "misaligned cp.async of 16 bytes"),
        (3, "__trap()"),
        (4, "load of 4 bytes at byte 256 of global memory of 256 bytes, out of bounds"),
        (5, "of shared array `s` of 8 elements"),
        (6, "divergent barrier"),
    ],
)
def test_a_broken_rule_is_named_with_kernel_block_and_thread(device: Simulated, rule: int, text: str) -> None:
    device.configure(3)
    values, out = np.zeros(64, np.float32), np.zeros(1, np.float32)
    assert device.call("run_break_rule", values, out, rule) == 719
    assert device.report().startswith("kernel `break_rule`, block (")
    assert text in device.report()


def test_sizes_beyond_the_device_are_refused(device: Simulated) -> None:
    device.configure(0)
    assert device.call("run_sizes", 1025, 1, 0) == 9
    assert device.call("run_sizes", 0, 1, 0) == 9
    assert device.call("run_sizes", 32, 0, 0) == 9
    assert device.call("run_sizes", 32, 1, 227 * 1024 + 1) == 9
    assert device.call("run_too_large_grid") == 720
    assert device.call("run_too_much_static") == 719
    assert "static shared memory, more than the 49152" in device.report()
