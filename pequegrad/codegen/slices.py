"""Kernels on a part of one axis of theirs: which axes can be cut, what a cut kernel touches, and its record.

Invariant: a kernel cut into parts of its axis, run part after part with its pointers moved on, does what the whole does;
an axis that it sums over gives a share of the sums instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from ..records import record, replace
from .plan import (
    Access,
    Compute,
    Contract,
    Conv2d,
    Index,
    Kernel,
    Load,
    Map,
    Row,
    Scan,
    Sort,
    Stage,
    Statement,
    Store,
    Window,
    statements,
)  # fmt: skip
from .schedule import conv_domain, domain, operand_sizes, result_sizes, weight_chunks

COMBINED = ("sum", "prod", "max", "min", "any", "all")
"""Monoids whose shares combine by the monoid itself."""


@record
class Cut:
    """An axis of a kernel that can be cut. ``name``: the record's field or group of axes; ``at``: the place in it.
    ``is_sum``: the kernel sums over the axis."""

    name: str
    at: int
    extent: int
    is_sum: bool = False


@record
class Reach:
    """What a kernel touches of a buffer for one unit of a cut axis: elements ``low`` … ``high`` of a buffer whose next
    unit lies ``shift`` further; 0: the same for all units."""

    buffer: int
    is_write: bool
    shift: int
    low: int
    high: int

    @property
    def is_own(self) -> bool:
        """Whether each unit has a range of its own, one behind the other."""
        return self.low >= 0 and self.high < self.shift


def cuts(kernel: Kernel) -> Iterator[Cut]:
    """Yield the axes that a kernel could be cut along, those that it maps over first."""
    if isinstance(kernel, Map):
        yield from (Cut("extents", at, extent) for at, extent in enumerate(kernel.extents))
    elif isinstance(kernel, Row):
        yield from (Cut("outer", at, extent) for at, extent in enumerate(kernel.outer))
        if _is_single_sweep(kernel):
            yield from (Cut("inner", at, extent, True) for at, extent in enumerate(kernel.inner))
    elif isinstance(kernel, Contract):
        yield from (Cut("batch", at, extent) for at, extent in enumerate(kernel.batch))
        yield Cut("m", 0, kernel.m)
        yield Cut("n", 0, kernel.n)
        yield Cut("k", 0, kernel.k, True)
    elif isinstance(kernel, Conv2d):
        yield Cut("N", 0, kernel.shape.N, kernel.kind == "grad_weight")
    elif isinstance(kernel, Window):
        yield Cut("planes", 0, kernel.shape.planes)
    elif isinstance(kernel, Index):
        yield Cut("outer", 0, kernel.outer)
        if kernel.outer == 1 and kernel.source is None:
            yield Cut("count", 0, kernel.count)
    elif isinstance(kernel, Scan | Sort):
        yield Cut("outer", 0, kernel.outer)


def _is_single_sweep(kernel: Row) -> bool:
    first, *rest = kernel.stages
    return (
        bool(first.accumulate)
        and all(a.monoid in COMBINED for a in first.accumulate)
        and not any(stage.inner or stage.accumulate for stage in rest)
    )


def reaches(kernel: Kernel, cut: Cut, units: int) -> list[Reach] | None:
    """Return what the part of a kernel that a block runs touches, for an axis cut into ``units``; None where the kernel
    asks for places that would change. A cut sum stops before what follows the sum."""
    each = cut.extent // units
    found: list[Reach] = []
    axis = _axis_of(kernel, cut)
    for statement in block_statements(kernel, cut):
        if isinstance(statement, Load | Store):
            found.append(walked(statement.access, domain(kernel), axis, each, isinstance(statement, Store)))
        elif isinstance(statement, Compute) and statement.index is not None:
            moved = statement.index.strides[axis] * each
            params = dict(statement.params)
            if "{coordinate}" not in statement.expression or moved % (params["inner"] * params["extent"]):
                return None
    if isinstance(kernel, Contract):
        rank = len(kernel.batch)
        places = {"batch": (cut.at, cut.at), "m": (rank, -1), "n": (-1, rank + 1), "k": (rank + 1, rank)}[cut.name]
        found.append(walked(kernel.a, (*kernel.batch, kernel.m, kernel.k), places[0], each, False))
        found.append(walked(kernel.b, (*kernel.batch, kernel.k, kernel.n), places[1], each, False))
        return found
    for is_write, sizes in ((False, operand_sizes(kernel)), (True, result_sizes(kernel))):
        for access, elements in sizes:
            if access.buffer >= 0:
                total = kernel.outer * kernel.extent * kernel.inner if _is_table(kernel, access) else elements
                shift = 0 if _is_whole(kernel, access, cut) else total // units
                found.append(Reach(access.buffer, is_write, shift, access.offset, access.offset + (shift or total) - 1))
    return found


def _is_table(kernel: Kernel, access: Access) -> TypeGuard[Index]:
    return isinstance(kernel, Index) and kernel.kind == "gather" and access is kernel.table


def _is_whole(kernel: Kernel, access: Access, cut: Cut) -> bool:
    """Whether an operand is the same for all units of the cut axis."""
    if isinstance(kernel, Conv2d):
        return kernel.kind != "grad_weight" and access is kernel.b
    if isinstance(kernel, Index):
        if cut.name == "count":
            return access is kernel.table
        return access is kernel.index and not kernel.per_element and kernel.table is not None
    return False


def _axis_of(kernel: Kernel, cut: Cut) -> int:
    """Return the place of a cut axis in the domain of a kernel's statements; -1: it is summed away before them."""
    if isinstance(kernel, Contract):
        return {"batch": cut.at, "m": len(kernel.batch), "n": len(kernel.batch) + 1, "k": -1}[cut.name]
    if isinstance(kernel, Row) and cut.is_sum:
        return len(kernel.outer) + cut.at
    return -1 if cut.is_sum else cut.at


def walked(access: Access, extents: tuple[int, ...], axis: int, each: int, is_write: bool) -> Reach:
    """Return what an access over ``extents`` touches for one unit, of ``each`` steps, of ``axis``; -1: it has no such axis."""
    low = high = access.offset
    for at, (extent, stride) in enumerate(zip(extents, access.strides, strict=True)):
        steps = ((each if at == axis else extent) - 1) * stride
        low, high = low + min(steps, 0), high + max(steps, 0)
    return Reach(access.buffer, is_write, access.strides[axis] * each if axis >= 0 else 0, low, high)


def block_statements(kernel: Kernel, cut: Cut) -> tuple[Any, ...]:
    """Return the statements that the part of a kernel runs: of a cut sum, those before it."""
    if not cut.is_sum:
        return statements(kernel)
    return kernel.stages[0].inner if isinstance(kernel, Row) else ()


def part_of(kernel: Any, cut: Cut, units: int, size: int) -> Any:
    """Return the kernel for ``size`` of the ``units`` of its cut axis."""
    extent = cut.extent // units * size
    if isinstance(kernel, Conv2d):
        shape = replace(kernel.shape, N=extent)
        return replace(kernel, shape=replace(shape, weight_chunks=min(weight_chunks(shape), 1)))
    if isinstance(kernel, Window):
        return replace(kernel, shape=replace(kernel.shape, planes=extent))
    value = getattr(kernel, cut.name)
    if isinstance(value, int):
        return replace(kernel, **{cut.name: extent})
    return replace(kernel, **{cut.name: (*value[: cut.at], extent, *value[cut.at + 1 :])})


def summed_shape(kernel: Kernel) -> tuple[int, ...]:
    """Return the extents of the sums that a kernel makes."""
    if isinstance(kernel, Row):
        return kernel.outer
    if isinstance(kernel, Conv2d):
        return conv_domain(kernel)
    return domain(kernel)


def after_sum(kernel: Kernel) -> tuple[Statement, ...]:
    """Return what follows once per sum, over the sums' extents and one more axis of stride 0."""
    if isinstance(kernel, Row):
        found = tuple(statement for stage in kernel.stages for statement in stage.outer)
    else:
        found = statements(kernel)
    rank = len(summed_shape(kernel))
    return tuple(_over_sums(statement, rank) for statement in found)


def _over_sums(statement: Statement, rank: int) -> Statement:
    if isinstance(statement, Load | Store):
        access = statement.access
        return replace(statement, access=replace(access, strides=(*access.strides[:rank], 0)))
    if statement.index is None:
        return statement
    return replace(statement, index=replace(statement.index, strides=(*statement.index.strides[:rank], 0)))


def sums_of(kernel: Any) -> tuple[tuple[int, Any, str], ...]:
    """Return (variable, dtype, monoid) of each sum that a kernel makes."""
    if isinstance(kernel, Row):
        return tuple((a.dst, a.dtype, a.monoid) for a in kernel.stages[0].accumulate)
    return ((0, kernel.dtype, "sum"),)


def storing(kernel: Any, epilogue: tuple[Statement, ...]) -> Any:
    """Return a kernel that ends, after its sums, with ``epilogue`` alone."""
    if isinstance(kernel, Row):
        first = kernel.stages[0]
        return replace(kernel, stages=(Stage(first.inner, first.accumulate, epilogue),))
    return replace(kernel, epilogue=epilogue)
