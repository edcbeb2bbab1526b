"""From a kernel of the plan to the record that a template for threads takes: one element a thread, blocks of threads.

Invariant: the same plan, statements and names as for lanes (lane_views.py); only how indices come about differs, and that
is settled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..dtypes import DType
from ..errors import CompilerBug
from ..records import record, replace
from ..targets import Target
from .attention_views import attention_body
from .expressions import scalar_type, vector_type
from .launch import BLOCK, BLOCK_WARPS, MOST_BLOCKS, MULTIPROCESSORS, WARP
from .plan import Access, Attention, Contract, Conv2d, Index, Kernel, Load, Map, Row, Scan, Sort, Store, Window
from .product_views import contract_views, conv2d_views
from .rendering import Address, KernelWriter, Line, Term
from .views import (
    KernelHead,
    Loop,
    Parameter,
    StageView,
    accumulator,
    counted,
    decoded,
    head_of,
    index_view,
    position_in_row,
    reads,
    scan_view,
    sort_view,
    window_view,
    with_axis,
)  # fmt: skip

START = "start"
MANY_ELEMENTS = 2 * MULTIPROCESSORS * BLOCK
"""From so many elements on, threads do several neighbours each, and there are still enough threads."""
MOST_KEPT = 8
"""Elements of a row that a thread keeps in registers, of each operand, at most."""
LONG_ROW = 1024
"""Rows of more elements than this get a whole block."""
MANY_ROWS = 1056
"""From this many rows on, warps with a row each fill a device (132 multiprocessors, 8 warps each, at least)."""
SORTED_BY_THREAD = 32
"""Up to so many elements are sorted by one thread, as in cuda/sorting.h; more by a block."""
SHORT_ROW = 16
"""Rows side by side with at most this many elements are read by one thread each; longer ones by a slice of the block."""


@record
class PackedAccess:
    """Neighbours that are read or written as one, held in the array ``name``."""

    name: str
    type: str
    address: Address


@record
class ElementView:
    """A pointwise kernel over ``count`` elements; ``unit`` counts them, or vectors of ``width`` of them.

    ``lane``: the last axis' index, ``START`` its value for a vector's first element, if anything reads it."""

    head: KernelHead
    count: int
    width: int
    unit: str
    decode: tuple[Loop, ...]
    lane: str
    reads_lane: bool
    loads: tuple[PackedAccess, ...]
    lines: tuple[Line, ...]
    stores: tuple[PackedAccess, ...]
    shared = ""

    @property
    def blocks(self) -> int:
        return -(-self.count // (self.width * BLOCK))


@record
class GroupedRowView:
    """Rows of ``count`` elements, each reduced by ``threads`` threads; ``unit`` counts rows, ``element`` what is in one.

    ``kept``: what is loaded once and stays in registers for later stages; then each thread has ``steps`` elements.
    ``final``: what one thread of a row does in the end; ``overwrites``: what all of them have read before."""

    head: KernelHead
    rows: int
    threads: int
    unit: str
    decode: tuple[Loop, ...]
    count: int
    element: str
    decode_element: tuple[Loop, ...]
    stages: tuple[StageView, ...]
    final: tuple[Line, ...]
    overwrites: bool
    kept: tuple[Parameter, ...]
    is_side_by_side = False
    shared = ""

    @property
    def steps(self) -> int:
        return -(-self.count // self.threads)

    @property
    def is_even(self) -> bool:
        """Whether every thread has all its steps."""
        return self.count % self.threads == 0

    @property
    def rows_per_block(self) -> int:
        return BLOCK // self.threads

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.rows_per_block)


@record
class SideBySideRowView:
    """Rows side by side, a thread (or, ``is_sliced``, one thread of each warp of a block) for each lane of ``lane``.

    ``final``: what one thread of a row does in the end; ``overwrites``: what all of them have read before."""

    head: KernelHead
    rows: int
    is_sliced: bool
    decode: tuple[Loop, ...]
    lane: Loop
    lane_blocks: int
    count: int
    element: str
    decode_element: tuple[Loop, ...]
    stages: tuple[StageView, ...]
    final: tuple[Line, ...]
    overwrites: bool
    is_side_by_side = True
    shared = ""

    @property
    def slices(self) -> int:
        return BLOCK_WARPS if self.is_sliced else 1

    @property
    def lanes(self) -> int:
        return BLOCK // self.slices

    @property
    def blocks(self) -> int:
        return self.rows * self.lane_blocks


RowBody = GroupedRowView | SideBySideRowView


def views_of(
    dtypes: Sequence[DType], kernel: Kernel, number: int, scratch: int, target: Target, is_alone: bool
) -> tuple[Any, ...]:
    """Return the records that the template of the kernel's family takes, one per body; bodies have a barrier between.

    ``dtypes``: of the plan's buffers; ``number``: the kernel's place in the plan; ``scratch``: byte offset of its chunk
    sums in the arena, or -1. ``is_alone``: one block of threads runs the kernel, as on a block of samples, and it has one
    body.
    """
    if isinstance(kernel, Map):
        return (_map_view(kernel, dtypes),)
    if isinstance(kernel, Row):
        return (_row_view(kernel, dtypes, is_alone),)
    if isinstance(kernel, Contract):
        return contract_views(kernel, dtypes, scratch, target, is_alone)
    if isinstance(kernel, Conv2d):
        return conv2d_views(kernel, dtypes, scratch, target, is_alone)
    if isinstance(kernel, Window):
        return (window_view(kernel, dtypes, _window_blocks(kernel)),)
    if isinstance(kernel, Index):
        width = _gathered_width(kernel)
        return (index_view(kernel, dtypes, number, _index_blocks(kernel, width), width),)
    if isinstance(kernel, Scan):
        blocks = kernel.outer if kernel.inner == 1 else -(-kernel.outer * kernel.inner // BLOCK)
        return (scan_view(kernel, dtypes, blocks),)
    if isinstance(kernel, Sort):
        columns = kernel.outer * kernel.inner
        blocks = columns if kernel.extent > SORTED_BY_THREAD else -(-columns // BLOCK)
        return (sort_view(kernel, dtypes, blocks),)
    if isinstance(kernel, Attention):
        return (attention_body(kernel, dtypes),)
    raise CompilerBug(f"no template for {type(kernel).__name__}")


def _decoded(
    variables: Sequence[str], extents: Sequence[int], readers: Iterable[Line | Address | str]
) -> tuple[Loop, ...]:
    """Return how each index follows from a unit's number; one of extent 1 that something reads is 0."""
    known = list(readers)
    loops = {loop.variable: loop for loop in decoded(variables, extents, known)}
    for variable, extent in zip(variables, extents, strict=True):
        if extent == 1 and any(reads(reader, variable) for reader in known):
            loops[variable] = Loop(variable, 1)
    return tuple(loops.values())


def _map_view(kernel: Map, dtypes: Sequence[DType]) -> ElementView:
    extents = kernel.extents or (1,)
    body = kernel.body if kernel.extents else tuple(with_axis(statement) for statement in kernel.body)
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, len(extents) - 1)
    writer.hoist(body)
    lines = writer.vector_lines(body)
    if _pointers(lines, True) & _pointers(writer.hoisted, False):
        lines = [*writer.hoisted, *lines]
        writer.hoisted.clear()
    count = math.prod(extents)
    width = _width(extents, lines, [buffer_dtype.itemsize for buffer_dtype in dtypes], writer)
    if width == 1:
        unit, decode = counted(_decoded(indices, extents, lines))
        return ElementView(head_of(writer), count, 1, unit, decode, indices[-1], False, (), tuple(lines), ())
    loads, lines, stores = _packed(lines, indices[-1], writer)
    # A vector's first index stands in for the last axis' own.
    places = (*indices[:-1], START)
    readers: list[Line | Address | str] = [*lines, *(access.address for access in (*loads, *stores)), START]
    decode = tuple(
        replace(loop, divisor=loop.divisor // width, extent=loop.extent // (width if loop.variable == START else 1))
        for loop in decoded(places, extents, readers)
    )
    reads_lane = any(line.reads(indices[-1]) for line in lines)
    return ElementView(
        head_of(writer), count, width, "unit", decode, indices[-1], reads_lane, loads, tuple(lines), stores
    )


def _pointers(lines: Iterable[Line], is_store: bool) -> set[str]:
    """Return the names of what is written to, or else read from."""
    return {line.address.pointer for line in lines if line.address is not None and line.is_store == is_store}


def _width(extents: Sequence[int], lines: Sequence[Line], itemsizes: Sequence[int], writer: KernelWriter) -> int:
    """Return how many neighbours a thread does at once: as many as 16 bytes hold of each operand."""
    if math.prod(extents) < MANY_ELEMENTS:
        return 1
    walked = [line.address for line in lines if line.address is not None and line.address.lane_stride == 1]
    names = {place.pointer for place in walked}
    largest = max((itemsizes[p.buffer] for p in writer.pointers.values() if p.name in names), default=16)
    for width in (4, 2):
        if width * largest > 16 or extents[-1] % width:
            continue
        others = [number for place in walked for number in _steps(place, writer.indices[-1])]
        if walked and not any(number % width for number in others):
            return width
    return 1


def _steps(place: Address, lane: str) -> list[int]:
    """Return the offset and the strides of all indices but the lane's."""
    return [place.offset, *(term.stride for term in place.terms if term.variable != lane)]


def _packed(
    lines: Sequence[Line], lane: str, writer: KernelWriter
) -> tuple[tuple[PackedAccess, ...], list[Line], tuple[PackedAccess, ...]]:
    """Return what is read as vectors, the statements for each element, and what is written as vectors."""
    types = {pointer.name: pointer.type for pointer in writer.pointers.values()}
    loads: list[PackedAccess] = []
    stores: list[PackedAccess] = []
    inner: list[Line] = []
    for line in lines:
        place = line.address
        if place is None or place.lane_stride != 1:
            inner.append(line)
            continue
        terms = tuple(Term(START if term.variable == lane else term.variable, term.stride) for term in place.terms)
        moved = replace(place, terms=terms)
        if line.form == "load":
            loads.append(PackedAccess(f"in{len(loads)}", types[place.pointer], moved))
            inner.append(Line("let", line.name, "auto", f"{loads[-1].name}[e]"))
        else:
            stores.append(PackedAccess(f"out{len(stores)}", types[place.pointer], moved))
            inner.append(Line("keep", f"{stores[-1].name}[e]", text=line.text))
    return tuple(loads), inner, tuple(stores)


def _kept_in_registers(kernel: Row, stages: Sequence[StageView]) -> tuple[tuple[StageView, ...], tuple[Parameter, ...]]:
    """Return the stages with what several of them load of the same place loaded once, by the first."""
    written = {s.access.buffer for stage in kernel.stages for s in stage.inner if isinstance(s, Store)}
    loads: dict[Access, list[tuple[int, Load]]] = {}
    for number, stage in enumerate(kernel.stages):
        for statement in stage.inner:
            if isinstance(statement, Load) and statement.access.buffer not in written:
                loads.setdefault(statement.access, []).append((number, statement))
    lines = [list(stage.inner) for stage in stages]
    kept: list[Parameter] = []
    for found in loads.values():
        names = [f"v{load.dst}" for _, load in found]
        if len(found) < 2 or not all(_defines(lines[n], name) for (n, _), name in zip(found, names, strict=True)):
            continue
        place = f"kept{len(kept)}"
        kept.append(Parameter(scalar_type(found[0][1].dtype), place))
        for (number, load), name in zip(found, names, strict=True):
            at = next(i for i, line in enumerate(lines[number]) if line.name == name)
            if (number, load) == found[0]:
                lines[number].insert(at + 1, Line("keep", f"{place}[step]", text=name))
            else:
                lines[number][at] = Line("let", name, vector_type(load.dtype), f"{place}[step]")
    changed = (replace(stage, inner=tuple(inner)) for stage, inner in zip(stages, lines, strict=True))
    return tuple(changed), tuple(kept)


def _defines(lines: Sequence[Line], name: str) -> bool:
    return any(line.name == name for line in lines)


def _until_the_end(stages: Sequence[StageView]) -> tuple[tuple[StageView, ...], tuple[Line, ...]]:
    """Return the stages without what is stored once per row and what the last of them computes for that, and these."""
    per_row = [line for stage in stages for line in stage.after if line.is_store]
    shared = [tuple(line for line in stage.after if not line.is_store) for stage in stages]
    kept = (
        *(replace(s, after=after) for s, after in zip(stages[:-1], shared)),
        replace(stages[-1], after=()),
    )
    return kept, (*shared[-1], *per_row)


def _row_view(kernel: Row, dtypes: Sequence[DType], is_alone: bool) -> RowBody:
    extents = kernel.outer + kernel.inner
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, kernel.lane_axis)
    for stage in kernel.stages:
        writer.hoist(stage.inner)
        writer.hoist(stage.outer)
    position = position_in_row(kernel, indices)
    stages = []
    for stage in kernel.stages:
        before: list[Line] = []
        inner = writer.vector_lines(stage.inner, before)
        accumulators = []
        for reduction in stage.accumulate:
            source = writer.vector_name(reduction.src, before)
            accumulators.append(accumulator(reduction, source, position, writer, kernel.lanes_are_rows, "{}.finish()"))
        writer.forget(stage.inner)
        after: list[Line] = []
        per_row = writer.vector_lines(stage.outer, after) if kernel.lanes_are_rows else writer.scalar_lines(stage.outer)
        after.extend(per_row)
        stages.append(
            StageView(
                tuple(before), tuple(accumulators), tuple(inner), bool(inner or accumulators), False, tuple(after)
            )
        )
    split = len(kernel.outer)
    lines = [line for stage in stages for part in (stage.before, stage.inner, stage.after) for line in part]
    readers: list[Line | Address | str] = [*lines, *(a.position for stage in stages for a in stage.accumulators)]
    count = math.prod(kernel.inner)
    element, decode_element = counted(_decoded(indices[split:], kernel.inner, readers), "element")
    common, final = _until_the_end(stages)
    written = _pointers(final, True)
    if written & _pointers(writer.hoisted, False):  # then there is one row, and threads of others must not read
        common = (replace(common[0], before=(*writer.hoisted, *common[0].before)), *common[1:])
        writer.hoisted.clear()
    head = head_of(writer)
    read = [line for stage in common for part in (stage.before, stage.inner, stage.after) for line in part]
    overwrites = bool(written & _pointers(read, False))
    if not kernel.lanes_are_rows:
        rows = math.prod(kernel.outer)
        unit, decode = counted(_decoded(indices[:split], kernel.outer, readers))
        many, long = (BLOCK_WARPS, math.inf) if is_alone else (MANY_ROWS, LONG_ROW)
        threads = BLOCK if count > long or (rows < many and count > BLOCK) else WARP
        kept: tuple[Parameter, ...] = ()
        if count <= threads * MOST_KEPT:
            common, kept = _kept_in_registers(kernel, common)
        return GroupedRowView(
            head, rows, threads, unit, decode, count, element, decode_element, common, final, overwrites, kept
        )
    lane = kernel.lane_axis
    others = [axis for axis in range(split) if axis != lane]
    decode = _decoded([indices[axis] for axis in others], [kernel.outer[axis] for axis in others], readers)
    is_sliced = count > SHORT_ROW
    lanes = WARP if is_sliced else BLOCK
    return SideBySideRowView(
        head,
        math.prod(kernel.outer[axis] for axis in others),
        is_sliced,
        decode,
        Loop(indices[lane], kernel.outer[lane]),
        -(-kernel.outer[lane] // lanes),
        count,
        element,
        decode_element,
        common,
        final,
        overwrites,
    )


# --- kernels that are one call of a device function: its blocks --------------------------------------------------------------------


def _window_blocks(kernel: Window) -> int:
    s = kernel.shape
    is_gradient = kernel.kind in ("window_put", "avg_pool2d_grad")
    return -(-s.planes * (s.H * s.W if is_gradient else s.OH * s.OW) // BLOCK)


def _gathered_width(kernel: Index) -> int:
    """Return how many neighbours a thread gathers at a time."""
    if kernel.kind != "gather" or kernel.table is None or kernel.per_element:
        return 1
    places = (kernel.inner, kernel.table.offset, kernel.out.offset)
    fitting = (w for w in (8, 4, 2) if w * kernel.dtype.itemsize <= 16 and not any(p % w for p in places))
    return next(fitting, 1)


def _index_blocks(kernel: Index, width: int) -> int:
    if kernel.kind == "check":
        return -(-kernel.count // BLOCK)
    if kernel.kind == "gather":
        return -(-kernel.outer * kernel.count * kernel.inner // (BLOCK * width))
    if kernel.per_element:
        return -(-kernel.outer * kernel.inner // BLOCK)
    return min(kernel.outer * kernel.extent, 2 * MOST_BLOCKS)
