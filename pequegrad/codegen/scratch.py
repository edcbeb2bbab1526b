"""Memory of a rendered step beside its plan's values: the queues of kernels' work, their chunk sums, and what each worker
has for itself.

Invariant: queues lie behind the plan's values; chunk sums, behind these; each worker's own part, at the end.
"""

from __future__ import annotations

from ..targets import Target
from . import lane_views, product_views
from .memory import ALIGNMENT
from .plan import Blocks, StepPlan

_SCRATCH_BYTES = {"lanes": lane_views.scratch_bytes, "threads": product_views.scratch_bytes}
# Of one worker: a line of cache, pg::work_queue.
_QUEUE_BYTES = 64


def arena_bytes(plan: StepPlan, target: Target) -> int:
    """Return the bytes of arena that a rendered step needs: the plan's, its kernels' chunk sums, and the workers' own."""
    begin, nbytes = worker_memory(plan, target)
    return begin + plan.workers * nbytes if nbytes else _shared_end(plan, target)


def _shared_end(plan: StepPlan, target: Target) -> int:
    begin, nbytes = queue_memory(plan, target)
    end = begin + nbytes if nbytes else plan.arena_bytes
    in_blocks = _in_blocks(plan)
    for number, offset in scratch_offsets(plan, target).items():
        if number not in in_blocks:
            end = max(end, offset + _SCRATCH_BYTES[target.execution](plan.kernels[number], target, False))
    return end


def queue_memory(plan: StepPlan, target: Target) -> tuple[int, int]:
    """Return where in the arena the queues begin, and their bytes, which are zero when a step begins."""
    count = len(_kernels_with_queues(plan, target)) + len(_grids_with_queues(plan, target))
    return _aligned(plan.arena_bytes), count * plan.workers * _QUEUE_BYTES


def grid_queue(plan: StepPlan, target: Target, blocks: Blocks) -> int:
    """Return the byte offset of the queues of a phase that runs block by block, or -1 where its chunks are dealt out."""
    grids = [id(grid) for grid in _grids_with_queues(plan, target)]
    if id(blocks) not in grids:
        return -1
    position = len(_kernels_with_queues(plan, target)) + grids.index(id(blocks))
    return queue_memory(plan, target)[0] + position * plan.workers * _QUEUE_BYTES


def _kernels_with_queues(plan: StepPlan, target: Target) -> list[int]:
    """Return the numbers of the kernels of which workers take work as they go."""
    if target.execution != "lanes":
        return []
    in_blocks = _in_blocks(plan)
    return [
        number
        for number, kernel in enumerate(plan.kernels)
        if number not in in_blocks and lane_views.has_queues(kernel, target)
    ]


def _grids_with_queues(plan: StepPlan, target: Target) -> list[Blocks]:
    """Return the grids of which workers take chunks as they go: what is summed over a chunk is the same, whoever does."""
    if target.execution != "lanes":
        return []
    return [
        phase.blocks for phase in plan.phases if phase.blocks is not None and phase.blocks.chunks > plan.workers > 1
    ]


def worker_memory(plan: StepPlan, target: Target) -> tuple[int, int]:
    """Return where in the arena the workers' own parts begin, and the bytes of each, the chunk sums of a block included."""
    scratch = [_SCRATCH_BYTES[target.execution](plan.kernels[number], target, True) for number in _in_blocks(plan)]
    nbytes = _aligned(plan.local_bytes) + _aligned(max(scratch, default=0))
    return _aligned(_shared_end(plan, target)), nbytes


def scratch_offsets(plan: StepPlan, target: Target) -> dict[int, int]:
    """Return the byte offset of each kernel's queues or chunk sums, by the kernel's number in the plan: in the arena or, of
    chunk sums of those that run block by block, in their worker's own part."""
    begin, nbytes = queue_memory(plan, target)
    offsets = {
        number: begin + position * plan.workers * _QUEUE_BYTES
        for position, number in enumerate(_kernels_with_queues(plan, target))
    }
    in_blocks = _in_blocks(plan)
    end = begin + nbytes
    for number, kernel in enumerate(plan.kernels):
        size = _SCRATCH_BYTES[target.execution](kernel, target, number in in_blocks)
        if size and number in in_blocks:
            offsets[number] = _aligned(plan.local_bytes)
        elif size:
            offsets[number] = end
            end += _aligned(size)
    return offsets


def _in_blocks(plan: StepPlan) -> set[int]:
    """Return the numbers of the kernels that run block by block."""
    found: set[int] = set()
    number = 0
    for phase in plan.phases:
        if phase.blocks is not None:
            found.update(range(number, number + len(phase.kernels)))
        number += len(phase.kernels)
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
