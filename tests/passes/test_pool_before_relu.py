"""relu goes behind the max-pooling that alone reads it; values and gradients are equal to what they were."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import grad, where
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


def special():
    """Few different numbers, so that many windows hold equal ones; windows of negative ones, zeros, NaN and infinities."""
    random = np.random.default_rng(0)
    x = random.choice(np.array([-2, -1, -0.0, 0, 1, 2], np.float32), (2, 3, 9, 10))
    x[0, 0, :4] = -1
    x[0, 1, :4, :4] = -np.inf
    x[1, 0, 2, 2:6:3] = np.nan
    x[1, 1, 3, 3:5] = np.inf
    return x


def step_of(geometry):
    def step(x, weights):
        y = F.max_pool2d(F.relu(x.requires_grad_()), **geometry)
        return y, grad((y * weights[:, :, : y.shape[2], : y.shape[3]]).sum(), [x])[0]

    return step


def order(graph):
    return [node.op.name for node in graph.nodes if node.op.name in ("relu", "max_pool2d", "where", "window_put")]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("instruction_set", ["native", "scalar", "cuda-sim"])
def test_values_and_gradients_are_equal_with_ties_zeros_nan_and_infinities(geometry, instruction_set):
    x = special()
    weights = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    traced = trace(step_of(geometry), x, weights)
    graph = run_pipeline(traced.graph)
    assert order(graph) == ["max_pool2d", "relu", "where", "window_put"]
    expected = run_graph(traced.graph, traced.arrays)
    compiled = Compiled(graph, target_for(instruction_set)).run(traced.arrays, 1)
    for found, rtol in ((run_graph(graph, traced.arrays), 0), (compiled, 1e-6)):
        for got, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, right, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_gradients_are_those_of_torch(geometry):
    torch = pytest.importorskip("torch")
    x = special()
    x[~np.isfinite(x)] = 1
    weights = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    traced = trace(step_of(geometry), x, weights)
    got = Compiled(run_pipeline(traced.graph), target_for("native")).run(traced.arrays, 1)
    image = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(torch.relu(image), **geometry)
    (y * torch.tensor(weights)[:, :, : y.shape[2], : y.shape[3]]).sum().backward()
    for found, right in zip(got, (y.detach().numpy(), image.grad.numpy()), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)


def test_only_a_zero_may_have_another_sign():
    traced = trace(step_of({"kernel_size": 2}), special(), np.ones_like(special()))
    before = run_graph(traced.graph, traced.arrays)[0]
    after = run_graph(run_pipeline(traced.graph), traced.arrays)[0]
    differs = np.signbit(before) != np.signbit(after)
    assert np.all(after[differs] == 0) and np.all(before[differs] == 0)


def test_a_relu_whose_values_or_mask_others_need_stays_before_the_pooling():
    def leaves(x, _):
        y = F.relu(x)
        return F.max_pool2d(y, 2), y

    def is_pooled_twice(x, _):
        y = F.relu(x)
        return F.max_pool2d(y, 2), F.max_pool2d(y, 3)

    def positions_leave(x, _):
        return F.max_pool2d(F.relu(x), 2, return_indices=True)

    def gradient_between_leaves(x, weights):
        y = F.relu(x.requires_grad_())
        return grad((F.max_pool2d(y, 2) * weights[:, :, :4, :5]).sum(), [x, y])

    def mask_leaves(x, weights):
        y = F.relu(x.requires_grad_())
        pooled = F.max_pool2d(y, 2)
        return y <= 0, grad((pooled * weights[:, :, :4, :5]).sum(), [x])[0]

    def mask_chooses_elsewhere(x, weights):
        y = F.relu(x.requires_grad_())
        pooled = F.max_pool2d(y, 2)
        chosen = where(y <= 0, x.detach(), weights)
        return chosen, grad((pooled * weights[:, :, :4, :5]).sum(), [x])[0]

    steps = (leaves, is_pooled_twice, positions_leave, gradient_between_leaves, mask_leaves, mask_chooses_elsewhere)
    for step in steps:
        names = order(run_pipeline(trace(step, special(), special()).graph))
        assert names[:2] == ["relu", "max_pool2d"], step.__name__


def test_a_window_of_nothing_but_border_keeps_its_lowest_value():
    geometry = {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 5}
    traced = trace(lambda x: F.max_pool2d(F.relu(x), **geometry), np.ones((1, 1, 4, 4), np.float32))
    graph = run_pipeline(traced.graph)
    assert order(graph) == ["relu", "max_pool2d"]
    np.testing.assert_array_equal(run_graph(graph, traced.arrays)[0], run_graph(traced.graph, traced.arrays)[0])
