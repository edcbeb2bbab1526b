"""From a kernel of the plan to the record that a template for lanes takes: vectors of elements, shared among workers.

Invariant: a view is made of a plan's kernel and the number of lanes alone; its text is the same for any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..dtypes import DType, float32, float64
from ..errors import CompilerBug
from ..records import record
from ..targets import Target
from .map_views import PAGE_BYTES, SquareView, by_squares, map_view
from .plan import (
    Access,
    Attention,
    Compute,
    Contract,
    Conv2d,
    ConvShape,
    Index,
    Kernel,
    Load,
    Map,
    Row,
    Scan,
    Sort,
    Store,
    Window,
)
from .rendering import Address, KernelWriter, Line, Variable
from .schedule import conv_domain, is_winograd
from .views import (
    KernelHead,
    LaneView,
    Loop,
    Parameter,
    StageView,
    accumulator,
    attention_view,
    counted,
    decoded,
    head_of,
    index_view,
    operand,
    parameters_of,
    position_in_row,
    scan_view,
    sort_view,
    weight_runs,
    window_view,
)

# Of smaller products a share takes less than 10 us, of a few tiles: an estimate, not measured.
QUEUED_MULTIPLY_ADDS = 1 << 20
# Batched products with at least this many members are shared by member, else each by its rows and columns.
BATCH_TO_SHARE = 16
# Forms of gemm.h, which walks over tiles.
TILED_FORMS = ("whole", "into", "runs_on", "any")
# What a product writes of up to so many bytes is still in L2 from when it was used last, or at least near. Measured with
# Adam's three, on two cores with 1 MiB of L2 each: asked for ahead, 48 MiB are 10 % faster, 3.8 MiB 1 to 6 %; whole steps whose
# matrices have 0.6 to 0.8 MiB were no faster beyond their noise. A result alone, of 16 MiB: 5 %.
NEAR_BYTES = 2 << 20
# Dot products, k along the lanes, beat turning B for up to so many rows, for more where the sums are long. Measured with AVX-512 on
# one core, sums of 256 and of 1024: one row takes 0.27 of the time, four 0.69 and 0.47, eight 0.93 and 0.76, ten as long and 0.83.
FEW_ROWS, FEW_ROWS_OF_LONG_SUMS, LONG_SUM = 4, 8, 256
# Sums of rows are finished together where a row has at most so many vectors: summing across the lanes and arithmetic on single
# numbers take as long as about 20 of them.
SHORT_ROW_VECTORS = 32
# The product of the operands' transposes beats turning B, which takes as long as so many rows of multiplications do, where turning A
# instead, and the result, of which a square takes as long as four of theirs, takes less, and what rows lack to whole vectors does not
# outweigh it. Measured on two cores with AVX-512: 16 rows take 0.70 to 0.90 of the time; 64 rows 0.89 with n and k of 768, 1.19 with
# 784 and 128; 128 rows 0.96 and 1.22; 160 rows 0.98 with 1024 and 1024, 1.01 if those come from memory. With AVX2 the same to 3 %.
MOST_TURNED_ROWS, PACKING_ROWS, TURNING_SQUARES = 144, 6, 4
# A product is small where a panel of B, of so many vectors' width, and all of A take no more than so many bytes: the panel stays
# in L1 while all rows of A pass by, and A near it while all panels do.
SMALL_VECTORS = 4
SMALL_PANEL_BYTES, SMALL_ROWS_BYTES = 1 << 14, 1 << 15


@record
class RowView(LaneView):
    """A kernel of reductions. ``loops`` are the inner axes without the lane axis; ``unit`` counts rows. ``together``: the axis
    of which as many rows as there are lanes are summed, then finished as one vector, or None."""

    head: KernelHead
    unit: str
    rows: int
    decode: tuple[Loop, ...]
    loops: tuple[Loop, ...]
    lane: Loop
    lane_blocks: int
    lanes_are_rows: bool
    together: Loop | None
    uses_count: bool
    stages: tuple[StageView, ...]


@record
class ContractView(LaneView):
    """A matrix product, batched, with its epilogue. ``has_queues``: whether workers take tiles of each other's rows.

    ``form``: where k is dense in B, "dots" of few rows (gemm_dots.h) and "turned" of a few tens (gemm_turned.h); else "whole"
    where its columns are whole vectors, "into" where its sums are besides only stored, at ``result``, "runs_on" where they
    are not, but its epilogue walks from the end of a row straight into the next, "small" where it is "whole" or "runs_on"
    and its operands stay in caches (gemm_small.h), or "any". ``squares``: what the epilogue reads across its rows."""

    head: KernelHead
    type: str
    form: str
    batch: int
    decode: tuple[Loop, ...]
    is_shared_by_batch: bool
    m: int
    n: int
    k: int
    a: Address
    a_strides: tuple[int, int]
    b: Address
    b_strides: tuple[int, int]
    parameters: tuple[Parameter, ...]
    lines: tuple[Line, ...]
    far_updates: tuple[UpdateView, ...]
    has_queues: bool
    squares: tuple[SquareView, ...]
    result: UpdateView | None


@record
class UpdateView:
    """A matrix that a product's epilogue writes, or reads beside such: where one of the batch begins, bytes from row to row
    and of an element."""

    start: Address
    row_bytes: int
    bytes: int


@record
class ArrayView:
    """An array that a convolution's epilogue reads or writes: bytes from image to image, channel to channel, and of an element."""

    start: Address
    image_bytes: int
    plane_bytes: int
    bytes: int


@record
class Conv2dView(LaneView):
    """A convolution or a gradient of one. ``form``: how the names of its functions begin; ``partials``: byte offset of
    the weight gradient's chunks, or -1; ``run``: elements of a weight gradient that its epilogue walks as one,
    ``decode``: the indices of such a run; ``far_arrays``: what an epilogue reads and writes, where that is too large to be
    near."""

    head: KernelHead
    form: str
    kind: str
    type: str
    shape: ConvShape
    a: Address
    b: Address
    partials: int
    run: int
    decode: tuple[Loop, ...]
    parameters: tuple[Parameter, ...]
    lines: tuple[Line, ...]
    far_arrays: tuple[ArrayView, ...]


def views_of(
    dtypes: Sequence[DType], kernel: Kernel, number: int, scratch: int, target: Target, is_alone: bool
) -> tuple[Any, ...]:
    """Return the records that the template of the kernel's family takes, one per body; bodies have a barrier between.

    ``dtypes``: of the plan's buffers; ``number``: the kernel's place in the plan; ``scratch``: byte offset of its chunk
    sums, or -1. ``is_alone``: one worker runs the kernel, as on a block of samples; the text is the same.
    """
    if isinstance(kernel, Map):
        return (map_view(kernel, dtypes, target.lanes),)
    if isinstance(kernel, Row):
        return (_row_view(kernel, dtypes, target.lanes),)
    if isinstance(kernel, Contract):
        return (_contract_view(kernel, dtypes, scratch, target.lanes),)
    if isinstance(kernel, Conv2d):
        return (_conv2d_view(kernel, dtypes, scratch),)
    if isinstance(kernel, Window):
        return (window_view(kernel, dtypes),)
    if isinstance(kernel, Index):
        return (index_view(kernel, dtypes, number),)
    if isinstance(kernel, Scan):
        return (scan_view(kernel, dtypes),)
    if isinstance(kernel, Sort):
        return (sort_view(kernel, dtypes),)
    if isinstance(kernel, Attention):
        return (attention_view(kernel, dtypes),)
    raise CompilerBug(f"no template for {type(kernel).__name__}")


def scratch_bytes(kernel: Kernel, target: Target, is_alone: bool) -> int:
    """Return the bytes of arena that a kernel's chunk sums take, as many where one worker ``is_alone``."""
    if isinstance(kernel, Conv2d) and kernel.kind == "grad_weight":
        return kernel.shape.weight_chunks * kernel.shape.weight_elements * kernel.dtype.itemsize
    return 0


def _row_view(kernel: Row, dtypes: Sequence[DType], lanes: int) -> RowView:
    extents = kernel.outer + kernel.inner
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, kernel.lane_axis)
    for stage in kernel.stages:
        writer.hoist(stage.inner)
        writer.hoist(stage.outer)
    position = position_in_row(kernel, indices)
    is_together = _is_finished_together(kernel, lanes)
    is_vector = kernel.lanes_are_rows or is_together
    finish = "{}.rows()" if kernel.lanes_are_rows else "pg::reduce_add_rows({}_rows)" if is_together else "{}.finish()"
    stages = []
    for stage in kernel.stages:
        before: list[Line] = []
        inner = writer.vector_lines(stage.inner, before)
        accumulators = []
        for reduction in stage.accumulate:
            source = writer.vector_name(reduction.src, before)
            accumulators.append(accumulator(reduction, source, position, writer, is_vector, finish))
        writer.forget(stage.inner)
        after: list[Line] = []
        if is_together:
            writer.lane_axis = len(kernel.outer) - 1
        if is_vector:
            per_row = writer.vector_lines(stage.outer, after)
        else:
            per_row = writer.scalar_lines(stage.outer)
        after.extend(per_row)
        uses_count = bool(accumulators) or any(line.reads("count") for line in inner)
        stages.append(
            StageView(
                tuple(before), tuple(accumulators), tuple(inner), bool(inner or accumulators), uses_count, tuple(after)
            )
        )
    lane = kernel.lane_axis
    side_by_side = lane if kernel.lanes_are_rows else len(kernel.outer) - 1 if is_together else None
    outer_axes = [axis for axis in range(len(kernel.outer)) if axis != side_by_side]
    inner_axes = [axis for axis in range(len(kernel.outer), len(extents)) if axis != lane]
    lines = [line for stage in stages for part in (stage.before, stage.inner, stage.after) for line in part]
    positions = [a.position for stage in stages for a in stage.accumulators]
    decode = decoded(
        [indices[axis] for axis in outer_axes], [extents[axis] for axis in outer_axes], [*lines, *positions]
    )
    unit, decode = ("unit", decode) if is_vector else counted(decode)
    return RowView(
        head_of(writer),
        unit,
        math.prod(extents[axis] for axis in outer_axes),
        decode,
        tuple(Loop(indices[axis], extents[axis]) for axis in inner_axes),
        Loop(indices[lane], extents[lane]),
        1 if side_by_side is None else -(-extents[side_by_side] // lanes),
        kernel.lanes_are_rows,
        Loop(indices[len(kernel.outer) - 1], kernel.outer[-1]) if is_together else None,
        any(line.reads("count") for line in lines),
        tuple(stages),
    )


def _is_finished_together(kernel: Row, lanes: int) -> bool:
    """Whether as many rows as there are lanes are summed one by one, and what follows is done for all of them at once."""
    if lanes == 1 or kernel.lanes_are_rows or len(kernel.stages) > 1 or not kernel.outer or kernel.outer[-1] < lanes:
        return False
    stage = kernel.stages[0]
    draws = any(isinstance(s, Compute) and "{first}" in s.expression for s in stage.outer)
    return (
        math.prod(kernel.inner) <= SHORT_ROW_VECTORS * lanes
        and not draws
        and bool(stage.accumulate)
        and all(a.monoid == "sum" and a.dtype.is_floating_point for a in stage.accumulate)
    )


def has_queues(kernel: Kernel, target: Target) -> bool:
    """Whether workers take tiles of a product as they go, instead of sharing it out beforehand."""
    return (
        isinstance(kernel, Contract)
        and not kernel.batch
        and kernel.m * kernel.n * kernel.k >= QUEUED_MULTIPLY_ADDS
        and _form(kernel, target.lanes, False) in TILED_FORMS
    )


def _contract_view(kernel: Contract, dtypes: Sequence[DType], queues: int, lanes: int) -> ContractView:
    rank = len(kernel.batch)
    batch_indices = tuple(f"i{axis}" for axis in range(rank))
    writer = KernelWriter(dtypes, (*batch_indices, "row", "column"), (*kernel.batch, kernel.m, kernel.n), rank + 1)
    a = operand(writer, kernel.a, batch_indices)
    b = operand(writer, kernel.b, batch_indices)
    writer.variables[0] = Variable(kernel.dtype, vector="v0")
    writer.hoist(kernel.epilogue)
    lines = writer.vector_lines(kernel.epilogue)
    batch = math.prod(kernel.batch)
    dtype = f"pg::{kernel.dtype.c_name}"
    written, read = (_rows(kernel, dtypes, statement) for statement in (Store, Load))
    form = _form(kernel, lanes, _is_far(kernel, [size for access, size in written.items() if access in read]))
    far_rows = written | read if form in TILED_FORMS and _is_far(kernel, written.values()) else {}
    only_store = _only_store(kernel, dtypes) if form == "whole" else None
    form = "into" if only_store else form
    squares: list[SquareView] = []
    if form in TILED_FORMS and not rank and min(kernel.m, kernel.n) >= lanes > 1:
        lines, squares = by_squares(lines, writer, "row", {"row": (), "column": ()}, "{}.at(row, column)")
    if queues >= 0:
        writer.scratch(queues, "gemm_queue", True, "queues")

    def rows_of(access: Access, size: int) -> UpdateView:
        return UpdateView(operand(writer, access, batch_indices), access.strides[rank] * size, size)

    return ContractView(
        head_of(writer),
        dtype,
        form,
        batch,
        decoded(batch_indices, kernel.batch, [a, b, *lines]),
        batch >= BATCH_TO_SHARE,
        kernel.m,
        kernel.n,
        kernel.k,
        a,
        (kernel.a.strides[rank], kernel.a.strides[rank + 1]),
        b,
        (kernel.b.strides[rank], kernel.b.strides[rank + 1]),
        parameters_of(lines, row="long", column="long", v0=f"pg::vec<{dtype}>", count="long"),
        tuple(lines),
        tuple(rows_of(access, size) for access, size in far_rows.items()),
        queues >= 0,
        tuple(squares),
        rows_of(only_store, kernel.dtype.itemsize) if only_store else None,
    )


def _only_store(kernel: Contract, dtypes: Sequence[DType]) -> Access | None:
    """Return where a product's sums are stored, as they are and in dense rows, if that is all that becomes of them."""
    if len(kernel.epilogue) != 1 or kernel.dtype not in (float32, float64):
        return None
    (store,) = kernel.epilogue
    if not isinstance(store, Store) or dtypes[store.access.buffer] != kernel.dtype or store.access.strides[-1] != 1:
        return None
    return store.access


def _form(kernel: Contract, lanes: int, is_far: bool) -> str:
    form = "whole" if kernel.n % lanes == 0 else "runs_on" if _runs_on(kernel) else "any"
    if is_far:
        return form
    would_turn_b = kernel.b.strides[-2] == 1 != kernel.b.strides[-1] and kernel.m > 0 and 1 < lanes <= kernel.k
    few_rows = FEW_ROWS_OF_LONG_SUMS if kernel.k >= LONG_SUM else FEW_ROWS
    if would_turn_b and kernel.m <= few_rows and kernel.a.strides[-1] == 1:
        return "dots"
    if form != "any" and _is_small(kernel, lanes):
        return "small"
    if not would_turn_b or kernel.m > min(MOST_TURNED_ROWS, kernel.n // 2):
        return form
    spared_rows = PACKING_ROWS * (1 - kernel.m / kernel.n - TURNING_SQUARES * kernel.m / kernel.k)
    return "turned" if -kernel.m % lanes < spared_rows else form


def _is_small(kernel: Contract, lanes: int) -> bool:
    """Whether gemm_small.h computes a product that is of whole vectors or runs on."""
    if not kernel.m * kernel.n * kernel.k or (kernel.n % lanes and kernel.n > SMALL_VECTORS * lanes):
        return False
    size = kernel.dtype.itemsize
    row_bytes = kernel.a.strides[-2] * size
    return (
        SMALL_VECTORS * lanes * kernel.k * size <= SMALL_PANEL_BYTES
        and kernel.m * kernel.k * size <= SMALL_ROWS_BYTES
        and not (row_bytes and row_bytes % PAGE_BYTES == 0)
    )


def _runs_on(kernel: Contract) -> bool:
    """Whether a product's epilogue finds what is behind a row at the beginning of the next."""
    rank = len(kernel.batch)
    accesses = [s.access for s in kernel.epilogue if isinstance(s, Load | Store)]
    indices = [s.index for s in kernel.epilogue if isinstance(s, Compute) and s.index is not None]
    return all(access.strides[rank] == kernel.n * access.strides[rank + 1] for access in (*accesses, *indices))


def _rows(kernel: Contract, dtypes: Sequence[DType], statement: type[Load | Store]) -> dict[Access, int]:
    """Return what a product's epilogue loads, or stores, row by row, with the bytes of an element, none longer than a sum."""
    rank = len(kernel.batch)
    found = dict.fromkeys(s.access for s in kernel.epilogue if isinstance(s, statement))
    sizes = {access: dtypes[access.buffer].itemsize for access in found}
    return {
        access: size
        for access, size in sizes.items()
        if access.strides[rank] and access.strides[rank + 1] == 1 and size <= kernel.dtype.itemsize
    }


def _is_far(kernel: Contract, sizes: Iterable[int]) -> bool:
    """Whether matrices like a product's result, of elements so long, are together more than caches near a core keep."""
    return math.prod(kernel.batch) * kernel.m * kernel.n * sum(sizes) > NEAR_BYTES


def _conv2d_view(kernel: Conv2d, dtypes: Sequence[DType], partials: int) -> Conv2dView:
    shape = kernel.shape
    dtype = f"pg::{kernel.dtype.c_name}"
    epilogue = kernel.epilogue
    if kernel.kind == "grad_weight":
        extents, runs, epilogue = weight_runs(kernel)
        indices = (*(f"i{axis}" for axis in range(len(extents) - 1)), "column")
    else:
        indices = ("n", "channel", "position")
        extents, runs = conv_domain(kernel), 1
    writer = KernelWriter(dtypes, indices, extents, len(indices) - 1)
    a = operand(writer, kernel.a, ())
    b = operand(writer, kernel.b, ())
    writer.variables[0] = Variable(kernel.dtype, vector="v0")
    writer.hoist(epilogue)
    lines = writer.vector_lines(epilogue)
    decode = decoded(indices[:-1], extents[:-1], lines) if kernel.kind == "grad_weight" else ()
    if kernel.kind == "grad_weight":
        row = Parameter("long", "row" if decode else "")
        parameters = (row, *parameters_of(lines, column="long", v0=f"pg::vec<{dtype}>", count="long"))
    else:
        parameters = parameters_of(
            lines, n="long", channel="long", position="long", v0=f"pg::vec<{dtype}>", count="long"
        )
    form = "conv2d_winograd" if is_winograd(shape) else "conv2d_vectors" if shape.lanes > 1 else "conv2d"
    far_arrays = _far_arrays(kernel, writer) if shape.lanes > 1 and kernel.kind != "grad_weight" else ()
    return Conv2dView(
        head_of(writer), form, kernel.kind, dtype, shape, a, b, partials, runs, decode, parameters,
        tuple(lines), far_arrays,
    )  # fmt: skip


def _far_arrays(kernel: Conv2d, writer: KernelWriter) -> tuple[ArrayView, ...]:
    """Return what a convolution's epilogue reads and writes element by element, where all that is more than caches near a
    core keep."""
    found = dict.fromkeys(s.access for s in kernel.epilogue if isinstance(s, Load | Store) and s.access.strides[2] == 1)
    sizes = {access: writer.buffer_dtypes[access.buffer].itemsize for access in found}
    if math.prod(conv_domain(kernel)) * sum(sizes.values()) <= NEAR_BYTES:
        return ()
    return tuple(
        ArrayView(operand(writer, access, ()), access.strides[0] * size, access.strides[1] * size, size)
        for access, size in sizes.items()
    )
