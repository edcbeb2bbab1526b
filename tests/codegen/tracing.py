"""What tests of passes and plans share: tracing a function, and running its graph and its plan on equal arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pequegrad import targets
from pequegrad.codegen.interpret import allocate, run_plan
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import StepPlan
from pequegrad.codegen.schedule import MODEL, Choices
from pequegrad.dtypes import as_dtype, float64
from pequegrad.ops.core import TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.tensor import Tensor
from pequegrad.trace.graph import Graph, GraphBuilder, Output, Value
from pequegrad.trace.interpreter import run_graph
from pequegrad.trace.record import record_call
from pequegrad.trace.step import BoundStep


@dataclass
class Traced:
    """A graph, and one array for each of its inputs."""

    graph: Graph
    arrays: list[np.ndarray]


MATRIX = TensorSpec((3, 3), float64)


class Program:
    """A graph built by hand, of float64 matrices unless an array says otherwise."""

    def __init__(self, seed: int = 1) -> None:
        self.builder = GraphBuilder()
        self.arrays: list[np.ndarray] = []
        self.random = np.random.default_rng(seed)

    def input(self, role: str, array: np.ndarray | None = None) -> Value:
        array = self.random.standard_normal(MATRIX.shape) if array is None else array
        self.arrays.append(array)
        return self.builder.add_input(TensorSpec(array.shape, as_dtype(array.dtype)), role, f"{role}{len(self.arrays)}")

    def apply(self, name: str, *inputs: Value, **params: Any) -> Value:
        return self.builder.apply(REGISTRY[name], inputs, params)[0]

    def rows(self, value: Value, start: int, count: int) -> Value:
        return self.apply("slice", value, starts=(start, 0), sizes=(count, 3), steps=(1, 1))

    def with_rows(self, value: Value, start: int, count: int, new: Value) -> Value:
        return self.apply("slice_update", value, new, starts=(start, 0), sizes=(count, 3), steps=(1, 1))

    def result(self, value: Value) -> None:
        self.builder.outputs.append(Output(value, "result", f"result{len(self.builder.outputs)}"))

    def update(self, state: Value, value: Value) -> None:
        self.builder.outputs.append(Output(value, "update", f"update{len(self.builder.outputs)}", state))

    def traced(self) -> Traced:
        return Traced(self.builder.build(), self.arrays)


def trace(function: Callable[..., Any], *arrays: np.ndarray) -> Traced:
    """Record ``function(*tensors)``; its results leave, and states that it changed are updated."""
    tensors = [Tensor(array) for array in arrays]
    names = [f"x{i}" for i in range(len(arrays))]
    recorded = record_call(lambda given: function(*given), tensors, names, name="step", keep_grads=False)
    inputs: list[np.ndarray] = []

    def catch(slots: list[Any]) -> None:
        inputs.extend(np.array(slot) for slot in slots[: len(recorded.graph.inputs)])

    BoundStep(recorded, catch)(tensors)
    return Traced(recorded.graph, inputs)


def one_op(name: str, arrays: tuple[np.ndarray, ...], params: dict[str, Any], role: str = "argument") -> Traced:
    """Return the graph of a single application whose results all leave."""
    builder = GraphBuilder()
    tensors = [Tensor(array) for array in arrays]
    values = [builder.add_input(tensor.spec, role, f"x{i}") for i, tensor in enumerate(tensors)]
    for i, value in enumerate(builder.apply(REGISTRY[name], values, params)):
        builder.outputs.append(Output(value, "result", f"result{i}"))
    return Traced(builder.build(), [tensor.array for tensor in tensors])


def run_lowered(plan: StepPlan, graph: Graph, arrays: list[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """Run a plan; return one array per output of the graph."""
    passed = allocate(plan, arrays)
    run_plan(plan, passed, seed=seed)
    results = iter(passed[len(graph.inputs) :])
    positions = {item.value: i for i, item in enumerate(graph.inputs)}
    return [next(results) if output.role == "result" else passed[positions[output.target]] for output in graph.outputs]


def compare(expected: list[np.ndarray], got: list[np.ndarray], what: str, rtol: float = 1e-12) -> None:
    """Fail where two lists of arrays differ by more than ``rtol`` of the largest element."""
    assert len(expected) == len(got)
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype, (
            f"{what}: output {i} is {b.dtype}{b.shape}, not {a.dtype}{a.shape}"
        )
        if a.dtype.kind in "biu":
            np.testing.assert_array_equal(b, a, err_msg=f"{what}: output {i}")
            continue
        tolerance = rtol if a.dtype.itemsize == 8 else max(rtol, 3e-6 if a.dtype.itemsize == 4 else 3e-2)
        wide = np.abs(a[np.isfinite(a)].astype(np.float64))
        scale = max(1.0, float(wide.max(initial=0.0)))
        np.testing.assert_allclose(
            b.astype(np.float64),
            a.astype(np.float64),
            rtol=tolerance,
            atol=tolerance * scale,
            err_msg=f"{what}: output {i}",
        )


def check_plan(traced: Traced, what: str = "plan", workers: int = 2, choices: Choices = MODEL) -> StepPlan:
    """Lower a graph, and fail unless its plan gives what the graph gives. Return the plan."""
    plan = lower(traced.graph, targets.get("cpp"), workers, "fp32", choices)
    expected = run_graph(traced.graph, traced.arrays)
    for seed in range(2):
        compare(expected, run_lowered(plan, traced.graph, traced.arrays, seed), what)
    return plan
