"""From the bodies of kernels to the record of a phase: what each call is given, and what the grid of blocks needs.

Invariant: texts of arguments depend on the plan and the target alone.
"""

from __future__ import annotations

from typing import Any

from ..records import record
from ..targets import Target
from .launch import MOST_BLOCKS
from .plan import Blocks, Index, Kernel, StepPlan, Walk
from .rendering import Pointer
from .scratch import grid_queue, worker_memory

# Kernels of a phase that its name lists.
MOST_NAMES = 3


@record
class Call:
    """One call of an emitted kernel: its arguments as C text, and where they stand among those of its phase.

    ``note`` says what it computes where another call's function serves it too, and is empty elsewhere. ``after``: thread
    blocks that the calls before it in the phase take. ``kernel``: its kernel's number in the plan. ``waits``: in a block of
    samples, whether it touches what a call since the last barrier writes, or writes what one touches."""

    function: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    note: str
    after: int
    can_fail: bool
    kernel: int
    waits: bool = False


@record
class ZeroView:
    """Memory that a chunk of blocks clears at its begin, as C text, what it is called in its phase, and its size."""

    pointer: str
    name: str
    elements: int
    bytes: int


@record
class BlocksView:
    """The grid of a phase that runs its calls block by block; ``begin``, ``bytes``: each worker's own part of the arena,
    of which there are ``workers``, or (``begin`` is 0) of a thread block's shared memory, of which it has at most
    ``most_shared``; ``shared``: texts of the bytes that its calls take there. ``queue``: where in the arena the workers'
    queues of chunks lie, or -1 where chunks are dealt out."""

    count: int
    size: int
    chunks: int
    begin: int
    bytes: int
    workers: int
    zeros: tuple[ZeroView, ...]
    shared: tuple[str, ...]
    most_shared: int
    queue: int


@record
class PhaseView:
    """Calls between two barriers; ``is_guarded``: a phase before it can fail.

    For targets that launch phases: ``function`` is its name, ``is_new`` where no phase before has the same text;
    ``parameters`` and ``arguments`` are what it is called with, ``blocks`` the thread blocks of its grid, ``shared`` the
    texts of the bytes of shared memory that its calls need."""

    number: int
    calls: tuple[Call, ...]
    can_fail: bool
    is_last: bool
    is_guarded: bool
    function: str
    is_new: bool
    parameters: tuple[Pointer, ...]
    arguments: tuple[str, ...]
    blocks: int
    shared: tuple[str, ...]
    note: str
    grid: BlocksView | None


@record
class Body:
    """What a kernel, or a part of it up to a barrier, does: its text, its parameters, and what it takes of a device."""

    text: str
    pointers: tuple[Pointer, ...]
    blocks: int
    shared: str

    def moved(self, buffers: dict[int, int], scratch: int) -> Body:
        """Return the body on other buffers, with its own place in the arena at ``scratch``."""
        pointers = [
            Pointer(
                p.name, p.type, buffers.get(p.buffer, p.buffer), p.is_written, p.offset if p.offset < 0 else scratch
            )
            for p in self.pointers
        ]
        return Body(self.text, tuple(pointers), self.blocks, self.shared)


@record
class Part:
    """A body that is called in a phase; ``is_shared``: an earlier call's function serves it too."""

    function: str
    body: Body
    kernel: Kernel
    number: int
    is_shared: bool
    walks: tuple[Walk, ...] = ()


def launches(parts: list[Part], most_pointers: int) -> list[list[Part]]:
    """Return the bodies of a round in as few launches as their parameters allow."""
    launches: list[list[Part]] = []
    pointers = 0
    for part in parts:
        pointers += len(part.body.pointers)
        if not launches or pointers > most_pointers:
            launches.append([])
            pointers = len(part.body.pointers)
        launches[-1].append(part)
    return launches


def phase_view(
    plan: StepPlan,
    number: int,
    parts: list[Part],
    known: dict[Any, str],
    is_guarded: bool,
    blocks: Blocks | None,
    target: Target,
) -> PhaseView:
    calls = []
    parameters: dict[str, Pointer] = {}
    asked = 0
    waits = _waits(plan, parts) if blocks is not None else [False] * len(parts)
    for part, must_wait in zip(parts, waits, strict=True):
        walks = {walk.buffer: walk for walk in part.walks}
        texts, names = [], []
        for pointer in part.body.pointers:
            text, moved = _pointer_text(plan, pointer), _moved(walks.get(pointer.buffer))
            texts.append(text + moved)
            names.append(_parameter(plan, text, pointer, parameters) + moved)
        note = str(part.kernel.origin) if part.is_shared else ""
        can_fail = isinstance(part.kernel, Index)
        after = asked if blocks is None else 0
        calls.append(Call(part.function, tuple(texts), tuple(names), note, after, can_fail, part.number, must_wait))
        asked += part.body.blocks
    asked = blocks.chunks if blocks is not None else asked
    shared = tuple(dict.fromkeys(part.body.shared for part in parts if part.body.shared))
    grid = _blocks_view(plan, blocks, parameters, shared, target) if blocks is not None else None
    identity = (
        is_guarded,
        asked,
        shared,
        tuple((call.function, call.names, call.after) for call in calls),
        tuple((pointer.type, pointer.is_written) for pointer in parameters.values()),
        grid,
    )
    is_new = identity not in known
    if is_new:
        known[identity] = f"phase{number}"
    names_shown = [part.kernel.name for part in parts[:MOST_NAMES]]
    rest = len(parts) - len(names_shown)
    note = ", ".join(names_shown) + (f" and {rest} more" if rest else "")
    if blocks is not None:
        note = f"{blocks.count} blocks of {blocks.size} samples, in {blocks.chunks} chunks: {note}"
    return PhaseView(
        number,
        tuple(calls),
        any(isinstance(part.kernel, Index) for part in parts),
        False,
        is_guarded,
        known[identity],
        is_new,
        tuple(parameters.values()),
        tuple(parameters),
        min(max(asked, 1), MOST_BLOCKS),
        shared if grid is None else (f"{known[identity]}_shared",),
        note,
        grid,
    )


def _parameter(plan: StepPlan, text: str, pointer: Pointer, parameters: dict[str, Pointer]) -> str:
    """Return the name of the phase's parameter for a pointer, adding it at its first use; of what a block keeps to itself,
    the text."""
    if pointer.offset < 0 and plan.buffers[pointer.buffer].scope == "local":
        return text
    before = parameters.get(text)
    is_written = pointer.is_written or (before is not None and before.is_written)
    name = before.name if before is not None else f"p{len(parameters)}"
    parameters[text] = Pointer(name, pointer.type, pointer.buffer, is_written, pointer.offset)
    return name


def _waits(plan: StepPlan, parts: list[Part]) -> list[bool]:
    """Return which of the bodies that run one after another on a block must wait for those since the last barrier."""
    found = []
    touched: list[tuple[int, int, int, bool]] = []
    for part in parts:
        places = [(*_place(plan, pointer), pointer.is_written) for pointer in part.body.pointers]
        must_wait = any(
            here == there and low < end and begin < high and (is_written or was_written)
            for here, low, high, is_written in places
            for there, begin, end, was_written in touched
        )
        found.append(must_wait)
        touched = [*(() if must_wait else touched), *places]
    return found


def _place(plan: StepPlan, pointer: Pointer) -> tuple[int, int, int]:
    """Return what a pointer reaches: a buffer's number or, of all that blocks keep to themselves, -1; first and last byte."""
    buffer = plan.buffers[pointer.buffer]
    if buffer.scope == "local":
        return -1, buffer.offset, buffer.offset + buffer.nbytes
    return pointer.buffer, 0, 1


def _blocks_view(
    plan: StepPlan, blocks: Blocks, parameters: dict[str, Pointer], shared: tuple[str, ...], target: Target
) -> BlocksView:
    begin, nbytes = worker_memory(plan, target) if plan.local_bytes else (0, plan.shared_bytes)
    zeros = []
    for number, elements in blocks.sums:
        buffer = plan.buffers[number]
        text, moved = (
            _pointer_text(plan, Pointer("", f"pg::{buffer.dtype.c_name}", number, True)),
            _moved(Walk(number, 0, elements)),
        )
        zeros.append(ZeroView(text + moved, parameters[text].name + moved, elements, elements * buffer.dtype.itemsize))
    return BlocksView(
        blocks.count,
        blocks.size,
        blocks.chunks,
        begin,
        nbytes,
        plan.workers,
        tuple(zeros),
        shared,
        target.shared_bytes,
        grid_queue(plan, target, blocks),
    )


def _pointer_text(plan: StepPlan, pointer: Pointer) -> str:
    if pointer.offset >= 0:
        return f"step.at<{pointer.type}>({pointer.offset})"
    buffer = plan.buffers[pointer.buffer]
    if buffer.scope == "local":
        return f"own.at<{pointer.type}>({buffer.offset})"
    if buffer.slot < 0:
        return f"step.at<{pointer.type}>({buffer.offset})"
    return f"step.argument<{pointer.type}>({buffer.slot})"


def _moved(walk: Walk | None) -> str:
    """Return how much further the part of a block lies, as text to add to a pointer's."""
    if walk is None:
        return ""
    steps = (("block", walk.block), ("chunk", walk.chunk))
    return "".join(f" + {name} * {stride}" for name, stride in steps if stride)
