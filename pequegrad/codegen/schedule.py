"""Every number that decides how a step is cut: what is recomputed, how sums are split, who shares the work.

Invariant: nothing here depends on the number of workers, so that a step gives the same bits for any number of them.
Costs are estimates in nanoseconds on one core (2.5 GHz and more, AVX-512), good to a factor of two.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..ops.core import Expression, Op
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
    Row,
    Scan,
    Sort,
    StepPlan,
    Store,
    Window,
    statements,
)  # fmt: skip

MOST_RECOMPUTED = 8
"""Longest chain of cheap applications that every user computes for itself instead of loading."""

SERIAL_NANOSECONDS = 60_000
"""Below this a step runs on the calling thread alone: sharing costs about 0.2 µs a phase and gains under 20 % here."""

CHUNK_LIMIT = 65_536
"""Reductions of more elements than this for each of few rows are cut into chunks that workers share."""
FEW_ROWS = 64
"""From this many rows on, the rows themselves are enough to share."""
MOST_CHUNKS = 64
FEWEST_CHUNKS = 4
MOST_PLACES = 256
"""Most chunks where each is a place of its own along the first dimensions."""

MOST_WEIGHT_CHUNKS = 16
"""Most chunks of samples in which the gradient of a convolution's weight is summed: enough for 16 workers."""
WEIGHT_CHUNK_ELEMENTS = 2**20
"""Most elements of all of these chunks' sums together, 4 MiB of float32; a single chunk may be larger."""
FEWEST_WINOGRAD_CHANNELS = 8
"""Fewest channels, of results and of operands, for whose products it pays to make sums and differences of tiles first."""

CACHE_BYTES = 2**20
"""A core's own second cache, as most processors have it."""
BLOCK_BYTES = CACHE_BYTES // 2
"""What a block of samples may keep alive: weights and sums take the other half."""
PRIVATE_BYTES = 2**16
"""Largest sum over samples of which every chunk of blocks has one of its own."""
MOST_SAMPLE_EXTENTS = 4
"""How many extents are tried as the number of samples."""
FEWEST_BLOCKS = 8
MOST_BLOCK_CHUNKS = 16
"""Chunks of blocks with sums of their own: enough for 16 workers, and the same for any number of them."""
LEAST_BLOCK_ROWS = 16
"""Fewer rows would leave the products' register tiles empty."""


Product = tuple[int, int, int, int]
"""A product by its sizes: (batch, m, n, k)."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What a plan is cut by, where measuring may know better than the cost model; the defaults are the model's own.

    ``block_bytes``: what a block of samples may keep alive in a cache; 0: no blocks at all. ``block_samples``: of a device,
    the samples of a block, wherever that fits; None: as many as pay, if any. ``samples_last``: whether, in
    steps without blocks, images may lie with their samples innermost. ``is_shared``: whether workers share the step.
    ``weight_chunks``: most chunks of samples for the gradient of a convolution's weight. ``recomputed``: the longest chain
    of cheap applications that every user computes for itself. ``launch``: how a device starts a step, as
    `Target.with_launch` takes it. ``tiles``: for products on a device, by (batch, m, n, k), the name of the tile.
    ``exchanged``: products that give the transpose of what the model would have them give, with their operands exchanged:
    lanes then run along m.
    """

    block_bytes: int = BLOCK_BYTES
    block_samples: int | None = None
    samples_last: bool = True
    is_shared: bool | None = None
    weight_chunks: int = MOST_WEIGHT_CHUNKS
    recomputed: int = MOST_RECOMPUTED
    launch: str | None = None
    tiles: tuple[tuple[Product, str], ...] = ()
    exchanged: tuple[Product, ...] = ()

    def tile(self, product: Product) -> str:
        """Return the tile that is named for a product, or ""."""
        return dict(self.tiles).get(product, "")


MODEL = Choices()
"""What the cost model chooses."""

# Nanoseconds an element, float32, in cache; what is not named here is arithmetic of one or two instructions.
_FUNCTION_COST = {
    "exp": 0.4, "expm1": 0.5, "log": 0.45, "log1p": 0.5, "tanh": 0.45, "sigmoid": 0.5, "softplus": 0.8, "erf": 0.6, "pow": 1.2,
    "sin": 0.7, "cos": 0.7, "floor_div": 0.5, "trunc_div": 0.5, "remainder": 0.6,
    "uniform": 0.8, "normal": 1.6, "randint": 1.0,
}  # fmt: skip
_ARITHMETIC_COST = 0.05
BYTE_COST = 0.04
_MULTIPLY_ADD_COST = 0.012
_KERNEL_COST = 150.0
CALL_COST = 100.0


_ROWS_IN_PLACE = 16
"""Up to so many rows of A, a product reads B where it lies."""

# What a product spends beside its multiply-adds, in multiply-adds of a whole vector, measured with 16 lanes: for a vector of B
# that lies along k, and so is transposed by squares; for one that lies as it is used; for an element of A that lies along
# m; and for a vector that the epilogue reads or writes lane by lane.
_TRANSPOSED_VECTOR = 11.0
_PACKED_VECTOR = 3.0
_GATHERED_ELEMENT = 0.25
_SCATTERED_VECTOR = 20.0


def product_work(kernel: Contract, lanes: int) -> float:
    """Return the multiply-adds of vectors of ``lanes`` elements that a product takes, with what it takes to bring
    operands into place."""
    vectors = -(-kernel.n // lanes)
    work = float(kernel.m * vectors * kernel.k)
    if kernel.b.strides[-1] != 1 and kernel.n > 1:
        work += _TRANSPOSED_VECTOR * kernel.k * vectors
    elif kernel.m > _ROWS_IN_PLACE:
        work += _PACKED_VECTOR * kernel.k * vectors
    if kernel.a.strides[-1] != 1 and kernel.k > 1:
        work += _GATHERED_ELEMENT * kernel.m * kernel.k
    for s in kernel.epilogue:
        if isinstance(s, Load | Store) and s.access.strides[-1] not in (0, 1):
            work += _SCATTERED_VECTOR * kernel.m * vectors
    return math.prod(kernel.batch) * work


def product_of(kernel: Contract) -> Product:
    """Return the sizes of a product."""
    return math.prod(kernel.batch), kernel.m, kernel.n, kernel.k


def weight_chunks(shape: ConvShape, most: int = MOST_WEIGHT_CHUNKS) -> int:
    """Return in how many chunks of samples, ``most`` at most, the gradient of a convolution's weight is summed."""
    return max(1, min(shape.N, most, WEIGHT_CHUNK_ELEMENTS // max(shape.weight_elements, 1)))


def is_winograd(shape: ConvShape) -> bool:
    """Whether a convolution, or a gradient of it, is made of tiles (conv_winograd.h)."""
    sizes = (shape.KH, shape.KW, shape.stride_h, shape.stride_w, shape.dilation_h, shape.dilation_w)
    channels = min(shape.C, shape.O) // shape.groups
    return shape.lanes > 1 and sizes == (3, 3, 1, 1, 1, 1) and channels >= FEWEST_WINOGRAD_CHANNELS


def rows_of_results(shape: ConvShape) -> int:
    """Return how many rows of its results a convolution of samples side by side can be cut into, at least one."""
    rows = (shape.OH + 1) // 2 if is_winograd(shape) else shape.OH
    return max(1, shape.N * rows)


def reach_bytes(shape: ConvShape, samples: int) -> int:
    """Return the bytes of input, float32, that one row of a convolution's output reaches, for ``samples`` side by side."""
    rows = shape.dilation_h * (shape.KH - 1) + 1
    return 4 * samples * (shape.C // shape.groups) * rows * shape.W


def op_cost(op: type[Op]) -> float:
    """Return nanoseconds an element of an op that has an expression."""
    if not isinstance(op.lowering, Expression):
        return _ARITHMETIC_COST
    return _ARITHMETIC_COST + _calls_cost(op.lowering.text)


@functools.cache
def _calls_cost(text: str) -> float:
    """Return nanoseconds an element of the functions that an expression calls."""
    return sum(_FUNCTION_COST.get(name, 0.0) for name in re.findall(r"pg::(\w+)", text))


def is_cheap(op: type[Op]) -> bool:
    """Whether computing it again costs no more than loading it."""
    return op.elementwise and isinstance(op.lowering, Expression) and op_cost(op) <= 2 * _ARITHMETIC_COST


def chunks(outer: int, inner: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return how a reduction over dimensions of extents ``inner`` is cut: the extents of (chunk, rest), or None.

    Cuts the first dimensions, so that a chunk is a run of memory: one chunk for each of their places, samples for
    example, where there are not too many.
    """
    total = math.prod(inner)
    if outer >= FEW_ROWS or total <= CHUNK_LIMIT:
        return None
    for places in reversed(tuple(itertools.accumulate(inner, operator.mul))):
        if FEWEST_CHUNKS <= places <= MOST_PLACES:
            return places, total // places
    best = max((n for n in range(1, MOST_CHUNKS + 1) if total % n == 0), default=1)
    return (best, total // best) if best >= FEWEST_CHUNKS else None


# --- traffic and cost of kernels --------------------------------------------------------------------------------


def domain(kernel: Kernel) -> tuple[int, ...]:
    """Return the extents that the accesses of a kernel's statements walk over."""
    if isinstance(kernel, Map):
        return kernel.extents
    if isinstance(kernel, Row):
        return kernel.outer + kernel.inner
    if isinstance(kernel, Contract):
        return (*kernel.batch, kernel.m, kernel.n)
    if isinstance(kernel, Conv2d):
        return conv_domain(kernel)
    return ()


def conv_domain(kernel: Conv2d) -> tuple[int, int, int]:
    """Return the three extents over which a convolution's epilogue runs."""
    s = kernel.shape
    if kernel.kind == "forward":
        return s.N, s.O, s.OH * s.OW * s.lanes
    if kernel.kind == "grad_input":
        return s.N, s.C, s.H * s.W * s.lanes
    return s.O, s.C // s.groups, s.KH * s.KW


def touched(access: Access, extents: tuple[int, ...]) -> int:
    """Return how many different elements an access reaches."""
    return math.prod(extent for extent, stride in zip(extents, access.strides, strict=True) if stride)


def traffic(kernel: Kernel, plan: StepPlan) -> tuple[int, int]:
    """Return the bytes that a kernel reads and writes, each element of a buffer counted once; what only one block of
    samples needs stays in cache and counts nothing."""
    reads: dict[tuple[int, tuple[int, ...], int], int] = {}
    writes: dict[tuple[int, tuple[int, ...], int], int] = {}
    extents = domain(kernel)
    for statement in statements(kernel):
        if isinstance(statement, Load | Store) and plan.buffers[statement.access.buffer].scope != "local":
            access = statement.access
            found = reads if isinstance(statement, Load) else writes
            key = (access.buffer, access.strides, access.offset)
            found[key] = touched(access, extents) * plan.buffers[access.buffer].dtype.itemsize
    read, written = sum(reads.values()), sum(writes.values())
    for access, elements in operand_sizes(kernel):
        read += (plan.buffers[access.buffer].scope != "local") * elements * plan.buffers[access.buffer].dtype.itemsize
    for access, elements in result_sizes(kernel):
        written += (
            (plan.buffers[access.buffer].scope != "local") * elements * plan.buffers[access.buffer].dtype.itemsize
        )
    return read, written


def operand_sizes(kernel: Kernel) -> list[tuple[Access, int]]:
    """Return the operands, beside its statements' loads, that a kernel reads, with their numbers of elements."""
    if isinstance(kernel, Contract):
        batch = math.prod(kernel.batch)
        shared = math.prod(e for e, s in zip(kernel.batch, kernel.b.strides, strict=False) if not s)
        return [(kernel.a, batch * kernel.m * kernel.k), (kernel.b, batch // max(shared, 1) * kernel.k * kernel.n)]
    if isinstance(kernel, Conv2d):
        s = kernel.shape
        images = s.N * s.lanes
        x, w, y = images * s.C * s.H * s.W, s.weight_elements, images * s.O * s.OH * s.OW
        return {
            "forward": [(kernel.a, x), (kernel.b, w)],
            "grad_input": [(kernel.a, y), (kernel.b, w)],
            "grad_weight": [(kernel.a, x), (kernel.b, y)],
        }[kernel.kind]
    if isinstance(kernel, Window):
        return [(access, _plane_size(kernel, i, True)) for i, access in enumerate(kernel.inputs)]
    if isinstance(kernel, Scan | Sort):
        return [(kernel.source, kernel.outer * kernel.extent * kernel.inner)]
    if isinstance(kernel, Attention):
        return _matrix_sizes(kernel, kernel.inputs, kernel.input_shapes)
    if isinstance(kernel, Index):
        moved = kernel.outer * kernel.count * kernel.inner
        found = [(kernel.index, moved if kernel.per_element else kernel.count)]
        if kernel.table is None:
            return found
        if kernel.kind == "gather":
            return [*found, (kernel.table, moved)]
        if kernel.source is not None:
            found.append((kernel.source, moved))
        if kernel.table.buffer >= 0:
            found.append((kernel.table, kernel.outer * kernel.extent * kernel.inner))
        return found
    return []


def result_sizes(kernel: Kernel) -> list[tuple[Access, int]]:
    """Return what a kernel writes beside its statements' stores, with the numbers of elements."""
    if isinstance(kernel, Window):
        return [(access, _plane_size(kernel, i, False)) for i, access in enumerate(kernel.outputs)]
    if isinstance(kernel, Scan):
        return [(kernel.out, kernel.outer * kernel.extent * kernel.inner)]
    if isinstance(kernel, Sort):
        return [(access, kernel.outer * kernel.extent * kernel.inner) for access in (kernel.out, kernel.places)]
    if isinstance(kernel, Attention):
        return _matrix_sizes(kernel, kernel.outputs, kernel.output_shapes)
    if isinstance(kernel, Index):
        extent = kernel.count if kernel.source is None else kernel.extent
        return [(kernel.out, kernel.outer * extent * kernel.inner)]
    return []


def _matrix_sizes(
    kernel: Attention, accesses: tuple[Access, ...], shapes: tuple[tuple[int, ...], ...]
) -> list[tuple[Access, int]]:
    return [(a, touched(a, (*kernel.batch, *shape))) for a, shape in zip(accesses, shapes, strict=True)]


def _plane_size(kernel: Window, i: int, is_input: bool) -> int:
    """Elements of an operand or result: whole images, or one for each window."""
    s = kernel.shape
    images, windows = s.planes * s.H * s.W * s.lanes, s.planes * s.OH * s.OW * s.lanes
    if is_input:
        return images if i == 0 and kernel.kind in ("max_pool2d", "window_take", "avg_pool2d") else windows
    return windows if kernel.kind in ("max_pool2d", "window_take", "avg_pool2d") else images


def multiply_adds(kernel: Kernel) -> int:
    """Return the multiply-adds of a contraction, convolution or attention; 0 for the rest."""
    if isinstance(kernel, Contract):
        return math.prod(kernel.batch) * kernel.m * kernel.n * kernel.k
    if isinstance(kernel, Conv2d):
        s = kernel.shape
        return s.N * s.lanes * s.O * s.OH * s.OW * (s.C // s.groups) * s.KH * s.KW
    if isinstance(kernel, Attention):
        # Of a gradient: scores, those of q and k; weights, those of v.
        products = kernel.E + kernel.F if kernel.kind == "forward" else 3 * kernel.E + 2 * kernel.F
        return math.prod(kernel.batch) * kernel.pairs * products
    return 0


def cost(kernel: Kernel, plan: StepPlan) -> float:
    """Return the nanoseconds that a kernel takes on one core."""
    read, written = traffic(kernel, plan)
    total = _KERNEL_COST + BYTE_COST * (read + written) + _MULTIPLY_ADD_COST * multiply_adds(kernel)
    if isinstance(kernel, Attention):
        total += math.prod(kernel.batch) * kernel.pairs * (_FUNCTION_COST["exp"] + _ARITHMETIC_COST)
    size = math.prod(domain(kernel))
    for statement in statements(kernel):
        if isinstance(statement, Compute):
            total += op_cost(statement.op) * size
        elif isinstance(statement, Accumulate):
            total += _ARITHMETIC_COST * size
    return total


def workers(plan: StepPlan, available: int, is_shared: bool | None = None) -> int:
    """Return among how many threads a step is shared: 1 where it is too small to gain from more. ``is_shared``: what was
    chosen already."""
    if is_shared is not None:
        return max(1, available) if is_shared else 1
    total = 0.0
    for kernel in plan.kernels:
        total += cost(kernel, plan)
        if total >= SERIAL_NANOSECONDS:
            return max(1, available)
    return 1


def lane_axis(extents: tuple[int, ...], accesses: Iterable[Access], candidates: Iterable[int]) -> int:
    """Return the axis that most accesses walk with unit stride; among equals the last of ``candidates``."""
    votes = dict.fromkeys(candidates, 0)
    for access in accesses:
        for axis in votes:
            if access.strides[axis] == 1 and extents[axis] > 1:
                votes[axis] += 1
    return max(votes, key=lambda axis: (votes[axis], axis))


def reads_and_writes(kernel: Kernel) -> tuple[tuple[Access, ...], tuple[Access, ...]]:
    """Return all accesses of a kernel, those that read and those that write."""
    found = statements(kernel)
    reads = [s.access for s in found if type(s) is Load]
    writes = [s.access for s in found if type(s) is Store]
    reads += [access for access, _ in operand_sizes(kernel) if access.buffer >= 0]
    writes += [access for access, _ in result_sizes(kernel)]
    return tuple(reads), tuple(writes)


def buffers_of(kernel: Kernel) -> tuple[int, ...]:
    """Return the buffers that a kernel touches."""
    reads, writes = reads_and_writes(kernel)
    return tuple(dict.fromkeys([access.buffer for access in reads + writes]))
