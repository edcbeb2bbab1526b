"""From a StepPlan to source text: the only user of jinja2.

Invariant: the text depends on the plan and the target alone (no paths, dates, ids or set order).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import CompilerBug
from ..targets import Target
from .plan import (
    Access,
    Accumulate,
    Contract,
    Conv2d,
    ConvShape,
    Index,
    Kernel,
    Map,
    PoolShape,
    Row,
    Scan,
    Statement,
    StepPlan,
    Window,
)
from .rendering import Address, KernelWriter, Line, Pointer, Variable

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

# A worker's share of a long axis: few enough that sharing costs nothing, enough that two workers end together.
SHARES_PER_AXIS = 32
LEAST_SHARE = 64
ALIGNMENT = 64
# Batched products with at least this many members are shared by member, else each by its rows and columns.
BATCH_TO_SHARE = 16
# window.h's names, where they differ from the kind's.
WINDOW_FUNCTIONS = {"window_put": "max_pool2d_grad"}
MOST_WEIGHT_CHUNKS = 16
WEIGHT_CHUNK_ELEMENTS = 2**20


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop over an axis, or one index decoded from a row number: ``variable = row / divisor % extent``."""

    variable: str
    extent: int
    divisor: int = 1


@dataclass(frozen=True, slots=True)
class KernelHead:
    """What all emitted kernels have: a name, comment lines, and typed pointers."""

    name: str
    comment: tuple[str, ...]
    pointers: tuple[Pointer, ...]
    hoisted: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class MapView:
    """A pointwise kernel: ``rows`` of ``extent`` elements, cut into shares of ``chunk`` along the lane axis."""

    head: KernelHead
    rows: int
    decode: tuple[Loop, ...]
    lane: Loop
    chunk: int
    chunks: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class AccumulatorView:
    """One reduction of a stage."""

    name: str
    monoid: str
    type: str
    source: str
    result: str
    result_type: str


@dataclass(frozen=True, slots=True)
class StageView:
    """One sweep over a row: ``before`` once per row, ``inner`` per vector, then ``after`` once per row."""

    before: tuple[Line, ...]
    accumulators: tuple[AccumulatorView, ...]
    inner: tuple[Line, ...]
    has_sweep: bool
    after: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class RowView:
    """A kernel of reductions. ``loops`` are the inner axes without the lane axis; ``position`` the terms of an
    element's place within its row."""

    head: KernelHead
    rows: int
    decode: tuple[Loop, ...]
    loops: tuple[Loop, ...]
    lane: Loop
    lane_blocks: int
    lanes_are_rows: bool
    position: str
    stages: tuple[StageView, ...]


@dataclass(frozen=True, slots=True)
class ContractView:
    """A matrix product, batched, with its epilogue."""

    head: KernelHead
    type: str
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
    accumulator: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Conv2dView:
    """A convolution or a gradient of one. ``partials``: byte offset of the weight gradient's chunks, or -1."""

    head: KernelHead
    kind: str
    type: str
    shape: ConvShape
    a: Address
    b: Address
    partials: int
    row: str
    column: str
    row_length: int
    accumulator: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class WindowView:
    """A pooling kernel; ``averages`` says whether it counts padding, by ``shape.count_include_pad``."""

    head: KernelHead
    function: str
    averages: bool
    type: str
    shape: PoolShape
    inputs: tuple[Address, ...]
    outputs: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class IndexView:
    """A gather or scatter-add."""

    head: KernelHead
    kind: str
    number: int
    kernel: Index
    table: Address
    index: Address
    out: Address
    source: Address | None


@dataclass(frozen=True, slots=True)
class ScanView:
    """A running sum."""

    head: KernelHead
    kernel: Scan
    source: Address
    out: Address


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an emitted kernel: its arguments as C text, and whether it has a second part after a barrier.

    ``note`` says what it computes where another call's function serves it too, and is empty elsewhere."""

    function: str
    arguments: tuple[str, ...]
    note: str
    has_second_part: bool = False


@dataclass(frozen=True, slots=True)
class PhaseView:
    """Calls between two barriers."""

    number: int
    calls: tuple[Call, ...]
    can_fail: bool
    is_last: bool

    @property
    def second_parts(self) -> tuple[Call, ...]:
        return tuple(call for call in self.calls if call.has_second_part)


@dataclass(frozen=True, slots=True)
class StepView:
    """The whole file."""

    name: str
    headers: tuple[str, ...]
    functions: tuple[str, ...]
    phases: tuple[PhaseView, ...]
    kernel_count: int
    arena_bytes: int


HEADERS = {
    "map": (),
    "row": ("accumulate.h", "gemm.h"),
    "contract": ("gemm.h", "scratch.h"),
    "conv2d": ("conv.h", "scratch.h"),
    "window": ("window.h",),
    "index": ("indexing.h",),
    "scan": ("indexing.h",),
}


def render(plan: StepPlan, target: Target) -> str:
    """Return the source of a step for a target."""
    environment = _environment(target.template_folder)
    functions: dict[str, str] = {}
    texts: list[str] = []
    phases = []
    number = 0
    partials = _partial_offsets(plan)
    for phase_number, phase in enumerate(plan.phases):
        calls = []
        for kernel in phase.kernels:
            view = _view(plan, kernel, number, partials.get(id(kernel), -1), target)
            template = environment.get_template(f"{kernel.family}.j2")
            body = template.render(k=view)
            is_shared = body in functions
            if not is_shared:
                functions[body] = f"{_identifier(kernel.name)}_{len(functions)}"
                texts.append(_comment(view.head) + body.replace(view.head.name, functions[body]))
            calls.append(
                Call(
                    functions[body],
                    tuple(_pointer_text(plan, pointer) for pointer in view.head.pointers),
                    str(kernel.origin) if is_shared else "",
                    isinstance(kernel, Conv2d) and kernel.kind == "grad_weight",
                )
            )
            number += 1
        can_fail = any(isinstance(kernel, Index) for kernel in phase.kernels)
        phases.append(PhaseView(phase_number, tuple(calls), can_fail, phase_number == len(plan.phases) - 1))
    headers = dict.fromkeys(header for kernel in plan.kernels for header in HEADERS[kernel.family])
    step = StepView(plan.name, tuple(headers), tuple(texts), tuple(phases), number, arena_bytes(plan))
    text = environment.get_template("step.j2").render(step=step)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip() + "\n"


def arena_bytes(plan: StepPlan) -> int:
    """Return the bytes of arena that a rendered step needs: the plan's, and the chunk sums of weight gradients."""
    offsets = _partial_offsets(plan)
    end = plan.arena_bytes
    for kernel in plan.kernels:
        if id(kernel) in offsets and isinstance(kernel, Conv2d):
            end = max(end, offsets[id(kernel)] + _partial_bytes(kernel))
    return end


@functools.lru_cache(maxsize=None)
def _environment(folder: str) -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES / folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W+", "_", name).strip("_")
    return cleaned if cleaned and not cleaned[0].isdigit() else f"k_{cleaned}"


def _comment(head: KernelHead) -> str:
    return "".join(f"// {line}\n" for line in head.comment)


def _pointer_text(plan: StepPlan, pointer: Pointer) -> str:
    buffer = plan.buffers[pointer.buffer]
    if buffer.slot >= 0:
        return f"step.argument<{pointer.type}>({buffer.slot})"
    return f"step.at<{pointer.type}>({buffer.offset})"


def _partial_bytes(kernel: Conv2d) -> int:
    """Bytes of the chunk sums of a weight gradient; the formula is conv.h's, conv2d_weight_partials."""
    shape = kernel.shape
    elements = shape.O * (shape.C // shape.groups) * shape.KH * shape.KW
    chunks = max(1, min(shape.N, MOST_WEIGHT_CHUNKS, max(1, WEIGHT_CHUNK_ELEMENTS // max(elements, 1))))
    return chunks * elements * kernel.dtype.itemsize


def _partial_offsets(plan: StepPlan) -> dict[int, int]:
    offsets = {}
    end = -(-plan.arena_bytes // ALIGNMENT) * ALIGNMENT
    for kernel in plan.kernels:
        if isinstance(kernel, Conv2d) and kernel.kind == "grad_weight":
            offsets[id(kernel)] = end
            end += -(-_partial_bytes(kernel) // ALIGNMENT) * ALIGNMENT
    return offsets


def _view(plan: StepPlan, kernel: Kernel, number: int, partials: int, target: Target) -> Any:
    dtypes = tuple(buffer.dtype for buffer in plan.buffers)
    if isinstance(kernel, Map):
        return _map_view(kernel, dtypes)
    if isinstance(kernel, Row):
        return _row_view(kernel, dtypes, target.lanes)
    if isinstance(kernel, Contract):
        return _contract_view(kernel, dtypes)
    if isinstance(kernel, Conv2d):
        return _conv2d_view(kernel, dtypes, partials)
    if isinstance(kernel, Window):
        return _window_view(kernel, dtypes)
    if isinstance(kernel, Index):
        return _index_view(kernel, dtypes, number)
    if isinstance(kernel, Scan):
        return _scan_view(kernel, dtypes)
    raise CompilerBug(f"no template for {type(kernel).__name__}")


# A name that no emitted text contains otherwise: the function's own, put in once equal bodies are known.
_OWN_NAME = "KERNEL_NAME"


def _head(kernel: Kernel, writer: KernelWriter) -> KernelHead:
    origin = kernel.origin
    where = ", ".join(str(location) for location in origin.locations)
    what = f"{' '.join(origin.ops)} -> {origin.result}"
    comment = (where, what) if where else (what,)
    return KernelHead(_OWN_NAME, comment, tuple(writer.pointers.values()), tuple(writer.hoisted))


def _decode(variables: Sequence[str], extents: Sequence[int]) -> tuple[Loop, ...]:
    loops = []
    for position, (variable, extent) in enumerate(zip(variables, extents, strict=True)):
        loops.append(Loop(variable, extent, math.prod(extents[position + 1 :])))
    return tuple(loops)


def _map_view(kernel: Map, dtypes: Sequence[DType]) -> MapView:
    extents = kernel.extents or (1,)
    body = kernel.body if kernel.extents else tuple(_with_axis(statement) for statement in kernel.body)
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    lane_axis = len(extents) - 1
    writer = KernelWriter(dtypes, indices, extents, lane_axis)
    writer.hoist(body)
    lines = writer.vector_lines(body)
    extent = extents[-1]
    rows = math.prod(extents[:-1])
    chunk = max(LEAST_SHARE, -(-extent // SHARES_PER_AXIS // LEAST_SHARE) * LEAST_SHARE)
    if rows >= SHARES_PER_AXIS:
        chunk = max(extent, 1)
    return MapView(
        _head(kernel, writer),
        rows,
        _decode(indices[:-1], extents[:-1]),
        Loop(indices[-1], extent),
        chunk,
        max(1, -(-extent // chunk)),
        tuple(lines),
    )


def _with_axis(statement: Statement) -> Statement:
    """Return a statement of a 0-dimensional domain as one over a single axis of extent 1."""
    access = getattr(statement, "access", None)
    index = getattr(statement, "index", None)
    if access is not None:
        return dataclasses.replace(statement, access=Access(access.buffer, (0,), access.offset))  # type: ignore[arg-type]
    if index is not None:
        return dataclasses.replace(statement, index=Access(index.buffer, (1,), index.offset))  # type: ignore[call-arg, arg-type]
    return statement


def _row_view(kernel: Row, dtypes: Sequence[DType], lanes: int) -> RowView:
    extents = kernel.outer + kernel.inner
    indices = tuple(f"i{axis}" for axis in range(len(extents)))
    writer = KernelWriter(dtypes, indices, extents, kernel.lane_axis)
    for stage in kernel.stages:
        writer.hoist(stage.inner)
        writer.hoist(stage.outer)
    stages = []
    for stage in kernel.stages:
        before: list[Line] = []
        inner = writer.vector_lines(stage.inner, before)
        accumulators = []
        for reduction in stage.accumulate:
            source = writer.vector_name(reduction.src, before)
            accumulators.append(_accumulator(kernel, reduction, source, writer))
        writer.forget(stage.inner)
        after_splats: list[Line] = []
        if kernel.lanes_are_rows:
            after = writer.vector_lines(stage.outer, after_splats)
        else:
            after = writer.scalar_lines(stage.outer)
        stages.append(
            StageView(
                tuple(before), tuple(accumulators), tuple(inner), bool(inner or accumulators), (*after_splats, *after)
            )
        )
    lane = kernel.lane_axis
    outer_axes = [axis for axis in range(len(kernel.outer)) if axis != lane]
    inner_axes = [axis for axis in range(len(kernel.outer), len(extents)) if axis != lane]
    position = []
    for axis in range(len(kernel.outer), len(extents)):
        stride = math.prod(extents[axis + 1 :])
        position.append(indices[axis] if stride == 1 else f"{indices[axis]} * {stride}")
    return RowView(
        _head(kernel, writer),
        math.prod(extents[axis] for axis in outer_axes),
        _decode([indices[axis] for axis in outer_axes], [extents[axis] for axis in outer_axes]),
        tuple(Loop(indices[axis], extents[axis]) for axis in inner_axes),
        Loop(indices[lane], extents[lane]),
        -(-extents[lane] // lanes),
        kernel.lanes_are_rows,
        " + ".join(position) or "0",
        tuple(stages),
    )


def _accumulator(kernel: Row, reduction: Accumulate, source: str, writer: KernelWriter) -> AccumulatorView:
    variable = writer.variables[reduction.src]
    is_vector = kernel.lanes_are_rows
    result = f"{'v' if is_vector else 's'}{reduction.dst}"
    view = AccumulatorView(
        f"a{reduction.dst}",
        reduction.monoid,
        f"pg::{variable.dtype.c_name}",
        source,
        result,
        f"pg::{reduction.dtype.c_name}",
    )
    writer.variables[reduction.dst] = (
        Variable(reduction.dtype, vector=result) if is_vector else Variable(reduction.dtype, scalar=result)
    )
    return view


def _contract_view(kernel: Contract, dtypes: Sequence[DType]) -> ContractView:
    rank = len(kernel.batch)
    batch_indices = tuple(f"i{axis}" for axis in range(rank))
    writer = KernelWriter(
        dtypes, (*batch_indices, "row", "column"), (*kernel.batch, kernel.m, kernel.n), rank + 1
    )
    a = _operand(writer, kernel.a, batch_indices)
    b = _operand(writer, kernel.b, batch_indices)
    writer.variables[0] = Variable(kernel.dtype, vector="v0")
    writer.hoist(kernel.epilogue)
    lines = writer.vector_lines(kernel.epilogue)
    batch = math.prod(kernel.batch)
    return ContractView(
        _head(kernel, writer),
        f"pg::{kernel.dtype.c_name}",
        batch,
        _decode(batch_indices, kernel.batch),
        batch >= BATCH_TO_SHARE,
        kernel.m,
        kernel.n,
        kernel.k,
        a,
        (kernel.a.strides[rank], kernel.a.strides[rank + 1]),
        b,
        (kernel.b.strides[rank], kernel.b.strides[rank + 1]),
        "v0",
        tuple(lines),
    )


def _operand(writer: KernelWriter, access: Access, batch_indices: tuple[str, ...]) -> Address:
    strides = access.strides[: len(batch_indices)]
    outer = KernelWriter(writer.buffer_dtypes, batch_indices, writer.extents[: len(batch_indices)], None, writer.pointers)
    return outer.address(Access(access.buffer, strides, access.offset))


def _conv2d_view(kernel: Conv2d, dtypes: Sequence[DType], partials: int) -> Conv2dView:
    indices = {"forward": ("n", "channel", "position"), "grad_input": ("n", "channel", "position")}.get(
        kernel.kind, ("row", "column")
    )
    shape = kernel.shape
    extents = {
        "forward": (shape.N, shape.O, shape.OH * shape.OW),
        "grad_input": (shape.N, shape.C, shape.H * shape.W),
        "grad_weight": (shape.O, shape.C // shape.groups * shape.KH * shape.KW),
    }[kernel.kind]
    writer = KernelWriter(dtypes, indices, extents, len(indices) - 1)
    a = _operand(writer, kernel.a, ())
    b = _operand(writer, kernel.b, ())
    writer.variables[0] = Variable(kernel.dtype, vector="v0")
    writer.hoist(kernel.epilogue)
    lines = writer.vector_lines(kernel.epilogue)
    return Conv2dView(
        _head(kernel, writer),
        kernel.kind,
        f"pg::{kernel.dtype.c_name}",
        shape,
        a,
        b,
        partials,
        indices[0],
        indices[-1],
        extents[-1],
        "v0",
        tuple(lines),
    )


def _window_view(kernel: Window, dtypes: Sequence[DType]) -> WindowView:
    writer = KernelWriter(dtypes, (), (), None)
    inputs = tuple(_operand(writer, access, ()) for access in kernel.inputs)
    outputs = tuple(
        writer.address(Access(access.buffer, (), access.offset), is_written=True) for access in kernel.outputs
    )
    function = WINDOW_FUNCTIONS.get(kernel.kind, kernel.kind)
    averages = kernel.kind.startswith("avg_pool2d")
    dtype = f"pg::{kernel.dtype.c_name}"
    return WindowView(_head(kernel, writer), function, averages, dtype, kernel.shape, inputs, outputs)


def _index_view(kernel: Index, dtypes: Sequence[DType], number: int) -> IndexView:
    writer = KernelWriter(dtypes, (), (), None)
    table = _operand(writer, kernel.table, ())
    index = _operand(writer, kernel.index, ())
    source = _operand(writer, kernel.source, ()) if kernel.source is not None else None
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return IndexView(_head(kernel, writer), kernel.kind, number, kernel, table, index, out, source)


def _scan_view(kernel: Scan, dtypes: Sequence[DType]) -> ScanView:
    writer = KernelWriter(dtypes, (), (), None)
    source = _operand(writer, kernel.source, ())
    out = writer.address(Access(kernel.out.buffer, (), kernel.out.offset), is_written=True)
    return ScanView(_head(kernel, writer), kernel, source, out)
