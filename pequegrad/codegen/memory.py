"""One arena for all values between the kernels of a step: who may lie where, and how near that comes to the least.

Invariant: two buffers that are alive in one phase do not overlap; every offset is a multiple of 64 bytes.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer of ``nbytes`` that is alive from phase ``first`` to phase ``last``, both included."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The arena of a plan: its size, the most bytes alive in one phase (no arena can be smaller), and how many values."""

    arena_bytes: int
    live_bytes: int
    buffers: int
    unshared_bytes: int
    """What the same values would take without sharing."""


def aligned(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to the alignment; at least one unit, so that no two buffers share an address."""
    return max(-(-nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)


def assign_offsets(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return an offset for each buffer, and the size of the arena.

    Best fit, phase by phase, larger buffers first: the smallest hole that takes it, else the end.
    """
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
