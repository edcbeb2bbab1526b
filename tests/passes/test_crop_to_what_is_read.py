"""Rows and columns that no window reaches are not computed, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import grad
from pequegrad.nn import functional as F
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.tracing import Traced, check_plan, trace


def made(graph, *names):
    """Heights and widths of the first results of ops, in order."""
    return [(node.op.name, node.outputs[0].shape[2:]) for node in graph.nodes if node.op.name in names]


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def two_layers(x, v, w):
    for weight in (v, w):
        weight.requires_grad_()
    hidden = F.max_pool2d(F.relu(F.conv2d(x, v)), 2)
    F.max_pool2d(F.relu(F.conv2d(hidden, w)), 2).sum().backward()
    return v.grad, w.grad


def test_a_rest_of_the_last_pooling_is_left_out_of_all_before_it_and_of_gradients():
    graph = run_pipeline(trace(two_layers, random(2, 1, 28, 28), random(4, 1, 3, 3), random(5, 4, 3, 3)).graph)
    assert made(graph, "conv2d", "max_pool2d", "window_put", "conv2d_grad_input", "relu", "where") == [
        ("conv2d", (24, 24)),
        ("max_pool2d", (12, 12)),
        ("relu", (12, 12)),
        ("conv2d", (10, 10)),
        ("max_pool2d", (5, 5)),
        ("relu", (5, 5)),
        ("where", (5, 5)),
        ("window_put", (10, 10)),
        ("conv2d_grad_input", (12, 12)),
        ("where", (12, 12)),
        ("window_put", (24, 24)),
    ]


def test_values_that_leave_or_that_others_read_whole_stay_whole():
    def leaves(x, w):
        y = F.conv2d(x, w)
        return F.max_pool2d(y, 2), y

    def is_normalized(x, w):
        y = F.conv2d(x, w)
        return F.max_pool2d(y - y.mean(), 2)

    def positions_leave(x, w):
        return F.max_pool2d(F.conv2d(x, w), 2, return_indices=True)

    def is_read_by_larger_windows(x, w):
        y = F.conv2d(x, w)
        return F.max_pool2d(y, 2), F.max_pool2d(y, 3, 1)

    arrays = random(2, 1, 9, 9), random(3, 1, 3, 3)
    for step in (leaves, is_normalized, positions_leave, is_read_by_larger_windows):
        assert made(run_pipeline(trace(step, *arrays).graph), "conv2d") == [("conv2d", (7, 7))]
    graph = run_pipeline(trace(lambda x, w: F.max_pool2d(F.conv2d(x, w), 2), *arrays).graph)
    assert made(graph, "conv2d") == [("conv2d", (6, 6))]


def test_gradients_that_others_read_whole_keep_their_zeros():
    def step(x, w):
        x.requires_grad_()
        F.max_pool2d(F.conv2d(x, w), 2).sum().backward()
        return x.grad

    traced = trace(step, random(2, 1, 10, 10), random(3, 1, 3, 3))
    graph = run_pipeline(traced.graph)
    (gradient,) = run_graph(graph, traced.arrays)
    np.testing.assert_allclose(gradient, run_graph(traced.graph, traced.arrays)[0], rtol=1e-5, atol=1e-5)


def test_what_is_left_out_reaches_no_gradient_even_where_it_is_not_finite():
    def step(x, w):
        w.requires_grad_()
        F.max_pool2d(F.relu(F.conv2d(x, w)), 2).sum().backward()
        return w.grad

    x = random(2, 1, 5, 5)
    x[0, 0, 4, 2] = np.inf
    traced = trace(step, x, random(3, 1, 3, 3))
    (gradient,) = run_graph(run_pipeline(traced.graph), traced.arrays)
    assert np.isfinite(gradient).all()


def test_zeros_end_where_a_pointwise_op_makes_something_of_them():
    def gradient(x, w):
        y = F.conv2d(x, w.requires_grad_())
        return grad(F.max_pool2d(y.tanh(), 2).sum(), [y])[0]

    def step(x, w):
        return gradient(x, w).sum((2, 3))

    def of_cosines(x, w):
        return gradient(x, w).cos().sum((2, 3))

    for function, size in ((step, (4, 4)), (of_cosines, (5, 5))):
        traced = trace(function, random(2, 1, 7, 7), random(3, 1, 3, 3))
        graph = run_pipeline(traced.graph)
        np.testing.assert_allclose(
            run_graph(graph, traced.arrays)[0], run_graph(traced.graph, traced.arrays)[0], rtol=1e-5
        )
        assert made(graph, "window_put") == [("window_put", size)]


POOLINGS = (
    ("max_pool2d", {"kernel_size": 2}),
    ("max_pool2d", {"kernel_size": 3}),
    ("max_pool2d", {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)}),
    ("max_pool2d", {"kernel_size": 2, "stride": 3, "dilation": 2}),
    ("max_pool2d", {"kernel_size": 2, "ceil_mode": True}),
    ("avg_pool2d", {"kernel_size": 2}),
    ("avg_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg_pool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", {"kernel_size": 2, "stride": 3}),
)
ACTIVATIONS = (F.relu, F.tanh, F.gelu, lambda x: F.leaky_relu(x, 0.1), lambda x: x * 0.5 + x.abs())


def drawn(seed):
    """A step of two or three layers drawn at random, its gradients with it, and its arrays."""
    rng = np.random.default_rng(seed)

    def chosen(items):
        return items[rng.integers(len(items))]

    channels = [int(n) for n in rng.integers(1, 5, 4)]
    layers = []
    for _ in range(rng.integers(2, 4)):
        kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
        how = {"stride": chosen((1, 1, 2)), "padding": chosen((0, 0, 1)), "dilation": chosen((1, 1, 2))}
        layers.append((kernel, how, chosen(ACTIVATIONS), chosen(POOLINGS), chosen((True, False))))
    height, width = (int(n) for n in rng.integers(19, 40, 2))
    weights = [random(channels[i + 1], channels[i], *layer[0]) for i, layer in enumerate(layers)]

    def step(x, *weights):
        for tensor in (x, *weights):
            tensor.requires_grad_()
        y = x
        for weight, (_, how, activation, (pool, windows), is_pooled) in zip(weights, layers):
            y = activation(F.conv2d(y, weight, **how))
            if is_pooled and min(y.shape[2:]) > 5:
                y = getattr(F, pool)(y, **windows)
            if min(y.shape[2:]) < 7:
                break
        (F.avg_pool2d(y, 2, 2) ** 2).mean().backward() if min(y.shape[2:]) > 1 else (y**2).mean().backward()
        return [t.grad for t in (x, *weights) if t.grad is not None]

    return step, (random(int(rng.integers(1, 20)), channels[0], height, width), *weights)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("instruction_set", ["native", "scalar", "cuda-sim"])
def test_random_nets_have_the_gradients_that_they_had(seed, instruction_set):
    step, arrays = drawn(seed)
    traced = trace(step, *arrays)
    graph = run_pipeline(traced.graph)
    expected = run_graph(traced.graph, traced.arrays)
    for found in (run_graph(graph, traced.arrays), Compiled(graph, target_for(instruction_set)).run(traced.arrays, 1)):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5 * np.abs(a).max())
    if instruction_set == "native":
        check_plan(Traced(graph, traced.arrays))
