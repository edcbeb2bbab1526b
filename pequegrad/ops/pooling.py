"""Pooling over the last two dimensions of (N, C, H, W), and the transposes that carry its gradients.

Invariant: geometry is in the parameters as in window.py. A position within an image is its row-major index in the
plane (H, W), int64; with the parameter ``taps``, which only passes set, it is the number of the tap, kh * KW + kw, uint8.
WindowTake and WindowPut are each other's transposes, AvgPool2d and AvgPool2dGrad likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import bool_, int64, uint8
from ..errors import DTypeError, ShapeError
from .contraction import matmul
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind
from .movement import reshape
from .sharding import Mapped, Sharding, shard_aligned
from .window import Border, Pair, bordered, bordered_size, output_size, pair, window_views


def _shard_planes(inputs: Any) -> Sharding | None:
    """Rule of ops that treat every plane alike: batch and channels stay mapped."""
    sharding = shard_aligned(inputs)
    return None if isinstance(sharding, Mapped) and sharding.dim >= 2 else sharding


class _Pooling(Op):
    """Family: ops whose windows do not mix channels."""

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return _shard_planes(inputs)


def _lowest(xp: Any, dtype: Any) -> Any:
    return -xp.inf if dtype.kind not in "iu" else xp.iinfo(dtype).min


def _plane_positions(xp: Any, size: Pair, padding: Border) -> Any:
    """Return the plane index of every element of a padded plane; -1 in its border."""
    return bordered(xp, xp.arange(size[0] * size[1]).reshape(size), padding, -1)


def _places(
    xp: Any, size: Pair, out: Pair, kernel: Any, stride: Any, padding: Any, dilation: Any, taps: bool
) -> list[Any]:
    """Return for each tap the position that each window sees there (OH, OW), or the tap's number; -1 in the border."""
    views = window_views(_plane_positions(xp, size, padding), kernel, stride, dilation, out)
    return [xp.where(place < 0, -1, number) if taps else place for number, (_, _, place) in enumerate(views)]


class MaxPool2d(_Pooling):
    """Greatest element of each window, and its position in the plane; of equal ones the first, NaN wins (the last one).

    The border never wins; where a window holds nothing but -inf, its first element inside the plane does.
    """

    name = "max_pool2d"
    lowering = Family("max_pool2d")
    planes = ("image", "windows", "windows")
    has_positions = True

    @staticmethod
    def call(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """Return the greatest elements (N, C, OH, OW) of windows of ``x`` (N, C, H, W), or (C, H, W) alike.

        ``stride`` is ``kernel_size`` by default; ``padding`` at most half of it. With ``ceil_mode`` a last window
        may hang over the edge. With ``return_indices`` also their int64 positions in the planes.
        """
        x = _images(as_tensor(x), "max_pool2d")
        if x.ndim == 3:
            pooled = MaxPool2d.call(reshape(x, (1, *x.shape)), kernel_size, stride, padding, dilation, ceil_mode, True)
            values, positions = (reshape(part, part.shape[1:]) for part in pooled)
        else:
            values, positions = bind(MaxPool2d, x, **_geometry(x, kernel_size, stride, padding, dilation, ceil_mode))
        return (values, positions) if return_indices else values

    @staticmethod
    def infer(  # type: ignore[override]
        x: TensorSpec, *, kernel: Any, stride: Any, padding: Any, dilation: Any, taps: bool = False
    ) -> Any:
        out = output_size(x.shape[2:], kernel, stride, padding, dilation, "max_pool2d")
        shape = (*x.shape[:2], *out)
        return TensorSpec(shape, x.dtype), TensorSpec(shape, uint8 if taps else int64)

    @staticmethod
    def numpy(xp: Any, x: Any, *, kernel: Any, stride: Any, padding: Any, dilation: Any, taps: bool = False) -> Any:
        out = output_size(x.shape[2:], kernel, stride, padding, dilation, "max_pool2d")
        lowest = _lowest(xp, x.dtype)
        planes = bordered(xp, x, padding, lowest)
        places = _places(xp, x.shape[2:], out, kernel, stride, padding, dilation, taps)
        best = xp.full((*x.shape[:2], *out), lowest, x.dtype)
        chosen = xp.full(out, -1, xp.int64)
        for place in places:
            chosen = xp.where(chosen < 0, place, chosen)
        chosen = xp.array(xp.broadcast_to(chosen, best.shape))
        may_hold_nan = x.dtype.kind not in "iu"
        for (_, _, seen), place in zip(window_views(planes, kernel, stride, dilation, out), places, strict=True):
            is_better = seen > best
            if may_hold_nan:
                is_better |= seen != seen
            best = xp.where(is_better, seen, best)
            chosen = xp.where(is_better, place, chosen)
        return best, chosen.astype(xp.uint8 if taps else xp.int64)

    @staticmethod
    def vjp(saved: Any, g: Any, _: Any) -> Any:
        return (bind(WindowPut, g, saved.output(1), size=saved.spec().shape[2:], **saved.params),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.sin(np.arange(2 * 3 * 5 * 6, dtype=np.float32)).reshape(2, 3, 5, 6)
        x[0, 0, 1, 1] = np.nan
        params = (("kernel", (3, 2)), ("stride", (2, 1)), ("padding", (1, 1, 0, 0)), ("dilation", (1, 2)))

        def reference(torch: Any, t: Any) -> Any:
            return torch.nn.functional.max_pool2d(t, (3, 2), (2, 1), (1, 0), (1, 2), return_indices=True)

        return [Sample((x,), params, reference, (0,))]


class WindowTake(_Pooling):
    """Elements of the planes of ``x`` at ``positions``, one a window, as MaxPool2d gives them."""

    name = "window_take"
    lowering = Family("window_take")
    planes = ("image", "windows", "windows")
    has_positions = True

    @staticmethod
    def call(x: Any, positions: Any, kernel: Pair, stride: Pair, padding: Border, dilation: Pair) -> Any:
        """Return (N, C, OH, OW): ``x`` (N, C, H, W) at int64 plane ``positions`` (N, C, OH, OW), each in its window."""
        geometry = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        return bind(WindowTake, as_tensor(x), as_tensor(positions), **geometry)

    @staticmethod
    def infer(x: TensorSpec, positions: TensorSpec, **params: Any) -> TensorSpec:  # type: ignore[override]
        expected = MaxPool2d.infer(x, **params)[1]
        if positions != expected:
            raise ShapeError(f"window_take: expected positions {expected} for images {x}. Got {positions}.")
        return TensorSpec(positions.shape, x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, positions: Any, **params: Any) -> Any:
        planes = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
        if params.get("taps", False):
            places = xp.stack(_places(xp, x.shape[2:], positions.shape[2:], **{**params, "taps": False}))
            rows, columns = xp.arange(positions.shape[2])[:, None], xp.arange(positions.shape[3])
            positions = places[positions, rows, columns]
        flat = positions.reshape(*x.shape[:2], positions.shape[2] * positions.shape[3])
        return xp.take_along_axis(planes, flat, 2).reshape(positions.shape)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return bind(WindowPut, g, saved.input(1), size=saved.spec().shape[2:], **saved.params), None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
        positions = np.array([[[[0, 3], [13, 10]], [[5, 2], [8, 15]]]])

        def reference(torch: Any, t: Any, p: Any) -> Any:
            return t.flatten(2).gather(2, p.flatten(2)).reshape(p.shape)

        return [Sample((x, positions), _SAMPLE_GEOMETRY, reference, (0,))]


class WindowPut(_Pooling):
    """Planes of ``size``, zero but for ``g`` added at ``positions``, one a window: WindowTake's transpose."""

    name = "window_put"
    lowering = Family("window_put")
    planes = ("windows", "windows", "image")
    has_positions = True

    @staticmethod
    def call(g: Any, positions: Any, size: Pair, kernel: Pair, stride: Pair, padding: Border, dilation: Pair) -> Any:
        """Return (N, C, *size): ``g`` (N, C, OH, OW) added at int64 plane ``positions``, each in its window."""
        geometry = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        return bind(WindowPut, as_tensor(g), as_tensor(positions), size=size, **geometry)

    @staticmethod
    def infer(g: TensorSpec, positions: TensorSpec, *, size: Pair, **params: Any) -> TensorSpec:  # type: ignore[override]
        images = TensorSpec((*g.shape[:2], *size), g.dtype)
        if g != WindowTake.infer(images, positions, **params):
            raise ShapeError(f"window_put: expected a value for each of {positions.shape} positions. Got {g}.")
        return images

    @staticmethod
    def numpy(
        xp: Any, g: Any, positions: Any, *, size: Pair, kernel: Any, stride: Any, padding: Any, dilation: Any,
        taps: bool = False,
    ) -> Any:  # fmt: skip
        top, _, left, _ = padding
        wide = xp.float32 if g.dtype.itemsize == 2 else g.dtype
        image = xp.zeros((*g.shape[:2], *bordered_size(size, padding)), wide)
        out = g.shape[2:]
        places = _places(xp, size, out, kernel, stride, padding, dilation, taps)
        # At one position within the window, no two windows meet: plain adds, no scatter.
        for (_, _, seen), place in zip(window_views(image, kernel, stride, dilation, out), places, strict=True):
            seen += xp.where(positions == place, g, xp.zeros((), g.dtype))
        return xp.ascontiguousarray(image[..., top : top + size[0], left : left + size[1]]).astype(g.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, h: Any) -> Any:
        params = {key: value for key, value in saved.params.items() if key != "size"}
        return bind(WindowTake, h, saved.input(1), **params), None

    @staticmethod
    def samples() -> list[Sample]:
        g, positions = np.array([[[[1, 2], [3, 4]]]], np.float32), np.array([[[[0, 3], [13, 10]]]])

        def reference(torch: Any, t: Any, p: Any) -> Any:
            return torch.zeros(1, 1, 16).scatter_add(2, p.flatten(2), t.flatten(2)).reshape(1, 1, 4, 4)

        return [Sample((g, positions), (("size", (4, 4)), *_SAMPLE_GEOMETRY), reference, (0,))]


_SAMPLE_GEOMETRY = (("kernel", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0, 0, 0)), ("dilation", (1, 1)))


class AvgPool2d(_Pooling):
    """Mean of each window; the border counts as zeros, or with ``count_include_pad`` False not at all."""

    name = "avg_pool2d"
    lowering = Family("avg_pool2d")
    planes = ("image", "windows")

    @staticmethod
    def call(
        x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Any:  # fmt: skip
        """Return the means (N, C, OH, OW) of windows of ``x`` (N, C, H, W), or (C, H, W) alike.

        ``stride`` is ``kernel_size`` by default; ``padding`` at most half of it. ``divisor_override`` divides the
        sums instead of the count. Raises ShapeError for ``ceil_mode``.
        """
        x = _images(as_tensor(x), "avg_pool2d")
        if not x.dtype.is_floating_point:
            raise DTypeError(f"avg_pool2d: expected a floating-point tensor. Got {x.dtype.name}. Use .to(float32).")
        if ceil_mode:
            raise ShapeError("avg_pool2d: ceil_mode=True is not supported. Pad the input to a multiple of the stride.")
        if x.ndim == 3:
            means = avg_pool2d(
                reshape(x, (1, *x.shape)), kernel_size, stride, padding, False, count_include_pad, divisor_override
            )
            return reshape(means, means.shape[1:])
        geometry = _geometry(x, kernel_size, stride, padding, 1, False)
        del geometry["dilation"]
        counts_border = bool(count_include_pad) or divisor_override is not None
        means = bind(AvgPool2d, x, count_include_pad=counts_border, **geometry)
        if divisor_override is None:
            return means
        kernel = geometry["kernel"]
        return means * (kernel[0] * kernel[1] / divisor_override)

    @staticmethod
    def infer(x: TensorSpec, *, kernel: Any, stride: Any, padding: Any, count_include_pad: bool) -> TensorSpec:  # type: ignore[override]
        out = output_size(x.shape[2:], kernel, stride, padding, (1, 1), "avg_pool2d")
        return TensorSpec((*x.shape[:2], *out), x.dtype)

    @staticmethod
    def divisors(
        xp: Any, size: Pair, kernel: Pair, stride: Pair, padding: Border, out: Pair, counts_border: bool
    ) -> Any:
        """Return what the sum of each window is divided by: a number, or (OH, OW) of them."""
        if counts_border or not any(padding):
            return kernel[0] * kernel[1]
        is_inside = bordered(xp, xp.ones(size), padding)
        return sum(seen for _, _, seen in window_views(is_inside, kernel, stride, (1, 1), out))

    @classmethod
    def numpy(cls, xp: Any, x: Any, *, kernel: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
        out = output_size(x.shape[2:], kernel, stride, padding, (1, 1), "avg_pool2d")
        planes = bordered(xp, x.astype(xp.float32) if x.dtype.itemsize == 2 else x, padding)
        total = sum(seen for _, _, seen in window_views(planes, kernel, stride, (1, 1), out))
        divisors = cls.divisors(xp, x.shape[2:], kernel, stride, padding, out, count_include_pad)
        return (total / divisors).astype(x.dtype)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (bind(AvgPool2dGrad, g, size=saved.spec().shape[2:], **saved.params),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.sin(np.arange(60, dtype=np.float32)).reshape(1, 2, 5, 6)
        params = (("kernel", (3, 2)), ("stride", (2, 1)), ("padding", (1, 1, 1, 1)), ("count_include_pad", False))

        def reference(torch: Any, t: Any) -> Any:
            return torch.nn.functional.avg_pool2d(t, (3, 2), (2, 1), (1, 1), count_include_pad=False)

        return [Sample((x,), params, reference, (0,))]


class AvgPool2dGrad(_Pooling):
    """Each element of ``g`` spread evenly over its window, in planes of ``size``: AvgPool2d's transpose."""

    name = "avg_pool2d_grad"
    lowering = Family("avg_pool2d_grad")
    planes = ("windows", "image")

    @staticmethod
    def call(g: Any, size: Pair, kernel: Pair, stride: Pair, padding: Border, count_include_pad: bool = True) -> Any:
        """Return the gradient (N, C, *size) of the images, from that of the means (N, C, OH, OW)."""
        params = {"kernel": kernel, "stride": stride, "padding": padding, "count_include_pad": count_include_pad}
        return bind(AvgPool2dGrad, as_tensor(g), size=size, **params)

    @staticmethod
    def infer(g: TensorSpec, *, size: Pair, **params: Any) -> TensorSpec:  # type: ignore[override]
        images = TensorSpec((*g.shape[:2], *size), g.dtype)
        expected = AvgPool2d.infer(images, **params)
        if g != expected:
            raise ShapeError(f"avg_pool2d_grad: expected a gradient {expected} for images {images}. Got {g}.")
        return images

    @staticmethod
    def numpy(xp: Any, g: Any, *, size: Pair, kernel: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
        top, _, left, _ = padding
        out = g.shape[2:]
        wide = g.astype(xp.float32) if g.dtype.itemsize == 2 else g
        divisors = AvgPool2d.divisors(xp, size, kernel, stride, padding, out, count_include_pad)
        share = (wide / divisors).astype(wide.dtype)
        image = xp.zeros((*g.shape[:2], *bordered_size(size, padding)), wide.dtype)
        for _, _, seen in window_views(image, kernel, stride, (1, 1), out):
            seen += share
        return xp.ascontiguousarray(image[..., top : top + size[0], left : left + size[1]]).astype(g.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, h: Any) -> Any:
        return (bind(AvgPool2d, h, **{key: value for key, value in saved.params.items() if key != "size"}),)

    @staticmethod
    def samples() -> list[Sample]:
        g = np.array([[[[4, 8], [12, 16]]]], np.float32)
        params = (("kernel", (2, 2)), ("stride", (2, 2)), ("padding", (0, 0, 0, 0)), ("count_include_pad", True))

        def reference(torch: Any, t: Any) -> Any:
            return t.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4

        return [Sample((g,), (("size", (4, 4)), *params), reference, (0,))]


max_pool2d = MaxPool2d.call
avg_pool2d = AvgPool2d.call


def adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    """Return means (N, C, *output_size) of ``x`` (N, C, H, W) over regions that divide it as evenly as they can.

    Region i along an extent n of m regions covers [floor(i n / m), ceil((i + 1) n / m)), as in torch. None keeps
    an extent.
    """
    x = _images(as_tensor(x), "adaptive_avg_pool2d")
    wanted = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(wanted) != 2 or not all(n is None or (isinstance(n, int) and n > 0) for n in wanted):
        raise ShapeError(
            f"adaptive_avg_pool2d: output_size must be a positive int or a pair of them. Got {output_size!r}."
        )
    height, width = x.shape[-2:]
    rows, columns = (n if n is not None else extent for n, extent in zip(wanted, (height, width), strict=True))
    if height % rows == 0 and width % columns == 0 and height and width:
        return avg_pool2d(x, (height // rows, width // columns))
    by_rows = matmul(_averaging(height, rows, x), x)
    return matmul(by_rows, _averaging(width, columns, x).mT)


def _averaging(extent: int, regions: int, x: Any) -> Any:
    """Return the matrix (regions, extent) whose row i averages region i, to compute with ``x``."""
    matrix = np.zeros((regions, extent))
    for i in range(regions):
        first, last = i * extent // regions, -(-(i + 1) * extent // regions)
        matrix[i, first:last] = 1 / (last - first)
    return as_tensor(matrix, x.dtype).to(x.device)


def _images(x: Any, who: str) -> Any:
    if x.ndim not in (3, 4):
        raise ShapeError(f"{who}: expected (N, C, H, W) or (C, H, W). Got shape {x.shape}.")
    if x.dtype is bool_:
        raise DTypeError(f"{who}: expected numbers. Got bool. Use .to(float32).")
    return x


def _geometry(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> dict[str, Any]:
    who = "pooling"
    kernel, dilation = pair(kernel_size, who, "kernel_size"), pair(dilation, who, "dilation")
    has_stride = stride is not None and stride not in ((), [])
    stride = pair(stride, who, "stride") if has_stride else kernel
    border = pair(padding, who, "padding", least=0)
    if border[0] > kernel[0] // 2 or border[1] > kernel[1] // 2:
        raise ShapeError(f"{who}: padding must be at most half of kernel_size {kernel}. Got {border}.")
    ends = list(border)
    if ceil_mode:
        for d in range(2):
            extent = x.shape[2 + d]
            span = extent + 2 * border[d] - dilation[d] * (kernel[d] - 1) - 1
            count = -(-span // stride[d]) + 1
            # A window that would start in the far border is dropped.
            count -= (count - 1) * stride[d] >= extent + border[d]
            ends[d] += max((count - 1) * stride[d] - span, 0)
    return {
        "kernel": kernel,
        "stride": stride,
        "padding": (border[0], ends[0], border[1], ends[1]),
        "dilation": dilation,
    }
