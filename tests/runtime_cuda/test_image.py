"""Convolution and pooling on the simulated device against sums written out in NumPy, float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import pytest

from tests.runtime_cuda.conftest import Probe


@dataclass(frozen=True, slots=True)
class Conv:
    """Sizes of a convolution, in the order of the C struct but for OH and OW."""

    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741 - the field's letter
    KH: int
    KW: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dil_h: int
    dil_w: int
    groups: int

    @property
    def out(self) -> tuple[int, int]:
        tall = (self.H + 2 * self.pad_h - self.dil_h * (self.KH - 1) - 1) // self.stride_h + 1
        return tall, (self.W + 2 * self.pad_w - self.dil_w * (self.KW - 1) - 1) // self.stride_w + 1


CONVS = {
    "plain": Conv(2, 3, 7, 6, 5, 3, 3, 1, 1, 0, 0, 1, 1, 1),
    "one_by_one": Conv(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1),
    "padded_strided": Conv(2, 2, 9, 8, 4, 3, 2, 2, 3, 1, 1, 1, 1, 1),
    "dilated": Conv(1, 2, 9, 10, 3, 3, 3, 1, 2, 2, 1, 2, 3, 1),
    "dilated_by_stride": Conv(1, 1, 11, 11, 2, 3, 3, 4, 2, 3, 2, 2, 2, 1),
    "groups": Conv(2, 4, 6, 5, 6, 3, 3, 1, 1, 1, 1, 1, 1, 2),
    "depthwise": Conv(2, 5, 6, 6, 5, 3, 3, 2, 1, 1, 1, 1, 1, 5),
    "stride_beyond_filter": Conv(1, 2, 8, 8, 2, 2, 1, 3, 3, 0, 0, 1, 1, 1),
    "broad": Conv(1, 1, 12, 70, 6, 3, 5, 1, 2, 1, 2, 1, 1, 1),
}


def taps(s: Conv) -> Iterator[tuple[int, int, slice, slice]]:
    """For each tap, where it reads the padded input."""
    tall, broad = s.out
    for kh in range(s.KH):
        for kw in range(s.KW):
            top, left = kh * s.dil_h, kw * s.dil_w
            rows = slice(top, top + (tall - 1) * s.stride_h + 1, s.stride_h)
            yield kh, kw, rows, slice(left, left + (broad - 1) * s.stride_w + 1, s.stride_w)


def reference(s: Conv, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tall, broad = s.out
    border = ((0, 0), (0, 0), (s.pad_h, s.pad_h), (s.pad_w, s.pad_w))
    padded = np.pad(x.astype(np.float64), border).reshape(s.N, s.groups, s.C // s.groups, s.H + 2 * s.pad_h, -1)
    filters = w.astype(np.float64).reshape(s.groups, s.O // s.groups, *w.shape[1:])
    gradient = dy.astype(np.float64).reshape(s.N, s.groups, s.O // s.groups, tall, broad)
    y, dx, dw = np.zeros_like(gradient), np.zeros_like(padded), np.zeros_like(filters)
    for kh, kw, rows, columns in taps(s):
        y += np.einsum("ngchw,goc->ngohw", padded[..., rows, columns], filters[..., kh, kw])
        dx[..., rows, columns] += np.einsum("ngohw,goc->ngchw", gradient, filters[..., kh, kw])
        dw[..., kh, kw] = np.einsum("ngohw,ngchw->goc", gradient, padded[..., rows, columns])
    inside = dx.reshape(s.N, s.C, s.H + 2 * s.pad_h, -1)[:, :, s.pad_h : s.pad_h + s.H, s.pad_w : s.pad_w + s.W]
    return y.reshape(dy.shape), inside, dw.reshape(w.shape)


@pytest.mark.parametrize("how", [0, 1, 2, 3], ids=["wide_tile", "small_tile", "tensor_cores", "direct"])
@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_and_its_gradients_agree_with_numpy(build: Callable[[str], Probe], name: str, how: int) -> None:
    s, probe = CONVS[name], build("image_probe")
    for seed in range(3 if name in ("groups", "padded_strided") else 1):
        random = np.random.default_rng(seed)
        x = random.standard_normal((s.N, s.C, s.H, s.W)).astype(np.float32)
        w = random.standard_normal((s.O, s.C // s.groups, s.KH, s.KW)).astype(np.float32)
        dy = random.standard_normal((s.N, s.O, *s.out)).astype(np.float32)
        results = [np.full(a.shape, np.nan, np.float32) for a in (dy, x, w)]
        sizes = (*astuple(s), *s.out)
        probe.call("probe_conv2d", how, sizes, 1 + seed, 1 + 2 * seed, x, w, dy, *results, seed=seed)
        for got, expected in zip(results, reference(s, x, w, dy), strict=True):
            tolerance = 1e-2 if how == 2 else 1e-5  # tf32 has 10 bits
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def windows(s: Conv) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """For each output position, the taps of its window that lie inside: (tap, row, column)."""
    for i in range(s.out[0]):
        for j in range(s.out[1]):
            inside = []
            for tap in range(s.KH * s.KW):
                h = i * s.stride_h - s.pad_h + tap // s.KW * s.dil_h
                w = j * s.stride_w - s.pad_w + tap % s.KW * s.dil_w
                if 0 <= h < s.H and 0 <= w < s.W:
                    inside.append((tap, h, w))
            yield i, j, inside


def pool_sizes(s: Conv, planes: int) -> tuple[int, ...]:
    """The C struct of a pooling."""
    return (planes, *astuple(s)[2:4], *astuple(s)[5:13], *s.out)


POOLS = {
    "halving": Conv(1, 3, 6, 8, 3, 2, 2, 2, 2, 0, 0, 1, 1, 1),
    "overlapping": Conv(1, 2, 7, 9, 2, 3, 3, 2, 1, 1, 1, 1, 1, 1),
    "dilated": Conv(1, 2, 9, 9, 2, 2, 3, 1, 2, 1, 1, 2, 3, 1),
    "single": Conv(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64], ids=["tap", "position"])
@pytest.mark.parametrize("name", POOLS)
def test_max_pooling_takes_the_first_of_equals_and_nan_first_of_all(
    build: Callable[[str], Probe], name: str, dtype: type
) -> None:
    s = POOLS[name]
    for seed in range(3):
        random = np.random.default_rng(seed)
        x = random.integers(-2, 3, (s.C, s.H, s.W)).astype(np.float32)
        x[random.random(x.shape) < 0.05] = np.nan
        x[random.random(x.shape) < 0.05] = -np.inf
        dy = random.standard_normal((s.C, *s.out)).astype(np.float32)
        y, taken, index, dx = np.zeros_like(dy), np.zeros_like(dy), np.zeros(dy.shape, dtype), np.full_like(x, np.nan)
        sizes = pool_sizes(s, s.C)
        build("image_probe").call("probe_max_pool2d", sizes, index.itemsize, x, dy, y, index, dx, taken, seed=seed)
        best, places, back = np.zeros_like(y), np.zeros_like(index), np.zeros(x.shape)
        for i, j, inside in windows(s):
            for plane in range(s.C):
                value, at = None, (0, 0, 0)
                for tap, h, w in inside:
                    if value is None or x[plane, h, w] > value or np.isnan(x[plane, h, w]):
                        value, at = x[plane, h, w], (tap, h, w)
                best[plane, i, j] = value
                places[plane, i, j] = at[0] if dtype is np.uint8 else at[1] * s.W + at[2]
                back[plane, at[1], at[2]] += dy[plane, i, j]
        np.testing.assert_array_equal(y, best)
        np.testing.assert_array_equal(taken, best)
        np.testing.assert_array_equal(index, places)
        np.testing.assert_allclose(dx, back, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("counts_padding", [True, False])
@pytest.mark.parametrize("name", ["halving", "overlapping", "single"])
def test_average_pooling_agrees_with_numpy(build: Callable[[str], Probe], name: str, counts_padding: bool) -> None:
    s = POOLS[name]
    for seed in range(3):
        random = np.random.default_rng(seed)
        x = random.standard_normal((s.C, s.H, s.W)).astype(np.float32)
        dy = random.standard_normal((s.C, *s.out)).astype(np.float32)
        y, dx = np.zeros_like(dy), np.full_like(x, np.nan)
        build("image_probe").call(
            "probe_avg_pool2d", pool_sizes(s, s.C), 1 + seed, counts_padding, x, dy, y, dx, seed=seed
        )
        mean, back = np.zeros(y.shape), np.zeros(x.shape)
        for i, j, inside in windows(s):
            top, left = i * s.stride_h - s.pad_h, j * s.stride_w - s.pad_w
            whole = (min(top + s.KH, s.H + s.pad_h) - top) * (min(left + s.KW, s.W + s.pad_w) - left)
            divisor = whole if counts_padding else len(inside)
            for _, h, w in inside:
                mean[:, i, j] += x[:, h, w] / divisor
                back[:, h, w] += dy[:, i, j] / divisor
        np.testing.assert_allclose(y, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dx, back, rtol=1e-5, atol=1e-6)
