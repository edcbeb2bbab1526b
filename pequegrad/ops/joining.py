"""Ops that put tensors side by side, and the plain functions that take them apart again.

Invariant: tensors that are joined agree in dtype and in every extent but the joined one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind, normalize_dim, operands
from .movement import Copy, expand, reshape, shape_argument
from .sharding import Mapped, Sharding, shard_aligned
from .slicing import narrow, select
from .views import unsqueeze


class Concat(Op):
    """Tensors one after the other along a dimension."""

    name = "concat"
    lowering = Family("concat")

    @staticmethod
    def call(tensors: Any, dim: int = 0) -> Any:
        """Return ``tensors`` joined along ``dim``; dtypes promote. ShapeError names the tensor that does not fit."""
        tensors = list(tensors)
        if not tensors:
            raise ShapeError("cat: expected at least one tensor. Got none.")
        tensors = operands(*(as_tensor(tensor) for tensor in tensors), who="cat")
        if not tensors[0].ndim:
            raise ShapeError("cat: 0-dimensional tensors cannot be joined. Use stack.")
        dim = normalize_dim(dim, tensors[0].ndim, "cat")
        sizes = tuple(tensor.shape[dim] if tensor.ndim > dim else 0 for tensor in tensors)
        return bind(Concat, *tensors, dim=dim, sizes=sizes)

    @staticmethod
    def infer(*specs: TensorSpec, dim: int, sizes: tuple[int, ...]) -> TensorSpec:  # type: ignore[override]
        first = specs[0].shape
        for i, spec in enumerate(specs):
            if spec.ndim != len(first) or spec.shape[:dim] + spec.shape[dim + 1 :] != first[:dim] + first[dim + 1 :]:
                raise ShapeError(
                    f"cat: tensor {i} must have shape {first} but for dimension {dim}, as tensor 0 has. "
                    f"Got {spec.shape}."
                )
        return TensorSpec((*first[:dim], sum(sizes), *first[dim + 1 :]), specs[0].dtype)

    @staticmethod
    def numpy(xp: Any, *arrays: Any, dim: int, sizes: tuple[int, ...]) -> Any:
        return xp.concatenate(arrays, axis=dim)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        dim, start, gradients = saved.params["dim"], 0, []
        for i, length in enumerate(saved.params["sizes"]):
            gradients.append(narrow(g, dim, start, length) if saved.needs(i) else None)
            start += length
        return tuple(gradients)

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, sizes: tuple[int, ...]) -> Sharding | None:  # type: ignore[override]
        sharding = shard_aligned(inputs)
        return None if isinstance(sharding, Mapped) and sharding.dim == dim else sharding

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 1), np.float32)
        return [
            Sample((x, y, x), (("dim", 1), ("sizes", (3, 1, 3))), lambda torch, *parts: torch.cat(parts, 1), (0, 1, 2))
        ]


cat = Concat.call


def stack(tensors: Any, dim: int = 0) -> Any:
    """Return tensors of one shape joined along a new dimension ``dim``."""
    tensors = [as_tensor(tensor) for tensor in tensors]
    if not tensors:
        raise ShapeError("stack: expected at least one tensor. Got none.")
    for i, tensor in enumerate(tensors):
        if tensor.shape != tensors[0].shape:
            raise ShapeError(
                f"stack: tensor {i} must have shape {tensors[0].shape}, as tensor 0 has. Got {tensor.shape}."
            )
    place = normalize_dim(dim, tensors[0].ndim + 1, "stack")
    return cat([unsqueeze(tensor, place) for tensor in tensors], place)


def split(x: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Return parts of ``x`` along ``dim``, each of a given size (the last may be smaller) or of given sizes; views."""
    x = as_tensor(x)
    dim = normalize_dim(dim, x.ndim, "split")
    extent = x.shape[dim]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size <= 0:
            raise ShapeError(f"split: the size must be positive. Got {size}.")
        sizes = [min(size, extent - start) for start in range(0, extent, size)] or [0]
    else:
        sizes = [int(size) for size in split_size_or_sections]
        if sum(sizes) != extent or min(sizes, default=0) < 0:
            raise ShapeError(f"split: sizes must add up to {extent}, dimension {dim} of {x.shape}. Got {sizes}.")
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return tuple(narrow(x, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """Return at most ``chunks`` equal parts of ``x`` along ``dim`` (the last may be smaller); views."""
    x = as_tensor(x)
    if chunks <= 0:
        raise ShapeError(f"chunk: chunks must be positive. Got {chunks}.")
    extent = x.shape[normalize_dim(dim, x.ndim, "chunk")]
    return split(x, max(-(-extent // chunks), 1), dim)


def unbind(x: Any, dim: int = 0) -> tuple[Any, ...]:
    """Return the slices of ``x`` along ``dim``, without it; views."""
    x = as_tensor(x)
    return tuple(select(x, dim, i) for i in range(x.shape[normalize_dim(dim, x.ndim, "unbind")]))


def roll(x: Any, shifts: Any, dims: Any = None) -> Any:
    """Return ``x`` with elements moved by ``shifts`` along ``dims``, those that fall off entering at the other end."""
    x = as_tensor(x)
    if dims is None:
        if not isinstance(shifts, int):
            raise ShapeError("roll: several shifts need as many dims.")
        return reshape(roll(reshape(x, (x.spec.size,)), shifts, 0), x.shape)
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(shifts) != len(dims):
        raise ShapeError(f"roll: expected as many shifts as dims. Got {shifts} and {dims}.")
    source = x
    for shift, wanted in zip(shifts, dims, strict=True):
        dim = normalize_dim(wanted, x.ndim, "roll")
        extent = x.shape[dim]
        offset = shift % extent if extent else 0
        if offset:
            x = cat([narrow(x, dim, extent - offset, offset), narrow(x, dim, 0, extent - offset)], dim)
    return bind(Copy, x) if x is source else x


def repeat(x: Any, *sizes: Any) -> Any:
    """Return ``x`` laid out ``sizes[d]`` times along each dimension d (new leading ones for more sizes); a copy."""
    x = as_tensor(x)
    times = shape_argument(sizes, "repeat")
    if len(times) < x.ndim:
        raise ShapeError(f"repeat: expected at least {x.ndim} numbers for shape {x.shape}. Got {times}.")
    shape = (1,) * (len(times) - x.ndim) + x.shape
    apart = reshape(x, tuple(n for extent in shape for n in (1, extent)))
    spread = expand(apart, tuple(n for pair in zip(times, shape, strict=True) for n in pair))
    joined = reshape(spread, tuple(count * extent for count, extent in zip(times, shape, strict=True)))
    return bind(Copy, joined) if joined.storage is x.storage else joined


def tile(x: Any, *dims: Any) -> Any:
    """Return ``repeat``, with leading ones added to ``dims`` where there are fewer than dimensions."""
    x = as_tensor(x)
    times = shape_argument(dims, "tile")
    return repeat(x, (1,) * (x.ndim - len(times)) + times)


def repeat_interleave(x: Any, repeats: int, dim: int | None = None) -> Any:
    """Return ``x`` with each element repeated ``repeats`` times along ``dim`` (None: of the flattened tensor)."""
    x = as_tensor(x)
    if not isinstance(repeats, int):
        raise DTypeError(f"repeat_interleave: repeats must be an int. Got {type(repeats).__name__}.")
    if dim is None:
        return repeat_interleave(reshape(x, (x.spec.size,)), repeats, 0)
    place = normalize_dim(dim, x.ndim, "repeat_interleave")
    spread = expand(unsqueeze(x, place + 1), (*x.shape[: place + 1], repeats, *x.shape[place + 1 :]))
    return reshape(spread, (*x.shape[:place], x.shape[place] * repeats, *x.shape[place + 1 :]))
