"""A graph with values computed again gives the same bits; its gradients read nothing of the forward pass but what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import manual_seed, nn, optim
from pequegrad.dtypes import float32
from pequegrad.nn import functional
from pequegrad.ops.core import TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.passes import run_pipeline
from pequegrad.passes.recompute_values import recompute_values
from pequegrad.trace.graph import Graph, GraphBuilder, Node, Output
from pequegrad.trace.interpreter import run_graph
from tests.codegen.nets import convnet, mlp, training_step, transformer
from tests.codegen.random_graphs import random_program
from tests.codegen.tracing import Traced, check_plan

NETS = {"mlp": mlp, "convnet": lambda: convnet(32), "transformer": transformer}
SEGMENTS = (1, 2, 4, 16)


def same_bits(expected, got):
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(expected, got, strict=True))


def chain(length: int) -> Graph:
    """Return a graph of tanhs and of their gradients, which read each of them."""
    b = GraphBuilder()
    x = b.add_input(TensorSpec((64, 64), float32), "argument", "x")
    values = [x]
    for _ in range(length):
        values += b.apply(REGISTRY["tanh"], (values[-1],), {})
    (gradient,) = b.apply(REGISTRY["neg"], (values[-1],), {}, is_backward=True)
    for value in reversed(values[1:]):
        (gradient,) = b.apply(REGISTRY["mul"], (gradient, value), {}, is_backward=True)
    b.outputs.append(Output(gradient, "result", "gradient"))
    return b.build()


def dropping() -> Traced:
    """Return a training step with dropout."""
    manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 8))
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    return training_step(model, optim.SGD(model.parameters(), lr=0.1), x, x, functional.mse_loss)


def kept(graph: Graph) -> int:
    """Return how many values of the forward pass gradients read."""
    forward = {value for node in graph.nodes if not (node.is_backward or node.is_recomputed) for value in node.outputs}
    return len(
        {v for node in graph.nodes if node.is_backward or node.is_recomputed for v in node.inputs if v in forward}
    )


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("net", NETS)
def test_a_training_step_gives_the_same_bits(net, segments):
    traced = NETS[net]()
    graph = run_pipeline(traced.graph)
    again = recompute_values(graph, segments).verify()
    assert any(node.is_recomputed for node in again.nodes) or segments > 1
    assert same_bits(run_graph(graph, traced.arrays), run_graph(again, traced.arrays))


@pytest.mark.parametrize("net", NETS)
def test_the_plan_of_a_graph_with_values_computed_again_is_right(net):
    traced = NETS[net]()
    graph = run_pipeline(traced.graph)
    for segments in (1, 3):
        check_plan(Traced(recompute_values(graph, segments), traced.arrays), f"{net}, {segments} segments")


@pytest.mark.parametrize("first", range(0, 60, 12))
def test_random_programs_cut_anywhere_keep_their_meaning(first):
    for seed in range(first, first + 12):
        traced = random_program(seed)
        graph = run_pipeline(traced.graph)
        turn = len(graph.nodes) * (1 + seed % 4) // 5
        nodes = [
            Node(node.op, node.inputs, node.params, node.outputs, node.location, is_backward=i >= turn)
            for i, node in enumerate(graph.nodes)
        ]
        graph = Graph(graph.inputs, tuple(nodes), graph.outputs, graph.name)
        again = recompute_values(graph, 1 + seed % 3).verify()
        assert same_bits(run_graph(graph, traced.arrays), run_graph(again, traced.arrays))
        check_plan(Traced(again, traced.arrays), f"program {seed}")


def test_gradients_read_only_what_crosses_and_the_last_segment():
    graph = chain(16)
    assert kept(graph) == 16
    assert kept(recompute_values(graph, 4)) == 3 + 4
    assert kept(recompute_values(graph, 2)) == 1 + 8
    assert kept(recompute_values(graph, 1)) == 0


def test_a_value_is_computed_again_once_and_just_before_its_gradient():
    text = str(recompute_values(chain(2), 1))
    assert text.splitlines() == [
        "graph step",
        "  %0: float32[64,64] = argument x",
        "  %1: float32[64,64] = tanh(%0)",
        "  %2: float32[64,64] = tanh(%1)",
        "  %3: float32[64,64] = tanh(%0) (again)",
        "  %4: float32[64,64] = tanh(%3) (again)",
        "  %5: float32[64,64] = neg(%4)",
        "  %6: float32[64,64] = mul(%5, %4)",
        "  %7: float32[64,64] = mul(%6, %3)",
        "  result gradient %7",
    ]


def test_a_graph_without_gradients_stays_as_it_is():
    traced = random_program(1)
    assert str(recompute_values(traced.graph, 2)) == str(traced.graph)


def test_results_and_small_statistics_are_kept():
    b = GraphBuilder()
    x = b.add_input(TensorSpec((64, 64), float32), "argument", "x")
    (y,) = b.apply(REGISTRY["exp"], (x,), {})
    (total,) = b.apply(REGISTRY["sum"], (y,), {"dims": (1,), "keepdim": True})
    (z,) = b.apply(REGISTRY["div"], (y, total), {})
    (gradient,) = b.apply(REGISTRY["mul"], (z, total), {}, is_backward=True)
    b.outputs += [Output(gradient, "result", "gradient"), Output(y, "result", "y")]
    again = [node for node in recompute_values(b.build(), 1).nodes if node.is_recomputed]
    assert [node.op.name for node in again] == ["div"]
    assert again[0].inputs == (y, total)


def test_draws_are_computed_again_with_the_same_operands():
    traced = dropping()
    graph = run_pipeline(traced.graph)
    again = recompute_values(graph, 1).verify()
    draws = [node for node in again.nodes if node.op.name == "random_uniform"]
    assert [node.is_recomputed for node in draws] == [False, True]
    assert draws[0].inputs == draws[1].inputs and draws[0].params == draws[1].params
    assert same_bits(run_graph(graph, traced.arrays), run_graph(again, traced.arrays))
    check_plan(Traced(again, traced.arrays))
