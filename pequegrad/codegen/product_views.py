"""Matrix products and convolutions for threads: which tile, how a long sum is cut, how operands are walked.

Invariant: tiles and chunks follow from the kernel's record alone: its shape, its dtype, and the tile that it names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..dtypes import DType, float32
from ..records import record
from ..targets import Target
from .expressions import computed_as, scalar_type
from .launch import BLOCK, BLOCK_WARPS, MULTIPROCESSORS, SHARED_BYTES, WARP
from .plan import Contract, Conv2d, ConvShape, Kernel
from .rendering import Address, KernelWriter, Line, Variable
from .views import KernelHead, Loop, Parameter, decoded, head_of, operand, parameters_of, weight_runs


def scratch_bytes(kernel: Kernel, target: Target, is_alone: bool) -> int:
    """Return the bytes of arena that a kernel's chunk sums take; one block of threads ``is_alone`` makes none."""
    if isinstance(kernel, Contract):
        batch = math.prod(kernel.batch)
        tile = _tile_of(kernel, target, is_alone)
        chunks = _chunks(tile.count(batch, kernel.m, kernel.n), kernel.k, is_alone)
        elements = batch * kernel.m * kernel.n
    elif isinstance(kernel, Conv2d) and kernel.kind == "grad_weight":
        chunks = _conv2d_form(kernel, target, is_alone).chunks
        elements = kernel.shape.weight_elements
    else:
        return 0
    # Half types are summed in float32.
    return chunks * elements * max(kernel.dtype.itemsize, 4) if chunks > 1 else 0


def own_shared_bytes(kernel: Kernel, target: Target) -> int:
    """Return the bytes of dynamic shared memory that a kernel takes where one block of threads runs it alone."""
    if isinstance(kernel, Contract):
        return _tile_of(kernel, target, True).shared_bytes(kernel.dtype)
    if not isinstance(kernel, Conv2d):
        return 0
    form = _conv2d_form(kernel, target, True)
    if form.tile is not None:
        return form.tile.shared_bytes(kernel.dtype)
    return _direct_bytes(kernel, form.channels) if kernel.kind == "forward" else 0


@record
class Tile:
    """A tile of a product: product.h's name for it, the elements of the result that a block computes, and how deep the
    steps are in which it sums (of tensor cores' tiles: 0)."""

    name: str
    rows: int
    columns: int
    depth: int = 0

    def shared_bytes(self, dtype: DType) -> int:
        """Return the shared memory that a block takes, at most: two steps of both operands, or eight warps' sums."""
        return max(dtype.itemsize, 4) * max(2 * self.depth * (self.rows + self.columns + 8), BLOCK_WARPS * 16 * 36)

    def count(self, batch: int, m: int, n: int) -> int:
        """Return how many tiles cover a batch of results."""
        return batch * -(-m // self.rows) * -(-n // self.columns)


LARGE, TALL, MEDIUM, WIDE, SMALL, THIN, FLAT = (
    Tile("product_tile_128", 128, 128, 16),
    Tile("product_tile_128x64", 128, 64, 16),
    Tile("product_tile_64", 64, 64, 16),
    Tile("product_tile_64x8", 64, 64, 8),
    Tile("product_tile_32", 32, 32, 32),
    Tile("product_tile_32x128", 32, 128, 16),
    Tile("product_tile_16x128", 16, 128, 16),
)
TENSOR_TILES = (
    Tile("tensor_tile_128", 128, 128),
    Tile("tensor_tile_128x64", 128, 64),
    Tile("tensor_tile_64", 64, 64),
    Tile("tensor_tile_32x64", 32, 64),
)
ENOUGH_TILES = 3 * MULTIPROCESSORS // 2
"""Tiles that keep the multiprocessors of a large device busy."""
FEW_TILES = MULTIPROCESSORS // 2
"""Below this a long sum is cut into chunks, so that more blocks work at it."""
LEAST_CHUNK = 128
MOST_CHUNKS = 16


def tensor_precision(kernel: Contract | Conv2d, target: Target, is_alone: bool = False) -> str:
    """Return the precision in which tensor cores multiply for a kernel, "tf32" or "bf16", or "" for none: operands that
    lie in shared memory, as where one block of threads ``is_alone``, cannot be copied there as theirs are."""
    is_asked = kernel.precision != "fp32" and kernel.dtype == float32 and not is_alone
    return kernel.precision if is_asked and target.has_tensor_cores else ""


def tiles_for(kernel: Contract, target: Target) -> tuple[str, ...]:
    """Return the names of the tiles that a product could be cut into, the one that its shape suggests first."""
    precision = tensor_precision(kernel, target)
    suggested = _suggested(kernel, precision)
    return tuple(dict.fromkeys((suggested.name, *(tile.name for tile in _candidates(kernel, precision)))))


def _candidates(kernel: Contract, precision: str) -> tuple[Tile, ...]:
    if precision:
        return tuple(_with_precision(tile, precision) for tile in TENSOR_TILES)
    return (WIDE, SMALL) if kernel.dtype.itemsize == 8 else (LARGE, TALL, MEDIUM, SMALL, THIN, FLAT)


def _suggested(kernel: Contract, precision: str) -> Tile:
    return _tile(math.prod(kernel.batch), kernel.m, kernel.n, kernel.dtype, precision)


def _tile_of(kernel: Contract, target: Target, is_alone: bool) -> Tile:
    precision = tensor_precision(kernel, target, is_alone)
    if not kernel.tile or is_alone:
        return _suggested(kernel, precision)
    return next(tile for tile in _candidates(kernel, precision) if tile.name == kernel.tile)


def _with_precision(tile: Tile, precision: str) -> Tile:
    return Tile(f"{tile.name}<pg::{precision}_precision>", tile.rows, tile.columns)


def _tile(batch: int, m: int, n: int, dtype: DType, precision: str) -> Tile:
    if precision:
        fitting = (tile for tile in TENSOR_TILES[:-1] if _is_filled(tile, batch, m, n))
        last = TENSOR_TILES[-1] if m <= TENSOR_TILES[-1].rows else TENSOR_TILES[-2]
        tile = next(fitting, last)
        return _with_precision(tile, precision)
    if m <= FLAT.rows and n >= MEDIUM.columns:
        return FLAT
    if m <= THIN.rows and THIN.count(batch, m, n) >= ENOUGH_TILES:
        return THIN
    candidates = [WIDE] if dtype.itemsize == 8 else [LARGE, TALL, MEDIUM]
    return next((tile for tile in candidates if _is_filled(tile, batch, m, n)), SMALL)


def _is_filled(tile: Tile, batch: int, m: int, n: int) -> bool:
    """Whether tiles of that size are used well, and are enough."""
    return 2 * m >= tile.rows and 2 * n >= tile.columns and tile.count(batch, m, n) >= ENOUGH_TILES


def _chunks(tiles: int, length: int, is_alone: bool) -> int:
    """Return in how many parts sums of that length are cut, for results of so many tiles."""
    if tiles >= FEW_TILES or is_alone:
        return 1
    return max(1, min(length // LEAST_CHUNK, MULTIPROCESSORS // max(tiles, 1), MOST_CHUNKS))


@record
class OperandView:
    """A side of a product: where a matrix of the batch begins, and how it is walked (product.h's strided_operand)."""

    start: Address
    line_stride: int
    k_stride: int
    along_k: bool
    width: int


@record
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


def contract_views(
    kernel: Contract, dtypes: Sequence[DType], scratch: int, target: Target, is_alone: bool
) -> tuple[ProductView, ...]:
    """Return the bodies of a product: one, or two where its sums are cut into chunks."""
    batch = math.prod(kernel.batch)
    tile = _tile_of(kernel, target, is_alone)
    chunks = _chunks(tile.count(batch, kernel.m, kernel.n), kernel.k, is_alone)
    stages = ("whole",) if chunks == 1 else ("chunks", "combine")
    return tuple(_product_view(kernel, dtypes, scratch, tile, chunks, stage) for stage in stages)


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
        head_of(writer),
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


# --- convolutions -----------------------------------------------------------------------------------------------------

FEW_CHANNELS = 8
"""Up to this many channels of a group, in and out, a convolution is summed directly, not as a product."""
MOST_POSITION_CHUNKS = 64
LEAST_POSITIONS = 1024


@record
class ConvForm:
    """How a convolution is summed: by tiles of a product, or directly, ``channels`` of the output by each thread or an
    element of the weight's gradient by ``threads`` of them."""

    tile: Tile | None
    channels: int
    chunks: int
    units: int
    threads: int = BLOCK


@record
class ConvBodyView:
    """A body of a convolution. ``stage``: "whole", "chunks" or "combine"; ``run``: as in lane_views.Conv2dView."""

    head: KernelHead
    kind: str
    stage: str
    type: str
    shape: ConvShape
    form: ConvForm
    a: Address
    b: Address
    width: int
    run: int
    decode: tuple[Loop, ...]
    parameters: tuple[Parameter, ...]
    lines: tuple[Line, ...]

    @property
    def blocks(self) -> int:
        return -(-self.shape.weight_elements // BLOCK) if self.stage == "combine" else self.form.units

    @property
    def shared(self) -> str:
        if self.stage == "combine":
            return ""
        if self.form.tile is not None:
            return f"pg::product_shared<{self.type}, pg::{self.form.tile.name}>"
        if self.kind == "forward":
            return f"int(pg::conv2d_direct_shared<{self.type}, {self.form.channels}>({shape_text(self.shape)}))"
        return ""


def shape_text(s: ConvShape) -> str:
    """Return the initialiser of convolution.h's conv2d_shape."""
    geometry = (s.stride_h, s.stride_w, s.pad_h, s.pad_w, s.dilation_h, s.dilation_w, s.groups, s.OH, s.OW)
    return f"{{{', '.join(map(str, (s.N, s.C, s.H, s.W, s.O, s.KH, s.KW, *geometry)))}}}"


def _direct_bytes(kernel: Conv2d, channels: int) -> int:
    """Return convolution.h's conv2d_direct_shared."""
    s = kernel.shape
    inputs = s.C // s.groups
    rows = 7 * s.stride_h + (s.KH - 1) * s.dilation_h + 1
    columns = 31 * s.stride_w + (s.KW - 1) * s.dilation_w + 1
    return max(kernel.dtype.itemsize, 4) * (inputs * s.KH * s.KW * channels + inputs * rows * columns)


def _conv2d_form(kernel: Conv2d, target: Target, is_alone: bool) -> ConvForm:
    s = kernel.shape
    precision = tensor_precision(kernel, target, is_alone)
    inputs, outputs = s.C // s.groups, s.O // s.groups
    channels = next(n for n in (1, 2, 4, 8) if n >= min(outputs, FEW_CHANNELS))
    piece = _direct_bytes(kernel, channels)
    is_direct = inputs <= FEW_CHANNELS and outputs <= FEW_CHANNELS and piece <= SHARED_BYTES
    positions = s.N * s.OH * s.OW
    if kernel.kind == "grad_weight":
        tile = None if is_direct else _tile(s.groups, outputs, inputs * s.KH * s.KW, kernel.dtype, precision)
        tiles = s.weight_elements if tile is None else tile.count(s.groups, outputs, inputs * s.KH * s.KW)
        wanted = -(-4 * MULTIPROCESSORS // max(tiles, 1))
        chunks = 1 if is_alone else max(1, min(positions // LEAST_POSITIONS, wanted, MOST_POSITION_CHUNKS))
        return ConvForm(tile, channels, chunks, tiles * chunks, WARP if is_alone else BLOCK)
    if kernel.kind == "grad_input":
        if is_direct:
            return ConvForm(None, channels, 1, -(-s.N * s.C * s.H * s.W // BLOCK))
        tile = _tile(s.groups, inputs, s.N * s.H * s.W, kernel.dtype, precision)
        return ConvForm(tile, channels, 1, tile.count(s.groups, inputs, s.N * s.H * s.W))
    if is_direct:
        parts = -(-outputs // channels)
        return ConvForm(None, channels, 1, s.N * s.groups * parts * -(-s.OH // 8) * -(-s.OW // 32))
    tile = _tile(s.groups, outputs, positions, kernel.dtype, precision)
    return ConvForm(tile, channels, 1, tile.count(s.groups, outputs, positions))


def conv2d_views(
    kernel: Conv2d, dtypes: Sequence[DType], scratch: int, target: Target, is_alone: bool
) -> tuple[ConvBodyView, ...]:
    """Return the bodies of a convolution: one, or the chunk sums of a weight's gradient and what combines them."""
    form = _conv2d_form(kernel, target, is_alone)
    stages = ("whole",) if form.chunks == 1 else ("chunks", "combine")
    return tuple(_conv2d_view(kernel, dtypes, scratch, stage, form) for stage in stages)


def _conv2d_view(kernel: Conv2d, dtypes: Sequence[DType], scratch: int, stage: str, form: ConvForm) -> ConvBodyView:
    s = kernel.shape
    run = 1
    epilogue = kernel.epilogue
    if kernel.kind == "grad_weight":
        extents, run, epilogue = weight_runs(kernel)
        indices = (*(f"i{axis}" for axis in range(len(extents) - 1)), "column")
    else:
        planes = (s.O, s.OH * s.OW) if kernel.kind == "forward" else (s.C, s.H * s.W)
        indices, extents = ("n", "channel", "position"), (s.N, *planes)
    writer = KernelWriter(dtypes, indices, extents, len(indices) - 1)
    a, b = (operand(writer, access, ()) for access in (kernel.a, kernel.b))
    if stage == "combine":
        writer.pointers.clear()
    lines: list[Line] = []
    if stage != "chunks":
        writer.variables[0] = Variable(kernel.dtype, vector="v0")
        writer.hoist(epilogue)
        lines = writer.vector_lines(epilogue)
    if stage != "whole":
        writer.scratch(scratch, computed_as(kernel.dtype), stage == "chunks")
    value = scalar_type(kernel.dtype)
    decode: tuple[Loop, ...] = ()
    if kernel.kind == "grad_weight":
        decode = decoded(indices[:-1], extents[:-1], lines)
        row = Parameter("long", "row" if decode else "")
        parameters = (row, *parameters_of(lines, column="long", v0=value))
    else:
        parameters = parameters_of(lines, n="long", channel="long", position="long", v0=value)
    length = s.C // s.groups * s.KH * s.KW
    width = next(w for w in (4, 2, 1) if w * kernel.dtype.itemsize <= 16 and length % w == 0 == kernel.b.offset % w)
    return ConvBodyView(
        head_of(writer), kernel.kind, stage, f"pg::{kernel.dtype.c_name}", s, form, a, b, width,
        run, decode, parameters, tuple(lines),
    )  # fmt: skip
