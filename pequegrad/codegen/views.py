"""What the views of lanes and of threads share: from a kernel of the plan to the record that its template takes.

Invariant: a view is made of a plan's kernel alone; names, loop bounds and which of them are needed are settled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..dtypes import DType
from ..records import record, replace
from .expressions import computed_as, literal, rounded, scalar_type, vector_type
from .lanes import POSITIONAL
from .layout import merge_plan
from .plan import (
    Access,
    Accumulate,
    Attention,
    Compute,
    Conv2d,
    Index,
    PoolShape,
    Row,
    Scan,
    Sort,
    Statement,
    Window,
)
from .rendering import Address, KernelWriter, Line, Pointer, Variable

# window.h's names, where they differ from the kind's.
WINDOW_FUNCTIONS = {"window_put": "max_pool2d_grad"}
# A name that no emitted text contains otherwise: the function's own, put in once equal bodies are known.
OWN_NAME = "KERNEL_NAME"


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
class WindowView:
    """A pooling kernel; ``averages`` says whether it counts padding, by ``shape.count_include_pad``.

    Like the three kinds below it is one call of a function of the runtime, which shares the work out by itself, among ``blocks``
    of threads on a device."""

    head: KernelHead
    function: str
    averages: bool
    type: str
    shape: PoolShape
    inputs: tuple[Address, ...]
    outputs: tuple[Address, ...]
    blocks: int = 0
    shared = ""


@record
class IndexView:
    """A gather, a scatter or a check. ``number``: the kernel's place in the plan, for the report of a wrong index; ``width``:
    elements that a thread gathers at a time."""

    head: KernelHead
    kind: str
    number: int
    kernel: Index
    table: Address | None
    index: Address
    out: Address
    source: Address | None
    blocks: int = 0
    width: int = 1
    shared = ""


@record
class ScanView:
    """A running sum."""

    head: KernelHead
    kernel: Scan
    source: Address
    out: Address
    blocks: int = 0
    shared = ""


@record
class SortView:
    """Elements in order."""

    head: KernelHead
    kernel: Sort
    source: Address
    out: Address
    places: Address
    blocks: int = 0
    shared = ""


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


def with_axis(statement: Statement) -> Statement:
    """Return a statement of a 0-dimensional domain as one over a single axis of extent 1."""
    if isinstance(statement, Compute):
        index = statement.index
        return statement if index is None else replace(statement, index=Access(-1, (1,), index.offset))
    access = statement.access
    return replace(statement, access=Access(access.buffer, (0,), access.offset))


def operand(writer: KernelWriter, access: Access, batch_indices: tuple[str, ...]) -> Address:
    strides = access.strides[: len(batch_indices)]
    outer = KernelWriter(
        writer.buffer_dtypes, batch_indices, writer.extents[: len(batch_indices)], None, writer.pointers
    )
    return outer.address(Access(access.buffer, strides, access.offset))


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
    reduction: Accumulate, source: str, position: str, writer: KernelWriter, is_vector: bool, finish: str
) -> AccumulatorView:
    """Return one reduction of a stage. ``is_vector``: whether its result is that of rows side by side; ``finish``: how it is
    made of what has the accumulator's name."""
    variable = writer.variables[reduction.src]
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
        rounded(finish.format(name), reduction.dtype),
    )
    writer.variables[reduction.dst] = (
        Variable(reduction.dtype, vector=result) if is_vector else Variable(reduction.dtype, scalar=result)
    )
    return view


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


def window_view(kernel: Window, dtypes: Sequence[DType], blocks: int = 0) -> WindowView:
    writer = KernelWriter(dtypes, (), (), None)
    inputs = tuple(operand(writer, access, ()) for access in kernel.inputs)
    outputs = tuple(
        writer.address(Access(access.buffer, (), access.offset), is_written=True) for access in kernel.outputs
    )
    function = WINDOW_FUNCTIONS.get(kernel.kind, kernel.kind)
    averages = kernel.kind.startswith("avg_pool2d")
    dtype = f"pg::{kernel.dtype.c_name}"
    return WindowView(head_of(writer), function, averages, dtype, kernel.shape, inputs, outputs, blocks)


def index_view(kernel: Index, dtypes: Sequence[DType], number: int, blocks: int = 0, width: int = 1) -> IndexView:
    writer = KernelWriter(dtypes, (), (), None)
    table = operand(writer, kernel.table, ()) if kernel.table is not None else None
    index = operand(writer, kernel.index, ())
    source = operand(writer, kernel.source, ()) if kernel.source is not None else None
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return IndexView(head_of(writer), kernel.kind, number, kernel, table, index, out, source, blocks, width)


def scan_view(kernel: Scan, dtypes: Sequence[DType], blocks: int = 0) -> ScanView:
    writer = KernelWriter(dtypes, (), (), None)
    source = operand(writer, kernel.source, ())
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return ScanView(head_of(writer), kernel, source, out, blocks)


def sort_view(kernel: Sort, dtypes: Sequence[DType], blocks: int = 0) -> SortView:
    writer = KernelWriter(dtypes, (), (), None)
    source = operand(writer, kernel.source, ())
    out, places = (writer.address(Access(a.buffer, (), a.offset), is_written=True) for a in (kernel.out, kernel.places))
    return SortView(head_of(writer), kernel, source, out, places, blocks)


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
