"""Pooling's positions become tap numbers where only its own windows read them, and mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import Tensor, grad
from pequegrad.dtypes import uint8
from pequegrad.nn import functional as F
from pequegrad.ops.pooling import MaxPool2d, WindowTake
from pequegrad.passes.number_taps import number_taps
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.tracing import trace


def images(dtype=np.float32):
    x = np.sin(np.arange(2 * 3 * 9 * 8)).reshape(2, 3, 9, 8).astype(dtype)
    x[0, 0, 1, 1] = np.nan
    return x


GEOMETRIES = {
    "apart": {"kernel_size": 2},
    "meeting, with a border": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "dilated": {"kernel_size": 2, "stride": 1, "dilation": 3},
}


def penalized(**geometry):
    """The gradient of a gradient's square: it takes from windows as well as putting into them."""

    def step(x):
        x.requires_grad_(True)
        (gradient,) = grad((F.max_pool2d(x * x, **geometry) ** 2).sum(), [x], create_graph=True)
        (gradient**2).sum().backward()
        return gradient, x.grad

    return step


def taps_of(graph):
    return [node.outputs[1].dtype for node in graph.nodes if node.op is MaxPool2d]


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("instruction_set", ["native", "scalar", "cuda-sim"])
def test_gradients_of_gradients_are_the_same_by_taps(name, instruction_set):
    traced = trace(penalized(**GEOMETRIES[name]), images())
    graph = number_taps(traced.graph).verify()
    assert taps_of(graph) == [uint8]
    assert any(node.op is WindowTake for node in graph.nodes)
    expected = run_graph(traced.graph, traced.arrays)
    for found in (run_graph(graph, traced.arrays), Compiled(graph, target_for(instruction_set)).run(traced.arrays, 1)):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_positions_that_leave_or_that_other_windows_read_stay():
    def returned(x):
        values, positions = F.max_pool2d(x, 2, return_indices=True)
        return values.sum(), positions

    assert taps_of(number_taps(trace(returned, images()).graph)) != [uint8]

    def computed(x):
        values, positions = F.max_pool2d(x, 2, return_indices=True)
        return values.sum() + positions.sum()

    assert taps_of(number_taps(trace(computed, images()).graph)) != [uint8]


def test_more_taps_than_a_byte_holds_keep_positions():
    def step(x):
        x.requires_grad_(True)
        F.max_pool2d(x, 17).sum().backward()
        return x.grad

    traced = trace(step, np.random.default_rng(0).standard_normal((1, 1, 34, 34)).astype(np.float32))
    assert taps_of(number_taps(traced.graph)) != [uint8]
    assert isinstance(step(Tensor(traced.arrays[0])), Tensor)
