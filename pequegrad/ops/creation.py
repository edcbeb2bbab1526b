"""Tensors made from nothing: counters, ranges, constants; and the triangles and diagonals that counters mark.

Invariant: what is made here is the same in every block, worker and target; it depends on parameters alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays import checked_device
from ..dtypes import DType, as_dtype, float32, float64, int64
from ..errors import DTypeError, ShapeError
from .core import Expression, Op, Sample, TensorSpec, as_tensor, bind, make, normalize_dim
from .elementwise import where
from .movement import Copy, ViewOp, full, permute, reshape, shape_argument
from .sharding import REPLICATED, Mapped, Sharding
from .slicing import pad


class Iota(Op):
    """The index of each element along one dimension. ``inner`` is the product of the extents after it."""

    name = "iota"
    lowering = Expression("pg::cast<{T}>({coordinate})")
    is_constant = True
    elementwise = True
    vjp = None

    @staticmethod
    def call(shape: Any, dim: int = 0, dtype: Any = int64, device: str | None = None) -> Any:
        """Return a tensor of ``shape`` whose elements are their own index along ``dim``."""
        shape = shape_argument((shape,) if isinstance(shape, int) else (tuple(shape),), "iota")
        dim = normalize_dim(dim, len(shape), "iota")
        inner, extent = math.prod(shape[dim + 1 :]), shape[dim]
        params = {
            "shape": shape,
            "dim": dim,
            "dtype": as_dtype(dtype),
            "inner": max(inner, 1),
            "extent": max(extent, 1),
        }
        return make(Iota, device, **params)

    @staticmethod
    def infer(*, shape: tuple[int, ...], dim: int, dtype: DType, inner: int, extent: int) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(shape, dtype)

    @staticmethod
    def numpy(xp: Any, *, shape: Any, dim: int, dtype: DType, inner: int, extent: int) -> Any:
        count = xp.arange(shape[dim]).astype(dtype.numpy)
        lined = count.reshape(tuple(-1 if d == dim else 1 for d in range(len(shape))))
        return xp.array(xp.broadcast_to(lined, shape), order="C")

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return REPLICATED

    @staticmethod
    def samples() -> list[Sample]:
        params = (("shape", (2, 3)), ("dim", 1), ("dtype", int64), ("inner", 1), ("extent", 3))
        return [Sample((), params, lambda torch: torch.arange(3).expand(2, 3))]


iota = Iota.call


def _place(device: Any) -> str | None:
    return None if device is None else checked_device(device)


def _finish(result: Any, requires_grad: bool) -> Any:
    return result.requires_grad_() if requires_grad else result


def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return zeros; float32 unless ``dtype`` says otherwise."""
    return _finish(full(shape_argument(size, "zeros"), 0, dtype=dtype or float32, device=device), requires_grad)


def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return ones; float32 unless ``dtype`` says otherwise."""
    return _finish(full(shape_argument(size, "ones"), 1, dtype=dtype or float32, device=device), requires_grad)


def empty(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return a tensor whose contents nobody should rely on (they are zeros, so that runs repeat)."""
    return zeros(*size, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(x: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return a tensor of the shape and dtype of ``x`` filled with a number."""
    place = x.device if device is None else device
    return _finish(full(x.shape, fill_value, dtype=dtype or x.dtype, device=place), requires_grad)


def zeros_like(x: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return zeros of the shape and dtype of ``x``."""
    return full_like(x, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones_like(x: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return ones of the shape and dtype of ``x``."""
    return full_like(x, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def empty_like(x: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return zeros of the shape and dtype of ``x``; see `empty`."""
    return full_like(x, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def new_zeros(x: Any, *size: Any, dtype: Any = None) -> Any:
    """Return zeros of another shape in the dtype of ``x``."""
    return full(shape_argument(size, "new_zeros"), 0, dtype=dtype or x.dtype, device=x.device)


def new_ones(x: Any, *size: Any, dtype: Any = None) -> Any:
    """Return ones of another shape in the dtype of ``x``."""
    return full(shape_argument(size, "new_ones"), 1, dtype=dtype or x.dtype, device=x.device)


def new_full(x: Any, size: Any, fill_value: Any, dtype: Any = None) -> Any:
    """Return a constant of another shape in the dtype of ``x``."""
    return full(size, fill_value, dtype=dtype or x.dtype, device=x.device)


def arange(
    start: float, end: float | None = None, step: float = 1, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Any:  # fmt: skip
    """Return start, start + step, … below ``end`` (``arange(end)``: from 0); float32 if one is a float, else int64."""
    if end is None:
        start, end = 0, start
    for value in (start, end, step):
        if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
            raise DTypeError(f"arange: expected numbers. Got {type(value).__name__}: {value!r}.")
    if step == 0 or (end - start) * step < 0:
        raise ShapeError(f"arange: steps of {step} do not lead from {start} to {end}.")
    is_whole = all(isinstance(value, int | np.integer) for value in (start, end, step))
    kind = as_dtype(dtype) if dtype is not None else int64 if is_whole else float32
    count = -(-(int(end) - int(start)) // int(step)) if is_whole else math.ceil((end - start) / step)
    counter = iota((count,), 0, int64 if is_whole else float64, _place(device))
    values = counter if (start, step) == (0, 1) else counter * (int(step) if is_whole else float(step)) + start
    return _finish(values.to(kind), requires_grad)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """Return ``steps`` numbers evenly spaced from ``start`` to ``end``, both included; float32 by default."""
    if steps < 0:
        raise ShapeError(f"linspace: steps must not be negative. Got {steps}.")
    kind = as_dtype(dtype) if dtype is not None else float32
    counter = iota((steps,), 0, float64, _place(device))
    stride = (float(end) - float(start)) / max(steps - 1, 1)
    # From both ends, as torch does, so that the last element is ``end`` itself.
    values = where(counter < steps / 2, counter * stride + float(start), (counter - (steps - 1)) * stride + float(end))
    return _finish(values.to(kind), requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Return the (n, m) matrix with ones on its diagonal; float32 by default."""
    columns = n if m is None else m
    place = _place(device)
    diagonal = iota((n, 1), 0, device=place) == iota((1, columns), 1, device=place)
    return _finish(diagonal.to(as_dtype(dtype) if dtype is not None else float32), requires_grad)


def below_diagonal(rows: int, columns: int, diagonal: int = 0, device: str | None = None) -> Any:
    """Return the bool matrix (rows, columns) that is True where column - row <= ``diagonal``."""
    return iota((1, columns), 1, device=device) - iota((rows, 1), 0, device=device) <= diagonal


def _matrix(x: Any, who: str) -> Any:
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"{who}: expected at least 2 dimensions. Got shape {x.shape}.")
    return x


def tril(x: Any, diagonal: int = 0) -> Any:
    """Return the lower triangles of a batch of matrices, zeros elsewhere; entries with column - row <= ``diagonal``."""
    x = _matrix(x, "tril")
    return where(below_diagonal(x.shape[-2], x.shape[-1], diagonal, x.device), x, full((), 0, dtype=x.dtype))


def triu(x: Any, diagonal: int = 0) -> Any:
    """Return the upper triangles of a batch of matrices, zeros elsewhere; entries with column - row >= ``diagonal``."""
    x = _matrix(x, "triu")
    return where(below_diagonal(x.shape[-2], x.shape[-1], diagonal - 1, x.device), full((), 0, dtype=x.dtype), x)


class Diagonal(ViewOp):
    """The elements whose index along ``dim2`` is ``offset`` more than along ``dim1``, as a new last dimension."""

    name = "diagonal"
    methods = ("diagonal",)

    @staticmethod
    def call(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
        """Return the elements with index ``dim2`` - index ``dim1`` = ``offset`` as a new last dimension; a view."""
        x = as_tensor(x)
        first, second = normalize_dim(dim1, x.ndim, "diagonal"), normalize_dim(dim2, x.ndim, "diagonal")
        if first == second:
            raise ShapeError(f"diagonal: dim1 and dim2 must differ. Got {dim1} and {dim2} for shape {x.shape}.")
        return bind(Diagonal, x, offset=int(offset), dim1=first, dim2=second)

    @staticmethod
    def infer(x: TensorSpec, *, offset: int, dim1: int, dim2: int) -> TensorSpec:  # type: ignore[override]
        others, (_, _, length) = _diagonal_of(x.shape, offset, dim1, dim2)
        return TensorSpec((*(x.shape[d] for d in others), length), x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, offset: int, dim1: int, dim2: int) -> Any:
        others, (row, column, length) = _diagonal_of(x.shape, offset, dim1, dim2)
        matrices = x.transpose(*others, dim1, dim2)
        # einsum's view can be written to; that of numpy.diagonal cannot.
        return xp.einsum("...ii->...i", matrices[..., row : row + length, column : column + length])

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (Diagonal.put(full(saved.spec().shape, 0, dtype=saved.spec().dtype), g, **saved.params),)

    @staticmethod
    def put(base: Any, new: Any, *, offset: int, dim1: int, dim2: int) -> Any:  # type: ignore[override]
        others, (row, _, length) = _diagonal_of(base.shape, offset, dim1, dim2)
        if not length:
            return bind(Copy, base)
        order = (*others, dim1, dim2)
        rows, columns = base.shape[dim1], base.shape[dim2]
        by_row = pad(new, (row, rows - row - length))
        by_row = reshape(by_row, (*by_row.shape, 1))
        is_on = iota((1, columns), 1, device=base.device) - iota((rows, 1), 0, device=base.device) == offset
        return permute(where(is_on, by_row, permute(base, order)), tuple(np.argsort(order).tolist()))

    @staticmethod
    def access(shape: Any, strides: Any, offset: int, /, **params: Any) -> Any:
        dim1, dim2 = params["dim1"], params["dim2"]
        others, (row, column, length) = _diagonal_of(shape, params["offset"], dim1, dim2)
        start = offset + row * strides[dim1] + column * strides[dim2] if length else offset
        seen = (*(shape[d] for d in others), length)
        return seen, (*(strides[d] for d in others), strides[dim1] + strides[dim2]), start

    @staticmethod
    def shard(inputs: Any, specs: Any, *, offset: int, dim1: int, dim2: int) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        if not isinstance(sharding, Mapped):
            return sharding
        others, _ = _diagonal_of(specs[0].shape, offset, dim1, dim2)
        return Mapped(others.index(sharding.dim)) if sharding.dim in others else None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        above, below = (("offset", 1), ("dim1", 1), ("dim2", 2)), (("offset", -1), ("dim1", 2), ("dim2", 0))
        return [
            Sample((x,), above, lambda torch, t: t.diagonal(1, 1, 2), (0,)),
            Sample((x,), below, lambda torch, t: t.diagonal(-1, 2, 0), (0,)),
        ]


diagonal = Diagonal.call


def _diagonal_of(
    shape: tuple[int, ...], offset: int, dim1: int, dim2: int
) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Return the other dimensions, and the diagonal's first row, first column and length."""
    row, column = max(-offset, 0), max(offset, 0)
    length = max(min(shape[dim1] - row, shape[dim2] - column), 0)
    return tuple(d for d in range(len(shape)) if d not in (dim1, dim2)), (row, column, length)


def diag(x: Any, diagonal_offset: int = 0) -> Any:
    """Return a copy of the diagonal of a matrix, or the matrix with a vector on its diagonal."""
    x = as_tensor(x)
    if x.ndim == 2:
        return bind(Copy, diagonal(x, diagonal_offset))
    if x.ndim != 1:
        raise ShapeError(f"diag: expected 1 or 2 dimensions. Got shape {x.shape}. Use diagonal.")
    extent = x.shape[0] + abs(diagonal_offset)
    before = max(diagonal_offset, 0)
    columns = pad(x, (before, extent - x.shape[0] - before))
    is_on = iota((1, extent), 1, device=x.device) - iota((extent, 1), 0, device=x.device) == diagonal_offset
    return where(is_on, columns, full((), 0, dtype=x.dtype))
