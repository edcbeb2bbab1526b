"""Convolution and pooling over the last two dimensions of (N, C, H, W), and their transposes.

Invariant: geometry is in the parameters as pairs (height, width), padding as (top, bottom, left, right). A negative
bottom or right, which only passes set, leaves so much of the image out of the windows. An op that scatters (a gradient)
is the exact transpose of one that gathers, and each is the other's vjp: second derivatives follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dtypes import bool_
from ..errors import DTypeError, ShapeError
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind
from .movement import reshape
from .sharding import REPLICATED, Mapped, Partial, Replicated, Sharding

Pair = tuple[int, ...]  # (height, width)
Border = tuple[int, int, int, int]


def pair(value: Any, who: str, what: str, least: int = 1) -> Pair:
    """Return ``3`` and ``(3, 4)`` alike as a pair of ints, none below ``least``."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) == 1:
        both = both * 2
    if len(both) != 2 or not all(isinstance(n, int | np.integer) and n >= least for n in both):
        raise ShapeError(f"{who}: {what} must be an int of at least {least}, or a pair of them. Got {value!r}.")
    return int(both[0]), int(both[1])


def windows_along(extent: int, lo: int, hi: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how many windows fit along one dimension; 0 or less where none does."""
    return (extent + lo + hi - dilation * (kernel - 1) - 1) // stride + 1


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Border, dilation: Pair, who: str) -> Pair:
    """Return (height, width) of the result; ShapeError where the window does not fit."""
    top, bottom, left, right = padding
    height = windows_along(size[0], top, bottom, kernel[0], stride[0], dilation[0])
    width = windows_along(size[1], left, right, kernel[1], stride[1], dilation[1])
    if height < 1 or width < 1:
        raise ShapeError(
            f"{who}: a window of {kernel} with dilation {dilation} does not fit into an image of {size} "
            f"with padding {padding}."
        )
    return height, width


def window_views(padded: Any, kernel: Pair, stride: Pair, dilation: Pair, out: Pair) -> Iterator[tuple[int, int, Any]]:
    """Yield (i, j, view of shape (…, *out)): what each window has at its position (i, j)."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (out[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (out[1] - 1) * stride[1] + 1, stride[1])
            yield i, j, padded[..., rows, columns]


def bordered_size(size: Pair, padding: Border) -> Pair:
    """Return (height, width) of an image and its border."""
    top, bottom, left, right = (max(width, 0) for width in padding)
    return size[0] + top + bottom, size[1] + left + right


def bordered(xp: Any, x: Any, padding: Border, value: Any = 0) -> Any:
    """Return ``x`` with a border of ``value`` around its last two dimensions; itself where there is none."""
    top, bottom, left, right = (max(width, 0) for width in padding)
    if not (top or bottom or left or right):
        return x
    height, width = x.shape[-2:]
    result = xp.full((*x.shape[:-2], height + top + bottom, width + left + right), value, x.dtype)
    result[..., top : top + height, left : left + width] = x
    return result


def _widened(xp: Any, x: Any) -> Any:
    return x.astype(xp.float32) if x.dtype.itemsize == 2 else x


# --- convolution ----------------------------------------------------------------------------------------------


class _Convolution(Op):
    """Family: the bilinear map of images (N, C, H, W) and weights (O, C/groups, KH, KW), and its two transposes."""

    @staticmethod
    def columns(
        xp: Any, x: Any, kernel: Pair, stride: Pair, padding: Border, dilation: Pair, groups: int, out: Pair
    ) -> Any:
        """Return what the windows see as a matrix (groups, C/groups * KH * KW, N * OH * OW)."""
        padded = bordered(xp, x, padding).transpose(1, 0, 2, 3)
        channels, batch = padded.shape[:2]
        result = xp.empty((channels, *kernel, batch, *out), x.dtype)
        for i, j, seen in window_views(padded, kernel, stride, dilation, out):
            result[:, i, j] = seen
        return result.reshape(groups, channels // groups * kernel[0] * kernel[1], batch * out[0] * out[1])

    @staticmethod
    def matrix(xp: Any, images: Any, groups: int) -> Any:
        """Return (N, O, OH, OW) as a matrix (groups, O/groups, N * OH * OW)."""
        batch, channels, height, width = images.shape
        return images.transpose(1, 0, 2, 3).reshape(groups, channels // groups, batch * height * width)


def _check_weight(x: tuple[int, ...], w: tuple[int, ...], groups: int) -> None:
    if len(x) != 4 or len(w) != 4:
        raise ShapeError(f"conv2d: expected x (N, C, H, W) and weight (O, C/groups, KH, KW). Got {x} and {w}.")
    if x[1] % groups or w[0] % groups or x[1] // groups != w[1]:
        raise ShapeError(
            f"conv2d: weight {w} with groups={groups} needs x with {w[1] * groups} channels and {groups} "
            f"to divide {w[0]}. "
            f"Got x {x}."
        )


class Conv2d(_Convolution):
    """Cross-correlation of images with weights: out[n, o, y, x] = sum over c, i, j of image × weight[o, c, i, j]."""

    name = "conv2d"
    lowering = Family("conv2d")
    planes = ("image", "kernel", "windows")

    @staticmethod
    def call(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        """Return the cross-correlation (N, O, OH, OW) of ``x`` (N, C, H, W) with ``weight`` (O, C/groups, KH, KW).

        ``padding``: an int, a pair, "valid" or "same" (stride 1). ``x`` without N is taken too. ``bias``: (O,).
        """
        x, weight = as_tensor(x), as_tensor(weight)
        if x.dtype is not weight.dtype or x.dtype is bool_:
            raise DTypeError(
                f"conv2d: x and weight need one numeric dtype. Got {x.dtype.name} and {weight.dtype.name}."
            )
        if x.ndim == 3:
            result = conv2d(reshape(x, (1, *x.shape)), weight, bias, stride, padding, dilation, groups)
            return reshape(result, result.shape[1:])
        _check_weight(x.shape, weight.shape, groups)
        stride, dilation = pair(stride, "conv2d", "stride"), pair(dilation, "conv2d", "dilation")
        border = _conv_padding(padding, weight.shape[2:], stride, dilation)
        result = bind(Conv2d, x, weight, stride=stride, padding=border, dilation=dilation, groups=groups)
        if bias is None:
            return result
        bias = as_tensor(bias)
        if bias.shape != weight.shape[:1]:
            raise ShapeError(
                f"conv2d: bias must have shape {weight.shape[:1]} to match weight {weight.shape}. Got {bias.shape}."
            )
        return result + reshape(bias, (bias.shape[0], 1, 1))

    @staticmethod
    def infer(x: TensorSpec, w: TensorSpec, *, stride: Any, padding: Any, dilation: Any, groups: int) -> TensorSpec:  # type: ignore[override]
        _check_weight(x.shape, w.shape, groups)
        out = output_size(x.shape[2:], w.shape[2:], stride, padding, dilation, "conv2d")
        return TensorSpec((x.shape[0], w.shape[0], *out), x.dtype)

    @classmethod
    def numpy(cls, xp: Any, x: Any, w: Any, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
        out = output_size(x.shape[2:], w.shape[2:], stride, padding, dilation, "conv2d")
        columns = cls.columns(xp, _widened(xp, x), w.shape[2:], stride, padding, dilation, groups, out)
        weights = _widened(xp, w).reshape(groups, w.shape[0] // groups, math.prod(w.shape[1:]))
        product = xp.matmul(weights, columns).reshape(w.shape[0], x.shape[0], *out)
        return xp.ascontiguousarray(product.transpose(1, 0, 2, 3)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        size, kernel = saved.spec(0).shape[2:], saved.spec(1).shape[2:]
        g_x = bind(Conv2dGradInput, g, saved.input(1), size=size, **saved.params) if saved.needs(0) else None
        g_w = bind(Conv2dGradWeight, saved.input(0), g, kernel=kernel, **saved.params) if saved.needs(1) else None
        return g_x, g_w

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return _shard_images_weights(inputs, out_channel_dim=0, groups=params["groups"])

    @staticmethod
    def samples() -> list[Sample]:
        x, w = _sample_images(2, 4, 5, 6), _sample_images(6, 2, 3, 2)
        params = (("stride", (2, 1)), ("padding", (1, 1, 0, 0)), ("dilation", (1, 2)), ("groups", 2))

        def reference(torch: Any, a: Any, b: Any) -> Any:
            return torch.conv2d(a, b, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)

        return [Sample((x, w), params, reference, (0, 1))]


class Conv2dGradInput(_Convolution):
    """Gradient of conv2d with respect to its images, of (height, width) ``size``: a transposed convolution."""

    name = "conv2d_grad_input"
    lowering = Family("conv2d_grad_input")
    planes = ("windows", "kernel", "image")

    @staticmethod
    def call(
        g: Any, weight: Any, size: Pair, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        """Return the gradient (N, C, *size) of the images, from that of the result (N, O, OH, OW)."""
        g, weight = as_tensor(g), as_tensor(weight)
        stride, dilation = pair(stride, "conv2d", "stride"), pair(dilation, "conv2d", "dilation")
        border = _conv_padding(padding, weight.shape[2:], stride, dilation)
        params = {"stride": stride, "padding": border, "dilation": dilation, "groups": groups}
        return bind(Conv2dGradInput, g, weight, size=tuple(size), **params)

    @staticmethod
    def infer(g: TensorSpec, w: TensorSpec, *, size: Pair, groups: int, **params: Any) -> TensorSpec:  # type: ignore[override]
        x = TensorSpec((g.shape[0], w.shape[1] * groups, *size), g.dtype)
        expected = Conv2d.infer(x, w, groups=groups, **params)
        if g != expected:
            raise ShapeError(f"conv2d_grad_input: expected a gradient {expected} for images {x}. Got {g}.")
        return x

    @classmethod
    def numpy(
        cls, xp: Any, g: Any, w: Any, *, size: Pair, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        batch, out_channels, *out = g.shape
        channels, kernel = w.shape[1] * groups, w.shape[2:]
        weights = _widened(xp, w).reshape(groups, out_channels // groups, math.prod(w.shape[1:]))
        spread = xp.matmul(weights.transpose(0, 2, 1), cls.matrix(xp, _widened(xp, g), groups))
        spread = spread.reshape(channels, *kernel, batch, *out)
        top, _, left, _ = padding
        image = xp.zeros((channels, batch, *bordered_size(size, padding)), spread.dtype)
        for i, j, seen in window_views(image, kernel, stride, dilation, tuple(out)):
            seen += spread[:, i, j]
        inner = image[:, :, top : top + size[0], left : left + size[1]].transpose(1, 0, 2, 3)
        return xp.ascontiguousarray(inner).astype(g.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, h: Any) -> Any:
        params = {key: value for key, value in saved.params.items() if key != "size"}
        g_g = bind(Conv2d, h, saved.input(1), **params) if saved.needs(0) else None
        kernel = saved.spec(1).shape[2:]
        return g_g, bind(Conv2dGradWeight, h, saved.input(0), kernel=kernel, **params) if saved.needs(1) else None

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        g, w = inputs
        if g == Mapped(1) and w == Mapped(0) and params["groups"] == 1:
            return Partial("sum")
        return _shard_images_weights(inputs, out_channel_dim=1, groups=params["groups"])

    @staticmethod
    def samples() -> list[Sample]:
        g, w = _sample_images(2, 6, 3, 4), _sample_images(6, 2, 3, 2)
        params = (("size", (5, 6)), ("stride", (2, 1)), ("padding", (1, 1, 0, 0)), ("dilation", (1, 2)), ("groups", 2))

        def reference(torch: Any, a: Any, b: Any) -> Any:
            return torch.nn.grad.conv2d_input((2, 4, 5, 6), b, a, (2, 1), (1, 0), (1, 2), 2)

        return [Sample((g, w), params, reference, (0, 1))]


class Conv2dGradWeight(_Convolution):
    """Gradient of conv2d with respect to its weights, of (height, width) ``kernel``."""

    name = "conv2d_grad_weight"
    lowering = Family("conv2d_grad_weight")
    planes = ("image", "windows", "kernel")

    @staticmethod
    def call(
        x: Any, g: Any, kernel: Pair, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        """Return the gradient (O, C/groups, *kernel) of the weights, from that of the result (N, O, OH, OW)."""
        stride, dilation = pair(stride, "conv2d", "stride"), pair(dilation, "conv2d", "dilation")
        border = _conv_padding(padding, tuple(kernel), stride, dilation)
        params = {"stride": stride, "padding": border, "dilation": dilation, "groups": groups}
        return bind(Conv2dGradWeight, as_tensor(x), as_tensor(g), kernel=tuple(kernel), **params)

    @staticmethod
    def infer(x: TensorSpec, g: TensorSpec, *, kernel: Pair, groups: int, **params: Any) -> TensorSpec:  # type: ignore[override]
        w = TensorSpec((g.shape[1], x.shape[1] // groups, *kernel), x.dtype)
        expected = Conv2d.infer(x, w, groups=groups, **params)
        if g != expected:
            raise ShapeError(f"conv2d_grad_weight: expected a gradient {expected} for images {x}. Got {g}.")
        return w

    @classmethod
    def numpy(
        cls, xp: Any, x: Any, g: Any, *, kernel: Pair, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Any:
        columns = cls.columns(xp, _widened(xp, x), kernel, stride, padding, dilation, groups, g.shape[2:])
        product = xp.matmul(cls.matrix(xp, _widened(xp, g), groups), columns.transpose(0, 2, 1))
        return product.reshape(g.shape[1], x.shape[1] // groups, *kernel).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, h: Any) -> Any:
        params = {key: value for key, value in saved.params.items() if key != "kernel"}
        size = saved.spec(0).shape[2:]
        g_x = bind(Conv2dGradInput, saved.input(1), h, size=size, **params) if saved.needs(0) else None
        return g_x, bind(Conv2d, saved.input(0), h, **params) if saved.needs(1) else None

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        x, g = inputs
        if x == g == Mapped(0):
            return Partial("sum")
        if params["groups"] == 1 and g == Mapped(1) and isinstance(x, Replicated):
            return Mapped(0)
        if params["groups"] == 1 and x == Mapped(1) and isinstance(g, Replicated):
            return Mapped(1)
        return REPLICATED if isinstance(x, Replicated) and isinstance(g, Replicated) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, g = _sample_images(2, 4, 5, 6), _sample_images(2, 6, 3, 4)
        params = (
            ("kernel", (3, 2)),
            ("stride", (2, 1)),
            ("padding", (1, 1, 0, 0)),
            ("dilation", (1, 2)),
            ("groups", 2),
        )

        def reference(torch: Any, a: Any, b: Any) -> Any:
            return torch.nn.grad.conv2d_weight(a, (6, 2, 3, 2), b, (2, 1), (1, 0), (1, 2), 2)

        return [Sample((x, g), params, reference, (0, 1))]


def _shard_images_weights(inputs: Any, out_channel_dim: int, groups: int) -> Sharding | None:
    """Rule of images × weights: the batch stays mapped; a free channel dimension of the weights becomes channels."""
    images, weights = inputs
    if isinstance(images, Replicated) and isinstance(weights, Replicated):
        return REPLICATED
    if images == Mapped(0) and isinstance(weights, Replicated):
        return Mapped(0)
    if groups == 1 and isinstance(images, Replicated) and weights == Mapped(out_channel_dim):
        return Mapped(1)
    if groups == 1 and out_channel_dim == 0 and images == Mapped(1) and weights == Mapped(1):
        return Partial("sum")
    return None


def _conv_padding(padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Border:
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ShapeError(f'conv2d: padding="same" needs stride 1. Got {stride}.')
        height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (height // 2, height - height // 2, width // 2, width - width // 2)
    if isinstance(padding, str):
        raise ShapeError(f'conv2d: padding must be an int, a pair, "same" or "valid". Got {padding!r}.')
    vertical, horizontal = pair(padding, "conv2d", "padding", least=0)
    return (vertical, vertical, horizontal, horizontal)


def _sample_images(*shape: int) -> np.ndarray:
    return np.sin(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape)


conv2d = Conv2d.call


def conv1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """Return the cross-correlation (N, O, L') of ``x`` (N, C, L) with ``weight`` (O, C/groups, K)."""
    x, weight = as_tensor(x), as_tensor(weight)
    if x.ndim != 3 or weight.ndim != 3:
        raise ShapeError(f"conv1d: expected x (N, C, L) and weight (O, C/groups, K). Got {x.shape} and {weight.shape}.")

    def flat(value: Any, neutral: int) -> Any:
        return value if isinstance(value, str) else (neutral, value[0] if isinstance(value, tuple | list) else value)

    image = reshape(x, (*x.shape[:2], 1, x.shape[2]))
    kernel = reshape(weight, (*weight.shape[:2], 1, weight.shape[2]))
    result = conv2d(image, kernel, bias, flat(stride, 1), flat(padding, 0), flat(dilation, 1), groups)
    return reshape(result, (*result.shape[:2], result.shape[3]))
