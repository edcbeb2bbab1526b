"""The plan of a step: kernel records over laid-out buffers, in phases. Targets render it; interpret.py runs it.

Invariant: a plan says everything that decides the numbers (what is read where, in which order, with which sums);
what a target adds is only how fast. Axes of a kernel's domain are written outermost first; strides are in elements.
"""

from __future__ import annotations

from typing import Any

from ..dtypes import DType
from ..ops.core import Op
from ..records import record
from ..trace.graph import Location, Params


@record
class Layout:
    """How a buffer's dimensions lie in memory: their order, outermost first, and padding of the leading stride."""

    order: tuple[int, ...]
    pad: int = 0

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stride of each dimension, in elements."""
        result = [0] * len(shape)
        stride = 1
        for position, dim in enumerate(reversed(self.order)):
            result[dim] = stride
            stride *= shape[dim]
            if position == 0 and len(self.order) > 1:
                stride += self.pad
        return tuple(result)


@record
class Buffer:
    """Memory of one value. ``scope``: "argument", "state", "scalar", "constant", "result" (pointers passed at each
    call, at position ``slot``), "arena" (at byte ``offset`` of the step's arena), or "local" (of one block of samples, at
    byte ``offset`` of its worker's own part of the arena, or of its thread block's of shared memory)."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    layout: Layout
    scope: str
    slot: int = -1
    offset: int = -1
    is_written: bool = False
    """For passed buffers: whether the step writes to it."""

    @property
    def size(self) -> int:
        """Elements, padding included."""
        count = 1
        for extent in self.shape:
            count *= extent
        return (
            count
            if not self.layout.pad or not self.shape
            else (count // self.shape[self.layout.order[-1]] * (self.shape[self.layout.order[-1]] + self.layout.pad))
        )

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@record
class Axis:
    """One axis of a kernel's domain. ``role``: "outer", "tile", "lane" or "reduce"."""

    name: str
    extent: int
    role: str


@record
class Access:
    """Element of ``buffer`` at ``offset + Σ strides[i]·index[i]`` over the kernel's domain; stride 0 broadcasts."""

    buffer: int
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def is_scalar(self) -> bool:
        return not any(self.strides)


@record
class Load:
    """Variable ``dst`` := the element that ``access`` addresses."""

    dst: int
    dtype: DType
    access: Access


@record
class Compute:
    """Variable ``dst`` := ``op`` of variables; ``expression`` is the op's C text with its placeholders."""

    dst: int
    dtype: DType
    op: type[Op]
    arguments: tuple[int, ...]
    argument_dtypes: tuple[DType, ...]
    params: Params
    expression: str
    index: Access | None = None
    """For ops that ask for ``{index}``: the linear index of the element, as an affine function of the domain
    (``buffer`` is -1)."""


@record
class Store:
    """Write variable ``src`` to where ``access`` addresses."""

    src: int
    access: Access


Statement = Load | Compute | Store


@record
class Accumulate:
    """Row-level variable ``dst`` := the reduction of variable ``src`` over the inner axes, with a monoid."""

    dst: int
    dtype: DType
    monoid: str
    src: int


@record
class Origin:
    """What a kernel computes, for people: source lines, op names, result specs."""

    locations: tuple[Location, ...]
    ops: tuple[str, ...]
    result: str

    def __str__(self) -> str:
        lines = ", ".join(str(location) for location in self.locations)
        return f"{lines + ': ' if lines else ''}{' '.join(self.ops)} -> {self.result}"


@record
class Map:
    """Pointwise over ``extents`` (collapsed as far as all accesses allow; the last axis is the lane axis)."""

    name: str
    origin: Origin
    extents: tuple[int, ...]
    body: tuple[Statement, ...]
    family = "map"


@record
class Stage:
    """One sweep over a row, then what follows once per row.

    ``inner``: statements over outer × inner axes. ``accumulate``: reductions of inner variables.
    ``outer``: statements over the outer axes alone, after the sweep (accesses have inner strides 0).
    Variables of ``outer`` and accumulated ones stay visible in later stages; variables of ``inner`` do not.
    """

    inner: tuple[Statement, ...]
    accumulate: tuple[Accumulate, ...]
    outer: tuple[Statement, ...]


@record
class Row:
    """Reductions over the inner axes with pointwise work before, between and after: sums, softmax, norms, moments.

    ``lane_axis`` is the position, in outer + inner extents, of the axis that lanes run along: one of the inner axes
    (horizontal reductions) or of the outer ones (then every lane has a row of its own).
    """

    name: str
    origin: Origin
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    lane_axis: int
    stages: tuple[Stage, ...]
    family = "row"

    @property
    def lanes_are_rows(self) -> bool:
        return self.lane_axis < len(self.outer)


@record
class Contract:
    """out[b…, m, n] = Σ_k a[b…, m, k] · b[b…, k, n], then ``epilogue`` over (b…, m, n) with the sum as variable 0.

    ``a`` strides are over (b…, m, k), ``b`` strides over (b…, k, n); epilogue accesses over (b…, m, n).
    """

    name: str
    origin: Origin
    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Access
    b: Access
    dtype: DType
    epilogue: tuple[Statement, ...]
    precision: str = "fp32"
    """Of the products where the target may choose: "fp32", or less where "tf32" or "bf16" was asked for."""
    tile: str = ""
    """The tile that threads of a device share, by name; "": as the shape suggests."""
    family = "contract"


@record
class ConvShape:
    """Sizes of a 2-D convolution in NCHW; each place of an image has ``lanes`` elements that do not meet."""

    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741 - the field's letter
    KH: int
    KW: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    OH: int
    OW: int
    weight_chunks: int = 1
    """In how many chunks of samples the gradient of the weight is summed."""
    lanes: int = 1

    @property
    def weight_elements(self) -> int:
        return self.O * (self.C // self.groups) * self.KH * self.KW


@record
class Conv2d:
    """A convolution or one of its gradients (``kind``: "forward", "grad_input", "grad_weight"), then ``epilogue``.

    forward: a = x, b = weight, domain (N, O, OH·OW·lanes). grad_input: a = dy, b = weight, domain (N, C, H·W·lanes).
    grad_weight: a = x, b = dy, domain (O, C/groups, KH·KW). Operands are contiguous.
    """

    name: str
    origin: Origin
    kind: str
    shape: ConvShape
    a: Access
    b: Access
    dtype: DType
    epilogue: tuple[Statement, ...]
    scratch: int = -1
    """Arena buffer for per-worker scratch or chunk sums; -1 for none."""
    precision: str = "fp32"
    family = "conv2d"


@record
class PoolShape:
    """Sizes of a 2-D window op over ``planes`` = N·C planes of H·W places, each of ``lanes`` elements that do not meet."""

    planes: int
    H: int
    W: int
    KH: int
    KW: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    OH: int
    OW: int
    count_include_pad: bool = True
    lanes: int = 1


@record
class Window:
    """Pooling and its transposes (``kind``: "max_pool2d", "window_take", "window_put", "avg_pool2d",
    "avg_pool2d_grad") on contiguous buffers; ``inputs`` and ``outputs`` in the order of the op's."""

    name: str
    origin: Origin
    kind: str
    shape: PoolShape
    dtype: DType
    inputs: tuple[Access, ...]
    outputs: tuple[Access, ...]
    family = "window"


@record
class Index:
    """Gather or scatter along one dimension of data seen as (outer, extent, inner), or a check of indices alone.

    kind "gather": out[o, i, r] = table[o, index[…], r]; "scatter_add": out = table; out[o, index[…], r] += source[o, i, r];
    "scatter": out = table; out[o, index[…], r] = source[o, i, r], in rising i, so that of two writes the later stays;
    "check": out = index, and ``ignored`` is good as well; outer and inner are 1, and there is no table.
    ``per_element``: the index has the shape of the result (torch.gather), else one index per i (index_select).
    An index outside [0, extent) stops the step with an error before any state is written.
    """

    name: str
    origin: Origin
    kind: str
    outer: int
    extent: int
    count: int
    inner: int
    per_element: bool
    dtype: DType
    index_dtype: DType
    table: Access | None
    index: Access
    out: Access
    source: Access | None = None
    ignored: int | None = None
    family = "index"


@record
class Scan:
    """Running sum along the middle of (outer, extent, inner), contiguous."""

    name: str
    origin: Origin
    outer: int
    extent: int
    inner: int
    dtype: DType
    source: Access
    out: Access
    family = "scan"


@record
class Sort:
    """Elements in order along the middle of (outer, extent, inner), contiguous, and the places they came from.

    Equal elements keep their order; NaN is greater than all else.
    """

    name: str
    origin: Origin
    outer: int
    extent: int
    inner: int
    is_descending: bool
    dtype: DType
    source: Access
    out: Access
    places: Access
    family = "sort"


@record
class Attention:
    """Attention or its gradient (``kind``: "forward", "gradient") for each matrix of ``batch``.

    forward: inputs q, k, v, outputs out and the rows' log-sum-exps ``sums``. gradient: inputs q, k, v, sums, the gradient of
    out, and what is taken from each row's gradient of weights; outputs the gradients of q, k and v. With L queries, S keys,
    E features and F of a value: q (L, E), k (S, E), v (S, F), out (L, F), sums (L,).
    Accesses are over (b…, row, feature), or (b…, row) for values of rows; outputs have feature stride 1.
    """

    name: str
    origin: Origin
    kind: str
    batch: tuple[int, ...]
    L: int
    S: int
    E: int
    F: int
    scale: float
    is_causal: bool
    dtype: DType
    inputs: tuple[Access, ...]
    outputs: tuple[Access, ...]
    family = "attention"

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each input in one matrix of the batch."""
        operands = ((self.L, self.E), (self.S, self.E), (self.S, self.F))
        return operands if self.kind == "forward" else (*operands, (self.L,), (self.L, self.F), (self.L,))

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each output in one matrix of the batch."""
        if self.kind == "forward":
            return (self.L, self.F), (self.L,)
        return (self.L, self.E), (self.S, self.E), (self.S, self.F)

    @property
    def pairs(self) -> int:
        """How many queries look at how many keys, in one matrix."""
        if not self.is_causal:
            return self.L * self.S
        square = min(self.L, self.S)
        return square * (square + 1) // 2 + (self.L - square) * self.S


Kernel = Map | Row | Contract | Conv2d | Window | Index | Scan | Sort | Attention
FAMILIES = ("map", "row", "contract", "conv2d", "window", "index", "scan", "sort", "attention")


@record
class Walk:
    """How many elements further a buffer's part of the next block, and of the next chunk, lies."""

    buffer: int
    block: int
    chunk: int = 0


@record
class Blocks:
    """The grid of a phase whose kernels run one after another on each of ``count`` blocks of ``size`` samples.

    Blocks are dealt out in ``chunks`` of neighbours; one worker runs a chunk's blocks in order. ``walks``: for each
    kernel, the buffers that move from block to block. ``sums``: (buffer, elements) of a chunk's sums, zero at its begin.
    """

    count: int
    size: int
    chunks: int
    walks: tuple[tuple[Walk, ...], ...]
    sums: tuple[tuple[int, int], ...] = ()

    def blocks_of(self, chunk: int) -> range:
        """Return the blocks of a chunk: all chunks are within one of each other."""
        base, extra = divmod(self.count, self.chunks)
        begin = base * chunk + min(chunk, extra)
        return range(begin, begin + base + (chunk < extra))


@record
class Phase:
    """Kernels that may run at the same time; every worker has finished before the next phase begins.

    ``grid`` names the axis that workers share, for people. With ``blocks``, kernels are those of one block, in order,
    and only blocks may run at the same time.
    """

    kernels: tuple[Kernel, ...]
    grid: tuple[Axis, ...] = ()
    blocks: Blocks | None = None


@record
class StepPlan:
    """A whole step, ready to render: ``slots`` are the passed buffers in the order of the call."""

    name: str
    buffers: tuple[Buffer, ...]
    phases: tuple[Phase, ...]
    slots: tuple[int, ...]
    arena_bytes: int
    """Of the part that workers share; ``local_bytes`` for each worker come on top."""
    workers: int
    """1: run on the calling thread alone (too small to share); else as many as there are, at most this."""
    local_bytes: int = 0
    shared_bytes: int = 0
    """What blocks of samples keep to themselves in the shared memory of a thread block, where that is not in the arena."""

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(kernel for phase in self.phases for kernel in phase.kernels)


def statements(kernel: Kernel) -> tuple[Any, ...]:
    """Return all statements of a kernel, of every stage."""
    if isinstance(kernel, Map):
        return kernel.body
    if isinstance(kernel, Row):
        found: list[Any] = []
        for stage in kernel.stages:
            found += (*stage.inner, *stage.accumulate, *stage.outer)
        return tuple(found)
    if isinstance(kernel, Contract | Conv2d):
        return kernel.epilogue
    return ()
