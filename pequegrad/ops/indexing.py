"""Python's indexing and assignment, made of slices, gather and scatter, as torch means them.

Invariant: ints, slices, None and Ellipsis give a view; an index tensor, array, list or bool mask gives a copy.
Ints are taken before the index arrays are placed (torch, not NumPy: ``x[0, :, [1, 2]]`` has shape (rest, 2)).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import bool_, int64
from ..errors import DTypeError, IndexOutOfRange, ShapeError, TraceError
from ..records import Frozen
from .core import EAGER, as_tensor, bind, broadcast_shapes, context, is_tensor
from .creation import iota
from .elementwise import where
from .gathering import Gather, Scatter, ScatterAdd, as_index, check_index, take
from .movement import Reshape, expand, permute, reshape
from .placement import to_device
from .slicing import slice_


class _Indexed(Frozen):
    """A key, half done: the view that its basic parts show, and the index arrays still to be applied to it."""

    __slots__ = ("arrays", "view")
    view: Any
    arrays: tuple[tuple[int, Any], ...]
    """(first dimension of the view, int64 index of one dimension or bool mask of several)."""

    def __init__(self, view: Any, arrays: tuple[tuple[int, Any], ...]) -> None:
        self.set_fields(view=view, arrays=arrays)


def getitem(x: Any, key: Any) -> Any:
    """Return ``x[key]``. IndexOutOfRange names the index and the bound."""
    parts = _apply_basic(x, key)
    if not parts.arrays:
        return parts.view
    plan = _Plan(parts)
    return bind(Gather, plan.merged(parts.view), plan.index, dim=plan.dim, aligned=False)


def setitem(x: Any, key: Any, value: Any) -> None:
    """Write ``x[key] = value``; the value broadcasts. Of two writes to one element the later stays."""
    parts = _apply_basic(x, key)
    value = to_device(as_tensor(value, x.dtype).to(x.dtype), x.device)
    view = parts.view
    if not parts.arrays:
        view.assign(_without_leading_ones(value, view.ndim))
        return
    place, first = parts.arrays[0]
    if len(parts.arrays) == 1 and first.dtype is bool_:
        trailing = view.ndim - place - first.ndim
        value = _without_leading_ones(value, trailing)
        if value.ndim <= trailing:
            mask = reshape(first, first.shape + (1,) * trailing)
            view.assign(where(mask, value, view))
            return
    plan = _Plan(parts)
    shape = plan.result_shape
    source = expand(_without_leading_ones(value, len(shape)), shape)
    view.assign(plan.unmerged(bind(Scatter, plan.merged(view), source, plan.index, dim=plan.dim, aligned=False)))


def index_put(x: Any, indices: tuple[Any, ...], values: Any, accumulate: bool = False) -> Any:
    """Return ``x`` with ``values`` written (or, with ``accumulate``, added) at ``indices``."""
    x = as_tensor(x)
    parts = _apply_basic(x, tuple(indices))
    if not parts.arrays:
        raise ShapeError("index_put: expected index tensors. Use x[key] = value.")
    plan = _Plan(parts)
    values = to_device(as_tensor(values, x.dtype).to(x.dtype), x.device)
    source = expand(values, plan.result_shape)
    base = plan.merged(x)
    if accumulate:
        added = bind(ScatterAdd, source, plan.index, dim=plan.dim, aligned=False, shape=base.shape)
        return x + plan.unmerged(added)
    return plan.unmerged(bind(Scatter, base, source, plan.index, dim=plan.dim, aligned=False))


def _without_leading_ones(value: Any, ndim: int) -> Any:
    shape = value.shape
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return reshape(value, shape)


def _apply_basic(x: Any, key: Any) -> _Indexed:
    """Take the ints, slices and Nones of a key, and collect its arrays."""
    items = [_as_item(item) for item in (key if isinstance(key, tuple) else (key,))]
    consumed = sum(_consumes(item) for item in items)
    if consumed > x.ndim:
        raise IndexOutOfRange(f"too many indices for shape {x.shape}: {consumed} for {x.ndim} dimensions.")
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexOutOfRange("an index can have only one ellipsis '...'.")
    place = ellipses[0] if ellipses else len(items)
    items[place : place + 1] = [slice(None)] * (x.ndim - consumed)

    starts: list[int] = []
    sizes: list[int] = []
    steps: list[int] = []
    shape: list[int] = []
    arrays: list[tuple[int, Any]] = []
    dim = 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        extent = x.shape[dim]
        start, size, step = 0, extent, 1
        if isinstance(item, int):
            if not -extent <= item < extent:
                raise IndexOutOfRange(
                    f"index {item} is out of range for dimension {dim} of shape {x.shape}: "
                    f"expected {-extent} <= index < {extent}."
                )
            start, size = item % extent, 1
        elif isinstance(item, slice):
            span = _span(item, extent)
            start, size, step = span.start if len(span) else 0, len(span), span.step if len(span) else 1
            shape.append(size)
        else:
            width = _consumes(item)
            if item.dtype is bool_ and item.shape != x.shape[dim : dim + width]:
                raise IndexOutOfRange(
                    f"a mask over dimensions {dim} to {dim + width - 1} of shape {x.shape} must have shape "
                    f"{x.shape[dim : dim + width]}. Got {item.shape}."
                )
            arrays.append((len(shape), to_device(item, x.device)))
            for d in range(dim, dim + width - 1):
                starts, sizes, steps = [*starts, 0], [*sizes, x.shape[d]], [*steps, 1]
            shape.extend(x.shape[dim : dim + width])
            dim += width - 1
            size = x.shape[dim]
        starts, sizes, steps = [*starts, start], [*sizes, size], [*steps, step]
        dim += 1
    view = slice_(x, tuple(starts), tuple(sizes), tuple(steps))
    if tuple(shape) != view.shape:
        # Only extents of 1 come and go here, which never needs a copy.
        view = bind(Reshape, view, shape=tuple(shape))
    return _Indexed(view, tuple(arrays))


def _as_item(item: Any) -> Any:
    """Return one part of a key as an int, slice, None, Ellipsis, or Tensor of int64 or bool."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, bool | np.bool_):
        raise DTypeError("a single bool is no index. Use an int, or a mask of the tensor's shape.")
    if isinstance(item, int | np.integer):
        return int(item)
    if isinstance(item, list | range):
        item = np.asarray(item) if len(item) else np.zeros(0, np.int64)
    if isinstance(item, np.ndarray) or is_tensor(item):
        tensor = as_tensor(item)
        return tensor if tensor.dtype is bool_ else as_index(tensor, "index")
    raise DTypeError(
        f"an index must be an int, slice, None, ..., mask or integer array. Got {type(item).__name__}: {item!r}."
    )


def _consumes(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if is_tensor(item) and item.dtype is bool_ else 1


def _span(item: slice, extent: int) -> range:
    try:
        return range(*item.indices(extent))
    except TypeError:
        raise DTypeError(f"the bounds of a slice must be ints. Got {item}.") from None
    except ValueError:
        raise IndexOutOfRange(f"the step of a slice must not be zero. Got {item}.") from None


class _Plan:
    """How index arrays apply to a view: which dimensions merge into one, and the index along it."""

    def __init__(self, parts: _Indexed) -> None:
        self.shape = parts.view.shape
        placed: list[tuple[int, Any]] = []
        for dim, item in parts.arrays:
            indices = nonzero(item, as_tuple=True) if item.dtype is bool_ else (item,)
            placed.extend((dim + i, index) for i, index in enumerate(indices))
        self.dims = [dim for dim, _ in placed]
        self.is_adjacent = self.dims == list(range(self.dims[0], self.dims[0] + len(self.dims)))
        self.rest = [d for d in range(len(self.shape)) if d not in self.dims]
        self.dim = self.dims[0] if self.is_adjacent else 0
        shape = broadcast_shapes(*(index.shape for _, index in placed), who="index")
        linear = None
        for dim, index in placed:
            index = wrap_index(index, self.shape[dim], dim)
            linear = index if linear is None else linear * self.shape[dim] + index
        self.index = expand(linear, shape)

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape))) if self.is_adjacent else (*self.dims, *self.rest)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the view at the indices."""
        rest = tuple(self.shape[d] for d in self.rest)
        return rest[: self.dim] + self.index.shape + rest[self.dim :]

    def merged(self, view: Any) -> Any:
        """Return the view with the indexed dimensions merged into dimension ``dim``."""
        moved = view if self.is_adjacent else permute(view, self._order)
        rest = tuple(self.shape[d] for d in self.rest)
        extent = math.prod(self.shape[d] for d in self.dims)
        return reshape(moved, (*rest[: self.dim], extent, *rest[self.dim :]))

    def unmerged(self, merged: Any) -> Any:
        """Undo `merged`."""
        moved = reshape(merged, tuple(self.shape[d] for d in self._order))
        return moved if self.is_adjacent else permute(moved, tuple(np.argsort(self._order).tolist()))


def wrap_index(index: Any, extent: int, dim: int) -> Any:
    """Return an index with negative entries counted from the end; eager: IndexOutOfRange names one that is outside."""
    if context.interpreter is not EAGER:
        return where(index < 0, index + extent, index)
    array = index.array
    if not array.size:
        return index
    least, most = int(array.min()), int(array.max())
    if least < -extent or most >= extent:
        wrong = least if least < -extent else most
        raise IndexOutOfRange(
            f"index {wrong} is out of range for dimension {dim} of extent {extent}: expected {-extent} "
            f"<= index < {extent}."
        )
    return index if least >= 0 else where(index < 0, index + extent, index)


# --- what depends on the data ---------------------------------------------------------------------------------


def nonzero(x: Any, as_tuple: bool = False) -> Any:
    """Return the indices of the elements that are not zero, (count, ndim), or one vector per dimension.

    Eager only: TraceError in a traced function, since the shape depends on the data.
    """
    x = as_tensor(x)
    if context.interpreter is not EAGER:
        raise TraceError(
            "nonzero, and indexing with a bool mask, give a shape that depends on the data, which a "
            "compiled step cannot. "
            "Use where(mask, x, 0) or masked_fill, or compute it outside of the traced function."
        )
    found = np.nonzero(np.atleast_1d(x.array))
    if as_tuple:
        return tuple(as_tensor(part.astype(np.int64)) for part in found)
    return as_tensor(np.stack(found, axis=1).astype(np.int64).reshape(-1, x.ndim))


def masked_select(x: Any, mask: Any) -> Any:
    """Return the elements of ``x`` where ``mask`` is True, as a vector. Eager only."""
    x, mask = as_tensor(x), _as_mask(mask, "masked_select")
    shape = broadcast_shapes(x.shape, mask.shape, who="masked_select")
    (chosen,) = nonzero(reshape(expand(mask, shape), (math.prod(shape),)), as_tuple=True)
    return take(expand(x, shape), chosen)


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """Return ``x`` with ``value`` (a number or 0-dimensional tensor) where ``mask`` is True."""
    x, mask = as_tensor(x), _as_mask(mask, "masked_fill")
    value = as_tensor(value, x.dtype)
    if value.ndim:
        raise ShapeError(f"masked_fill: value must be a number or 0-dimensional. Got shape {value.shape}. Use where.")
    return where(mask, value.to(x.dtype), x)


def _as_mask(mask: Any, who: str) -> Any:
    mask = as_tensor(mask)
    if mask.dtype is not bool_:
        raise DTypeError(f"{who}: mask must be of dtype bool. Got {mask.dtype.name}. Use .bool().")
    return mask


def one_hot(x: Any, num_classes: int = -1) -> Any:
    """Return int64 (…, num_classes) with a one at each class index of ``x``.

    Without ``num_classes``: one more than the greatest index (eager only). Raises IndexOutOfRange, DTypeError.
    """
    x = as_index(x, "one_hot")
    if context.interpreter is EAGER:
        array = x.array
        least, most = (int(array.min()), int(array.max())) if array.size else (0, -1)
        count = most + 1 if num_classes == -1 else num_classes
        if least < 0 or most >= count:
            raise IndexOutOfRange(
                f"one_hot: class {least if least < 0 else most} is out of range: expected 0 <= class < {count}."
            )
        num_classes = count
    elif num_classes == -1:
        raise TraceError("one_hot: num_classes=-1 reads the data, which a traced function cannot. Pass num_classes.")
    else:
        x = check_index(x, num_classes)
    classes = iota((1,) * x.ndim + (num_classes,), x.ndim, device=x.device)
    return (reshape(x, (*x.shape, 1)) == classes).to(int64)
