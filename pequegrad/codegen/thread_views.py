"""From a kernel of the plan to the record that a template for threads takes: one element a thread, blocks of threads.

Invariant: the same plan, statements and names as for lanes (views.py); only how indices come about differs, and that
is settled here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..dtypes import DType
from ..errors import CompilerBug
from .expressions import computed_as, scalar_type
from .plan import Contract, Conv2d, Index, Kernel, Map, Row, Scan, StepPlan, Window
from .rendering import Address, KernelWriter, Line, Variable
from .views import (
    AccumulatorView,
    IndexView,
    KernelHead,
    Loop,
    Parameter,
    ScanView,
    StageView,
    WindowView,
    accumulator,
    counted,
    decoded,
    head_of,
    index_view,
    operand,
    parameters_of,
    position_in_row,
    scan_view,
    window_view,
    with_axis,
)  # fmt: skip

BLOCK = 256
MOST_BLOCKS = 1056
"""Blocks of a launch at most, each of which then does several shares: 8 for each of 132 multiprocessors."""
WARP = 32
BLOCK_WARPS = BLOCK // WARP
LONG_ROW = 1024
"""Rows of more elements than this get a whole block."""
MANY_ROWS = 1056
"""From this many rows on, warps with a row each fill a device (132 multiprocessors, 8 warps each, at least)."""
SHORT_ROW = 16
"""Rows side by side with at most this many elements are read by one thread each; longer ones by a slice of the block."""


@dataclass(frozen=True, slots=True)
class ElementView:
    """A pointwise kernel over ``count`` elements; ``unit`` counts them."""

    head: KernelHead
    count: int
    unit: str
    decode: tuple[Loop, ...]
    lines: tuple[Line, ...]
    shared = ""

    @property
    def blocks(self) -> int:
        return -(-self.count // BLOCK)


@dataclass(frozen=True, slots=True)
class GroupedRowView:
    """Rows of ``count`` elements, each reduced by ``threads`` threads; ``unit`` counts rows, ``element`` what is in one."""

    head: KernelHead
    rows: int
    threads: int
    unit: str
    decode: tuple[Loop, ...]
    count: int
    element: str
    decode_element: tuple[Loop, ...]
    stages: tuple[StageView, ...]
    is_side_by_side = False
    shared = ""

    @property
    def rows_per_block(self) -> int:
        return BLOCK // self.threads

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.rows_per_block)


@dataclass(frozen=True, slots=True)
class SideBySideRowView:
    """Rows side by side, a thread (or, ``is_sliced``, one thread of each warp of a block) for each lane of ``lane``."""

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


def views_of(plan: StepPlan, kernel: Kernel, number: int, scratch: int, lanes: int) -> tuple[Any, ...]:
    """Return the records that the template of the kernel's family takes, one per body; bodies have a barrier between.

    ``number``: the kernel's place in the plan; ``scratch``: byte offset of its chunk sums in the arena, or -1.
    """
    dtypes = tuple(buffer.dtype for buffer in plan.buffers)
    if isinstance(kernel, Map):
        return (_map_view(kernel, dtypes),)
    if isinstance(kernel, Row):
        return (_row_view(kernel, dtypes),)
    if isinstance(kernel, Contract):
        return _contract_views(kernel, dtypes, scratch)
    if isinstance(kernel, Conv2d):
        return _conv2d_views(kernel, dtypes, scratch)
    if isinstance(kernel, Window):
        return (_window_view(kernel, dtypes),)
    if isinstance(kernel, Index):
        return (_index_view(kernel, dtypes, number),)
    if isinstance(kernel, Scan):
        blocks = kernel.outer if kernel.inner == 1 else -(-kernel.outer * kernel.inner // BLOCK)
        return (SpreadView(scan_view(kernel, dtypes), blocks),)
    raise CompilerBug(f"no template for {type(kernel).__name__}")


def scratch_bytes(kernel: Kernel) -> int:
    """Return the bytes of arena that a kernel's chunk sums take."""
    if isinstance(kernel, Contract):
        chunks = _contract_chunks(kernel, _tile(math.prod(kernel.batch), kernel.m, kernel.n, kernel.dtype))
        size = max(kernel.dtype.itemsize, 4)  # half types are summed in float32
        return chunks * math.prod(kernel.batch) * kernel.m * kernel.n * size if chunks > 1 else 0
    return 0


def _map_view(kernel: Map, dtypes: Sequence[DType]) -> ElementView:
    extents = kernel.extents or (1,)
    body = kernel.body if kernel.extents else tuple(with_axis(statement) for statement in kernel.body)
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, len(extents) - 1)
    writer.hoist(body)
    lines = writer.vector_lines(body)
    unit, decode = counted(decoded(indices, extents, lines))
    return ElementView(head_of(kernel, writer), math.prod(extents), unit, decode, tuple(lines))


def _row_view(kernel: Row, dtypes: Sequence[DType]) -> GroupedRowView | SideBySideRowView:
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
            accumulators.append(accumulator(kernel, reduction, source, position, writer, "finish"))
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
    readers = [*lines, *(a.position for stage in stages for a in stage.accumulators)]
    count = math.prod(kernel.inner)
    element, decode_element = counted(decoded(indices[split:], kernel.inner, readers), "element")
    head = head_of(kernel, writer)
    if not kernel.lanes_are_rows:
        rows = math.prod(kernel.outer)
        unit, decode = counted(decoded(indices[:split], kernel.outer, readers))
        threads = BLOCK if count > LONG_ROW or (rows < MANY_ROWS and count > BLOCK) else WARP
        return GroupedRowView(head, rows, threads, unit, decode, count, element, decode_element, tuple(stages))
    lane = kernel.lane_axis
    others = [axis for axis in range(split) if axis != lane]
    decode = decoded([indices[axis] for axis in others], [kernel.outer[axis] for axis in others], readers)
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
        tuple(stages),
    )


# --- kernels that are one call of a device function --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpreadView:
    """A kernel whose device function spreads its work over ``blocks`` by itself; ``width``: elements moved as one."""

    body: WindowView | IndexView | ScanView
    blocks: int
    width: int = 1
    shared = ""

    @property
    def head(self) -> KernelHead:
        return self.body.head


def _window_view(kernel: Window, dtypes: Sequence[DType]) -> SpreadView:
    view = window_view(kernel, dtypes)
    s = kernel.shape
    is_gradient = kernel.kind in ("window_put", "avg_pool2d_grad")
    elements = s.planes * (s.H * s.W if is_gradient else s.OH * s.OW)
    return SpreadView(view, -(-elements // BLOCK))


def _index_view(kernel: Index, dtypes: Sequence[DType], number: int) -> SpreadView:
    view = index_view(kernel, dtypes, number)
    if kernel.kind == "gather":
        width = 1
        if not kernel.per_element:
            places = (kernel.inner, kernel.table.offset, kernel.out.offset)
            fitting = (w for w in (8, 4, 2) if w * kernel.dtype.itemsize <= 16 and not any(p % w for p in places))
            width = next(fitting, 1)
        return SpreadView(view, -(-kernel.outer * kernel.count * kernel.inner // (BLOCK * width)), width)
    if kernel.per_element:
        return SpreadView(view, -(-kernel.outer * kernel.inner // BLOCK))
    return SpreadView(view, min(kernel.outer * kernel.extent, 2 * MOST_BLOCKS))


# --- products ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of a product: product.h's name for it, and the elements of the result that a block computes."""

    name: str
    rows: int
    columns: int

    def count(self, batch: int, m: int, n: int) -> int:
        """Return how many tiles cover a batch of results."""
        return batch * -(-m // self.rows) * -(-n // self.columns)


LARGE, TALL, MEDIUM, SMALL, FLAT = (
    Tile("product_tile_128", 128, 128),
    Tile("product_tile_128x64", 128, 64),
    Tile("product_tile_64", 64, 64),
    Tile("product_tile_32", 32, 32),
    Tile("product_tile_16x128", 16, 128),
)
ENOUGH_TILES = 200
"""Tiles that keep the multiprocessors of a large device (132) busy with more than one each."""
FEW_TILES = 66
"""Below this a long sum is cut into chunks, so that more blocks work at it."""
LEAST_CHUNK = 128
MOST_CHUNKS = 16


def _tile(batch: int, m: int, n: int, dtype: DType) -> Tile:
    if m <= FLAT.rows and n >= MEDIUM.columns:
        return FLAT
    candidates = [MEDIUM] if dtype.itemsize == 8 else [LARGE, TALL, MEDIUM]
    for tile in candidates:
        is_filled = 2 * m >= tile.rows and 2 * n >= tile.columns
        if is_filled and tile.count(batch, m, n) >= ENOUGH_TILES:
            return tile
    return SMALL


def _contract_chunks(kernel: Contract, tile: Tile) -> int:
    tiles = tile.count(math.prod(kernel.batch), kernel.m, kernel.n)
    if tiles >= FEW_TILES:
        return 1
    return max(1, min(kernel.k // LEAST_CHUNK, 2 * FEW_TILES // max(tiles, 1), MOST_CHUNKS))


@dataclass(frozen=True, slots=True)
class OperandView:
    """A side of a product: where a matrix of the batch begins, and how it is walked (product.h's strided_operand)."""

    start: Address
    line_stride: int
    k_stride: int
    along_k: bool
    width: int


@dataclass(frozen=True, slots=True)
class ProductView:
    """A body of a product. ``stage``: "whole", "chunks" (sums of parts of k, into scratch) or "combine" (of these)."""

    head: KernelHead
    stage: str
    type: str
    tile: Tile
    batch: int
    decode: tuple[Loop, ...]
    m: int
    n: int
    k: int
    chunks: int
    a: OperandView
    b: OperandView
    parameters: tuple[Parameter, ...]
    lines: tuple[Line, ...]

    @property
    def blocks(self) -> int:
        if self.stage == "combine":
            return -(-self.batch * self.m * self.n // BLOCK)
        return self.tile.count(self.batch, self.m, self.n) * self.chunks

    @property
    def shared(self) -> str:
        return "" if self.stage == "combine" else f"pg::product_shared<{self.type}, pg::{self.tile.name}>"


def _contract_views(kernel: Contract, dtypes: Sequence[DType], scratch: int) -> tuple[ProductView, ...]:
    tile = _tile(math.prod(kernel.batch), kernel.m, kernel.n, kernel.dtype)
    chunks = _contract_chunks(kernel, tile)
    if chunks == 1:
        return (_product_view(kernel, dtypes, scratch, tile, 1, "whole"),)
    return tuple(_product_view(kernel, dtypes, scratch, tile, chunks, stage) for stage in ("chunks", "combine"))


def _product_view(
    kernel: Contract, dtypes: Sequence[DType], scratch: int, tile: Tile, chunks: int, stage: str
) -> ProductView:
    rank = len(kernel.batch)
    batch_indices = tuple(f"i{axis}" for axis in range(rank))
    writer = KernelWriter(dtypes, (*batch_indices, "row", "column"), (*kernel.batch, kernel.m, kernel.n), rank + 1)
    a, b = (operand(writer, access, batch_indices) for access in (kernel.a, kernel.b))
    lines: list[Line] = []
    if stage == "combine":
        writer.pointers.clear()
    if stage != "chunks":
        writer.variables[0] = Variable(kernel.dtype, vector="v0")
        writer.hoist(kernel.epilogue)
        lines = writer.vector_lines(kernel.epilogue)
    if chunks > 1:
        writer.scratch(scratch, computed_as(kernel.dtype), stage == "chunks")
    value = scalar_type(kernel.dtype)
    *a_batch, m_stride, a_k = kernel.a.strides
    *b_batch, b_k, n_stride = kernel.b.strides
    return ProductView(
        head_of(kernel, writer),
        stage,
        f"pg::{kernel.dtype.c_name}",
        tile,
        math.prod(kernel.batch),
        decoded(batch_indices, kernel.batch, [*lines, *((a, b) if stage != "combine" else ())]),
        kernel.m,
        kernel.n,
        kernel.k,
        chunks,
        _operand_view(a, kernel.a.offset, a_batch, m_stride, a_k, kernel.m, kernel.k, kernel.dtype),
        _operand_view(b, kernel.b.offset, b_batch, n_stride, b_k, kernel.n, kernel.k, kernel.dtype),
        parameters_of(lines, row="long", column="long", v0=value),
        tuple(lines),
    )


def _operand_view(
    start: Address, offset: int, batch: Sequence[int], line: int, k: int, lines: int, length: int, dtype: DType
) -> OperandView:
    along_k = k == 1 or line != 1
    step, other, extent = (k, line, length) if along_k else (line, k, lines)
    width = 1
    if step == 1:
        for candidate in (4, 2):
            is_aligned = all(number % candidate == 0 for number in (offset, other, extent, *batch))
            if is_aligned and candidate * dtype.itemsize <= 16:
                width = candidate
                break
    return OperandView(start, line, k, along_k, width)
