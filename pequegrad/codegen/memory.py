"""One arena for all values between the kernels of a step: who may lie where, and how near that comes to the least.

Invariant: two buffers that are alive in one phase do not overlap; every offset is a multiple of 64 bytes.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from ..records import record
from . import schedule
from .plan import Buffer, Phase, StepPlan

ALIGNMENT = 64

MOST_COMPARED = 500
"""Up to so many buffers, a placement that takes quadratic time is tried as well."""


@record
class Lifetime:
    """A buffer of ``nbytes`` that is alive from phase ``first`` to phase ``last``, both included."""

    nbytes: int
    first: int
    last: int


@record
class MemoryReport:
    """The arena of a plan, what each worker has for its blocks of samples included, beside the most bytes that are alive in
    one phase: no arena can be smaller."""

    arena_bytes: int
    live_bytes: int
    buffers: int
    unshared_bytes: int
    """What the same values would take without sharing."""
    shared_bytes: int = 0
    """Of a thread block's shared memory, what a block of samples keeps there."""


def aligned(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to the alignment; at least one unit, so that no two buffers share an address."""
    return max(-(-nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)


def assign_offsets(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return an offset for each buffer, and the size of the arena: the better of two greedy placements."""
    found = _by_phase(lifetimes)
    if len(lifetimes) <= MOST_COMPARED and found[1] > least_bytes(lifetimes):
        found = min(found, _by_size(lifetimes), key=lambda placement: placement[1])
    return found


def _by_size(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Place the largest buffers first, each at the lowest offset that is free throughout its life."""
    offsets = [-1] * len(lifetimes)
    placed: list[tuple[int, int, int, int]] = []  # (start, end, first phase, last phase), by start
    top = 0
    for i in sorted(range(len(lifetimes)), key=lambda j: (-lifetimes[j].nbytes, lifetimes[j].first, j)):
        size, first, last = aligned(lifetimes[i].nbytes), lifetimes[i].first, lifetimes[i].last
        start = 0
        for low, high, other_first, other_last in placed:
            if other_first <= last and first <= other_last:
                if low - start >= size:
                    break
                start = max(start, high)
        offsets[i] = start
        bisect.insort(placed, (start, start + size, first, last))
        top = max(top, start + size)
    return offsets, top


def _by_phase(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Go through the phases; each buffer, larger ones first, takes the smallest hole that holds it, else the end."""
    offsets = [-1] * len(lifetimes)
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for i, lifetime in enumerate(lifetimes):
        starting.setdefault(lifetime.first, []).append(i)
        ending.setdefault(lifetime.last, []).append(i)
    holes: list[tuple[int, int]] = []  # (start, end), sorted, none touching another
    top = 0
    for phase in range(max(ending, default=-1) + 1):
        for i in ending.get(phase - 1, ()):
            _release(holes, offsets[i], offsets[i] + aligned(lifetimes[i].nbytes))
        if holes and holes[-1][1] == top:
            top_hole = holes.pop()[0]
        else:
            top_hole = top
        for i in sorted(starting.get(phase, ()), key=lambda j: (-lifetimes[j].nbytes, j)):
            size = aligned(lifetimes[i].nbytes)
            fitting = [(end - start, start, at) for at, (start, end) in enumerate(holes) if end - start >= size]
            if fitting:
                _, start, at = min(fitting)
                end = holes[at][1]
                holes[at : at + 1] = [(start + size, end)] if end - start > size else []
            else:
                start, top_hole = top_hole, top_hole + size
            offsets[i] = start
        if top_hole < top:
            _release(holes, top_hole, top)
        top = max(top, top_hole)
    return offsets, top


def _release(holes: list[tuple[int, int]], start: int, end: int) -> None:
    at = bisect.bisect_left(holes, (start, end))
    if at < len(holes) and holes[at][0] == end:
        end = holes.pop(at)[1]
    if at and holes[at - 1][1] == start:
        start = holes.pop(at - 1)[0]
        at -= 1
    holes.insert(at, (start, end))


def least_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """Return the most bytes that are alive in one phase: no arena can be smaller."""
    change: dict[int, int] = {}
    for lifetime in lifetimes:
        change[lifetime.first] = change.get(lifetime.first, 0) + aligned(lifetime.nbytes)
        change[lifetime.last + 1] = change.get(lifetime.last + 1, 0) - aligned(lifetime.nbytes)
    now = most = 0
    for phase in sorted(change):
        now += change[phase]
        most = max(most, now)
    return most


def lifetimes_of(phases: Sequence[Phase], buffers: Sequence[Buffer]) -> list[Lifetime | None]:
    """Return when each buffer of the arena is alive; None for passed ones and those that nobody uses."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, phase in enumerate(phases):
        for kernel in phase.kernels:
            for buffer in schedule.buffers_of(kernel):
                first.setdefault(buffer, number)
                last[buffer] = number
    return [
        Lifetime(buffer.nbytes, first[i], last[i]) if buffer.scope == "arena" and i in first else None
        for i, buffer in enumerate(buffers)
    ]


def place_buffers(phases: Sequence[Phase], buffers: Sequence[Buffer]) -> tuple[tuple[Buffer, ...], int]:
    """Return the buffers with their offsets in the arena, and its size."""
    lifetimes = lifetimes_of(phases, buffers)
    numbers = [i for i, lifetime in enumerate(lifetimes) if lifetime is not None]
    offsets, arena_bytes = assign_offsets([lifetime for lifetime in lifetimes if lifetime is not None])
    placed = dict(zip(numbers, offsets, strict=True))
    result = []
    for i, b in enumerate(buffers):
        offset = placed.get(i, 0 if b.scope == "arena" else b.offset)
        result.append(Buffer(b.name, b.shape, b.dtype, b.layout, b.scope, b.slot, offset, b.is_written))
    return tuple(result), arena_bytes


def memory_report(plan: StepPlan) -> MemoryReport:
    """Return how well the arena of ``plan`` is used."""
    lifetimes = [life for life in lifetimes_of(plan.phases, plan.buffers) if life is not None]
    total = sum(aligned(life.nbytes) for life in lifetimes)
    own = plan.workers * plan.local_bytes
    return MemoryReport(
        plan.arena_bytes + own, least_bytes(lifetimes) + own, len(lifetimes), total + own, plan.shared_bytes
    )
