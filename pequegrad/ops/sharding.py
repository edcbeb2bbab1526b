"""How a value is spread over the blocks of an axis (first of all the batch): the algebra of sharded steps.

Invariant: a rule speaks of one axis at a time; axes nest by applying rules again.
"""

from __future__ import annotations

from ..records import Record


class Mapped(Record):
    """Block i of the value needs only block i, along dimension ``dim``, of what it is made from."""

    __slots__ = ("dim",)
    dim: int

    def __init__(self, dim: int) -> None:
        self.set_fields(dim=dim)


class Replicated(Record):
    """The same for every block: weights, constants, the learning rate."""

    __slots__ = ()


class Partial(Record):
    """Every block makes a share; shares combine with ``monoid`` (sum, prod, max, min, any, all)."""

    __slots__ = ("monoid",)
    monoid: str

    def __init__(self, monoid: str) -> None:
        self.set_fields(monoid=monoid)


Sharding = Mapped | Replicated | Partial
REPLICATED = Replicated()


def shard_pointwise(inputs: tuple[Sharding, ...], ndims: tuple[int, ...], out_ndim: int) -> Sharding | None:
    """Rule of broadcasting pointwise ops: keep the axis, counted from the right; a Partial needs combining first."""
    dims = set()
    for sharding, ndim in zip(inputs, ndims, strict=True):
        if isinstance(sharding, Partial):
            return None
        if isinstance(sharding, Mapped):
            dims.add(sharding.dim - ndim)
    if not dims:
        return REPLICATED
    return Mapped(dims.pop() + out_ndim) if len(dims) == 1 else None


def shard_reduction(
    input_sharding: Sharding, dims: tuple[int, ...], keepdim: bool, monoid: str | None
) -> Sharding | None:
    """Rule of reductions over ``dims``: Partial over the mapped axis if the monoid combines, else Mapped, moved."""
    if isinstance(input_sharding, Replicated):
        return input_sharding
    if isinstance(input_sharding, Partial):
        return None
    if input_sharding.dim in dims:
        return Partial(monoid) if monoid is not None else None
    return Mapped(input_sharding.dim if keepdim else input_sharding.dim - sum(d < input_sharding.dim for d in dims))


def shard_aligned(inputs: tuple[Sharding, ...]) -> Sharding | None:
    """Rule of ops whose operands and result share dimension numbers: keep the one mapped dimension, if it is one."""
    if any(isinstance(sharding, Partial) for sharding in inputs):
        return None
    dims = {sharding.dim for sharding in inputs if isinstance(sharding, Mapped)}
    if not dims:
        return REPLICATED
    return Mapped(dims.pop()) if len(dims) == 1 else None
