"""From a pointwise kernel of the plan to the record that a template for lanes takes.

Invariant: a view is made of a plan's kernel and the number of lanes alone; its text is the same for any number of workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ..dtypes import DType
from ..records import record, replace
from .numbers import is_worth_keeping, parted
from .plan import Compute, Map, Statement
from .rendering import Address, KernelWriter, Line, Pointer, Term
from .views import KernelHead, LaneView, Loop, counted, decoded, head_of, with_axis

# A worker's share of a long axis: few enough that sharing costs nothing, enough that two workers end together.
SHARES_PER_AXIS = 32
LEAST_SHARE = 64
# Rows whole pages apart fall into the same sets of L1.
PAGE_BYTES = 1 << 12
# Of what lies across the lanes, so many vectors of each lane follow each other: the processor sees where they go on.
VECTORS_ACROSS = 8
# Elements that are loaded as they lie; of others the lanes are widened on the way.
SQUARE_TYPES = ("pg::f32", "pg::f64", "pg::i32", "pg::i64")


@record
class MapView(LaneView):
    """A pointwise kernel: ``rows`` of ``lane.extent`` elements, cut into ``chunks`` shares of ``chunk`` each.

    ``is_scalar``: over single numbers, by one worker. ``unit``: the variable that counts shares. ``across``: the axis, apart
    from the rows, along which ``squares`` lie; it is the one that is cut then, for each vector of lanes, and their vectors
    are turned into lanes by squares."""

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
    """Arithmetic on numbers that a kernel does several times: a function object, and each time that it is called."""

    name: str
    pointers: tuple[Pointer, ...]
    lines: tuple[Line, ...]
    calls: tuple[CallView, ...]


@record
class CallView:
    """The pointers of one call. Where all numbers of ``compared``, pairs of pointers, are the same as for the call before, its
    results are copied: from and to the pointers of each pair of ``copied``. Without ``compared`` it is always made."""

    pointers: tuple[str, ...]
    compared: tuple[tuple[str, str], ...]
    copied: tuple[tuple[str, str], ...]


def map_view(kernel: Map, dtypes: Sequence[DType], lanes: int) -> MapView:
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


def _across_view(writer: KernelWriter, lines: Sequence[Line], lanes: int) -> MapView | None:
    """Return the view of a pointwise kernel with operands that lie along the axis before the lanes', or None where there are
    none, or too few squares to share."""
    if lanes == 1 or len(writer.extents) < 2 or min(writer.extents[-2:]) < lanes:
        return None
    *outer, across, lane = zip(writer.indices, writer.extents, strict=True)
    rows = math.prod(extent for _, extent in outer)
    shares = rows * -(-lane[1] // lanes) * -(-across[1] // lanes) // SHARES_PER_AXIS
    if not shares:
        return None
    chunk = lanes * min(VECTORS_ACROSS, shares)
    turned, squares = by_squares(
        lines, writer, across[0], {across[0]: (Term("first", 1),)}, f"{{}}[{across[0]} - first]"
    )
    if not squares:
        return None
    decode = decoded(
        [name for name, _ in outer], [extent for _, extent in outer], [*turned, *(s.start for s in squares)]
    )
    return MapView(
        head_of(writer), False, "unit", rows, decode, Loop(*lane), chunk, -(-across[1] // chunk), True, tuple(turned), (),
        Loop(*across), tuple(squares),
    )  # fmt: skip


def by_squares(
    lines: Sequence[Line], writer: KernelWriter, along: str, places: Mapping[str, tuple[Term, ...]], text: str
) -> tuple[list[Line], list[SquareView]]:
    """Return lines that find turned, at ``text`` with a square's name in it, what lies along another axis than the lanes', and
    where such operands begin: terms of their addresses are replaced as ``places`` says."""
    types = {pointer.name: pointer.type for pointer in writer.pointers.values() if not pointer.is_written}
    squares: list[SquareView] = []
    turned: list[Line] = []
    for line in lines:
        place = line.address
        if (
            line.form == "load_strided"
            and place
            and types.get(place.pointer) in SQUARE_TYPES
            and Term(along, 1) in place.terms
        ):
            terms = tuple(new for term in place.terms for new in places.get(term.variable, (term,)))
            squares.append(SquareView(f"q{len(squares)}", types[place.pointer], replace(place, terms=terms)))
            line = Line("load_square", line.name, text=text.format(squares[-1].name))
        turned.append(line)
    return turned, squares


def _repeat_view(name: str, parts: Sequence[tuple[Statement, ...]], outside: KernelWriter) -> RepeatView:
    """Return the view of parts that are alike; their pointers become parameters of the kernel ``outside``."""
    writer = KernelWriter(outside.buffer_dtypes, outside.indices, outside.extents, None, letter="q")
    lines = writer.scalar_lines(parts[0])
    pointers = tuple(writer.pointers.values())
    # The others name buffers of their own in the same order.
    named = [list(dict.fromkeys([s.access.buffer for s in part if not isinstance(s, Compute)])) for part in parts]
    places = [(named[0].index(pointer.buffer), pointer.is_written) for pointer in pointers]
    given = [tuple([outside.pointer(buffers[at], written) for at, written in places]) for buffers in named]
    calls = [CallView(given[0], (), ())]
    for before, now in itertools.pairwise(given):
        pairs = list(zip(before, now, pointers, strict=True)) if is_worth_keeping(parts[0]) else []
        compared = tuple([(old, new) for old, new, pointer in pairs if not pointer.is_written and old != new])
        copied = tuple([(old, new) for old, new, pointer in pairs if pointer.is_written])
        calls.append(CallView(now, compared, copied))
    return RepeatView(name, pointers, tuple(lines), tuple(calls))
