"""A sum over planes of put values is a sum of these values; nothing of what is put is lost or counted twice."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import grad
from pequegrad.nn import functional as F
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.tracing import trace

GEOMETRIES = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": 2, "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True},
]


def step_of(geometry):
    """The gradient of a bias, and of what it is added to, before a pooling."""

    def step(x, bias, weights):
        y = F.max_pool2d(x.requires_grad_() + bias.requires_grad_().reshape(1, 3, 1, 1), **geometry)
        return tuple(grad((y * weights[:, :, : y.shape[2], : y.shape[3]]).sum(), [x, bias]))

    return step


def sums_over_planes(graph, shape):
    return [node for node in graph.nodes if node.op.name == "sum" and node.inputs[0].shape == shape]


def inputs():
    random = np.random.default_rng(0)
    x = random.choice(np.array([-2, -1, 0, 1, 2], np.float32), (2, 3, 9, 10))
    x[0, 0, 2, 2:6:3] = np.nan
    return x, random.standard_normal(3).astype(np.float32), random.standard_normal(x.shape).astype(np.float32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("instruction_set", ["native", "scalar", "cuda-sim"])
def test_the_gradient_of_a_bias_reads_no_plane_and_is_what_it_was(geometry, instruction_set):
    traced = trace(step_of(geometry), *inputs())
    graph = run_pipeline(traced.graph)
    assert sums_over_planes(traced.graph, (2, 3, 9, 10)) and not sums_over_planes(graph, (2, 3, 9, 10))
    expected = run_graph(traced.graph, traced.arrays)
    compiled = Compiled(graph, target_for(instruction_set)).run(traced.arrays, 1)
    for found in (run_graph(graph, traced.arrays), compiled):
        for got, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_a_window_without_an_element_of_the_image_puts_nothing():
    """By dilation all taps can lie in the border: such a window's gradient belongs to no element, and to no bias."""
    geometry = {"kernel_size": 2, "stride": 3, "padding": 1, "dilation": (10, 9)}
    traced = trace(step_of(geometry), *inputs())
    found = run_graph(run_pipeline(traced.graph), traced.arrays)
    for got, right in zip(found, run_graph(traced.graph, traced.arrays), strict=True):
        np.testing.assert_array_equal(got, right)
        assert not got.any()


def test_what_is_put_for_the_sum_alone_is_not_put():
    def step(x, bias):
        y = F.max_pool2d(x + bias.requires_grad_().reshape(1, 3, 1, 1), 2)
        return grad((y * y).sum(), [bias])[0]

    graph = run_pipeline(trace(step, *inputs()[:2]).graph)
    assert not any(node.op.name == "window_put" for node in graph.nodes)


def test_a_sum_over_part_of_a_plane_stays():
    def step(x, weights):
        y = F.max_pool2d(x.requires_grad_(), 2)
        return grad((y * weights[:, :, :4, :5]).sum(), [x])[0].sum(dim=(0, 2))

    x, _, weights = inputs()
    traced = trace(step, x, weights)
    graph = run_pipeline(traced.graph)
    assert any(node.op.name == "window_put" for node in graph.nodes)
    np.testing.assert_array_equal(run_graph(graph, traced.arrays)[0], run_graph(traced.graph, traced.arrays)[0])
