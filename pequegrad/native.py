"""A built step, run on its slots.

Invariant: a failure of the native code is an exception that names the user's line, or the step. What runs a step is in
its `StepFacts`, so that a process that finds both in the cache needs no plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .build.known import BuiltStep
from .build.loader import StepFailure
from .config import config
from .locations import Location
from .records import Record


class StepFacts(Record):
    """What must be known of a plan to run its built step.

    ``workers``: the most that it runs on. ``arena_bytes``: of host memory. ``slots``: (bytes, whether the step writes to
    it, name of its dtype) of each array that it is handed. ``origins``: for each kernel, its ops and the first line of the
    user's that it comes from, or None. ``memory``: for people.
    """

    __slots__ = ("name", "workers", "arena_bytes", "slots", "origins", "memory")  # noqa: RUF023 (the order of __init__)
    name: str
    workers: int
    arena_bytes: int
    slots: tuple[tuple[int, bool, str], ...]
    origins: tuple[tuple[str, Location | None], ...]
    memory: str

    def __init__(
        self,
        name: str,
        workers: int,
        arena_bytes: int,
        slots: tuple[tuple[int, bool, str], ...],
        origins: tuple[tuple[str, Location | None], ...],
        memory: str,
    ) -> None:
        self.set_fields(
            name=name, workers=workers, arena_bytes=arena_bytes, slots=slots, origins=origins, memory=memory
        )

    def to_text(self) -> str:
        """Return the facts as text, for the cache."""
        origins = [[ops, location and location.values()] for ops, location in self.origins]
        return json.dumps([self.name, self.workers, self.arena_bytes, self.slots, origins, self.memory])

    @staticmethod
    def from_text(text: str) -> StepFacts:
        """Return the facts that `to_text` wrote."""
        name, workers, arena_bytes, slots, origins, memory = json.loads(text)
        lines = tuple([(ops, None if location is None else Location(*location)) for ops, location in origins])
        return StepFacts(name, workers, arena_bytes, tuple(map(tuple, slots)), lines, memory)


class NativeStep:
    """Runs a built step, once or many times. Raises IndexOutOfRange, with the user's line, for a bad index."""

    def __init__(self, built: BuiltStep, facts: StepFacts) -> None:
        built.module.configure([(nbytes, is_written) for nbytes, is_written, _ in facts.slots], facts.arena_bytes)
        self._module = built.module
        self._facts = facts
        # NumPy exports no buffer of bfloat16, so these go as the same bytes in another dtype.
        self._as_words = [i for i, (_, _, dtype) in enumerate(facts.slots) if dtype == "bfloat16"]

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
        description["has_threads"] = self._facts.workers > 1
        return self._module.make_call(description, self._workers())

    def _passed(self, slots: list[Any]) -> list[Any]:
        for i in self._as_words:
            slots[i] = slots[i].view("uint16")
        return slots

    def _workers(self) -> int:
        return min(self._facts.workers, config.workers()) if self._facts.workers > 1 else 1

    def _check(self, failure: tuple[int, int, int, int, str] | None) -> None:
        if failure is None:
            return
        found = StepFailure(*failure)
        if not found.is_index:
            raise found.error(f"{self._facts.name}: ")
        ops, location = self._facts.origins[found.kernel]
        error = found.error(f"{ops}: ")
        error.location = location or error.location
        raise error
