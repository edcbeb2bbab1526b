"""A built step, run on its slots.

Invariant: a failure of the native code is an exception that names the user's line, or the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .build import cache
from .build.loader import StepFailure
from .codegen import emit
from .codegen.plan import StepPlan
from .config import config
from .targets import Target


class NativeStep:
    """Runs a built step, once or many times. Raises IndexOutOfRange, with the user's line, for a bad index."""

    def __init__(self, built: cache.BuiltStep, plan: StepPlan, target: Target) -> None:
        buffers = [plan.buffers[i] for i in plan.slots]
        # A step on a device has its arena there.
        arena = emit.arena_bytes(plan, target) if target.device == "cpu" else 0
        built.module.configure([(buffer.nbytes, buffer.is_written) for buffer in buffers], arena)
        self._module = built.module
        self._plan = plan
        self._is_shared = plan.workers > 1 and target.device == "cpu"
        # NumPy exports no buffer of bfloat16, so these go as the same bytes in another dtype.
        self._as_words = [i for i, buffer in enumerate(buffers) if buffer.dtype.name == "bfloat16"]

    def __call__(self, slots: list[Any]) -> None:
        """Run once on one array per slot."""
        self._check(self._module.try_run(self._passed(slots), self._workers()))

    def release(self) -> None:
        """Give back memory that waits for the next call."""
        self._module.release()

    def run_many(self, slots: list[Any], order: Any, batched: list[int], stacked: list[int]) -> None:
        """Run a step per row of ``order``; see `trace.step.Repeatable`."""
        self._check(self._module.try_run_many(self._passed(slots), self._workers(), order, batched, stacked))

    def make_call(self, description: dict[str, Any]) -> Callable[..., Any]:
        """Return the native call of a description; see `trace.step.Quick`."""
        description["check"] = self._check
        description["has_threads"] = self._is_shared
        return self._module.make_call(description, self._workers())

    def _passed(self, slots: list[Any]) -> list[Any]:
        for i in self._as_words:
            slots[i] = slots[i].view("uint16")
        return slots

    def _workers(self) -> int:
        return min(self._plan.workers, config.workers()) if self._is_shared else 1

    def _check(self, failure: tuple[int, int, int, int, str] | None) -> None:
        if failure is None:
            return
        found = StepFailure(*failure)
        if not found.is_index:
            raise found.error(f"{self._plan.name}: ")
        origin = self._plan.kernels[found.kernel].origin
        error = found.error(f"{' '.join(origin.ops)}: ")
        error.location = origin.locations[0] if origin.locations else error.location
        raise error
