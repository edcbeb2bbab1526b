"""Tiled products on the simulated device: every tile, ways of walking operands, odd sizes, K in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from tests.runtime_cuda.conftest import Probe


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the probe's list: which way operands walk, and how many elements they read as one."""

    number: int
    dtype: type
    a_along_k: bool
    b_along_k: bool
    a_width: int
    b_width: int
    tolerance: float


KINDS = [
    Kind(0, np.float32, True, False, 4, 4, 1e-5),
    Kind(1, np.float32, False, True, 1, 1, 1e-5),
    Kind(2, np.float32, True, True, 4, 4, 1e-5),
    Kind(3, np.float32, False, False, 4, 4, 1e-5),
    Kind(4, np.float32, True, False, 1, 1, 1e-5),
    Kind(5, np.float32, True, True, 1, 1, 1e-5),
    Kind(6, np.float32, True, False, 4, 2, 1e-5),
    Kind(7, np.float32, False, True, 1, 4, 1e-5),
    Kind(8, np.float32, True, False, 1, 1, 1e-5),
    Kind(9, np.float64, True, False, 2, 2, 1e-13),
    Kind(10, np.float64, False, True, 1, 1, 1e-13),
    Kind(11, np.int32, True, False, 1, 1, 0),
    Kind(12, np.int64, True, True, 1, 1, 0),
    Kind(13, ml_dtypes.bfloat16, True, False, 4, 4, 1e-2),
    Kind(14, np.float16, False, True, 1, 1, 2e-3),
    Kind(15, np.float32, True, True, 4, 4, 1e-3),
    Kind(16, np.float32, True, False, 4, 4, 1e-3),
    Kind(17, np.float32, False, True, 1, 1, 1e-3),
    Kind(18, np.float32, True, False, 4, 1, 1e-2),
    Kind(19, np.float32, False, True, 1, 1, 1e-2),
    Kind(20, ml_dtypes.bfloat16, True, False, 8, 8, 1e-2),
    Kind(21, ml_dtypes.bfloat16, True, True, 8, 1, 1e-2),
    Kind(22, ml_dtypes.bfloat16, False, True, 8, 8, 1e-2),
    Kind(23, np.float32, True, True, 4, 1, 1e-2),
]


def array(random: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype)
    return random.standard_normal(shape).astype(dtype)


def padded(extent: int) -> int:
    """Return a longer leading dimension, a multiple of whatever is read as one."""
    return extent + 8 - extent % 8


def check(probe: Probe, kind: Kind, seed: int, sizes: tuple[int, int, int, int], chunks: int, blocks: int) -> None:
    random = np.random.default_rng(seed * 100 + kind.number)
    batch, m, n, k = sizes
    a = array(random, (batch, m, padded(k)) if kind.a_along_k else (batch, k, padded(m)), kind.dtype)
    b = array(random, (batch, n, padded(k)) if kind.b_along_k else (batch, k, padded(n)), kind.dtype)
    bias = array(random, (n,), kind.dtype)
    c = np.zeros((batch, m, n), kind.dtype)
    a_strides = (a[0].size, a.shape[2], 1) if kind.a_along_k else (a[0].size, 1, a.shape[2])
    b_strides = (b[0].size, b.shape[2], 1) if kind.b_along_k else (b[0].size, 1, b.shape[2])
    probe.call(
        "probe_product",
        kind.number,
        (batch, m, n, k, chunks, *a_strides, *b_strides),
        blocks,
        a,
        a.size,
        b,
        b.size,
        bias,
        c,
        seed=seed,
    )
    wide = np.float64 if kind.tolerance else kind.dtype
    left = (a[:, :, :k] if kind.a_along_k else a[:, :, :m].swapaxes(1, 2)).astype(wide)
    right = (b[:, :, :k].swapaxes(1, 2) if kind.b_along_k else b[:, :, :n]).astype(wide)
    expected = left @ right + bias.astype(wide)
    if kind.tolerance:
        scale = np.abs(left) @ np.abs(right) + np.abs(bias.astype(wide))
        worst = np.max(np.abs(c.astype(wide) - expected) / scale)
        assert worst <= kind.tolerance, f"kind {kind.number} sizes {sizes}: error {worst:.2e}"
    else:
        np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.number))
def test_a_product_agrees_with_numpy(build: Callable[[str], Probe], kind: Kind) -> None:
    probe = build("product_probe")
    widest = max(kind.a_width, kind.b_width)
    if widest > 1:  # extents along which an operand is read in vectors are multiples of them
        shapes = [(1, 8, 8, 8), (2, 40, 72, 24), (1, 136, 16, 120)]
    else:
        shapes = [(1, 1, 1, 1), (2, 37, 65, 19), (1, 3, 133, 33)]
    for seed, sizes in enumerate(shapes):
        check(probe, kind, seed, sizes, chunks=0, blocks=1 + seed)


@pytest.mark.parametrize(
    "kind", [KINDS[3], KINDS[5], KINDS[11], KINDS[15], KINDS[19]], ids=lambda kind: str(kind.number)
)
def test_chunks_of_k_add_up(build: Callable[[str], Probe], kind: Kind) -> None:
    for seed, chunks in enumerate((1, 3, 7)):
        check(build("product_probe"), kind, seed, (2, 12, 8, 164), chunks, blocks=2)


def test_a_product_over_nothing_is_zero(build: Callable[[str], Probe]) -> None:
    bias, c = np.arange(3, dtype=np.float32), np.full((1, 2, 3), np.nan, np.float32)
    empty = np.zeros(0, np.float32)
    build("product_probe").call("probe_product", 5, (1, 2, 3, 0, 0, *[0] * 6), 1, empty, 0, empty, 0, bias, c)
    np.testing.assert_array_equal(c, [[[0, 1, 2], [0, 1, 2]]])


def test_what_is_not_finite_stays_in_its_row_and_column(build: Callable[[str], Probe]) -> None:
    a, b = np.ones((5, 3), np.float32), np.ones((3, 4), np.float32)
    a[1, 2], b[0, 3] = np.nan, np.inf
    c, bias = np.zeros((5, 4), np.float32), np.zeros(4, np.float32)
    build("product_probe").call("probe_product", 4, (1, 5, 4, 3, 0, 0, 3, 1, 0, 1, 4), 1, a, a.size, b, b.size, bias, c)
    np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("kind", [KINDS[2], KINDS[3]], ids=["along_k", "across_lines"])
def test_aligned_operands_load_whole_sectors_without_bank_conflicts(build: Callable[[str], Probe], kind: Kind) -> None:
    probe = build("product_probe")
    probe.statistics()
    m, n, k = 128, 64, 64
    a = np.ones((m, k) if kind.a_along_k else (k, m), np.float32)
    b = np.ones((n, k) if kind.b_along_k else (k, n), np.float32)
    bias, c = np.zeros(n, np.float32), np.zeros((m, n), np.float32)
    strides = (0, k, 1, 0, k, 1) if kind.a_along_k else (0, 1, m, 0, 1, n)
    probe.call("probe_product", kind.number, (1, m, n, k, 0, *strides), 2, a, a.size, b, b.size, bias, c, counts=True)
    counts = probe.statistics()
    row_tiles = 1 if kind.number == 2 else 2
    sectors = (m * k + row_tiles * n * k + m * n) * 4 // 32  # a, b for each row of tiles, bias at each result
    assert (counts["LOAD_SECTORS"], counts["BANK_CONFLICTS"]) == (sectors, 0)
    assert counts["SHARED_ACCESSES"] > 0
