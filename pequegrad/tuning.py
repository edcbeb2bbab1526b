"""mode="autotune": what the cost model decides, measured on this machine instead, once; the cache keeps the outcome.

Invariant: variants run on copies, so that tuning changes nothing of the user's; a process that finds the outcome in the
cache plans from it and measures nothing.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import arrays
from .build import cache, known
from .codegen import emit
from .codegen.alternatives import PLAIN, alternatives
from .codegen.lower import lower
from .codegen.plan import StepPlan
from .codegen.schedule import MODEL, Choices
from .codegen.text import format_plan
from .errors import DeviceError, ToolchainError
from .native import NativeStep
from .planning import facts_of
from .targets import Target
from .trace.graph import Graph

ROUNDS = 3
"""How often two variants take turns, so that what disturbs the machine disturbs both."""
ROUND_SECONDS, MOST_RUNS = 0.04, 40
LEAST_GAIN = 0.03
"""A variant that gains less is not told from noise; the cost model's choice stays."""
_FORMAT = 1  # goes up when `Choices` or what is tried changes


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Who is told what tuning does: ``progress`` of each variant in a few words, ``outcome`` once, ``build`` what building
    takes."""

    progress: Callable[[str], None]
    outcome: Callable[[str], None]
    build: Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Tuner:
    """A graph after its passes, and for whom it is lowered."""

    graph: Graph
    plan: StepPlan
    target: Target
    workers: int
    precision: str

    def planned(self, choices: Choices) -> tuple[StepPlan, Target]:
        """Return the plan under ``choices``, and the target that starts it so."""
        plan = self.plan if choices == MODEL else lower(self.graph, self.target, self.workers, self.precision, choices)
        return plan, self.target if choices.launch is None else self.target.with_launch(choices.launch)

    def tuned(self, inputs: Callable[[], Sequence[np.ndarray]] | None, home: str, report: Report) -> Choices:
        """Return the choices that the cache has for this step, else those measured now on ``inputs()``, which stay as they
        are; without inputs, or on a machine that cannot run the target, those of the cost model."""
        try:
            key = cache.make_key(format_plan(self.plan), self.target, name=self.plan.name)
        except ToolchainError:
            if inputs is None:
                return MODEL
            raise
        name = f"choices {key.digest} of {self.workers} workers"
        found = cache.recall(name, str(_FORMAT))
        if found is not None:
            return _read(found)
        if inputs is None:
            return MODEL
        try:
            known.check_can_run(self.target)
        except DeviceError as error:
            report.outcome(f"not tuned, the cost model's choices stay: {error}")
            return MODEL
        choices = self._measured(list(inputs()), home, report)
        cache.remember(name, str(_FORMAT), _written(choices))
        return choices

    def _measured(self, inputs: list[np.ndarray], home: str, report: Report) -> Choices:
        """Go through the decisions; of each keep the alternative that is fastest together with what was kept before."""
        plain, _ = self.planned(PLAIN)
        decisions = list(alternatives(self.plan, plain, self.target, self.workers))
        count, number = sum(map(len, decisions)), 0
        model = best = self._variant(MODEL, inputs, home, report, set())
        assert model is not None and best is not None
        best.seconds = statistics.median(best.run())
        seen, kept = {best.text}, []
        for decision in decisions:
            before, chosen = best.choices, ""
            for alternative in decision:
                number += 1
                report.progress(f"tuning {number}/{count}: {alternative.text}; {1e3 * best.seconds:.3f} ms so far")
                rival = self._variant(alternative.apply(before), inputs, home, report, seen)
                if rival is None:
                    continue
                seen.add(rival.text)
                loser = rival
                if rival.beats(best):
                    loser, best, chosen = best, rival, alternative.text
                loser.step.release()
            kept += [chosen] if chosen else []
        # Once more, side by side: several small gains may all have been noise.
        if best is not model and not best.beats(model):
            best, kept = model, []
        report.progress("")
        gain = f", {100 * (1 - best.seconds / model.seconds):.0f} % faster" if kept else ""
        what = ", ".join(kept) or "the cost model's choices"
        report.outcome(f"tuned on {len(seen)} variants: {what}{gain}")
        model.step.release()
        return best.choices

    def _variant(
        self, choices: Choices, inputs: list[np.ndarray], home: str, report: Report, seen: set[str]
    ) -> _Variant | None:
        """Return the step under ``choices``, or None where it is one of those ``seen``."""
        plan, target = self.planned(choices)
        text = f"launch {target.launch}\n{format_plan(plan)}"
        if text in seen:
            return None
        key = cache.make_key(format_plan(plan), target, name=plan.name)
        built = cache.get_or_build(
            key, lambda: emit.render(plan, target, codes=cache.TEMPLATE_CODES), target, report.build
        )
        results = [np.empty(plan.buffers[i].shape, plan.buffers[i].dtype.numpy) for i in plan.slots[len(inputs) :]]
        return _Variant(choices, text, NativeStep(built, facts_of(plan, target)), inputs, results, home)


@dataclasses.dataclass(slots=True)
class _Variant:
    """A step under some choices; ``seconds``: the median when it was last measured."""

    choices: Choices
    text: str
    step: NativeStep
    inputs: list[np.ndarray]
    results: list[np.ndarray]
    home: str
    seconds: float = 0.0

    def run(self) -> list[float]:
        """Return the seconds of a few runs, all from the same state."""
        copies: list[Any] = [np.array(array) for array in self.inputs]
        if self.home != arrays.CPU:
            copies = [arrays.Held(arrays.moved(array, self.home)) for array in copies]
        times: list[float] = []
        end = time.perf_counter() + ROUND_SECONDS
        while not times or (len(times) < MOST_RUNS and time.perf_counter() < end):
            start = time.perf_counter()
            self.step([*copies, *self.results])
            times.append(time.perf_counter() - start)
        # The first finds the caches cold.
        return times[1:] or times

    def beats(self, other: _Variant) -> bool:
        """Whether this takes less time than ``other``, both measured now, in turns."""
        mine: list[float] = []
        others: list[float] = []
        for _ in range(ROUNDS):
            others += other.run()
            mine += self.run()
        self.seconds, other.seconds = statistics.median(mine), statistics.median(others)
        return self.seconds < (1 - LEAST_GAIN) * other.seconds


def _written(choices: Choices) -> str:
    return json.dumps(dataclasses.asdict(choices))


def _read(text: str) -> Choices:
    fields = json.loads(text)
    fields["tiles"] = tuple((tuple(product), name) for product, name in fields["tiles"])
    fields["exchanged"] = tuple(map(tuple, fields["exchanged"]))
    return Choices(**fields)
