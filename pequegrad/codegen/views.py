"""From a kernel of the plan to the record that its template takes.

Invariant: a view is made of a plan's kernel alone; names, loop bounds and which of them are needed are settled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..dtypes import DType
from ..errors import CompilerBug
from ..records import record, replace
from ..targets import Target
from .expressions import computed_as, literal, rounded, scalar_type, vector_type
from .lanes import POSITIONAL
from .layout import merge_plan
from .numbers import parted
from .plan import (
    Access,
    Accumulate,
    Attention,
    Compute,
    Contract,
    Conv2d,
    ConvShape,
    Index,
    Kernel,
    Load,
    Map,
    PoolShape,
    Row,
    Scan,
    Sort,
    Statement,
    Store,
    Window,
)
from .rendering import Address, KernelWriter, Line, Pointer, Term, Variable
from .schedule import conv_domain, is_winograd

# A worker's share of a long axis: few enough that sharing costs nothing, enough that two workers end together.
SHARES_PER_AXIS = 32
LEAST_SHARE = 64
# Batched products with at least this many members are shared by member, else each by its rows and columns.
BATCH_TO_SHARE = 16
# What a product changes of up to so many bytes is still in L2 from when it was used last, or at least near. Measured with
# Adam's three, on two cores with 1 MiB of L2 each: asked for ahead, 48 MiB are 10 % faster, 3.8 MiB 1 to 6 %; whole steps whose
# matrices have 0.6 to 0.8 MiB were no faster beyond their noise.
NEAR_BYTES = 2 << 20
# Dot products, k along the lanes, beat turning B for up to so many rows, for more where the sums are long. Measured with AVX-512 on
# one core, sums of 256 and of 1024: one row takes 0.27 of the time, four 0.69 and 0.47, eight 0.93 and 0.76, ten as long and 0.83.
FEW_ROWS, FEW_ROWS_OF_LONG_SUMS, LONG_SUM = 4, 8, 256
# For a few tens of rows the product of the operands' transposes beats turning B: that takes as long as so many rows of
# multiplications do, so no more may be added to fill a vector. Measured with AVX-512 on one core, B 1024 x 1024 and 3072 x 768: 16
# rows take 0.64 and 0.52 of the time, 32 rows 0.81 and 0.73, 96 rows 0.94 and 0.90, 128 rows 0.97 and 1.0.
MOST_TURNED_ROWS, PACKING_ROWS = 96, 7
# A product is small where a panel of B, of so many vectors' width, and all of A take no more than so many bytes: the panel stays
# in L1 while all rows of A pass by, and A near it while all panels do. Rows whole pages apart fall into the same sets of L1.
SMALL_VECTORS = 4
SMALL_PANEL_BYTES, SMALL_ROWS_BYTES = 1 << 14, 1 << 15
PAGE_BYTES = 1 << 12
LINE_BYTES, L1_WAYS = 64, 8
# The bytes of elements that are loaded as they lie; of others the lanes are widened on the way.
SQUARE_TYPES = {"pg::f32": 4, "pg::f64": 8, "pg::i32": 4, "pg::i64": 8}
# window.h's names, where they differ from the kind's.
WINDOW_FUNCTIONS = {"window_put": "max_pool2d_grad"}
# A name that no emitted text contains otherwise: the function's own, put in once equal bodies are known.
OWN_NAME = "KERNEL_NAME"


@record
class Loop:
    """One loop over an axis, or one index decoded from a row number: ``variable = row / divisor % extent``."""

    variable: str
    extent: int
    divisor: int = 1
    is_outermost: bool = False
    """Nothing lies outside it, so the quotient needs no remainder."""


@record
class Parameter:
    """A parameter of an emitted function object; without a name where nothing reads it."""

    type: str
    name: str


@record
class KernelHead:
    """What all emitted kernels have: a name and typed pointers."""

    name: str
    pointers: tuple[Pointer, ...]
    hoisted: tuple[Line, ...]


class LaneView:
    """Kernels for lanes take no thread blocks."""

    __slots__ = ()
    blocks = 0
    shared = ""


@record
class MapView(LaneView):
    """A pointwise kernel: ``rows`` of ``lane.extent`` elements, cut into ``chunks`` shares of ``chunk`` each.

    ``is_scalar``: over single numbers, by one worker. ``unit``: the variable that counts shares. ``across``: the axis, apart
    from the rows and with a chunk of its own, along which ``squares`` lie; their vectors are turned into lanes by squares."""

    head: KernelHead
    is_scalar: bool
    unit: str
    rows: int
    decode: tuple[Loop, ...]
    lane: Loop
    chunk: int
    chunks: int
    uses_count: bool
    lines: tuple[Line, ...]
    repeats: tuple[RepeatView, ...] = ()
    across: Loop | None = None
    squares: tuple[SquareView, ...] = ()


@record
class SquareView:
    """An operand of a map that does not lie along its lanes: a local array of ``type``, and where a square of it begins."""

    name: str
    type: str
    start: Address


@record
class RepeatView:
    """Arithmetic on numbers that a kernel does several times: a function object, and the pointers of each time."""

    name: str
    pointers: tuple[Pointer, ...]
    lines: tuple[Line, ...]
    calls: tuple[tuple[str, ...], ...]


@record
class AccumulatorView:
    """One reduction of a stage. ``position`` is empty unless the result is one; ``value`` is its result as stored."""

    name: str
    monoid: str
    type: str
    source: str
    position: str
    result: str
    result_type: str
    value: str


@record
class StageView:
    """One sweep over a row: ``before`` once per row, ``inner`` per vector, then ``after`` once per row."""

    before: tuple[Line, ...]
    accumulators: tuple[AccumulatorView, ...]
    inner: tuple[Line, ...]
    has_sweep: bool
    uses_count: bool
    after: tuple[Line, ...]


@record
class RowView(LaneView):
    """A kernel of reductions. ``loops`` are the inner axes without the lane axis; ``unit`` counts rows."""

    head: KernelHead
    unit: str
    rows: int
    decode: tuple[Loop, ...]
    loops: tuple[Loop, ...]
    lane: Loop
    lane_blocks: int
    lanes_are_rows: bool
    uses_count: bool
    stages: tuple[StageView, ...]


@record
class ContractView(LaneView):
    """A matrix product, batched, with its epilogue. ``form``: where k is dense in B, "dots" of few rows (gemm_dots.h) and "turned" of
    a few tens (gemm_turned.h); else "whole" where its columns are whole vectors, "runs_on" where they are not, but
    its epilogue walks from the end of a row straight into the next, "small" where it is either of these two and its operands stay
    in caches (gemm_small.h), or "any"."""

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


@record
class UpdateView:
    """A matrix that a product's epilogue changes: where one of the batch begins, bytes from row to row and of an element."""

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


@record
class WindowView(LaneView):
    """A pooling kernel; ``averages`` says whether it counts padding, by ``shape.count_include_pad``."""

    head: KernelHead
    function: str
    averages: bool
    type: str
    shape: PoolShape
    inputs: tuple[Address, ...]
    outputs: tuple[Address, ...]


@record
class IndexView(LaneView):
    """A gather, a scatter or a check. ``number``: the kernel's place in the plan, for the report of a wrong index."""

    head: KernelHead
    kind: str
    number: int
    kernel: Index
    table: Address | None
    index: Address
    out: Address
    source: Address | None


@record
class ScanView(LaneView):
    """A running sum."""

    head: KernelHead
    kernel: Scan
    source: Address
    out: Address


@record
class SortView(LaneView):
    """Elements in order."""

    head: KernelHead
    kernel: Sort
    source: Address
    out: Address
    places: Address


@record
class MatrixView:
    """An operand or result of attention: where that of one matrix begins, and the strides of its rows and features."""

    start: Address
    row: int
    feature: int


@record
class AttentionView(LaneView):
    """Attention or its gradient. ``scale`` is a literal, ``matrices`` the size of the batch, ``decode`` its indices."""

    head: KernelHead
    type: str
    scale: str
    matrices: int
    decode: tuple[Loop, ...]
    kernel: Attention
    inputs: tuple[MatrixView, ...]
    outputs: tuple[MatrixView, ...]


def views_of(
    dtypes: Sequence[DType], kernel: Kernel, number: int, scratch: int, target: Target, is_alone: bool
) -> tuple[Any, ...]:
    """Return the records that the template of the kernel's family takes, one per body; bodies have a barrier between.

    ``dtypes``: of the plan's buffers; ``number``: the kernel's place in the plan; ``scratch``: byte offset of its chunk
    sums, or -1. ``is_alone``: one worker runs the kernel, as on a block of samples; the text is the same.
    """
    if isinstance(kernel, Map):
        return (_map_view(kernel, dtypes, target.lanes),)
    if isinstance(kernel, Row):
        return (_row_view(kernel, dtypes, target.lanes),)
    if isinstance(kernel, Contract):
        return (contract_view(kernel, dtypes, target.lanes),)
    if isinstance(kernel, Conv2d):
        return (conv2d_view(kernel, dtypes, scratch),)
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


def head_of(writer: KernelWriter) -> KernelHead:
    return KernelHead(OWN_NAME, tuple(writer.pointers.values()), tuple(writer.hoisted))


def decoded(variables: Sequence[str], extents: Sequence[int], used: Iterable[Line | Address | str]) -> tuple[Loop, ...]:
    """Return how each index follows from a row number, for those that something reads."""
    readers = list(used)
    loops = []
    for position, (variable, extent) in enumerate(zip(variables, extents, strict=True)):
        if extent > 1 and any(reads(reader, variable) for reader in readers):
            outer = math.prod(extents[:position])
            loops.append(Loop(variable, extent, math.prod(extents[position + 1 :]), outer == 1))
    return tuple(loops)


def counted(decode: tuple[Loop, ...], name: str = "unit") -> tuple[str, tuple[Loop, ...]]:
    """Return the variable that counts rows, and what is left to decode: nothing where the one index is that count.

    ``name``: what the variable is called where it is none of the indices."""
    if len(decode) == 1 and decode[0].divisor == 1 and decode[0].is_outermost:
        return decode[0].variable, ()
    return name, decode


def reads(reader: Line | Address | str, name: str) -> bool:
    if isinstance(reader, str):
        return name in reader.split()
    if isinstance(reader, Address):
        return any(term.variable == name for term in reader.terms)
    return reader.reads(name)


def parameters_of(lines: Sequence[Line], **types: str) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(kind, name if any(line.reads(name) for line in lines) else "") for name, kind in types.items()
    )


def _map_view(kernel: Map, dtypes: Sequence[DType], lanes: int) -> MapView:
    extents = kernel.extents or (1,)
    body = kernel.body if kernel.extents else tuple(with_axis(statement) for statement in kernel.body)
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, len(extents) - 1)
    is_scalar = math.prod(extents) == 1 and not any(isinstance(s, Compute) and "{first}" in s.expression for s in body)
    repeats: tuple[RepeatView, ...] = ()
    if is_scalar:
        writer = KernelWriter(dtypes, indices, extents, None)
        alone, alike = parted(body, dtypes)
        repeats = tuple(_repeat_view(f"each{i}", parts, writer) for i, parts in enumerate(alike))
        lines = writer.scalar_lines(alone)
    else:
        writer.hoist(body)
        lines = writer.vector_lines(body)
    across = _across_view(writer, lines, lanes)
    if across is not None:
        return across
    extent = extents[-1]
    rows = math.prod(extents[:-1])
    chunk = max(LEAST_SHARE, -(-extent // SHARES_PER_AXIS // LEAST_SHARE) * LEAST_SHARE)
    if rows >= SHARES_PER_AXIS:
        chunk = max(extent, 1)
    chunks = max(1, -(-extent // chunk))
    decode = decoded(indices[:-1], extents[:-1], lines)
    unit, decode = counted(decode) if chunks == 1 else ("unit", decode)
    return MapView(
        head_of(writer),
        is_scalar,
        unit,
        rows,
        decode,
        Loop(indices[-1], extent),
        chunk,
        chunks,
        any(line.reads("count") for line in lines),
        tuple(lines),
        repeats,
    )


def _are_pushed_out(lines: int, apart: int) -> bool:
    """Whether so many lines, so many bytes apart, do not stay in L1 together until the next element of each is read."""
    sets = min(PAGE_BYTES // LINE_BYTES, PAGE_BYTES // math.gcd(apart, PAGE_BYTES))
    return lines > L1_WAYS * sets


def _across_view(writer: KernelWriter, lines: Sequence[Line], lanes: int) -> MapView | None:
    """Return the view of a pointwise kernel with operands that lie along the axis before the lanes' and that read lane by lane
    would push themselves out of L1, or None where there are none, or too few squares to share."""
    if lanes == 1 or len(writer.extents) < 2 or min(writer.extents[-2:]) < lanes:
        return None
    *outer, across, lane = zip(writer.indices, writer.extents, strict=True)
    rows, blocks = math.prod(extent for _, extent in outer), -(-across[1] // lanes)
    if rows * blocks < SHARES_PER_AXIS:
        return None
    types = {pointer.name: pointer.type for pointer in writer.pointers.values()}
    along = Term(across[0], 1)
    squares: list[SquareView] = []
    turned: list[Line] = []
    for line in lines:
        place = line.address
        size = SQUARE_TYPES.get(types[place.pointer], 0) if line.form == "load_strided" and place else 0
        if size and place and along in place.terms and _are_pushed_out(lane[1], place.lane_stride * size):
            terms = tuple(Term("first", 1) if term == along else term for term in place.terms)
            square = SquareView(f"q{len(squares)}", types[place.pointer], replace(place, terms=terms))
            squares.append(square)
            turned.append(Line("load_square", line.name, text=f"{square.name}[{across[0]} - first]"))
        else:
            turned.append(line)
    if not squares:
        return None
    decode = decoded(
        [name for name, _ in outer], [extent for _, extent in outer], [*turned, *(s.start for s in squares)]
    )
    return MapView(
        head_of(writer), False, "unit", rows, decode, Loop(*lane), lanes, blocks, True, tuple(turned), (), Loop(*across),
        tuple(squares),
    )  # fmt: skip


def _repeat_view(name: str, parts: Sequence[tuple[Statement, ...]], outside: KernelWriter) -> RepeatView:
    """Return the view of parts that are alike; their pointers become parameters of the kernel ``outside``."""
    writer = KernelWriter(outside.buffer_dtypes, outside.indices, outside.extents, None, letter="q")
    lines = writer.scalar_lines(parts[0])
    pointers = tuple(writer.pointers.values())
    # The others name buffers of their own in the same order.
    named = [list(dict.fromkeys([s.access.buffer for s in part if not isinstance(s, Compute)])) for part in parts]
    places = [(named[0].index(pointer.buffer), pointer.is_written) for pointer in pointers]
    calls = tuple([tuple([outside.pointer(buffers[at], written) for at, written in places]) for buffers in named])
    return RepeatView(name, pointers, tuple(lines), calls)


def with_axis(statement: Statement) -> Statement:
    """Return a statement of a 0-dimensional domain as one over a single axis of extent 1."""
    if isinstance(statement, Compute):
        index = statement.index
        return statement if index is None else replace(statement, index=Access(-1, (1,), index.offset))
    access = statement.access
    return replace(statement, access=Access(access.buffer, (0,), access.offset))


def _row_view(kernel: Row, dtypes: Sequence[DType], lanes: int) -> RowView:
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
            accumulators.append(accumulator(kernel, reduction, source, position, writer))
        writer.forget(stage.inner)
        after: list[Line] = []
        if kernel.lanes_are_rows:
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
    outer_axes = [axis for axis in range(len(kernel.outer)) if axis != lane]
    inner_axes = [axis for axis in range(len(kernel.outer), len(extents)) if axis != lane]
    lines = [line for stage in stages for part in (stage.before, stage.inner, stage.after) for line in part]
    positions = [a.position for stage in stages for a in stage.accumulators]
    decode = decoded(
        [indices[axis] for axis in outer_axes], [extents[axis] for axis in outer_axes], [*lines, *positions]
    )
    unit, decode = ("unit", decode) if kernel.lanes_are_rows else counted(decode)
    return RowView(
        head_of(writer),
        unit,
        math.prod(extents[axis] for axis in outer_axes),
        decode,
        tuple(Loop(indices[axis], extents[axis]) for axis in inner_axes),
        Loop(indices[lane], extents[lane]),
        -(-extents[lane] // lanes),
        kernel.lanes_are_rows,
        any(line.reads("count") for line in lines),
        tuple(stages),
    )


def position_in_row(kernel: Row, indices: Sequence[str]) -> str:
    """Return an element's place within its row."""
    extents = kernel.outer + kernel.inner
    terms = []
    for axis in range(len(kernel.outer), len(extents)):
        stride = math.prod(extents[axis + 1 :])
        if extents[axis] > 1 or axis == kernel.lane_axis:
            terms.append(indices[axis] if stride == 1 else f"{indices[axis]} * {stride}")
    return " + ".join(terms) or "0"


def accumulator(
    kernel: Row, reduction: Accumulate, source: str, position: str, writer: KernelWriter, rows: str = "rows"
) -> AccumulatorView:
    """Return one reduction of a stage; ``rows``: the accumulator's member that gives the results of rows side by side."""
    variable = writer.variables[reduction.src]
    is_vector = kernel.lanes_are_rows
    result = f"{'v' if is_vector else 's'}{reduction.dst}"
    name = f"a{reduction.dst}"
    view = AccumulatorView(
        name,
        reduction.monoid,
        f"pg::{computed_as(variable.dtype)}",
        source,
        position if reduction.monoid in POSITIONAL else "",
        result,
        vector_type(reduction.dtype) if is_vector else scalar_type(reduction.dtype),
        rounded(f"{name}.{rows if is_vector else 'finish'}()", reduction.dtype),
    )
    writer.variables[reduction.dst] = (
        Variable(reduction.dtype, vector=result) if is_vector else Variable(reduction.dtype, scalar=result)
    )
    return view


def contract_view(kernel: Contract, dtypes: Sequence[DType], lanes: int) -> ContractView:
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
    far_updates = _far_updates(kernel, writer, batch_indices)
    form = _form(kernel, lanes, bool(far_updates))
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
        far_updates,
    )


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
    is_turned = would_turn_b and kernel.m <= min(MOST_TURNED_ROWS, kernel.n // 2) and -kernel.m % lanes < PACKING_ROWS
    return "turned" if is_turned else form


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


def _far_updates(kernel: Contract, writer: KernelWriter, batch_indices: tuple[str, ...]) -> tuple[UpdateView, ...]:
    """Return what a product's epilogue changes row by row, where all that is more than caches near a core keep, and behind
    it what the epilogue only reads so."""
    rank = len(batch_indices)
    loaded = dict.fromkeys(s.access for s in kernel.epilogue if isinstance(s, Load))
    changed = dict.fromkeys(s.access for s in kernel.epilogue if isinstance(s, Store) and s.access in loaded)
    rows = {
        access: size
        for access in changed | loaded
        if access.strides[rank] and access.strides[rank + 1] == 1
        if (size := writer.buffer_dtypes[access.buffer].itemsize) <= kernel.dtype.itemsize
    }
    if math.prod(kernel.batch) * kernel.m * kernel.n * sum(rows[a] for a in changed if a in rows) <= NEAR_BYTES:
        return ()
    return tuple(
        UpdateView(operand(writer, access, batch_indices), access.strides[rank] * size, size)
        for access, size in rows.items()
    )


def operand(writer: KernelWriter, access: Access, batch_indices: tuple[str, ...]) -> Address:
    strides = access.strides[: len(batch_indices)]
    outer = KernelWriter(
        writer.buffer_dtypes, batch_indices, writer.extents[: len(batch_indices)], None, writer.pointers
    )
    return outer.address(Access(access.buffer, strides, access.offset))


def conv2d_view(kernel: Conv2d, dtypes: Sequence[DType], partials: int) -> Conv2dView:
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


def weight_runs(kernel: Conv2d) -> tuple[tuple[int, ...], int, tuple[Statement, ...]]:
    """Return extents over which a weight gradient's epilogue walks, the length of the last, and the epilogue for them:
    one extent where all accesses walk the whole weight as one."""
    shape = kernel.shape
    extents = (shape.O, shape.C // shape.groups, shape.KH * shape.KW)
    used = [axis for axis, extent in enumerate(extents) if extent > 1] or [2]
    places = [getattr(s, "access", None) or getattr(s, "index", None) for s in kernel.epilogue]
    walks = [tuple(place.strides[axis] for axis in used) for place in places if place is not None]
    kept = [used[run[-1]] for run in merge_plan([extents[axis] for axis in used], walks)]
    merged = [
        math.prod(extents[axis] for axis in used if low < axis <= high)
        for low, high in zip((-1, *kept[:-1]), kept, strict=True)
    ]

    def walked(statement: Any) -> Any:
        field = "access" if getattr(statement, "access", None) is not None else "index"
        place = getattr(statement, field, None)
        if place is None:
            return statement
        return replace(
            statement, **{field: Access(place.buffer, tuple(place.strides[axis] for axis in kept), place.offset)}
        )

    return tuple(merged), merged[-1], tuple(walked(statement) for statement in kernel.epilogue)


def window_view(kernel: Window, dtypes: Sequence[DType]) -> WindowView:
    writer = KernelWriter(dtypes, (), (), None)
    inputs = tuple(operand(writer, access, ()) for access in kernel.inputs)
    outputs = tuple(
        writer.address(Access(access.buffer, (), access.offset), is_written=True) for access in kernel.outputs
    )
    function = WINDOW_FUNCTIONS.get(kernel.kind, kernel.kind)
    averages = kernel.kind.startswith("avg_pool2d")
    dtype = f"pg::{kernel.dtype.c_name}"
    return WindowView(head_of(writer), function, averages, dtype, kernel.shape, inputs, outputs)


def index_view(kernel: Index, dtypes: Sequence[DType], number: int) -> IndexView:
    writer = KernelWriter(dtypes, (), (), None)
    table = operand(writer, kernel.table, ()) if kernel.table is not None else None
    index = operand(writer, kernel.index, ())
    source = operand(writer, kernel.source, ()) if kernel.source is not None else None
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return IndexView(head_of(writer), kernel.kind, number, kernel, table, index, out, source)


def scan_view(kernel: Scan, dtypes: Sequence[DType]) -> ScanView:
    writer = KernelWriter(dtypes, (), (), None)
    source = operand(writer, kernel.source, ())
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return ScanView(head_of(writer), kernel, source, out)


def sort_view(kernel: Sort, dtypes: Sequence[DType]) -> SortView:
    writer = KernelWriter(dtypes, (), (), None)
    source = operand(writer, kernel.source, ())
    results = [writer.address(Access(a.buffer, (), a.offset), is_written=True) for a in (kernel.out, kernel.places)]
    return SortView(head_of(writer), kernel, source, *results)


def attention_view(kernel: Attention, dtypes: Sequence[DType]) -> AttentionView:
    rank = len(kernel.batch)
    indices = tuple(f"i{axis}" for axis in range(rank))
    writer = KernelWriter(dtypes, indices, kernel.batch, None)

    def matrix(access: Access, shape: tuple[int, ...]) -> MatrixView:
        row, *feature = (0 if extent == 1 else step for extent, step in zip(shape, access.strides[rank:], strict=True))
        return MatrixView(operand(writer, access, indices), row, feature[0] if feature else 0)

    inputs = tuple(matrix(access, shape) for access, shape in zip(kernel.inputs, kernel.input_shapes, strict=True))
    for access in kernel.outputs:
        writer.pointer(access.buffer, is_written=True)
    outputs = tuple(matrix(access, shape) for access, shape in zip(kernel.outputs, kernel.output_shapes, strict=True))
    return AttentionView(
        head_of(writer),
        f"pg::{kernel.dtype.c_name}",
        literal(kernel.scale, kernel.dtype),
        math.prod(kernel.batch),
        decoded(indices, kernel.batch, [view.start for view in (*inputs, *outputs)]),
        kernel,
        inputs,
        outputs,
    )
