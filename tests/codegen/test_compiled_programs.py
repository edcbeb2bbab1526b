"""Random programs, thirty to a module, compiled: results and updated states are those of the graph in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import manual_seed, nn
from pequegrad.passes import run_pipeline
from pequegrad.trace.graph import Graph
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import TARGETS, Compiled, target_for, ways_of
from tests.codegen.random_graphs import random_program, updates_in_parts
from tests.codegen.tracing import Traced, compare, trace

PROGRAMS = 30
# Seeds whose first program is this one; beyond the native instruction set one module each is enough.
MODULES = [("native", 0), ("native", 1000), *((name, 2000) for name in TARGETS[1:])]


def together(programs: list[Traced], name: str) -> Traced:
    """Return one graph that does the work of all."""
    graphs = [program.graph for program in programs]
    whole = Graph(
        tuple(item for graph in graphs for item in graph.inputs),
        tuple(node for graph in graphs for node in graph.nodes),
        tuple(output for graph in graphs for output in graph.outputs),
        name,
    )
    return Traced(whole.verify(), [array for program in programs for array in program.arrays])


@pytest.mark.parametrize(("instruction_set", "first"), MODULES)
def test_random_programs_run_as_in_numpy(instruction_set, first):
    programs = [random_program(seed, length=20) for seed in range(first, first + PROGRAMS)]
    traced = together(programs, f"programs_{first}")
    expected = run_graph(traced.graph, traced.arrays)
    target = target_for(instruction_set)
    compiled = Compiled(traced.graph, target)
    for workers in ways_of(target):
        compare(expected, compiled.run(traced.arrays, workers), f"{instruction_set}, {workers} workers", rtol=1e-10)


@pytest.mark.parametrize("instruction_set", TARGETS)
def test_states_written_in_parts_become_what_they_should(instruction_set):
    traced = together([updates_in_parts(seed) for seed in range(100, 100 + PROGRAMS)], "parts_of_states")
    target = target_for(instruction_set)
    compiled = Compiled(traced.graph, target)
    for workers in ways_of(target):
        compare(run_graph(traced.graph, traced.arrays), compiled.run(traced.arrays, workers), instruction_set)


def test_random_programs_run_as_in_numpy_after_the_passes():
    programs = [random_program(seed, length=20) for seed in range(3000, 3000 + PROGRAMS)]
    programs = [Traced(run_pipeline(program.graph), program.arrays) for program in programs]
    traced = together(programs, "optimized_programs")
    compiled = Compiled(traced.graph, target_for("native"))
    compare(run_graph(traced.graph, traced.arrays), compiled.run(traced.arrays, 2), "optimized programs", rtol=1e-10)


def test_a_compiled_program_gives_the_same_bits_for_any_number_of_workers():
    traced = together([random_program(seed, length=20) for seed in range(PROGRAMS)], "programs_0")
    compiled = Compiled(traced.graph, target_for("native"))
    alone = compiled.run(traced.arrays, 1)
    for workers in (2, 3, 5):
        for i, (a, b) in enumerate(zip(alone, compiled.run(traced.arrays, workers), strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=f"output {i}, {workers} workers")


@pytest.mark.parametrize("instruction_set", ["native", "cuda-sim"])
def test_several_draws_behind_products_draw_as_in_numpy(instruction_set):
    """Their streams are numbers that kernels count themselves, at one place for all elements."""
    manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.Dropout(0.5))))
    traced = trace(model, np.ones((64, 16), np.float32))
    graph = run_pipeline(traced.graph)
    got = Compiled(graph, target_for(instruction_set)).run(traced.arrays, 1)
    compare(run_graph(graph, traced.arrays), got, "dropout", 1e-5)
