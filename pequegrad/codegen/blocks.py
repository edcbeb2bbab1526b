"""Finds kernels that follow each other on blocks of samples, and makes one phase of them.

Invariant: within such a phase a block reads, of what the phase writes, only its own part; sums over samples leave as
shares, combined in a fixed order by kernels of a later phase: the bits do not depend on the number of workers.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ..ops.registry import REGISTRY
from ..records import record, replace
from . import schedule
from .block_sizes import Cutting, Demand
from .lanes import Part, samples_last, side_by_side
from .layout import contiguous_strides
from .memory import Lifetime, assign_offsets
from .plan import (
    Access,
    Accumulate,
    Blocks,
    Buffer,
    Compute,
    Conv2d,
    Index,
    Kernel,
    Layout,
    Load,
    Phase,
    Row,
    Stage,
    Statement,
    Store,
    Walk,
    Window,
)  # fmt: skip
from .slices import Cut, Reach, after_sum, cuts, part_of, reaches, storing, summed_shape, sums_of


@dataclass(slots=True, eq=False)
class Ordered:
    """A kernel, and the phase that it had: two of one phase do not wait for each other. ``reads``, ``writes`` and
    ``touches`` are the buffers that it does that to, the latter in the order in which it first does. ``cuts``: the axes that
    it could be cut along."""

    kernel: Kernel
    phase: int
    reads: frozenset[int] = field(init=False)
    writes: frozenset[int] = field(init=False)
    touches: tuple[int, ...] = field(init=False)
    cuts: tuple[Cut, ...] = field(init=False)

    def __post_init__(self) -> None:
        reads, writes = schedule.reads_and_writes(self.kernel)
        self.reads, self.writes = _buffers(reads), _buffers(writes)
        self.touches = tuple(dict.fromkeys([access.buffer for access in reads + writes]))
        self.cuts = tuple(cuts(self.kernel))


Arrange = Callable[[Sequence[Ordered], Sequence[Buffer]], tuple[Phase, ...]]
"""Puts kernels into phases."""


Choose = Callable[[Demand], Cutting | None]
"""Says how samples are cut into blocks, if at all."""


@record
class Manner:
    """How blocks are made: for vectors of ``lanes`` elements, as ``choose`` says; ``arranged`` puts what stays outside into
    phases."""

    lanes: int
    choose: Choose
    arranged: Arrange


@dataclass(slots=True)
class Run:
    """Kernels that one phase could run block by block, each with its cut axis; and what stays before and after."""

    units: int
    members: list[tuple[Ordered, Cut]] = field(default_factory=list)
    rest: list[Ordered] = field(default_factory=list)
    pitches: dict[int, int] = field(default_factory=dict)
    """Elements a unit of each buffer that members write."""


def block_phases(
    phases: Sequence[Phase],
    buffers: list[Buffer],
    lanes: int,
    choose: Choose,
    *,
    keeps_order: bool = False,
) -> tuple[tuple[Phase, ...], int]:
    """Return the phases with runs of kernels put together where ``choose`` finds a gain, and the bytes that a worker or
    thread block needs for the buffers of one block. ``buffers`` gets new ones, and those of one block their place.

    ``lanes``: the elements of a vector. ``keeps_order``: kernels stay in the order of their phases, where some were put
    late to save memory; else each then runs as early as it can, which makes fewer phases.
    """
    found = _put_together(phases, buffers, Manner(lanes, choose, _in_order if keeps_order else _levelled))
    local_bytes = _place_locals(found, buffers)
    return _without_locals(found, buffers), local_bytes


def _put_together(phases: Sequence[Phase], buffers: list[Buffer], manner: Manner) -> tuple[Phase, ...]:
    kernels = [Ordered(kernel, number) for number, phase in enumerate(phases) for kernel in phase.kernels]
    found = _best_run(kernels, buffers, manner)
    if found is None:
        return tuple(phases)
    run, cutting = found
    members = {id(item) for item, _ in run.members}
    before = _needed_before(kernels, run)
    local = _local_buffers(run, kernels, buffers).keys() if side_by_side(cutting.size, manner.lanes) else ()
    built, combines = _Builder(run, cutting, buffers).build(local)
    after = [
        Ordered(combines[id(item)], item.phase) if id(item) in combines else item
        for item in kernels
        if (id(item) not in members or id(item) in combines) and id(item) not in before
    ]
    earlier = [item for item in kernels if id(item) in before]
    rest = _put_together(manner.arranged(after, buffers), buffers, manner)
    return (*manner.arranged(earlier, buffers), built, *rest)


# --- which kernels ------------------------------------------------------------------------------------------------


def _best_run(kernels: Sequence[Ordered], buffers: Sequence[Buffer], manner: Manner) -> tuple[Run, Cutting] | None:
    """Return the run that saves most, with how samples are cut, or None where none saves anything."""
    best: tuple[Run, Cutting] | None = None
    for units in _candidates(kernels):
        run = _grow(kernels, units, buffers)
        if len(run.members) < 2:
            continue
        cutting = manner.choose(_demand(run, kernels, buffers, manner.lanes))
        if cutting is not None and cutting.gain > (0 if best is None else best[1].gain):
            best = run, cutting
    return best


def _candidates(kernels: Sequence[Ordered]) -> list[int]:
    """Return the extents that could be the number of samples: those that most kernels begin with."""
    votes: Counter[int] = Counter()
    for item in kernels:
        votes.update({cut.extent for cut in item.cuts if cut.at == 0 and cut.extent > 1})
    most = sorted(votes, key=lambda extent: (-votes[extent], -extent))[: schedule.MOST_SAMPLE_EXTENTS]
    return [extent for extent in most if votes[extent] > 1]


def _grow(kernels: Sequence[Ordered], units: int, buffers: Sequence[Buffer]) -> Run:
    """Take each kernel, in order, that blocks of ``units`` samples can follow up to now."""
    run = Run(units)
    read_before: dict[int, int] = {}  # what members read, and how far it moves a unit: -1 where that differs
    late_reads: set[int] = set()
    late_writes: set[int] = set()
    has_index = False
    by_sample = {number for number, buffer in enumerate(buffers) if _is_by_sample(buffer, units)}
    for item in kernels:
        chosen = None
        is_by_sample = not (item.reads and item.reads.isdisjoint(by_sample) and item.reads.isdisjoint(run.pitches))
        for cut in item.cuts:
            if not (is_by_sample or cut.is_sum):
                continue  # as `_fits` would find; what is summed may be made of nothing that is read
            if cut.extent % units or (cut.is_sum and not _is_private(item.kernel, cut)):
                continue
            found = reaches(item.kernel, cut, units)
            if found is None or not _fits(found, run, read_before, buffers, by_sample):
                continue
            if any(r.buffer in late_writes or (r.is_write and r.buffer in late_reads) for r in found):
                continue
            chosen = cut, found
            break
        if chosen is not None:
            cut, found = chosen
            run.members.append((item, cut))
            has_index = has_index or isinstance(item.kernel, Index)
            for r in found:
                if r.is_write:
                    run.pitches[r.buffer] = r.shift
                read_before[r.buffer] = r.shift if read_before.get(r.buffer, r.shift) == r.shift and r.is_own else -1
            if cut.is_sum:
                # What follows the sums comes after the run.
                late_reads |= _buffers(s.access for s in after_sum(item.kernel) if isinstance(s, Load))
                late_writes |= _buffers(s.access for s in after_sum(item.kernel) if isinstance(s, Store))
            continue
        earlier = (late_reads, late_writes, run.pitches, read_before)
        waits = (
            not (item.reads.isdisjoint(late_writes) and item.reads.isdisjoint(run.pitches))
            or not all(item.writes.isdisjoint(touched) for touched in earlier)
            or (has_index and any(_is_passed(buffers[b]) for b in item.writes))
        )
        if waits:
            late_reads |= item.reads
            late_writes |= item.writes
    return run


def _fits(
    found: Sequence[Reach],
    run: Run,
    read_before: dict[int, int],
    buffers: Sequence[Buffer],
    by_sample: Collection[int],
) -> bool:
    """Whether a block, of what members write, touches its own part alone, and something of the kernel is by sample."""
    shifts: dict[int, int] = {}
    for r in found:
        if shifts.setdefault(r.buffer, r.shift) != r.shift:
            return False
        if r.is_write:
            if _is_passed(buffers[r.buffer]) or not r.is_own or run.pitches.get(r.buffer, r.shift) != r.shift:
                return False
            if read_before.get(r.buffer, r.shift) != r.shift or r.shift * run.units > buffers[r.buffer].size:
                return False
        elif r.buffer in run.pitches and (run.pitches[r.buffer] != r.shift or not r.is_own):
            return False
    written = {r.buffer for r in found if r.is_write}
    if any(r.buffer in written and not r.is_own for r in found):
        return False
    reads = [r for r in found if not r.is_write]
    return not reads or any(r.shift and (r.buffer in run.pitches or r.buffer in by_sample) for r in reads)


def _is_by_sample(buffer: Buffer, units: int) -> bool:
    return buffer.scope == "argument" and bool(buffer.shape) and buffer.shape[0] % units == 0


def _is_passed(buffer: Buffer) -> bool:
    """Whether writing to a buffer may not begin before all indices are known to be good."""
    return buffer.scope not in ("arena", "result")


def _is_private(kernel: Kernel, cut: Cut) -> bool:
    """Whether every chunk of samples can have sums of its own."""
    sums = sums_of(kernel)
    if any(dtype.kind == "float" and dtype.itemsize < 4 for _, dtype, _ in sums):
        return False
    nbytes = math.prod(summed_shape(kernel)) * sums[0][1].itemsize
    return isinstance(kernel, Row) or nbytes <= schedule.PRIVATE_BYTES


def _buffers(accesses: Iterable[Access]) -> frozenset[int]:
    return frozenset([access.buffer for access in accesses])


def _needed_before(kernels: Sequence[Ordered], run: Run) -> set[int]:
    """Return the kernels, by id, that members wait for."""
    cut_of = {id(item): cut for item, cut in run.members}
    before: set[int] = set()
    reads: set[int] = set()
    writes: set[int] = set()
    for item in reversed(kernels):
        if id(item) in cut_of:
            found = reaches(item.kernel, cut_of[id(item)], run.units) or ()
            reads.update(r.buffer for r in found if not r.is_write)
            writes.update(r.buffer for r in found if r.is_write)
            continue
        if item.writes.isdisjoint(reads) and item.writes.isdisjoint(writes) and item.reads.isdisjoint(writes):
            continue
        before.add(id(item))
        reads |= item.reads
        writes |= item.writes
    return before


def _in_order(kernels: Sequence[Ordered], _: Sequence[Buffer]) -> tuple[Phase, ...]:
    """Return kernels in the phases that they had."""
    return tuple(
        Phase(tuple(item.kernel for item in phase)) for _, phase in itertools.groupby(kernels, lambda item: item.phase)
    )


def _levelled(kernels: Sequence[Ordered], buffers: Sequence[Buffer]) -> tuple[Phase, ...]:
    """Return kernels in phases, each as early as what it shares with earlier ones allows."""
    readers: dict[int, list[tuple[int, int]]] = {}
    writers: dict[int, list[tuple[int, int]]] = {}
    checked = -1
    levels: list[list[Kernel]] = []
    for item in kernels:
        reads, writes = item.reads, item.writes
        known = [writers.get(b, ()) for b in reads | writes] + [readers.get(b, ()) for b in writes]
        level = 1 + max((at for uses in known for at, phase in uses if phase != item.phase), default=-1)
        if any(_is_passed(buffers[b]) for b in writes):
            level = max(level, checked + 1)
        if isinstance(item.kernel, Index):
            checked = max(checked, level)
        for b in reads:
            readers.setdefault(b, []).append((level, item.phase))
        for b in writes:
            writers.setdefault(b, []).append((level, item.phase))
        levels.extend([] for _ in range(level + 1 - len(levels)))
        levels[level].append(item.kernel)
    return tuple(Phase(tuple(level)) for level in levels)


# --- how large ----------------------------------------------------------------------------------------------------


def _local_buffers(run: Run, kernels: Sequence[Ordered], buffers: Sequence[Buffer]) -> dict[int, tuple[int, int]]:
    """Return the buffers that only members touch, with the first and the last member that does."""
    members = {id(item) for item, _ in run.members}
    outside: set[int] = set()
    for item in kernels:
        if id(item) not in members:
            outside.update(item.touches)
    life: dict[int, tuple[int, int]] = {}
    for number, (item, cut) in enumerate(run.members):
        if cut.is_sum:
            outside.update(s.access.buffer for s in after_sum(item.kernel) if isinstance(s, Load | Store))
        for buffer in item.touches:
            life[buffer] = (life.get(buffer, (number, number))[0], number)
    return {
        b: ends for b, ends in life.items() if b in run.pitches and buffers[b].scope == "arena" and b not in outside
    }


def _demand(run: Run, kernels: Sequence[Ordered], buffers: Sequence[Buffer], lanes: int) -> Demand:
    """Return what the members of a run ask for."""
    local = _local_buffers(run, kernels, buffers)
    lives = tuple(Lifetime(run.pitches[b] * buffers[b].dtype.itemsize, *ends) for b, ends in local.items())
    shared: dict[int, int] = {}
    others: set[int] = set()
    private = 0
    moved = touched = 0
    for item, cut in run.members:
        if cut.is_sum and not isinstance(item.kernel, Row):
            private += math.prod(summed_shape(item.kernel)) * 4
        others.update(b for b in item.touches if b not in local)
        for r in reaches(item.kernel, cut, run.units) or ():
            nbytes = buffers[r.buffer].dtype.itemsize * (r.high - r.low + 1)
            touched += run.units * nbytes if r.shift else nbytes
            if r.buffer in local:
                moved += run.units * nbytes
            elif not r.shift:
                shared[r.buffer] = nbytes
    return Demand(
        units=run.units,
        members=tuple((item.kernel, cut) for item, cut in run.members),
        phases=len({item.phase for item, _ in run.members}),
        lives=lives,
        buffers=len(others),
        moved=moved,
        touched=touched,
        shared=sum(shared.values()),
        private=private,
        multiple=lanes if any(isinstance(item.kernel, Conv2d | Window) for item, _ in run.members) else 1,
    )


# --- the phase ----------------------------------------------------------------------------------------------------


class _Builder:
    """Makes the phase of a run, and the kernels that combine its shares."""

    def __init__(self, run: Run, cutting: Cutting, buffers: list[Buffer]) -> None:
        self.run, self.size, self.buffers = run, cutting.size, buffers
        self.count = run.units // self.size
        self.chunks = cutting.chunks
        self.sums: list[tuple[int, int]] = []
        self.combines: dict[int, Kernel] = {}

    def build(self, local: Collection[int]) -> tuple[Phase, dict[int, Kernel]]:
        """Return the phase, and by its id what each cut sum leaves to do. The ``local`` buffers may have the samples
        innermost."""
        parts = []
        for item, cut in self.run.members:
            walks = {}
            for r in reaches(item.kernel, cut, self.run.units) or ():
                if r.shift:
                    walks[r.buffer] = Walk(r.buffer, r.shift * self.size)
            part = part_of(item.kernel, cut, self.run.units, self.size)
            if cut.is_sum:
                part = self._shared(part, item, walks)
            parts.append(Part(part, cut, walks))
        parts = samples_last(parts, self.run.units, self.size, local, self.buffers)
        walked = tuple(tuple(part.walks.values()) for part in parts)
        blocks = Blocks(self.count, self.size, self.chunks, walked, tuple(self.sums))
        return Phase(tuple(part.kernel for part in parts), (), blocks), self.combines

    def _shared(self, part: Kernel, item: Ordered, walks: dict[int, Walk]) -> Kernel:
        """Return a kernel that leaves the sums of its block or chunk in a buffer of shares."""
        shape = summed_shape(item.kernel)
        elements = math.prod(shape)
        by_block = isinstance(part, Row) or self.count == self.chunks
        shares = self.count if by_block else self.chunks
        access_strides = (*contiguous_strides(shape), *(0,) * (len(part.inner) if isinstance(part, Row) else 0))
        loads: list[Load] = []
        accumulates: list[Accumulate] = []
        epilogue: list[Statement] = []
        after = after_sum(item.kernel)
        variables = [s.dst for s in after if not isinstance(s, Store)]
        free = 1 + max([*variables, *(variable for variable, _, _ in sums_of(item.kernel))], default=0)
        for variable, dtype, monoid in sums_of(item.kernel):
            layout = Layout(tuple(range(len(shape) + 1)))
            self.buffers.append(Buffer(f"v{len(self.buffers)}", (shares, *shape), dtype, layout, "arena"))
            number = len(self.buffers) - 1
            access = Access(number, access_strides)
            if by_block:
                epilogue.append(Store(variable, access))
                walks[number] = Walk(number, elements)
            else:
                add = REGISTRY["add"]
                epilogue += [
                    Load(1, dtype, access),
                    Compute(2, dtype, add, (variable, 1), (dtype, dtype), (), add.lowering.text),
                    Store(2, access),
                ]
                walks[number] = Walk(number, 0, elements)
                self.sums.append((number, elements))
            loads.append(Load(free, dtype, Access(number, (*contiguous_strides(shape), elements))))
            accumulates.append(Accumulate(variable, dtype, monoid, free))
            free += 1
        outer = shape or (1,)
        sweep: tuple[Statement, ...] = tuple(loads)
        if not shape:
            sweep, after = (tuple(map(_with_outer, side)) for side in (sweep, after))
        stage = Stage(sweep, tuple(accumulates), after)
        extents = (*outer, shares)
        accesses = [s.access for s in sweep if isinstance(s, Load)]
        candidates = range(len(outer)) if max(outer) > 1 else range(len(outer), len(extents))
        lane = schedule.lane_axis(extents, accesses, candidates)
        self.combines[id(item)] = Row(
            f"{item.kernel.name}_combined", item.kernel.origin, outer, (shares,), lane, (stage,)
        )
        return storing(part, tuple(epilogue))


def _with_outer(statement: Statement) -> Statement:
    """Return a statement over one more outermost axis, of extent 1."""
    if isinstance(statement, Load | Store):
        return replace(statement, access=replace(statement.access, strides=(0, *statement.access.strides)))
    if statement.index is not None:
        return replace(statement, index=replace(statement.index, strides=(0, *statement.index.strides)))
    return statement


def _place_locals(phases: Sequence[Phase], buffers: list[Buffer]) -> int:
    """Give each buffer that only one phase of blocks touches its place in memory of the block's own; return the bytes."""
    if all(phase.blocks is None for phase in phases):
        return 0
    users: dict[int, set[int]] = {}
    for number, phase in enumerate(phases):
        for kernel in phase.kernels:
            for buffer in schedule.buffers_of(kernel):
                users.setdefault(buffer, set()).add(number)
    largest = 0
    for number, phase in enumerate(phases):
        if phase.blocks is None:
            continue
        lives: dict[int, Lifetime] = {}
        moved = {walk.buffer: walk for walks in phase.blocks.walks for walk in walks}
        for at, kernel in enumerate(phase.kernels):
            for b in schedule.buffers_of(kernel):
                walk = moved.get(b)
                if buffers[b].scope == "arena" and users[b] == {number} and walk is not None and walk.block:
                    nbytes = walk.block * buffers[b].dtype.itemsize
                    lives[b] = Lifetime(nbytes, lives[b].first if b in lives else at, at)
        offsets, local_bytes = assign_offsets(list(lives.values()))
        for b, offset in zip(lives, offsets, strict=True):
            old = buffers[b]
            extents = (moved[b].block,)
            buffers[b] = Buffer(old.name, extents, old.dtype, Layout((0,)), "local", offset=offset)
        largest = max(largest, local_bytes)
    return largest


def _without_locals(phases: Sequence[Phase], buffers: Sequence[Buffer]) -> tuple[Phase, ...]:
    """Return the phases with buffers of one block standing still from block to block."""
    result = []
    for phase in phases:
        blocks = phase.blocks
        if blocks is not None:
            walks = tuple(
                tuple(walk for walk in moved if buffers[walk.buffer].scope != "local") for moved in blocks.walks
            )
            phase = replace(phase, blocks=replace(blocks, walks=walks))
        result.append(phase)
    return tuple(result)
