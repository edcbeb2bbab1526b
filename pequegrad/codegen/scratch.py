"""Memory of a rendered step beside its plan's values: chunk sums of kernels, and what each worker has for itself.

Invariant: chunk sums lie behind the plan's values; each worker's own part, behind these.
"""

from __future__ import annotations

from ..targets import Target
from . import lane_views, product_views
from .memory import ALIGNMENT
from .plan import StepPlan

_SCRATCH_BYTES = {"lanes": lane_views.scratch_bytes, "threads": product_views.scratch_bytes}


def arena_bytes(plan: StepPlan, target: Target) -> int:
    """Return the bytes of arena that a rendered step needs: the plan's, its kernels' chunk sums, and the workers' own."""
    begin, nbytes = worker_memory(plan, target)
    return begin + plan.workers * nbytes if nbytes else _shared_end(plan, target)


def _shared_end(plan: StepPlan, target: Target) -> int:
    end = plan.arena_bytes
    in_blocks = _in_blocks(plan)
    for number, offset in scratch_offsets(plan, target).items():
        if number not in in_blocks:
            end = max(end, offset + _SCRATCH_BYTES[target.execution](plan.kernels[number], target, False))
    return end


def worker_memory(plan: StepPlan, target: Target) -> tuple[int, int]:
    """Return where in the arena the workers' own parts begin, and the bytes of each, the chunk sums of a block included."""
    scratch = [_SCRATCH_BYTES[target.execution](plan.kernels[number], target, True) for number in _in_blocks(plan)]
    nbytes = _aligned(plan.local_bytes) + _aligned(max(scratch, default=0))
    return _aligned(_shared_end(plan, target)), nbytes


def scratch_offsets(plan: StepPlan, target: Target) -> dict[int, int]:
    """Return the byte offset of each kernel's chunk sums, by the kernel's number in the plan: in the arena or, of those
    that run block by block, in their worker's own part."""
    offsets = {}
    in_blocks = _in_blocks(plan)
    end = _aligned(plan.arena_bytes)
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
