"""Where the time of a compiled step goes: the same source with a clock between its kernels, on copies of the state.

Invariant: a profile changes nothing of the user's; the timed step computes what the step itself computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import on_lines
from .build import cache
from .codegen import emit, schedule, scratch
from .codegen.plan import StepPlan
from .codegen.text import format_plan
from .config import config
from .errors import DeviceError
from .targets import Target

SECONDS, MOST_RUNS, WARM_UPS = 0.3, 200, 3


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel: its phase, family, what it computes, microseconds that a worker was busy with it on average and at most,
    multiply-adds, and bytes of the buffers that it reads and writes."""

    phase: int
    family: str
    origin: str
    microseconds: float
    slowest: float
    multiply_adds: int
    bytes: int

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations of products a second, of all workers; 0 for kernels without products."""
        return 2 * self.multiply_adds / (1e3 * self.slowest) if self.slowest else 0.0

    @property
    def gigabytes(self) -> float:
        """Billions of bytes of buffers a second, of all workers."""
        return self.bytes / (1e3 * self.slowest) if self.slowest else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """The times of one step's kernels. ``microseconds``: a whole step, from the call of the native code to its return, the
    clocks included; ``waiting``: of them, what a worker waits at barriers on average; ``runs``: how many were timed."""

    name: str
    microseconds: float
    waiting: float
    workers: int
    runs: int
    kernels: tuple[KernelTime, ...]

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.microseconds:,.1f} µs a step, {self.workers} worker{'s' if self.workers != 1 else ''}, "
            f"medians of {self.runs} runs; waiting at barriers {self.waiting:,.1f} µs"
        )
        lines = [head, f"{'µs':>10} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7}  phase  kernel"]
        for kernel in sorted(self.kernels, key=lambda kernel: -kernel.microseconds):
            rate = f"{kernel.gflops:8.1f}" if kernel.multiply_adds else " " * 8
            share = 100 * kernel.microseconds / self.microseconds
            lines.append(
                f"{kernel.microseconds:10,.1f} {share:5.1f}% {rate} {kernel.gigabytes:7.1f}  {kernel.phase:5}  "
                f"{kernel.family} {kernel.origin}"
            )
        return "\n".join(lines)


def profile(
    plan: StepPlan, target: Target, inputs: list[np.ndarray], progress: Callable[[str], None], seconds: float = SECONDS
) -> Profile:
    """Build the timed form of a plan and run it on ``inputs``, which it changes. Raises DeviceError for a target that
    does not run on this processor."""
    if not target.has_clock:
        raise DeviceError(
            f"profile: steps for target {target.name!r} have no clock of their own. Profile with target 'cpp', or run "
            "the program under the device's profiler."
        )
    view = emit.view(plan, target, is_timed=True, codes=cache.TEMPLATE_CODES)
    key = cache.make_key(f"{format_plan(plan)}\ntimed\n", target, name=plan.name)
    built = cache.get_or_build(
        key, lambda: emit.render(plan, target, is_timed=True, codes=cache.TEMPLATE_CODES), target, progress
    )
    buffers = [plan.buffers[i] for i in plan.slots]
    marks = np.zeros((plan.workers, view.marks), np.int64)
    sizes = [*((buffer.nbytes, buffer.is_written) for buffer in buffers), (marks.nbytes, True)]
    built.module.configure(sizes, scratch.arena_bytes(plan, target))
    results = [on_lines(np.empty, buffer.shape, buffer.dtype.numpy) for buffer in buffers[len(inputs) :]]
    slots: list[Any] = [array.view("uint16") if array.dtype.name == "bfloat16" else array for array in inputs + results]
    workers = min(plan.workers, config.workers())
    walls: list[float] = []
    laps: list[np.ndarray] = []
    end = time.perf_counter() + seconds
    while len(walls) < MOST_RUNS + WARM_UPS and (len(walls) <= WARM_UPS or time.perf_counter() < end):
        start = time.perf_counter()
        built.module.run([*slots, marks], workers)
        walls.append(time.perf_counter() - start)
        laps.append(np.diff(marks[:workers], axis=1))
    return _summary(plan, view, workers, walls[WARM_UPS:], np.median(np.stack(laps[WARM_UPS:]), axis=0) / 1e3)


def _summary(plan: StepPlan, view: emit.StepView, workers: int, walls: list[float], laps: np.ndarray) -> Profile:
    """Sum the laps, microseconds (workers, marks - 1), by kernel."""
    busy = np.zeros((len(plan.kernels), workers))
    waiting, at = 0.0, 0
    for phase in view.phases:
        for call in phase.calls:
            busy[call.kernel] += laps[:, at]
            at += 1
        waiting += float(laps[:, at].mean())
        at += 1
    kernels, number = [], 0
    for phase_number, planned in enumerate(plan.phases):
        blocks = planned.blocks.count if planned.blocks else 1
        for kernel in planned.kernels:
            mine = busy[number]
            kernels.append(
                KernelTime(
                    phase_number,
                    kernel.family,
                    str(kernel.origin),
                    float(mine.mean()),
                    float(mine.max()),
                    blocks * schedule.multiply_adds(kernel),
                    blocks * sum(schedule.traffic(kernel, plan)),
                )
            )
            number += 1
    return Profile(plan.name, 1e6 * statistics.median(walls), waiting, workers, len(walls), tuple(kernels))
