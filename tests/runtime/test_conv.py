"""conv.h, conv_vectors.h and conv_winograd.h against a plain NumPy convolution, forward and both gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from pequegrad.codegen.plan import ConvShape
from pequegrad.codegen.schedule import weight_chunks

# N, C, H, W, O, KH, KW, stride, pad, dilation, groups
SHAPES = [
    (3, 1, 28, 28, 8, 3, 3, (1, 1), (0, 0), (1, 1), 1),
    (5, 8, 13, 13, 16, 3, 3, (1, 1), (0, 0), (1, 1), 1),
    (2, 3, 9, 11, 5, 3, 2, (1, 1), (1, 1), (1, 1), 1),
    (2, 4, 12, 10, 6, 3, 3, (2, 2), (1, 1), (1, 1), 2),
    (2, 6, 9, 9, 6, 3, 3, (1, 1), (2, 2), (2, 2), 6),
    (1, 3, 17, 14, 9, 5, 4, (3, 2), (2, 1), (1, 2), 3),
    (2, 5, 7, 7, 7, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    (2, 5, 8, 8, 3, 1, 1, (2, 3), (0, 0), (1, 1), 1),
    (1, 2, 5, 40, 2, 5, 3, (1, 1), (4, 3), (1, 1), 1),
    (17, 1, 4, 4, 1, 2, 2, (2, 2), (0, 0), (1, 1), 1),
    (2, 2, 6, 6, 3, 2, 2, (4, 4), (1, 1), (1, 1), 1),
    (0, 2, 6, 6, 3, 2, 2, (1, 1), (1, 1), (1, 1), 1),
    # Large enough that rows of samples side by side are copied, forward and in the gradient.
    (1, 16, 20, 33, 17, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    (1, 17, 32, 32, 18, 3, 3, (2, 2), (1, 1), (1, 1), 1),
    (1, 16, 31, 43, 16, 3, 4, (3, 2), (1, 2), (2, 1), 1),
    (1, 16, 24, 26, 16, 3, 3, (2, 2), (2, 2), (2, 2), 1),
    (2, 34, 14, 16, 36, 3, 2, (1, 1), (0, 2), (1, 2), 2),
    (1, 70, 18, 20, 70, 1, 1, (2, 3), (0, 0), (1, 1), 1),
]


# Those that conv_winograd.h computes: an odd number of rows and columns, a border that is wider than the filter, groups.
WINOGRAD = [
    (1, 8, 6, 10, 9, 3, 3, (1, 1), (0, 0), (1, 1), 1),
    (2, 17, 9, 7, 8, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    (1, 3, 5, 6, 4, 3, 3, (1, 1), (2, 3), (1, 1), 1),
    (3, 20, 8, 11, 40, 3, 3, (1, 1), (1, 0), (1, 1), 2),
    (1, 33, 3, 3, 70, 3, 3, (1, 1), (0, 0), (1, 1), 1),
    (1, 64, 5, 40, 16, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    (0, 8, 6, 6, 8, 3, 3, (1, 1), (1, 1), (1, 1), 1),
]


def convolve(x, w, dy, stride, pad, dilation, groups):
    """Return y, dx and dw of a convolution by looping over the filter's taps."""
    height, width = x.shape[2:]
    outputs, per_group, kernel_h, kernel_w = w.shape
    out_h, out_w = dy.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    y, dpadded, dw = np.zeros_like(dy), np.zeros_like(padded), np.zeros_like(w)
    step = outputs // groups
    for g in range(groups):
        c, o = slice(g * per_group, (g + 1) * per_group), slice(g * step, (g + 1) * step)
        for i in range(kernel_h):
            for j in range(kernel_w):
                rows = slice(i * dilation[0], i * dilation[0] + stride[0] * (out_h - 1) + 1, stride[0])
                columns = slice(j * dilation[1], j * dilation[1] + stride[1] * (out_w - 1) + 1, stride[1])
                window = padded[:, c, rows, columns]
                y[:, o] += np.tensordot(w[o, :, i, j], window, (1, 1)).transpose(1, 0, 2, 3)
                dpadded[:, c, rows, columns] += np.tensordot(w[o, :, i, j], dy[:, o], (0, 1)).transpose(1, 0, 2, 3)
                dw[o, :, i, j] = np.tensordot(dy[:, o], window, ((0, 2, 3), (0, 2, 3)))
    return y, dpadded[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width], dw


def laid(images: np.ndarray, beside: int) -> np.ndarray:
    """Return images (N * beside, C, H, W) as (N, C, H, W, beside)."""
    return np.ascontiguousarray(images.reshape(-1, beside, *images.shape[1:]).transpose(0, 2, 3, 4, 1))


def apart(images: np.ndarray) -> np.ndarray:
    """Undo `laid`."""
    return images.transpose(0, 4, 1, 2, 3).reshape(-1, *images.shape[1:4])


def operands(shape: tuple, dtype: type, beside: int) -> list[np.ndarray]:
    """Return images, weight and the output's gradient, with ``beside`` samples for each of the shape's."""
    n, c, h, w, o, kh, kw, stride, pad, dilation, groups = shape
    out_h = (h + 2 * pad[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (w + 2 * pad[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    random = np.random.default_rng(5)
    sizes = (n * beside, c, h, w), (o, c // groups, kh, kw), (n * beside, o, out_h, out_w)
    return [random.normal(size=size).astype(dtype) for size in sizes]


def expected(shape: tuple, dtype: type, beside: int) -> tuple[np.ndarray, ...]:
    """Return what NumPy gives for a shape's operands, in float64."""
    return convolve(*(array.astype(np.float64) for array in operands(shape, dtype, beside)), *shape[7:])


def run(
    library: ctypes.CDLL,
    shape: tuple,
    dtype: type,
    workers: int,
    beside: int = 1,
    is_asked: bool = False,
    spoilt: Callable[..., None] = lambda x, weight, dy: None,
):
    """Run a shape, with ``beside`` samples side by side for each of its samples; return y, dx and dw, and how often each
    output was seen. ``is_asked``: results are asked for ahead; ``spoilt`` changes the operands."""
    n, c, h, w, o, kh, kw, stride, pad, dilation, groups = shape
    x, weight, dy = operands(shape, dtype, beside)
    spoilt(x, weight, dy)
    sizes = (n, c, h, w, o, kh, kw, *stride, *pad, *dilation, groups, *dy.shape[2:])
    record = (ctypes.c_long * 18)(*sizes, weight_chunks(ConvShape(*sizes)), beside)
    suffix = "f32" if dtype == np.float32 else "f64"
    scratch_of = getattr(library, f"conv_scratch_{suffix}")
    scratch_of.restype = library.conv_partials.restype = ctypes.c_long
    scratch_bytes = scratch_of(record)
    guarded = np.full(scratch_bytes + 128, 0xAB, np.uint8)
    start = -guarded.ctypes.data % 64
    partials = np.full(library.conv_partials(record) + 8, np.nan, dtype)
    laid_x, laid_dy = laid(x, beside), laid(dy, beside)
    y, dx, dw = np.full_like(laid_dy, np.nan), np.full_like(laid_x, np.nan), np.full_like(weight, np.nan)
    touched = np.zeros(y.shape, np.int32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (laid_x, weight, laid_dy, y, dx, dw, partials)]
    getattr(library, f"conv_{suffix}")(
        record,
        *pointers,
        ctypes.c_void_p(guarded.ctypes.data + start),
        workers,
        ctypes.c_void_p(touched.ctypes.data),
        int(is_asked),
    )
    assert np.all(guarded[:start] == 0xAB) and np.all(guarded[start + scratch_bytes :] == 0xAB), (
        "wrote outside its scratch"
    )
    assert np.all(np.isnan(partials[-8:])), "wrote outside the partial sums"
    return (apart(y), apart(dx), dw), touched


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [0, 1, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_and_its_gradients_equal_numpy(build, lanes: int, shape: tuple, vectors: int, dtype: type) -> None:
    beside = vectors * max(lanes, 2) or 1
    results, touched = run(build("conv_probe"), shape, dtype, workers=1, beside=beside)
    assert np.all(touched == 1), "the epilogue must see each output once"
    for name, got, want in zip(("y", "dx", "dw"), results, expected(shape, dtype, beside)):
        bound = (2e-5 if dtype == np.float32 else 1e-12) * max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES[-6:], ids=str)
def test_more_copied_rows_and_lines_asked_for_ahead_change_no_bit(build, lanes: int, shape: tuple, dtype: type) -> None:
    beside = 5 * max(lanes, 2)
    plain, _ = run(build("conv_probe", "-DPG_L2_KIB=512"), shape, dtype, workers=2, beside=beside)
    for library in (build("conv_probe", "-DPG_L2_KIB=512"), build("conv_probe", "-DPG_L2_KIB=1024")):
        asked, touched = run(library, shape, dtype, workers=2, beside=beside, is_asked=True)
        assert np.all(touched == 1)
        # Chunks of the weight's gradient, and so its sums, are the same.
        for a, b in zip(plain, asked):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("vectors", [0, 5])
def test_bits_do_not_depend_on_the_number_of_workers(build, lanes: int, vectors: int, workers: int) -> None:
    for shape in (SHAPES[1], SHAPES[3], SHAPES[5], *SHAPES[-6:]):
        beside = vectors * max(lanes, 2) or 1
        one, _ = run(build("conv_probe"), shape, np.float32, workers=1, beside=beside)
        many, _ = run(build("conv_probe"), shape, np.float32, workers=workers, beside=beside)
        for a, b in zip(one, many):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", [1, 3, 30])
@pytest.mark.parametrize("shape", WINOGRAD, ids=str)
def test_tiles_equal_numpy(build, lanes: int, shape: tuple, vectors: int, dtype: type) -> None:
    """Thirty vectors of lanes are more than a block takes together."""
    beside = vectors * max(lanes, 2)
    results, touched = run(build("conv_probe", "-DPROBE_WINOGRAD"), shape, dtype, workers=1, beside=beside)
    assert np.all(touched == 1), "the epilogue must see each output once"
    for name, got, want in zip(("y", "dx", "dw"), results, expected(shape, dtype, beside)):
        bound = (2e-5 if dtype == np.float32 else 1e-12) * max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_bits_of_tiles_depend_neither_on_workers_nor_on_lines_asked_for_ahead(build, lanes: int, workers: int) -> None:
    library = build("conv_probe", "-DPROBE_WINOGRAD")
    for shape in WINOGRAD:
        one, _ = run(library, shape, np.float32, workers=1, beside=5 * max(lanes, 2))
        many, _ = run(library, shape, np.float32, workers=workers, beside=5 * max(lanes, 2), is_asked=True)
        for a, b in zip(one, many):
            assert np.array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 2e38], ids=str)
@pytest.mark.parametrize("shape", WINOGRAD[:4], ids=str)
def test_tiles_keep_what_is_not_finite_to_the_results_that_read_it(
    build, lanes: int, shape: tuple, value: float
) -> None:
    """Two of 2e38, of different signs, are finite in each result but not in their difference."""

    def spoil_images(x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> None:
        for images in (x, dy):
            images[0, -1, 2, 0] = value
            images[0, -1, 2, 2] = -value
        weight *= 0.1

    def spoil_weight(x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> None:
        weight[1, 0, 1, 2] = value

    for spoil in (spoil_images, spoil_weight) if not np.isfinite(value) else (spoil_images,):
        beside = 2 * max(lanes, 2)
        want, _ = run(build("conv_probe"), shape, np.float32, 2, beside, spoilt=spoil)
        tiles, _ = run(build("conv_probe", "-DPROBE_WINOGRAD"), shape, np.float32, 2, beside, spoilt=spoil)
        # Whether the weight's sums of such numbers overflow depends on how they are cut.
        for name, a, b in zip(("y", "dx", "dw") if not np.isfinite(value) else ("y", "dx"), tiles, want):
            for same in (np.isnan, np.isposinf, np.isneginf):
                assert np.array_equal(same(a), same(b)), name
            kept = np.isfinite(b)
            bound = 2e-5 * max(1.0, np.abs(b[kept]).max(initial=0.0))
            np.testing.assert_allclose(a[kept], b[kept], rtol=0, atol=bound, err_msg=name)
