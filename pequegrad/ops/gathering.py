"""Ops that read and write at integer indices: gather, its transpose scatter-add, scatter, a check alone, and sort.

Invariant: indices are int64 and lie in [0, extent) when an op runs; NumPy checks them (IndexOutOfRange names index
and bound), a compiled kernel may rely on it. With ``aligned`` the index has the dimensions of the data
(torch.gather); without, the index's dimensions, whatever their number, stand in the place of dimension ``dim``
(torch.index_select, embedding).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import int64
from ..errors import DTypeError, IndexOutOfRange, ShapeError
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind, broadcast_shapes, normalize_dim
from .movement import expand, full, reshape
from .placement import to_device
from .sharding import REPLICATED, Mapped, Partial, Replicated, Sharding
from .slicing import narrow, slice_


def check_range(index: Any, extent: int, dim: int, who: str) -> None:
    """Raise IndexOutOfRange that names the first index outside [0, extent)."""
    if index.size and not (int(index.min()) >= 0 and int(index.max()) < extent):
        wrong = index[(index < 0) | (index >= extent)].reshape(-1)[0]
        raise IndexOutOfRange(
            f"{who}: index {int(wrong)} is out of range for dimension {dim} of extent {extent}: expected "
            f"0 <= index < {extent}."
        )


def as_index(index: Any, who: str) -> Any:
    """Return an index as an int64 Tensor; DTypeError for floats and bools."""
    tensor = as_tensor(index)
    if tensor.dtype.kind != "int" and tensor.spec.size:
        raise DTypeError(f"{who}: an index must be of an integer dtype. Got {tensor.dtype.name}. Use .to(int64).")
    return tensor if tensor.dtype is int64 else tensor.to(int64)


def _grid(xp: Any, index: Any, dim: int) -> tuple[Any, ...]:
    """Return an aligned index as NumPy takes it: one broadcasting array per dimension."""
    ndim = index.ndim
    return tuple(
        index if d == dim else xp.arange(n).reshape(tuple(-1 if i == d else 1 for i in range(ndim)))
        for d, n in enumerate(index.shape)
    )


def _address(xp: Any, index: Any, dim: int, aligned: bool) -> tuple[Any, ...]:
    return _grid(xp, index, dim) if aligned else (slice(None),) * dim + (index,)


def _check_aligned(shape: tuple[int, ...], index: TensorSpec, dim: int, who: str) -> None:
    fits = index.ndim == len(shape) and all(
        n <= extent for d, (n, extent) in enumerate(zip(index.shape, shape, strict=True)) if d != dim
    )
    if not fits:
        raise ShapeError(
            f"{who}: index must have {len(shape)} dimensions, none larger than shape {shape} but for dimension {dim}. "
            f"Got {index.shape}."
        )


def _shard_by_place(inputs: Any, shape: tuple[int, ...], index_shape: tuple[int, ...]) -> Sharding | None:
    """Rule of aligned ops along their other dimensions: all operands mapped alike, and of one extent there."""
    first = inputs[0]
    if any(sharding != first for sharding in inputs):
        return None
    if isinstance(first, Mapped):
        return first if shape[first.dim] == index_shape[first.dim] else None
    return first if isinstance(first, Replicated) else None


class Gather(Op):
    """Elements of ``x`` at ``index`` along a dimension.

    aligned: result[i, j] = x[index[i, j], j] (for dim 0); else: result[..., i, j, ...] = x[..., index[i, j], ...].
    """

    name = "gather"
    lowering = Family("gather")

    @staticmethod
    def call(x: Any, dim: int, index: Any) -> Any:
        """Return ``x`` at ``index`` along ``dim``; ``index`` has the dimensions of ``x`` (torch.gather)."""
        x, index = as_tensor(x), as_index(index, "gather")
        return bind(Gather, x, index, dim=normalize_dim(dim, x.ndim, "gather"), aligned=True)

    @staticmethod
    def infer(x: TensorSpec, index: TensorSpec, *, dim: int, aligned: bool) -> TensorSpec:  # type: ignore[override]
        if aligned:
            _check_aligned(x.shape, index, dim, "gather")
            return TensorSpec(index.shape, x.dtype)
        return TensorSpec(x.shape[:dim] + index.shape + x.shape[dim + 1 :], x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, index: Any, *, dim: int, aligned: bool) -> Any:
        check_range(index, x.shape[dim], dim, "gather")
        return x[_grid(xp, index, dim)] if aligned else xp.take(x, index, axis=dim)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return bind(ScatterAdd, g, saved.input(1), shape=saved.spec(0).shape, **saved.params), None

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, aligned: bool) -> Sharding | None:  # type: ignore[override]
        x, index = inputs
        if isinstance(x, Mapped) and x.dim == dim:
            return None
        if aligned:
            if isinstance(x, Replicated) and index == Mapped(dim):
                return index
            return _shard_by_place(inputs, specs[0].shape, specs[1].shape)
        if isinstance(index, Mapped) and isinstance(x, Replicated):
            return Mapped(dim + index.dim)
        if isinstance(x, Mapped) and isinstance(index, Replicated):
            return Mapped(x.dim if x.dim < dim else x.dim + specs[1].ndim - 1)
        return REPLICATED if isinstance(x, Replicated) and isinstance(index, Replicated) else None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        rows, along = np.array([[0, 2], [2, 2]]), np.array([[0, 3], [1, 1], [2, 0]])
        return [
            Sample((x, rows), (("dim", 0), ("aligned", False)), lambda torch, t, i: t[i], (0,)),
            Sample((x, along), (("dim", 1), ("aligned", True)), lambda torch, t, i: t.gather(1, i), (0,)),
        ]


class ScatterAdd(Op):
    """Zeros of ``shape`` with ``x`` added at ``index`` along a dimension: the transpose of Gather."""

    name = "scatter_add"
    lowering = Family("scatter_add")

    @staticmethod
    def call(x: Any, dim: int, index: Any, src: Any) -> Any:
        """Return ``x`` with the elements of ``src`` added at ``index`` along ``dim`` (torch.scatter_add)."""
        x, index, src = _scatter_arguments(x, dim, index, src, "scatter_add")
        return x + bind(
            ScatterAdd, src, index, dim=normalize_dim(dim, x.ndim, "scatter_add"), aligned=True, shape=x.shape
        )

    @staticmethod
    def infer(x: TensorSpec, index: TensorSpec, *, dim: int, aligned: bool, shape: Any) -> TensorSpec:  # type: ignore[override]
        wanted = Gather.infer(TensorSpec(shape, x.dtype), index, dim=dim, aligned=aligned)
        if x != wanted:
            raise ShapeError(f"scatter_add: expected {wanted} to add at index {index} of shape {shape}. Got {x}.")
        return TensorSpec(shape, x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, index: Any, *, dim: int, aligned: bool, shape: Any) -> Any:
        check_range(index, shape[dim], dim, "scatter_add")
        # Integers add up modulo 2**64 as uint64, which CuPy can do too; bools so become "any".
        wide = xp.uint64 if x.dtype.kind in "biu" else xp.float32 if x.dtype.itemsize == 2 else x.dtype
        accumulator = xp.zeros(shape, wide)
        xp.add.at(accumulator, _address(xp, index, dim, aligned), x.astype(accumulator.dtype, copy=False))
        return accumulator.astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return bind(Gather, g, saved.input(1), dim=saved.params["dim"], aligned=saved.params["aligned"]), None

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, aligned: bool, shape: Any) -> Sharding | None:  # type: ignore[override]
        x, index = inputs
        if isinstance(x, Partial) or isinstance(index, Partial):
            return None
        if aligned:
            if x == index == Mapped(dim):
                return Partial("sum")
            return _shard_by_place(inputs, shape, specs[1].shape)
        if isinstance(index, Mapped):
            return Partial("sum") if x == Mapped(dim + index.dim) else None
        if isinstance(x, Mapped):
            width = specs[1].ndim
            if dim <= x.dim < dim + width:
                return None
            return Mapped(x.dim if x.dim < dim else x.dim - width + 1)
        return REPLICATED

    @staticmethod
    def samples() -> list[Sample]:
        x, index = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2, 0, 2])
        along = np.array([[0, 3], [1, 1], [2, 0]])
        params = (("dim", 0), ("aligned", False), ("shape", (4, 2)))
        aligned = (("dim", 1), ("aligned", True), ("shape", (3, 4)))
        return [
            Sample((x, index), params, lambda torch, t, i: torch.zeros(4, 2).index_add(0, i, t), (0,)),
            Sample((x, along), aligned, lambda torch, t, i: torch.zeros(3, 4).scatter_add(1, i, t), (0,)),
        ]


class CheckIndex(Op):
    """An index, every element of which lies in [0, extent) or is ``ignored``."""

    name = "check_index"
    lowering = Family("check_index")

    @staticmethod
    def call(index: Any, extent: int, ignored: int | None = None) -> Any:
        """Return ``index`` unchanged; IndexOutOfRange names an element outside [0, extent) that is not ``ignored``."""
        return bind(CheckIndex, as_tensor(index), extent=extent, ignored=ignored)

    @staticmethod
    def infer(index: TensorSpec, *, extent: int, ignored: int | None) -> TensorSpec:  # type: ignore[override]
        return index

    @staticmethod
    def numpy(xp: Any, index: Any, *, extent: int, ignored: int | None) -> Any:
        wrong = (index < 0) | (index >= extent)
        wrong = wrong if ignored is None else wrong & (index != ignored)
        if wrong.any():
            first = int(index[wrong].reshape(-1)[0])
            other = "" if ignored is None else f" or {ignored}"
            raise IndexOutOfRange(f"check_index: index {first} is out of range: expected 0 <= index < {extent}{other}.")
        return index.copy()

    @staticmethod
    def shard(inputs: Any, specs: Any, *, extent: int, ignored: int | None) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        return None if isinstance(sharding, Partial) else sharding

    @staticmethod
    def samples() -> list[Sample]:
        index = np.array([[2, 0, 2], [1, 7, 1]])
        return [
            Sample((index,), (("extent", 3), ("ignored", 7)), lambda torch, i: i),
            Sample((index[:1].astype(np.int32),), (("extent", 3), ("ignored", None)), lambda torch, i: i),
        ]


class Scatter(Op):
    """``base`` with ``x`` written at ``index`` along a dimension; of two writes to one place the later stays."""

    name = "scatter"
    lowering = Family("scatter")

    @staticmethod
    def call(x: Any, dim: int, index: Any, src: Any) -> Any:
        """Return ``x`` with ``src`` (a tensor or a number) written at ``index`` along ``dim`` (torch.scatter)."""
        x, index, src = _scatter_arguments(x, dim, index, src, "scatter")
        return bind(Scatter, x, src, index, dim=normalize_dim(dim, x.ndim, "scatter"), aligned=True)

    @staticmethod
    def infer(base: TensorSpec, x: TensorSpec, index: TensorSpec, *, dim: int, aligned: bool) -> TensorSpec:  # type: ignore[override]
        wanted = Gather.infer(base, index, dim=dim, aligned=aligned)
        if x != wanted:
            raise ShapeError(f"scatter: expected {wanted} to write at index {index} of {base}. Got {x}.")
        return base

    @staticmethod
    def numpy(xp: Any, base: Any, x: Any, index: Any, *, dim: int, aligned: bool) -> Any:
        check_range(index, base.shape[dim], dim, "scatter")
        result = xp.array(base, order="C")
        result[_address(xp, index, dim, aligned)] = x
        return result

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        index, spec = saved.input(2), saved.spec(1)
        zeros = full(spec.shape, 0, dtype=spec.dtype)
        g_base = bind(Scatter, g, zeros, index, **saved.params) if saved.needs(0) else None
        return g_base, bind(Gather, g, index, **saved.params) if saved.needs(1) else None, None

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, aligned: bool) -> Sharding | None:  # type: ignore[override]
        if all(isinstance(sharding, Replicated) for sharding in inputs):
            return REPLICATED
        if not aligned or Mapped(dim) in inputs:
            return None
        return _shard_by_place(inputs, specs[0].shape, specs[2].shape)

    @staticmethod
    def samples() -> list[Sample]:
        base, x, index = np.zeros((4, 2), np.float32), np.arange(4, dtype=np.float32).reshape(2, 2), np.array([2, 0])
        along = np.array([[1, 0], [0, 1]])
        return [
            Sample(
                (base, x, index), (("dim", 0), ("aligned", False)), lambda torch, b, t, i: b.index_copy(0, i, t), (0, 1)
            ),
            Sample(
                (base, x, along), (("dim", 1), ("aligned", True)), lambda torch, b, t, i: b.scatter(1, i, t), (0, 1)
            ),
        ]


check_index = CheckIndex.call
gather = Gather.call
scatter = Scatter.call
scatter_add = ScatterAdd.call


def _scatter_arguments(x: Any, dim: int, index: Any, src: Any, who: str) -> tuple[Any, Any, Any]:
    x, index = as_tensor(x), as_index(index, who)
    src = as_tensor(src, x.dtype).to(x.dtype)
    if not src.ndim:
        return x, index, expand(to_device(src, x.device), index.shape)
    if src.ndim != index.ndim or any(n > extent for n, extent in zip(index.shape, src.shape, strict=True)):
        raise ShapeError(f"{who}: src must cover the index, of shape {index.shape}. Got {src.shape}.")
    return x, index, slice_(src, (0,) * src.ndim, index.shape)


def index_select(x: Any, dim: int, index: Any) -> Any:
    """Return the slices of ``x`` at a vector ``index`` along ``dim``."""
    x, index = as_tensor(x), as_index(index, "index_select")
    if index.ndim > 1:
        raise ShapeError(f"index_select: index must be a vector. Got shape {index.shape}.")
    return bind(
        Gather, x, reshape(index, (index.spec.size,)), dim=normalize_dim(dim, x.ndim, "index_select"), aligned=False
    )


def take(x: Any, index: Any) -> Any:
    """Return the elements of the flattened ``x`` at ``index``, in the shape of ``index``."""
    x = as_tensor(x)
    return bind(Gather, reshape(x, (x.spec.size,)), as_index(index, "take"), dim=0, aligned=False)


def take_along_dim(x: Any, indices: Any, dim: int | None = None) -> Any:
    """Return ``gather`` with both broadcast against each other but for ``dim`` (None: both flattened)."""
    x, index = as_tensor(x), as_index(indices, "take_along_dim")
    if dim is None:
        return gather(reshape(x, (x.spec.size,)), 0, reshape(index, (index.spec.size,)))
    place = normalize_dim(dim, x.ndim, "take_along_dim")
    if x.ndim != index.ndim:
        raise ShapeError(f"take_along_dim: both need as many dimensions. Got {x.shape} and {index.shape}.")
    rest = broadcast_shapes(
        x.shape[:place] + x.shape[place + 1 :], index.shape[:place] + index.shape[place + 1 :], who="take_along_dim"
    )
    x = expand(x, (*rest[:place], x.shape[place], *rest[place:]))
    return gather(x, place, expand(index, (*rest[:place], index.shape[place], *rest[place:])))


def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Any:
    """Return ``x`` with the slices of ``source`` added at a vector ``index`` along ``dim``."""
    x, index = as_tensor(x), as_index(index, "index_add")
    source = as_tensor(source, x.dtype).to(x.dtype)
    source = source if alpha == 1 else source * alpha
    return x + bind(
        ScatterAdd, source, index, dim=normalize_dim(dim, x.ndim, "index_add"), aligned=False, shape=x.shape
    )


def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    """Return ``x`` with the slices of ``source`` written at a vector ``index`` along ``dim``."""
    x, index = as_tensor(x), as_index(index, "index_copy")
    source = as_tensor(source, x.dtype).to(x.dtype)
    return bind(Scatter, x, source, index, dim=normalize_dim(dim, x.ndim, "index_copy"), aligned=False)


def index_fill(x: Any, dim: int, index: Any, value: float) -> Any:
    """Return ``x`` with ``value`` written at a vector ``index`` along ``dim``."""
    x, index = as_tensor(x), as_index(index, "index_fill")
    place = normalize_dim(dim, x.ndim, "index_fill")
    shape = x.shape[:place] + index.shape + x.shape[place + 1 :]
    return bind(
        Scatter, x, expand(to_device(as_tensor(value, x.dtype), x.device), shape), index, dim=place, aligned=False
    )


# --- order ----------------------------------------------------------------------------------------------------


class Sort(Op):
    """Elements in order along a dimension, and where they came from. Stable; NaN is greater than all else."""

    name = "sort"
    lowering = Family("sort")

    @staticmethod
    def call(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> tuple[Any, Any]:
        """Return (values, indices) sorted along ``dim``. Gradients flow to the elements chosen."""
        x = as_tensor(x)
        return bind(Sort, x, dim=normalize_dim(dim, x.ndim, "sort"), descending=bool(descending))

    @staticmethod
    def infer(x: TensorSpec, *, dim: int, descending: bool) -> tuple[TensorSpec, TensorSpec]:  # type: ignore[override]
        return x, TensorSpec(x.shape, int64)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dim: int, descending: bool) -> Any:
        if not x.ndim:
            return x.copy(), xp.zeros((), xp.int64)
        keys = x.astype(xp.float32) if x.dtype.itemsize == 2 else x
        if descending:
            # Sorting the mirror image upward and mirroring back keeps ties in their first order.
            order = x.shape[dim] - 1 - xp.flip(xp.argsort(xp.flip(keys, dim), axis=dim, kind="stable"), dim)
        else:
            order = xp.argsort(keys, axis=dim, kind="stable")
        return xp.take_along_axis(x, order, dim), order

    @staticmethod
    def vjp(saved: Any, g: Any, _: Any) -> Any:
        spec = saved.spec()
        if not spec.shape:
            return (g,)
        return (bind(ScatterAdd, g, saved.output(1), dim=saved.params["dim"], aligned=True, shape=spec.shape),)

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, descending: bool) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        return None if isinstance(sharding, Partial) or sharding == Mapped(dim) else sharding

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[3, 1, np.nan, 1], [-np.inf, 0, np.inf, 2]], np.float32)
        upward, downward = (("dim", 1), ("descending", False)), (("dim", 0), ("descending", True))
        return [
            Sample((x,), upward, lambda torch, t: torch.sort(t, dim=1, stable=True), (0,)),
            Sample((x,), downward, lambda torch, t: torch.sort(t, dim=0, descending=True, stable=True), (0,)),
        ]


sort = Sort.call


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """Return the indices that sort ``x`` along ``dim``."""
    return sort(x, dim, descending)[1]


def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Any, Any]:
    """Return (values, indices) of the ``k`` greatest (or least) elements along ``dim``, in order."""
    x = as_tensor(x)
    extent = x.shape[normalize_dim(dim, x.ndim, "topk")] if x.ndim else 1
    if not 0 <= k <= extent:
        raise IndexOutOfRange(
            f"topk: k must lie in [0, {extent}], the extent of dimension {dim} of {x.shape}. Got {k}."
        )
    values, indices = sort(x, dim, descending=largest)
    return (narrow(values, dim, 0, k), narrow(indices, dim, 0, k)) if x.ndim else (values, indices)
