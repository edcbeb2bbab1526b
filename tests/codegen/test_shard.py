"""The batch axis through a graph: op on blocks, put together as the sharding says, equals op on the whole."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import nn, optim, targets
from pequegrad.codegen.lower import lower
from pequegrad.codegen.shard import annotate_grids, batch_extent, partial_values, shard_graph
from pequegrad.nn import functional
from pequegrad.ops.sharding import Mapped, Partial, Replicated
from pequegrad.trace.graph import Graph, GraphBuilder, Output
from pequegrad.trace.interpreter import run_graph
from tests.codegen.tracing import trace

COMBINE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


@pytest.fixture(scope="module")
def step():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def function(x, y):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y, reduction="sum")
        loss.backward()
        optimizer.step()
        return loss

    random = np.random.default_rng(0)
    return trace(function, random.standard_normal((8, 5)), random.standard_normal((8, 3)))


def test_weight_gradients_are_shares_of_a_sum_and_activations_are_mapped(step):
    sharded = shard_graph(step.graph)
    assert sharded.extent == batch_extent(step.graph) == 8
    shapes = {value.shape for value in partial_values(sharded)}
    assert {(5, 7), (7, 3), (7,), (3,)} <= shapes
    mapped = {value.shape for value, sharding in sharded.shardings.items() if isinstance(sharding, Mapped)}
    assert {(8, 7), (8, 3)} <= mapped
    states = [item.value for item in step.graph.inputs if item.role == "state"]
    assert all(isinstance(sharded.shardings[state], Replicated) for state in states)


def test_blocks_of_the_batch_combine_to_the_whole(step):
    sharded = shard_graph(step.graph)
    before_cut = _values_before_cuts(step.graph, sharded)
    probe = Graph(
        step.graph.inputs, step.graph.nodes, tuple(Output(v, "result", f"r{i}") for i, v in enumerate(before_cut))
    )
    whole = run_graph(probe, step.arrays)
    blocks = [run_graph(_with_batch(probe, 8, 4), arrays) for arrays in _blocks(step, 4)]
    checked = 0
    for value, expected, *parts in zip(before_cut, whole, *blocks, strict=True):
        sharding = sharded.shardings[value]
        if isinstance(sharding, Mapped):
            combined = np.concatenate(parts, axis=sharding.dim)
        elif isinstance(sharding, Partial):
            combined = COMBINE[sharding.monoid].reduce(parts)
        else:
            # A number spread over the batch is the same for every block, which sees its own part of it.
            combined = parts[0] if parts[0].shape == expected.shape else np.concatenate(parts)
        np.testing.assert_allclose(combined, expected, rtol=1e-12, atol=1e-12)
        checked += 1
    assert checked > 10


def _blocks(step, size):
    """The arrays of a call, cut along the batch."""
    positions = [i for i, item in enumerate(step.graph.inputs) if item.role == "argument"]
    return [
        [array[start : start + size] if i in positions else array for i, array in enumerate(step.arrays)]
        for start in range(0, 8, size)
    ]


def _values_before_cuts(graph, sharded):
    """Values that no cut stands before."""
    behind = set()
    for node in graph.nodes:
        if node in sharded.cuts or any(value in behind for value in node.inputs):
            behind.update(node.outputs)
    return [value for node in graph.nodes for value in node.outputs if value not in behind]


def _with_batch(graph, old, new):
    """The same program for another batch size: every parameter that names the extent is changed."""
    builder = GraphBuilder()
    found = {}
    for item in graph.inputs:
        spec = item.value.spec
        if item.role == "argument":
            spec = type(spec)(tuple(new if extent == old else extent for extent in spec.shape), spec.dtype)
        found[item.value] = builder.add_input(spec, item.role, item.name)
    for node in graph.nodes:
        params = {
            key: tuple(new if extent == old else extent for extent in value) if key == "shape" else value
            for key, value in node.params
        }
        outputs = builder.apply(node.op, [found[value] for value in node.inputs], params)
        found.update(zip(node.outputs, outputs, strict=True))
    for output in graph.outputs:
        builder.outputs.append(Output(found[output.value], "result", output.name))
    return builder.build()


def test_each_phase_of_a_plan_names_the_axis_that_workers_share(step):
    plan = annotate_grids(lower(step.graph, targets.get("cpp")))
    assert all(phase.grid for phase in plan.phases)
    assert plan.phases[0].grid[0].extent == 8
