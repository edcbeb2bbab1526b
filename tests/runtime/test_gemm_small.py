"""gemm_small.h against gemm.h's sums, bit by bit: every stride order, edges in each direction, shares of several workers.

Where a vector has room for two rows of B, sums over even and odd k are compared with such sums of gemm.h's."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from tests.runtime.test_gemm import product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_products_are_the_same_bits_as_large_ones(build, lanes: int, dtype: type) -> None:
    small, large = build("gemm_small_probe"), build("gemm_probe")
    large.lanes, large.l1, large.l2 = lanes, 32 << 10, 512 << 10
    small.size_of.restype = ctypes.c_long
    multiply = small.small_f32 if dtype is np.float32 else small.small_f64
    random = np.random.default_rng(14)
    sizes = [tuple(small.size_of(i, extent) for extent in range(3)) for i in range(20)]
    sizes = [size for size in sizes if size[0]]
    assert len(sizes) == 14
    for (i, (m, n, k)), a_order, b_order in itertools.product(enumerate(sizes), "CF", "CF"):
        a = np.array(random.normal(size=(m, k)), dtype, order=a_order)
        b = np.array(random.normal(size=(k, n)), dtype, order=b_order)
        expected, _ = product(large, a, b, workers=1)
        if dtype is np.float32 and 2 * n <= lanes and k % 2 == 0 and a_order == "C":
            # Room for two rows of B in a vector: even and odd k are summed apart.
            halves = [product(large, a[:, i::2].copy(), b[i::2].copy(), workers=1)[0] for i in (0, 1)]
            expected = halves[0] + halves[1]
        for workers in (1, 2, 3):
            guarded = np.full(m * n + 32, 7, dtype)
            touched = np.zeros((m, n), np.int32)
            pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, guarded[16:], touched)]
            multiply(i, a_order == "C", b_order == "C", *pointers, workers)
            label = f"{(m, n, k)}, {a_order}{b_order}, {workers} workers"
            assert np.all(touched == 1), f"{label}: the epilogue must see each element once"
            np.testing.assert_array_equal(guarded[16:-16].reshape(m, n), expected, err_msg=label)
            assert np.all(guarded[:16] == 7) and np.all(guarded[-16:] == 7), label
