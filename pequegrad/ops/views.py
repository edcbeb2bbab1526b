"""Plain functions of the view ops, under torch's names: dimensions exchanged, merged, split, added and dropped.

Invariant: each returns a view where the memory layout allows one; `view` raises where it does not.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import ShapeError
from .core import as_tensor, bind, normalize_dim, normalize_dims
from .movement import Reshape, can_view, expand, permute, reshape, shape_argument


def view(x: Any, *shape: Any) -> Any:
    """Return ``x`` in another shape without a copy; ShapeError where its memory layout forbids that."""
    x = as_tensor(x)
    wanted = shape_argument(shape, "view")
    if wanted.count(-1) == 1:
        known = math.prod(extent for extent in wanted if extent != -1)
        if known and x.spec.size % known == 0:
            wanted = tuple(x.spec.size // known if extent == -1 else extent for extent in wanted)
    if math.prod(wanted) == x.spec.size and not can_view(x, wanted):
        raise ShapeError(f"view: shape {x.shape} cannot be read as {wanted} without a copy. Use .reshape{wanted}.")
    return reshape(x, wanted)


def view_as(x: Any, other: Any) -> Any:
    """Return ``view(x, other.shape)``."""
    return view(x, other.shape)


def reshape_as(x: Any, other: Any) -> Any:
    """Return ``reshape(x, other.shape)``."""
    return reshape(x, other.shape)


def transpose(x: Any, dim0: int, dim1: int) -> Any:
    """Return ``x`` with two dimensions exchanged; a view."""
    x = as_tensor(x)
    first, second = normalize_dim(dim0, x.ndim, "transpose"), normalize_dim(dim1, x.ndim, "transpose")
    order = list(range(x.ndim))
    if not order or first == second:
        return x
    order[first], order[second] = second, first
    return permute(x, tuple(order))


def t(x: Any) -> Any:
    """Return the transpose of a tensor of at most two dimensions; a view."""
    x = as_tensor(x)
    if x.ndim > 2:
        raise ShapeError(f"t: expected at most 2 dimensions. Got shape {x.shape}. Use .transpose(dim0, dim1) or .mT.")
    return transpose(x, 0, 1) if x.ndim == 2 else x


def movedim(x: Any, source: Any, destination: Any) -> Any:
    """Return ``x`` with the dimensions ``source`` moved to ``destination``; the others keep their order. A view."""
    x = as_tensor(x)
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    sources = [normalize_dim(dim, x.ndim, "movedim") for dim in sources]
    targets = [normalize_dim(dim, x.ndim, "movedim") for dim in targets]
    if len(sources) != len(targets) or len(set(sources)) != len(sources) or len(set(targets)) != len(targets):
        raise ShapeError(
            f"movedim: source and destination must name as many dimensions, each once. Got {source}, {destination}."
        )
    order = [dim for dim in range(x.ndim) if dim not in sources]
    for target, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(target, dim)
    return permute(x, tuple(order))


def unsqueeze(x: Any, dim: int) -> Any:
    """Return ``x`` with a new dimension of extent 1 at ``dim``; a view."""
    x = as_tensor(x)
    place = normalize_dim(dim, x.ndim + 1, "unsqueeze")
    # Bound directly: extents of 1 never need a copy, whatever the strides.
    return bind(Reshape, x, shape=x.shape[:place] + (1,) + x.shape[place:])


def squeeze(x: Any, dim: Any = None) -> Any:
    """Return ``x`` without its dimensions of extent 1 (of those in ``dim``, if given); a view."""
    x = as_tensor(x)
    dims = normalize_dims(dim, x.ndim, "squeeze")
    shape = tuple(extent for i, extent in enumerate(x.shape) if not (i in dims and extent == 1))
    return x if shape == x.shape else bind(Reshape, x, shape=shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Return ``x`` with the dimensions from ``start_dim`` to ``end_dim`` merged into one."""
    x = as_tensor(x)
    if not x.ndim:
        return reshape(x, (1,))
    first, last = normalize_dim(start_dim, x.ndim, "flatten"), normalize_dim(end_dim, x.ndim, "flatten")
    if first > last:
        raise ShapeError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} in shape {x.shape}.")
    merged = math.prod(x.shape[first : last + 1])
    return reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


def ravel(x: Any) -> Any:
    """Return ``x`` with all dimensions merged into one."""
    return reshape(x, (as_tensor(x).spec.size,))


def unflatten(x: Any, dim: int, sizes: Any) -> Any:
    """Return ``x`` with dimension ``dim`` split into ``sizes``; one of them may be -1."""
    x = as_tensor(x)
    place = normalize_dim(dim, x.ndim, "unflatten")
    wanted = shape_argument((tuple(sizes),), "unflatten")
    known = math.prod(extent for extent in wanted if extent != -1)
    extent = x.shape[place]
    if wanted.count(-1) == 1 and known and extent % known == 0:
        wanted = tuple(extent // known if size == -1 else size for size in wanted)
    if math.prod(wanted) != extent or -1 in wanted:
        raise ShapeError(f"unflatten: dimension {dim} of shape {x.shape} does not split into {tuple(sizes)}.")
    return reshape(x, x.shape[:place] + wanted + x.shape[place + 1 :])


def broadcast_to(x: Any, shape: Any) -> Any:
    """Return ``x`` broadcast to ``shape``; a view that cannot be written to."""
    return expand(x, tuple(shape))


def expand_as(x: Any, other: Any) -> Any:
    """Return ``expand(x, other.shape)``."""
    return expand(x, other.shape)
