"""window.h against plain loops over windows, and torch where it is installed."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

# planes, H, W, kernel, stride, pad, dilation
SHAPES = [
    (5, 26, 26, (2, 2), (2, 2), (0, 0), (1, 1)),
    (3, 11, 11, (2, 2), (2, 2), (0, 0), (1, 1)),
    (2, 8, 70, (2, 2), (2, 2), (0, 0), (1, 1)),
    (2, 9, 7, (3, 3), (2, 2), (1, 1), (1, 1)),
    (1, 10, 12, (3, 2), (1, 3), (1, 0), (2, 1)),
    (2, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
]
BESIDE = [1, 3, 16, 24]
"""Elements of a place, side by side."""
INDEX = {"u8": np.uint8, "i32": np.int32, "i64": np.int64}


def sizes(shape: tuple) -> tuple[int, int]:
    _, h, w, k, s, p, d = shape
    return tuple((n + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i, n in enumerate((h, w)))


def record(shape: tuple, beside: int) -> ctypes.Array:
    planes, h, w, k, s, p, d = shape
    return (ctypes.c_long * 14)(planes, h, w, *k, *s, *p, *d, *sizes(shape), beside)


def laid(array: np.ndarray, beside: int) -> np.ndarray:
    """Return planes (planes * beside, H, W) as (planes, H, W, beside)."""
    return np.ascontiguousarray(array.reshape(-1, beside, *array.shape[1:]).transpose(0, 2, 3, 1))


def apart(array: np.ndarray) -> np.ndarray:
    """Undo `laid`."""
    return array.transpose(0, 3, 1, 2).reshape(-1, *array.shape[1:3])


def windows(shape: tuple):
    """Yield each output position with the taps and input positions that its window holds."""
    _, h, w, k, s, p, d = shape
    out_h, out_w = sizes(shape)
    for i in range(out_h):
        for j in range(out_w):
            taps = [
                (a, b, i * s[0] - p[0] + a * d[0], j * s[1] - p[1] + b * d[1]) for a in range(k[0]) for b in range(k[1])
            ]
            yield i, j, [(a * k[1] + b, y, x) for a, b, y, x in taps if 0 <= y < h and 0 <= x < w]


def data(shape: tuple, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(6)
    x = random.integers(-3, 4, size=shape[:3]).astype(dtype)
    x.flat[::41] = np.nan
    x.flat[1::37] = -np.inf
    return x, random.integers(-8, 9, size=(shape[0], *sizes(shape))).astype(dtype)


def pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(a.ctypes.data) for a in arrays]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index_type", INDEX)
@pytest.mark.parametrize("element", ["f32", "f64"])
@pytest.mark.parametrize("beside", BESIDE)
def test_max_pooling_takes_the_first_maximum_and_puts_back(
    build, beside: int, element: str, index_type: str, shape: tuple
) -> None:
    dtype = np.float32 if element == "f32" else np.float64
    whole = (shape[0] * beside, *shape[1:])
    x, dy = data(whole, dtype)
    laid_x, laid_dy = laid(x, beside), laid(dy, beside)
    y, dx = np.full_like(laid_dy, 7), np.full_like(laid_x, 7)
    index = np.full(laid_dy.shape, 99, INDEX[index_type])
    run = getattr(build("window_probe"), f"max_{element}_{index_type}")
    run(record(shape, beside), *pointers(laid_x, y, index, laid_dy, dx), 2)
    y, dx, index = map(apart, (y, dx, index))
    shape = whole
    expected_y, expected_index, expected_dx = np.empty_like(y), np.empty_like(index), np.zeros_like(x)
    for plane in range(shape[0]):
        for i, j, taps in windows(shape):
            best = int(np.argmax([x[plane, h, w] for _, h, w in taps]))
            tap, h, w = taps[best]
            expected_y[plane, i, j] = x[plane, h, w]
            expected_index[plane, i, j] = tap if index_type == "u8" else h * shape[2] + w
            expected_dx[plane, h, w] += dy[plane, i, j]
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(dx, expected_dx)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[6] == (1, 1)], ids=str)
@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_average_pooling_equals_torch(build, beside: int, include_pad: bool, shape: tuple) -> None:
    torch = pytest.importorskip("torch")
    x, dy = (np.nan_to_num(a, nan=2.0, neginf=1.0) for a in data((shape[0] * beside, *shape[1:]), np.float64))
    laid_x, laid_dy = laid(x, beside), laid(dy, beside)
    y, dx = np.full_like(laid_dy, 7), np.full_like(laid_x, 7)
    build("window_probe").avg_f64(record(shape, beside), int(include_pad), *pointers(laid_x, y, laid_dy, dx), 3)
    y, dx = apart(y), apart(dx)
    leaf = torch.tensor(x[None], requires_grad=True)
    out = torch.nn.functional.avg_pool2d(leaf, shape[3], shape[4], shape[5], count_include_pad=include_pad)
    out.backward(torch.tensor(dy[None]))
    np.testing.assert_allclose(y[None], out.detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(dx[None], leaf.grad.numpy(), rtol=1e-14, atol=1e-14)
