"""Ops that move elements without arithmetic: views through strides, copies, and constants.

Invariant: a view op's `numpy` returns a view, its `access` the same view as (shape, strides, offset), its `put` the inverse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import checked_device, on_lines
from ..dtypes import DType, as_dtype, bool_, float32, int64
from ..errors import DTypeError, ShapeError
from .core import Op, Sample, TensorSpec, View, as_tensor, bind, make, normalize_dim
from .sharding import REPLICATED, Mapped, Sharding


class ViewOp(Op):
    """Family: ops that re-read their input's memory in another shape or order."""

    view = True
    lowering = View()


def shape_argument(shape: tuple[Any, ...], who: str) -> tuple[int, ...]:
    """Return ``f(2, 3)`` and ``f((2, 3))`` alike as (2, 3)."""
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    for extent in shape:
        if not isinstance(extent, int | np.integer) or isinstance(extent, bool):
            raise DTypeError(f"{who}: a shape is made of ints. Got {extent!r} in {shape}.")
    return tuple([int(extent) for extent in shape])


class Reshape(ViewOp):
    """The same elements, in row-major order, in another shape."""

    name = "reshape"
    methods = ("reshape",)

    @staticmethod
    def call(x: Any, *shape: Any) -> Any:
        """Return ``x`` in another shape of as many elements; one extent may be -1. A view where ``x`` is contiguous."""
        x = as_tensor(x)
        wanted = shape_argument(shape, "reshape")
        size = x.spec.size
        if wanted.count(-1) == 1:
            known = math.prod(extent for extent in wanted if extent != -1)
            if known and size % known == 0:
                wanted = tuple(size // known if extent == -1 else extent for extent in wanted)
        if math.prod(wanted) != size or min(wanted, default=0) < 0:
            raise ShapeError(
                f"reshape: shape {x.shape} has {size} elements, which do not fit into {shape_argument(shape, 'reshape')}."
            )
        if wanted == x.shape:
            return x
        return bind(Reshape, x if can_view(x, wanted) else x.contiguous(), shape=wanted)

    @staticmethod
    def infer(x: TensorSpec, *, shape: tuple[int, ...]) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(shape, x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, shape: tuple[int, ...]) -> Any:
        return x.reshape(shape)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (reshape(g, saved.spec().shape),)

    @staticmethod
    def put(base: Any, new: Any, *, shape: tuple[int, ...]) -> Any:  # type: ignore[override]
        return reshape(new, base.shape)

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        new_strides = reshaped_strides(shape, strides, params["shape"])
        return None if new_strides is None else (params["shape"], new_strides, offset)

    @staticmethod
    def shard(inputs: Any, specs: Any, *, shape: tuple[int, ...]) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        if not isinstance(sharding, Mapped):
            return sharding
        # The axis survives while it stays the leading factor of a group of merged or split dimensions.
        before = math.prod(specs[0].shape[: sharding.dim])
        extent = specs[0].shape[sharding.dim]
        for dim, size in enumerate(shape):
            if math.prod(shape[:dim]) == before and extent and (size % extent == 0 or extent % size == 0) and size > 1:
                return Mapped(dim)
        return None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        return [Sample((x,), (("shape", (6, 4)),), lambda torch, t: t.reshape(6, 4), (0,))]


reshape = Reshape.call


def can_view(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether ``x``, as it lies in memory, can be read in another shape without a copy."""
    return x.is_contiguous() or reshaped_strides(x.shape, x.strides(), shape) is not None


def reshaped_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return strides that read an array of ``shape`` and ``strides`` as ``wanted`` without a copy, or None."""
    if math.prod(shape) == 0:
        return tuple(0 for _ in wanted)
    # Merge what is contiguous into runs of (extent, stride of the last element), then split the runs.
    runs: list[list[int]] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if runs and runs[-1][1] == extent * stride:
            runs[-1] = [runs[-1][0] * extent, stride]
        else:
            runs.append([extent, stride])
    result = [0] * len(wanted)
    dim = len(wanted) - 1
    for extent, stride in reversed(runs):
        remaining = extent
        while remaining > 1:
            while dim >= 0 and wanted[dim] == 1:
                dim -= 1
            if dim < 0 or remaining % wanted[dim]:
                return None
            result[dim] = stride * (extent // remaining)
            remaining //= wanted[dim]
            dim -= 1
    return tuple(result)


class Permute(ViewOp):
    """Dimensions in another order."""

    name = "permute"
    methods = ("permute",)

    @staticmethod
    def call(x: Any, *dims: Any) -> Any:
        """Return ``x`` with its dimensions in the order ``dims``; a view."""
        x = as_tensor(x)
        order = tuple(normalize_dim(dim, x.ndim, "permute") for dim in shape_argument(dims, "permute"))
        if sorted(order) != list(range(x.ndim)):
            raise ShapeError(f"permute: dims must name each of {x.ndim} dimensions once. Got {order}.")
        return bind(Permute, x, dims=order)

    @staticmethod
    def infer(x: TensorSpec, *, dims: tuple[int, ...]) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(tuple(x.shape[dim] for dim in dims), x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...]) -> Any:
        return x.transpose(dims)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (permute(g, tuple(np.argsort(saved.params["dims"]).tolist())),)

    @staticmethod
    def put(base: Any, new: Any, *, dims: tuple[int, ...]) -> Any:  # type: ignore[override]
        return permute(new, tuple(np.argsort(dims).tolist()))

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        dims = params["dims"]
        return tuple(shape[d] for d in dims), tuple(strides[d] for d in dims), offset

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dims: tuple[int, ...]) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        return Mapped(dims.index(sharding.dim)) if isinstance(sharding, Mapped) else sharding

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        return [Sample((x,), (("dims", (2, 0, 1)),), lambda torch, t: t.permute(2, 0, 1), (0,))]


permute = Permute.call


class Expand(ViewOp):
    """Dimensions of extent 1, and new leading ones, repeated without a copy."""

    name = "expand"
    methods = ("expand",)

    @staticmethod
    def call(x: Any, *shape: Any) -> Any:
        """Return ``x`` broadcast to ``shape`` (-1: as it is); a view that cannot be written to."""
        x = as_tensor(x)
        wanted = shape_argument(shape, "expand")
        lead = len(wanted) - x.ndim
        shape_now = (1,) * lead + x.shape
        wanted = tuple(shape_now[i] if extent == -1 and i >= lead else extent for i, extent in enumerate(wanted))
        if lead < 0 or any(now not in (1, extent) for now, extent in zip(shape_now, wanted, strict=True)):
            raise ShapeError(f"expand: shape {x.shape} does not broadcast to {wanted}.")
        return x if wanted == x.shape else bind(Expand, x, shape=wanted)

    @staticmethod
    def infer(x: TensorSpec, *, shape: tuple[int, ...]) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(shape, x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, shape: tuple[int, ...]) -> Any:
        return xp.broadcast_to(x, shape)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g,)  # the sweep sums it back to the input's shape

    @staticmethod
    def put(base: Any, new: Any, *, shape: tuple[int, ...]) -> Any:  # type: ignore[override]
        raise ShapeError(
            f"in-place write to a tensor expanded from {base.shape} to {shape}: its elements share memory. Use .clone() first."
        )

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        wanted = params["shape"]
        lead = len(wanted) - len(shape)
        kept = (0 if extent == 1 else stride for extent, stride in zip(shape, strides, strict=True))
        return wanted, (0,) * lead + tuple(kept), offset

    @staticmethod
    def shard(inputs: Any, specs: Any, *, shape: tuple[int, ...]) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        return Mapped(sharding.dim + len(shape) - specs[0].ndim) if isinstance(sharding, Mapped) else sharding

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(3, dtype=np.float32).reshape(3, 1)
        return [Sample((x,), (("shape", (2, 3, 4)),), lambda torch, t: t.expand(2, 3, 4), (0,))]


expand = Expand.call


class Detach(ViewOp):
    """The same memory, without gradient history."""

    name = "detach"
    vjp = None

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``x`` without its gradient history; a view."""
        return bind(Detach, as_tensor(x))

    @staticmethod
    def infer(x: TensorSpec) -> TensorSpec:  # type: ignore[override]
        return x

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return x[...]

    @staticmethod
    def put(base: Any, new: Any) -> Any:  # type: ignore[override]
        return new

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        return shape, strides, offset

    @staticmethod
    def shard(inputs: Any, specs: Any) -> Sharding | None:  # type: ignore[override]
        return inputs[0]

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((np.arange(3, dtype=np.float32),), (), lambda torch, t: t.detach())]


class Copy(Op):
    """The same elements in memory of their own."""

    name = "copy"
    lowering = View()

    @staticmethod
    def call(x: Any) -> Any:
        """Return a contiguous copy of ``x``."""
        return bind(Copy, as_tensor(x))

    @staticmethod
    def infer(x: TensorSpec) -> TensorSpec:  # type: ignore[override]
        return x

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.array(x, order="C")

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g,)

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        return shape, strides, offset

    @staticmethod
    def shard(inputs: Any, specs: Any) -> Sharding | None:  # type: ignore[override]
        return inputs[0]

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((np.arange(6, dtype=np.float32).reshape(2, 3),), (), lambda torch, t: t.clone(), (0,))]


class Full(Op):
    """A constant of some shape."""

    name = "full"
    lowering = View()
    is_constant = True
    vjp = None

    @staticmethod
    def call(size: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        """Return a tensor of shape ``size`` filled with a number (dtype: that of the number)."""
        shape = shape_argument((size,) if isinstance(size, int) else tuple(size), "full")
        guess = bool_ if isinstance(fill_value, bool) else int64 if isinstance(fill_value, int) else float32
        kind = guess if dtype is None else as_dtype(dtype)
        place = None if device is None else checked_device(device)
        result = make(Full, place, shape=shape, value=kind.numpy.type(fill_value).item(), dtype=kind)
        return result.requires_grad_() if requires_grad else result

    @staticmethod
    def infer(*, shape: tuple[int, ...], value: Any, dtype: DType) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(shape, dtype)

    @staticmethod
    def numpy(xp: Any, *, shape: tuple[int, ...], value: Any, dtype: DType) -> Any:
        # Memory that comes as zeros need not be written to.
        is_zero = not value and math.copysign(1, value) > 0
        if xp is not np:
            return xp.zeros(shape, dtype.numpy) if is_zero else xp.full(shape, value, dtype.numpy)
        array = on_lines(np.zeros if is_zero else np.empty, shape, dtype.numpy)
        if not is_zero:
            array.fill(value)
        return array

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return REPLICATED

    @staticmethod
    def samples() -> list[Sample]:
        params = (("shape", (2, 3)), ("value", 1.5), ("dtype", float32))
        return [Sample((), params, lambda torch: torch.full((2, 3), 1.5))]


full = Full.call


def zeros_like_spec(spec: TensorSpec) -> Any:
    """Return zeros of a spec."""
    return full(spec.shape, 0, dtype=spec.dtype)
