"""Random programs over all ops, views, reductions, products and updated states: plan, passes and graph agree."""

from __future__ import annotations

import pytest

from pequegrad.passes import PIPELINE, run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen.random_graphs import SAMPLED, random_program
from tests.codegen.tracing import Traced, check_plan, compare

SEEDS = range(0, 240, 12)


@pytest.mark.parametrize("first", SEEDS)
def test_plans_and_passes_of_random_programs_keep_their_meaning(first):
    for seed in range(first, first + 12):
        traced = random_program(seed)
        check_plan(traced, f"plan of program {seed}")
        graph = traced.graph
        expected = run_graph(graph, traced.arrays)
        for step in PIPELINE:
            graph = step.run(graph).verify()
            compare(expected, run_graph(graph, traced.arrays), f"{step.name} on program {seed}")
        check_plan(Traced(graph, traced.arrays), f"plan of program {seed} after the passes")


def test_random_programs_draw_every_family_and_update_states():
    programs = [random_program(seed) for seed in range(240)]
    drawn = {node.op.name for program in programs for node in program.graph.nodes}
    assert set(SAMPLED) <= drawn
    assert any(output.role == "update" for program in programs for output in program.graph.outputs)


def test_the_pipeline_is_a_pure_function_of_the_graph():
    graph = random_program(3).graph
    before = str(graph)
    assert str(run_pipeline(graph)) == str(run_pipeline(graph))
    assert str(graph) == before
