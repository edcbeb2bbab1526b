"""What the tests of emitted code share: many small cases in one graph, compiled once, compared with NumPy."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pequegrad import targets
from pequegrad.build import cache
from pequegrad.codegen.emit import render
from pequegrad.codegen.interpret import allocate
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import StepPlan
from pequegrad.codegen.schedule import MODEL, Choices
from pequegrad.codegen.scratch import arena_bytes
from pequegrad.codegen.text import format_plan
from pequegrad.dtypes import as_dtype
from pequegrad.errors import DeviceError
from pequegrad.ops.core import TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.targets import Target
from pequegrad.trace.graph import Graph, GraphBuilder, Output, Value
from pequegrad.trace.interpreter import run_graph
from tests.codegen.tracing import Traced

INSTRUCTION_SETS = ("native", "x86-64-v3", "x86-64-v2", "scalar")
TARGETS = (*INSTRUCTION_SETS, "cuda-sim")


def target_for(instruction_set: str) -> Target:
    """Return the C++ target for an instruction set, or the target of that name; skip where this machine cannot run it."""
    import pytest  # not at the top: the cases also run on devices, where there may be none

    if shutil.which("g++") is None:
        pytest.skip("there is no g++ on this machine")
    if instruction_set in targets.names():
        return targets.get(instruction_set)
    target = targets.get("cpp", instruction_set=None if instruction_set == "native" else instruction_set)
    try:
        target.check_runs_on(targets.host_machine(), targets.host_features())
    except DeviceError as error:
        pytest.skip(str(error))
    return target


class Compiled:
    """A graph compiled for a target."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        precision: str = "fp32",
        edit: Callable[[str], str] = str,
        choices: Choices = MODEL,
    ) -> None:
        self.graph = graph
        self.plan: StepPlan = lower(graph, target, 2, precision, choices)
        self.source = edit(render(self.plan, target))
        key = cache.make_key(f"{format_plan(self.plan)}{edit}", target, name=graph.name)
        self.module = cache.get_or_build(key, lambda: self.source, target).module
        buffers = [self.plan.buffers[number] for number in self.plan.slots]
        arena = arena_bytes(self.plan, target) if target.device == "cpu" else 0
        self.module.configure([(buffer.nbytes, buffer.is_written) for buffer in buffers], arena)
        self.is_simulated = target.name == "cuda-sim"

    def allocated(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return what the module is called with: copies of the inputs, and room for the results."""
        return allocate(self.plan, arrays)

    def run(self, arrays: Sequence[np.ndarray], workers: int) -> list[np.ndarray]:
        """Return one array per output of the graph; inputs are copied, so that updates touch copies.

        In the simulator ``workers`` is the seed of the order in which threads run."""
        passed = self.allocated(arrays)
        if self.is_simulated:
            configure_simulator(self.module.path, seed=workers)
        self.module.run(passed, workers)
        results = iter(passed[len(self.graph.inputs) :])
        positions = {item.value: i for i, item in enumerate(self.graph.inputs)}
        return [
            next(results) if output.role == "result" else passed[positions[output.target]]
            for output in self.graph.outputs
        ]


def ways_of(target: Target) -> tuple[int, ...]:
    """Return the numbers of workers to run with or, for the simulator, the seeds."""
    return (1, 2, 3) if target.name == "cuda-sim" else (1, 2)


def configure_simulator(module: Path, seed: int, counts_traffic: bool = False) -> None:
    """Set the order of threads of a step in the simulator, and forget its last error."""
    configure = ctypes.CDLL(str(module)).pg_sim_configure
    configure.argtypes = (ctypes.c_ulong, ctypes.c_int, ctypes.c_long)
    configure(seed, counts_traffic, 0)


def run_compiled(traced: Traced, target: Target, workers: int = 1) -> list[np.ndarray]:
    """Compile and run a graph on its arrays."""
    return Compiled(traced.graph, target).run(traced.arrays, workers)


@dataclass
class Case:
    """One claim within a batch: what it is called, which outputs are its own, and how near they must come."""

    name: str
    first: int
    count: int
    ulps: float | None
    """Units in the last place that each element may differ by; None: relative to the array's largest element."""
    tolerance: float = 0.0
    zeros_alike: bool = False
    """Whether 0 and -0 count as equal."""


@dataclass
class Batch:
    """Cases in one graph, so that one compilation serves them all."""

    name: str
    builder: GraphBuilder = field(default_factory=GraphBuilder)
    arrays: list[np.ndarray] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    _known: dict[tuple[str, tuple[int, ...], bytes], Value] = field(default_factory=dict)

    def input(self, array: np.ndarray, role: str = "argument") -> Value:
        """Return an input that holds ``array``; equal arrays share one."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes())
        if role != "argument" or key not in self._known:
            spec = TensorSpec(array.shape, as_dtype(array.dtype))
            value = self.builder.add_input(spec, role, f"x{len(self.arrays)}")
            self.arrays.append(array)
            if role != "argument":
                return value
            self._known[key] = value
        return self._known[key]

    def apply(self, name: str, inputs: Sequence[Value], **params: Any) -> tuple[Value, ...]:
        """Apply an op."""
        return self.builder.apply(REGISTRY[name], inputs, params)

    def expect(
        self,
        name: str,
        values: Sequence[Value],
        ulps: float | None = 0,
        tolerance: float = 0.0,
        zeros_alike: bool = False,
    ) -> None:
        """Let values leave, and claim that they are what NumPy gives."""
        self.cases.append(Case(name, len(self.builder.outputs), len(values), ulps, tolerance, zeros_alike))
        for value in values:
            self.builder.outputs.append(Output(value, "result", f"r{len(self.builder.outputs)}"))

    def update(self, name: str, target: Value, value: Value, ulps: float | None = 0, tolerance: float = 0.0) -> None:
        """Write a value over a state."""
        self.cases.append(Case(name, len(self.builder.outputs), 1, ulps, tolerance))
        self.builder.outputs.append(Output(value, "update", f"r{len(self.builder.outputs)}", target))

    def graph(self) -> Graph:
        self.builder.name = self.name
        return self.builder.build()

    def failures(self, target: Target) -> list[str]:
        """Compile, run each way there is, and return what differs from NumPy, a line a case."""
        graph = self.graph()
        expected = run_graph(graph, self.arrays)
        compiled = Compiled(graph, target)
        found = []
        for count in ways_of(target):
            got = compiled.run(self.arrays, count)
            for case in self.cases:
                for i in range(case.first, case.first + case.count):
                    problem = difference(expected[i], got[i], case)
                    if problem:
                        found.append(f"{case.name} [{i - case.first}], {count} workers: {problem}")
        return found


def difference(expected: np.ndarray, got: np.ndarray, case: Case) -> str | None:
    """Return in words where two arrays differ by more than is allowed; bits count but for NaN's, with 0 ulps."""
    expected = np.asarray(expected)
    assert expected.shape == got.shape and expected.dtype == got.dtype
    if not expected.size:
        return None
    if expected.dtype.kind in "biu":
        wrong = expected.view(np.uint8) != got.view(np.uint8) if expected.dtype.kind == "b" else expected != got
        return _words(expected, got, wrong)
    wide, ours = expected.astype(np.float64), got.astype(np.float64)
    wrong = np.isnan(wide) != np.isnan(ours)
    is_special = ~np.isfinite(wide) | ~np.isfinite(ours)
    wrong |= is_special & ~np.isnan(wide) & (wide != ours)
    with np.errstate(all="ignore"):
        distance = np.where(is_special, 0, np.abs(wide - ours))
        if case.ulps is None:
            finite = np.abs(wide[np.isfinite(wide)])
            wrong |= distance > case.tolerance * max(1.0, float(finite.max(initial=0.0)))
        else:
            limits = ml_dtypes.finfo(expected.dtype)
            unit = np.maximum(np.abs(wide), float(limits.smallest_normal)) * float(limits.eps)
            wrong |= distance > case.ulps * unit
            wrong |= (not case.zeros_alike) & (wide == 0) & (ours == 0) & (np.signbit(wide) != np.signbit(ours))
    return _words(expected, got, wrong)


def _words(expected: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str | None:
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{int(wrong.sum())} of {wrong.size} elements, first at {at}: expected {expected[at]!r}, got {got[at]!r}"


def assert_no_failures(found: Sequence[str]) -> None:
    """Fail with the whole list."""
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:40])
