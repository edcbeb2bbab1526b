"""gemm_dots.h against NumPy in float64: few rows, sums and columns that are no whole vectors, shares of several workers."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest


def before_the_end(shape: tuple[int, int], stride: int, dtype: type, keep: list) -> np.ndarray:
    """An array with NaN between its rows and memory that cannot be read right behind its last element."""
    elements = (shape[0] - 1) * stride + shape[1]
    size = -(-elements * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
    keep.append(pages)
    values = np.frombuffer(pages, dtype, elements, size - elements * np.dtype(dtype).itemsize)
    values[:] = np.nan
    strides = (stride * values.itemsize, values.itemsize)
    return np.lib.stride_tricks.as_strided(values, shape, strides)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_few_rows_give_what_numpy_gives_and_read_their_own_elements(build, dtype: type) -> None:
    probe = build("gemm_dots_probe")
    probe.size_of.restype = ctypes.c_long
    multiply = probe.dots_f32 if dtype is np.float32 else probe.dots_f64
    random = np.random.default_rng(20)
    sizes = [tuple(probe.size_of(i, extent) for extent in range(3)) for i in range(20)]
    sizes = [size for size in sizes if size[0]]
    assert len(sizes) == 11
    pages: list = []
    for i, (m, n, k) in enumerate(sizes):
        for gap in (0, 3):
            a, b = before_the_end((m, k), k + gap, dtype, pages), before_the_end((n, k), k + gap, dtype, pages)
            a[:], b[:] = random.integers(-8, 9, a.shape) / 8, random.integers(-8, 9, b.shape) / 8
            # Multiples of 1/64 of this size add up without rounding in either type.
            expected = a.astype(np.float64) @ b.astype(np.float64).T
            for workers in (1, 2, 3):
                guarded, touched = np.full(m * n + 32, 7, dtype), np.zeros((m, n), np.int32)
                multiply(
                    i, ctypes.c_void_p(a.ctypes.data), ctypes.c_long(k + gap), ctypes.c_void_p(b.ctypes.data),
                    ctypes.c_long(k + gap), ctypes.c_void_p(guarded[16:].ctypes.data),
                    ctypes.c_void_p(touched.ctypes.data), workers,
                )  # fmt: skip
                label = f"{(m, n, k)}, gap {gap}, {workers} workers"
                assert np.all(touched == 1), f"{label}: the epilogue must see each element once"
                np.testing.assert_array_equal(guarded[16:-16].reshape(m, n), expected, err_msg=label)
                assert np.all(guarded[:16] == 7) and np.all(guarded[-16:] == 7), label
