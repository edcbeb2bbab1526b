"""Attention and its gradient for threads: how wide operands are read, and how many blocks walk the tiles.

Invariant: tiles are those of cuda/attention.h: 64 queries; of a gradient, 64 queries or keys, of many features 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..dtypes import DType
from ..records import record
from .plan import Access, Attention
from .views import AttentionView, KernelHead, attention_view

DEPTHS = (16, 32, 64, 128)
"""Features that a tile has room for."""
ROWS = 64
MANY_FEATURES = 64


@record
class AttentionBody:
    """Attention for threads. ``depth``: features of a tile; ``widths``: elements of each input that are read as one."""

    body: AttentionView
    depth: int
    widths: tuple[int, ...]
    blocks: int

    @property
    def head(self) -> KernelHead:
        return self.body.head

    @property
    def shared(self) -> str:
        """Text of the bytes of shared memory that a block needs."""
        name = "attention_shared" if self.body.kernel.kind == "forward" else "attention_gradient_shared"
        return f"pg::{name}<{self.body.type}, {self.depth}>"


def attention_body(kernel: Attention, dtypes: Sequence[DType]) -> AttentionBody:
    """Return the record of the threads' template."""
    view = attention_view(kernel, dtypes)
    depth = next(d for d in DEPTHS if d >= max(kernel.E, kernel.F))
    if kernel.kind == "forward":
        tiles = -(-kernel.L // ROWS)
    else:
        owned = ROWS if depth <= MANY_FEATURES else ROWS // 2
        tiles = -(-kernel.S // owned) - (-kernel.L // owned)
    inputs = zip(kernel.inputs, kernel.input_shapes, strict=True)
    widths = tuple(_width(access, shape, kernel.dtype) for access, shape in inputs)
    return AttentionBody(view, depth, widths, view.matrices * tiles)


def _width(access: Access, shape: tuple[int, ...], dtype: DType) -> int:
    """Return how many neighbouring features can be read as one: all rows begin at multiples of it, and hold some."""
    if access.strides[-1] != 1:
        return 1
    places = (access.offset, shape[-1], *access.strides[:-1])
    return next(w for w in (4, 2, 1) if w * dtype.itemsize <= 16 and not any(place % w for place in places))
