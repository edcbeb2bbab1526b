"""gemm_turned.h against gemm.h's sums, bit by bit: both orders of A, edges in each direction, shares of several workers."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from tests.runtime.test_gemm import product

# KiB of L2, rows and sums, and columns.
CASES = {
    # Less than a vector, several panels, sums cut into blocks, rows whole pages apart.
    "near": (512, [(1, 16), (5, 20), (16, 64), (17, 129), (31, 1024), (64, 300), (96, 1100), (130, 40)], [2, 33, 48, 77, 600]),
    # Of a cache so small that weights come from memory: several blocks of the batch's rows pass by for each cut of the sums.
    "far": (256, [(130, 2100)], [600]),
    # More than go by at once, where sums are cut and where not.
    "many": (512, [(17, 129), (20, 500)], [4500]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_of_transposes_are_the_same_bits(build, lanes: int, dtype: type, case: str) -> None:
    l2_kib, sizes, columns = CASES[case]
    turned, plain = (
        build(name, "-DPG_L1_KIB=32", f"-DPG_L2_KIB={l2_kib}") for name in ("gemm_turned_probe", "gemm_probe")
    )
    plain.lanes, plain.l1, plain.l2 = lanes, 32 << 10, l2_kib << 10
    multiply = turned.turned_f32 if dtype is np.float32 else turned.turned_f64
    scratch_bytes = turned.turned_scratch_f32 if dtype is np.float32 else turned.turned_scratch_f64
    scratch_bytes.restype = ctypes.c_long
    random = np.random.default_rng(21)
    for (m, k), n, order in itertools.product(sizes, columns, "CF"):
        a = np.array(random.normal(size=(m, k)), dtype, order=order)
        b = np.array(random.normal(size=(n, k)), dtype)
        expected, _ = product(plain, a, b.T, workers=1)
        size = scratch_bytes(ctypes.c_long(m), ctypes.c_long(k))
        for workers in (1, 3):
            scratch = np.full(size + 128, 0xAB, np.uint8)
            start = -scratch.ctypes.data % 64
            guarded, touched = np.full(m * n + 32, 7, dtype), np.zeros((m, n), np.int32)
            pointers = [x.ctypes.data for x in (b, guarded[16:], scratch[start:], touched)]
            multiply(
                ctypes.c_long(n), ctypes.c_long(m), ctypes.c_long(k), ctypes.c_void_p(a.ctypes.data),
                *(ctypes.c_long(stride // a.itemsize) for stride in a.strides), *map(ctypes.c_void_p, pointers), workers,
            )  # fmt: skip
            label = f"{(m, n, k)}, {order}, {workers} workers"
            assert np.all(touched == 1), f"{label}: the epilogue must see each element once"
            np.testing.assert_array_equal(guarded[16:-16].reshape(m, n), expected, err_msg=label)
            assert np.all(guarded[:16] == 7) and np.all(guarded[-16:] == 7), label
            assert np.all(scratch[:start] == 0xAB) and np.all(scratch[start + size :] == 0xAB), f"{label}: scratch"
