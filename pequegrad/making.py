"""From a trace to a built step where the cache knows none, and to what people want to see of it.

Invariant: ``compiler`` loads this, and with it the passes, the code generator and the tuner, only for a step that must be
made or looked into; a step that is found runs without any of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import profiling, tuning
from .build import cache, kernel_report
from .build.cache import PROBES
from .build.kernel_report import KernelReport
from .build.keys import CacheKey
from .build.known import BuiltStep
from .codegen import emit
from .codegen.memory import MemoryReport, memory_report
from .codegen.plan import StepPlan
from .codegen.text import format_plan
from .export.saving import Exportable, save_step
from .planning import facts_of, make_plan
from .records import collector_at_rest
from .targets import Target
from .trace.capture import Captured
from .trace.graph import Graph
from .trace.signature import Call

__all__ = [
    "PROBES",
    "Artifact",
    "Lowered",
    "artifact",
    "build",
    "explain",
    "facts_of",
    "lowered",
    "plan_of",
    "profile",
    "step_key",
]

Say = Callable[[str], None]
Tune = tuple[Callable[[], list[Any]] | None, str, Say, Say, Say]
"""For mode="autotune": arrays to tune on, where they lie, and who is told of variants, of the outcome, of builds."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A step as far as it gets without a compiler."""

    graph: Graph
    plan: StepPlan
    source: str
    memory: MemoryReport


@dataclass(frozen=True, slots=True)
class Artifact:
    """A step that was built. ``origin``: "compiled", "disk" or "memory"."""

    path: Path
    source_path: Path
    seconds: float
    origin: str
    exportable: Exportable = field(repr=False, compare=False)

    @property
    def kernels(self) -> tuple[KernelReport, ...]:
        """What each kernel takes on a device: registers, shared memory, stack, spills; empty for the processor."""
        return kernel_report.read(self.path.parent)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write one folder that `pequegrad.load_step` runs in a process that traces and compiles nothing.

        In it are the module, its source, a manifest with sums, and the state as it is now: parameters, buffers, optimizer
        state, learning rates, random state. ``overwrite``: replace, in one step, an artifact that is there. Python values
        that the trace read are built in. Raises TraceError, with the reason, for a step that would not do the same there,
        and ArtifactError where the folder cannot be written.
        """
        save_step(self.exportable, path, overwrite=overwrite)


def plan_of(
    traced: Graph, target: Target, workers: int, precision: str, memory: str, tune: Tune | None
) -> tuple[StepPlan, Target]:
    """Return the plan of a trace, and its target with what tuning chose."""
    with collector_at_rest():
        planned = make_plan(traced, target, workers, precision, memory)
    if tune is None:
        return planned.plan, target
    inputs, home, *say = tune
    tuner = tuning.Tuner(planned.graph, planned.plan, target, workers, precision)
    return tuner.planned(tuner.tuned(inputs, home, tuning.Report(*say)))


def step_key(plan: StepPlan, target: Target) -> CacheKey:
    """Return the cache key of a plan. Raises ToolchainError where there is no compiler."""
    return cache.make_key(format_plan(plan), target, name=plan.name)


def build(key: CacheKey, plan: StepPlan, target: Target, progress: Say, *, is_for_here: bool = True) -> BuiltStep:
    """Return the built step of a plan: from memory, from disk, or compiled now. ``is_for_here``: to run on this
    machine; raises DeviceError where it cannot."""
    return cache.get_or_build(key, lambda: _render(plan, target), target, progress, is_for_here=is_for_here)


def _render(plan: StepPlan, target: Target) -> str:
    with collector_at_rest():
        return emit.render(plan, target, codes=cache.TEMPLATE_CODES)


def lowered(traced: Graph, plan: StepPlan, target: Target) -> Lowered:
    """Return all that there is of a step without a compiler."""
    return Lowered(traced, plan, _render(plan, target), memory_report(plan))


def artifact(name: str, call: Call, captured: Captured, plan: StepPlan, target: Target, built: BuiltStep) -> Artifact:
    """Return a built step, ready to be saved. ``call``: the arguments it was traced with, without their data."""
    exportable = Exportable(name, call, captured, plan, target, built)
    return Artifact(built.path, built.source_path, built.seconds, built.origin, exportable)


def profile(
    plan: StepPlan, target: Target, inputs: list[Any], progress: Say, seconds: float | None
) -> profiling.Profile:
    """Time each kernel of a plan for about ``seconds``, on ``inputs``, which it changes."""
    return profiling.profile(plan, target, inputs, progress, profiling.SECONDS if seconds is None else seconds)


def explain(counts: str, plan: StepPlan) -> list[str]:
    """Return lines for people: phases and kernels of a plan, and how many bytes move. The first begins with ``counts``."""
    passed = sum(plan.buffers[i].nbytes for i in plan.slots)
    lines = [
        f"{counts} in {len(plan.phases)} phases, {plan.workers} worker{'s' if plan.workers != 1 else ''}",
        f"memory: {passed} bytes passed in and out, {memory_report(plan).arena_bytes} bytes of arena",
    ]
    for number, phase in enumerate(plan.phases):
        if phase.blocks is not None:
            lines.append(f"  phase {number} runs on {phase.blocks.count} blocks of {phase.blocks.size} samples:")
        lines += [f"  phase {number}: {kernel.family:8} {kernel.origin}" for kernel in phase.kernels]
    return lines
