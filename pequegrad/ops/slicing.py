"""Ops that cut a box out of a tensor, write one back, or surround a tensor with a border.

Invariant: ``starts``, ``sizes``, ``steps``, ``lo`` and ``hi`` name every dimension; along dimension d the result's
element i is element ``starts[d] + i * steps[d]`` of the input, which lies inside it. ``steps`` may be negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import IndexOutOfRange, ShapeError
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind, normalize_dim
from .movement import Copy, ViewOp, reshape, shape_argument, zeros_like_spec
from .sharding import Mapped, Replicated, Sharding, shard_aligned


def box_slices(starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the Python slices that read a box; a negative step that reaches element 0 has no stop."""
    result = []
    for start, size, step in zip(starts, sizes, steps, strict=True):
        stop = start + size * step
        result.append(slice(start, None if stop < 0 else stop, step) if size else slice(0, 0))
    return tuple(result)


def _is_whole(dim: int, shape: tuple[int, ...], starts: Any, sizes: Any, steps: Any) -> bool:
    return starts[dim] == 0 and sizes[dim] == shape[dim] and steps[dim] == 1


class Slice(ViewOp):
    """A box of the input: every ``steps[d]``-th element along dimension d, ``sizes[d]`` of them from ``starts[d]``."""

    name = "slice"

    @staticmethod
    def call(x: Any, starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...] | None = None) -> Any:
        """Return a box of ``x``; a view, or ``x`` itself where the box is all of it."""
        x = as_tensor(x)
        steps = (1,) * x.ndim if steps is None else tuple(steps)
        starts, sizes = tuple(starts), tuple(sizes)
        if all(_is_whole(dim, x.shape, starts, sizes, steps) for dim in range(x.ndim)):
            return x
        return bind(Slice, x, starts=starts, sizes=sizes, steps=steps)

    @staticmethod
    def infer(x: TensorSpec, *, starts: Any, sizes: Any, steps: Any) -> TensorSpec:  # type: ignore[override]
        if not len(starts) == len(sizes) == len(steps) == x.ndim:
            raise ShapeError(
                f"slice: starts, sizes and steps must name {x.ndim} dimensions. Got {starts}, {sizes}, {steps}."
            )
        for dim, (start, size, step) in enumerate(zip(starts, sizes, steps, strict=True)):
            last = start + (size - 1) * step
            if size < 0 or step == 0 or (size and not (0 <= start < x.shape[dim] and 0 <= last < x.shape[dim])):
                raise ShapeError(
                    f"slice: {size} elements from {start} in steps of {step} do not lie in dimension "
                    f"{dim} of {x.shape}."
                )
        return TensorSpec(sizes, x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, starts: Any, sizes: Any, steps: Any) -> Any:
        return x[box_slices(starts, sizes, steps)] if starts else x[...]

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        spec, starts, steps = saved.spec(), saved.params["starts"], saved.params["steps"]
        if all(step == 1 for step in steps):
            ends = zip(spec.shape, starts, saved.params["sizes"], strict=True)
            return (bind(Pad, g, lo=starts, hi=tuple(n - a - size for n, a, size in ends), value=0),)
        return (bind(SliceUpdate, zeros_like_spec(spec), g, **saved.params),)

    @staticmethod
    def put(base: Any, new: Any, *, starts: Any, sizes: Any, steps: Any) -> Any:  # type: ignore[override]
        return bind(SliceUpdate, base, new, starts=starts, sizes=sizes, steps=steps)

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        starts, sizes, steps = params["starts"], params["sizes"], params["steps"]
        if 0 not in sizes:
            offset += sum(start * stride for start, stride in zip(starts, strides, strict=True))
        return sizes, tuple(stride * step for stride, step in zip(strides, steps, strict=True)), offset

    @staticmethod
    def shard(inputs: Any, specs: Any, *, starts: Any, sizes: Any, steps: Any) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        if isinstance(sharding, Mapped) and not _is_whole(sharding.dim, specs[0].shape, starts, sizes, steps):
            return None
        return sharding

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(24, dtype=np.float32).reshape(4, 6)
        params = (("starts", (1, 5)), ("sizes", (2, 3)), ("steps", (1, -2)))
        plain = (("starts", (1, 2)), ("sizes", (2, 3)), ("steps", (1, 1)))
        return [
            Sample((x,), params, lambda torch, t: t[1:3].flip(1)[:, ::2], (0,)),
            Sample((x,), plain, lambda torch, t: t[1:3, 2:5], (0,)),
        ]


class SliceUpdate(Op):
    """``base`` with the elements that a Slice shows replaced by ``new``."""

    name = "slice_update"
    lowering = Family("slice_update")

    @staticmethod
    def call(base: Any, new: Any, starts: tuple[int, ...], steps: tuple[int, ...] | None = None) -> Any:
        """Return ``base`` with ``new`` written at ``starts``, every ``steps``-th element."""
        base, new = as_tensor(base), as_tensor(new)
        steps = (1,) * base.ndim if steps is None else tuple(steps)
        return bind(SliceUpdate, base, new.to(base.dtype), starts=tuple(starts), sizes=new.shape, steps=steps)

    @staticmethod
    def infer(base: TensorSpec, new: TensorSpec, *, starts: Any, sizes: Any, steps: Any) -> TensorSpec:  # type: ignore[override]
        shown = Slice.infer(base, starts=starts, sizes=sizes, steps=steps)
        if new != shown:
            raise ShapeError(f"slice_update: expected {shown} to write. Got {new}.")
        return base

    @staticmethod
    def numpy(xp: Any, base: Any, new: Any, *, starts: Any, sizes: Any, steps: Any) -> Any:
        result = xp.array(base, order="C")
        result[box_slices(starts, sizes, steps) if starts else ...] = new
        return result

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        g_base = None
        if saved.needs(0):
            g_base = bind(SliceUpdate, g, zeros_like_spec(saved.spec(1)), **saved.params)
        return g_base, bind(Slice, g, **saved.params) if saved.needs(1) else None

    @staticmethod
    def shard(inputs: Any, specs: Any, *, starts: Any, sizes: Any, steps: Any) -> Sharding | None:  # type: ignore[override]
        sharding = shard_aligned(inputs)
        if isinstance(sharding, Mapped) and not _is_whole(sharding.dim, specs[0].shape, starts, sizes, steps):
            return None
        return sharding

    @staticmethod
    def samples() -> list[Sample]:
        base, new = np.arange(12, dtype=np.float32).reshape(3, 4), -np.ones((2, 2), np.float32)
        params = (("starts", (1, 3)), ("sizes", (2, 2)), ("steps", (1, -2)))

        def reference(torch: Any, b: Any, n: Any) -> Any:
            result = b.clone()
            result[1:3, 1::2] = n.flip(1)
            return result

        return [Sample((base, new), params, reference, (0, 1))]


class Pad(Op):
    """The input with ``lo[d]`` elements of a constant before and ``hi[d]`` after it along each dimension d."""

    name = "pad"
    lowering = Family("pad")

    @staticmethod
    def call(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
        """Return ``x`` with a border; ``pad`` = (before, after) of the last dimension, then of the one before it, ….

        Negative numbers crop, as in torch. Raises ShapeError for another ``mode`` than "constant".
        """
        x = as_tensor(x)
        widths = shape_argument((tuple(pad),), "pad")
        if mode != "constant":
            raise ShapeError(f'pad: mode must be "constant". Got {mode!r}.')
        if len(widths) % 2 or len(widths) > 2 * x.ndim:
            raise ShapeError(f"pad: expected pairs (before, after) for at most {x.ndim} dimensions. Got {widths}.")
        missing = (0,) * (x.ndim - len(widths) // 2)
        lo, hi = missing + widths[::2][::-1], missing + widths[1::2][::-1]
        sizes = tuple(n + min(a, 0) + min(b, 0) for n, a, b in zip(x.shape, lo, hi, strict=True))
        if min(sizes, default=0) < 0:
            raise ShapeError(f"pad: {widths} crops more than there is of shape {x.shape}.")
        x = slice_(x, tuple(max(-a, 0) for a in lo), sizes)
        lo, hi = tuple(max(a, 0) for a in lo), tuple(max(b, 0) for b in hi)
        if not any(lo) and not any(hi):
            return bind(Copy, x)
        return bind(Pad, x, lo=lo, hi=hi, value=x.dtype.numpy.type(value or 0).item())

    @staticmethod
    def infer(x: TensorSpec, *, lo: Any, hi: Any, value: Any) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(tuple(a + n + b for n, a, b in zip(x.shape, lo, hi, strict=True)), x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, lo: Any, hi: Any, value: Any) -> Any:
        result = xp.full(tuple(a + n + b for n, a, b in zip(x.shape, lo, hi, strict=True)), value, x.dtype)
        result[tuple(slice(a, a + n) for n, a in zip(x.shape, lo, strict=True)) if lo else ...] = x
        return result

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (slice_(g, saved.params["lo"], saved.spec().shape),)

    @staticmethod
    def shard(inputs: Any, specs: Any, *, lo: Any, hi: Any, value: Any) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        if isinstance(sharding, Mapped):
            return sharding if lo[sharding.dim] == hi[sharding.dim] == 0 else None
        return sharding if isinstance(sharding, Replicated) else None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        params = (("lo", (1, 0)), ("hi", (0, 2)), ("value", -1.5))
        return [Sample((x,), params, lambda torch, t: torch.nn.functional.pad(t, (0, 2, 1, 0), value=-1.5), (0,))]


slice_ = Slice.call
slice_update = SliceUpdate.call
pad = Pad.call


def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    """Return ``length`` elements from ``start`` along ``dim``; a view."""
    x = as_tensor(x)
    dim = normalize_dim(dim, x.ndim, "narrow")
    extent = x.shape[dim]
    first = int(start) + extent if start < 0 else int(start)
    if not (0 <= first <= extent and 0 <= length <= extent - first):
        raise IndexOutOfRange(f"narrow: {length} elements from {start} do not lie in dimension {dim} of {x.shape}.")
    starts = tuple(first if d == dim else 0 for d in range(x.ndim))
    return slice_(x, starts, tuple(length if d == dim else n for d, n in enumerate(x.shape)))


def select(x: Any, dim: int, index: int) -> Any:
    """Return ``x`` at ``index`` along ``dim``, without that dimension; a view. IndexOutOfRange names the bound."""
    x = as_tensor(x)
    dim = normalize_dim(dim, x.ndim, "select")
    if not x.ndim:
        raise IndexOutOfRange("select: a 0-dimensional tensor has no dimension to select from.")
    extent = x.shape[dim]
    if not -extent <= index < extent:
        raise IndexOutOfRange(
            f"index {index} is out of range for dimension {dim} of shape {x.shape}: expected {-extent} "
            f"<= index < {extent}."
        )
    return reshape(narrow(x, dim, int(index) % extent, 1), x.shape[:dim] + x.shape[dim + 1 :])


def flip(x: Any, *dims: Any) -> Any:
    """Return a copy of ``x`` with the order of elements reversed along ``dims``."""
    x = as_tensor(x)
    wanted = {normalize_dim(dim, x.ndim, "flip") for dim in shape_argument(dims, "flip")} if x.ndim else set()
    starts = tuple(max(n - 1, 0) if d in wanted else 0 for d, n in enumerate(x.shape))
    return bind(Copy, slice_(x, starts, x.shape, tuple(-1 if d in wanted else 1 for d in range(x.ndim))))
