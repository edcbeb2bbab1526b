"""From a traced graph to its plan: the passes, the lowering, and with memory="small" what is computed again to keep less.

Invariant: a plan depends on the graph, the target and the options alone, so that another process plans the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .codegen import schedule, scratch
from .codegen.lower import lower
from .codegen.memory import memory_report
from .codegen.plan import StepPlan
from .errors import CompilerBug
from .native import StepFacts
from .passes import run_pipeline
from .passes.recompute_values import recompute_values
from .targets import Target
from .trace.graph import Graph

SEGMENTS = (1, 2, 4, 8, 16, 32)
"""Into how many segments a forward pass is cut, one try each."""

MOST_COST = 1.36
"""How much longer than without recomputation a step may take by the cost model: a forward pass is a third of a step."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the graph that it is the plan of."""

    graph: Graph
    plan: StepPlan


def optimize(graph: Graph) -> Graph:
    """Return the graph after all passes; its inputs and outputs are those of ``graph``, in order."""
    result = run_pipeline(graph)
    before = [[item.name for item in graph.inputs], [item.name for item in graph.outputs]]
    after = [[item.name for item in result.inputs], [item.name for item in result.outputs]]
    if before != after:
        raise CompilerBug(f"a pass changed the inputs or outputs of {graph.name}: {before} → {after}")
    return result


def make_plan(traced: Graph, target: Target, workers: int, precision: str = "fp32", memory: str = "default") -> Planned:
    """Return the plan of a traced graph. ``memory``: "default", or "small" to compute values again rather than keep them."""
    graph = optimize(traced)
    best = Planned(graph, lower(graph, target, workers, precision))
    if memory == "default":
        return best
    cost, nbytes = plan_cost(best.plan), arena_bytes(best.plan)
    least = 1.0
    for tried in _smaller(best, target, workers, precision):
        longer = plan_cost(tried.plan) / cost
        # A percent of memory is worth a percent of time.
        score = longer * arena_bytes(tried.plan) / max(nbytes, 1)
        if score < least and longer <= MOST_COST:
            best, least = tried, score
    return best


def _smaller(usual: Planned, target: Target, workers: int, precision: str) -> Iterator[Planned]:
    """Yield plans that may need less memory: with values computed again and, since the sums of many chunks of blocks may be
    larger than all that blocks spare, without blocks of samples."""
    manners = [schedule.MODEL]
    if any(phase.blocks is not None for phase in usual.plan.phases):
        manners.append(replace(schedule.MODEL, block_bytes=0))
        yield Planned(usual.graph, lower(usual.graph, target, workers, precision, manners[-1]))
    for segments in SEGMENTS:
        again = recompute_values(usual.graph, segments).verify()
        if any(node.is_recomputed for node in again.nodes):
            for manner in manners:
                yield Planned(again, lower(again, target, workers, precision, manner))


def arena_bytes(plan: StepPlan) -> int:
    """Return the bytes of a step's arena, what each worker has for itself included."""
    return memory_report(plan).arena_bytes


def plan_cost(plan: StepPlan) -> float:
    """Return the nanoseconds that the kernels of a plan take on one core, by the cost model."""
    return sum(
        (phase.blocks.count if phase.blocks is not None else 1) * schedule.cost(kernel, plan)
        for phase in plan.phases
        for kernel in phase.kernels
    )


def facts_of(plan: StepPlan, target: Target) -> StepFacts:
    """Return what running the built step of a plan takes."""
    is_on_host = target.device == "cpu"  # a step on a device has its arena there
    buffers = [plan.buffers[i] for i in plan.slots]
    origins = [kernel.origin for kernel in plan.kernels]
    return StepFacts(
        name=plan.name,
        workers=plan.workers if is_on_host else 1,
        arena_bytes=scratch.arena_bytes(plan, target) if is_on_host else 0,
        slots=tuple([(buffer.nbytes, buffer.is_written, buffer.dtype.name) for buffer in buffers]),
        origins=tuple([(" ".join(o.ops), o.locations[0] if o.locations else None) for o in origins]),
        memory=str(memory_report(plan)),
    )
