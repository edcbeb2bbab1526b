"""Groups that are alike have their kernel built once, and every group gets the kernel that building it would give."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import nn, optim
from pequegrad.codegen import twins
from pequegrad.codegen.lower import lower
from pequegrad.codegen.text import format_plan
from pequegrad.dtypes import float64
from pequegrad.nn import functional as F
from tests.codegen.nets import training_step
from tests.codegen.random_graphs import random_program, updates_in_parts
from tests.codegen.test_blocks import CPP, optimized
from tests.codegen.tracing import Program


@pytest.fixture
def built(monkeypatch):
    """The names of the kernels that are built."""
    names = []

    class Counting(twins.KernelBuilder):
        def build(self):
            names.append(self.name)
            return super().build()

    monkeypatch.setattr(twins, "KernelBuilder", Counting)
    return names


def step_of(layers: int):
    body = [part for _ in range(layers) for part in (nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*body, nn.Linear(16, 10))
    random = np.random.default_rng(0)
    x, y = random.standard_normal((64, 16)).astype(np.float32), random.integers(0, 10, 64)
    return optimized(training_step(model, optim.Adam(model.parameters(), lr=0.1), x, y, F.cross_entropy))


def almost_alike():
    """A graph of pairs of kernels that differ in one number, or in what is the same value."""
    p = Program()
    x, y, *states = [p.input(role) for role in ("argument", "argument", "state", "state")]
    for value, descending, zero in ((x, False, 0.0), (y, True, -0.0)):
        p.result(p.apply("sort", value, dim=0, descending=descending))
        p.result(p.apply("mul", value, p.apply("full", shape=(), value=zero, dtype=float64)))
    p.result(p.apply("matmul", x, y))
    p.result(p.apply("matmul", y, y))
    for state, read in ((states[0], states[0]), (states[1], x)):
        p.update(state, p.apply("tanh", read))
    return p.traced().graph


def test_more_equal_layers_are_not_more_kernels_to_build(built):
    plans, counts = [], []
    for layers in (3, 6):
        built.clear()
        plans.append(lower(step_of(layers).graph, CPP))
        counts.append(len(built))
    assert len(plans[1].kernels) > len(plans[0].kernels) > counts[0]
    assert counts[0] == counts[1]


def test_a_kernel_that_is_repeated_is_the_one_that_would_be_built(monkeypatch):
    graphs = [random_program(seed).graph for seed in range(0, 40, 2)]
    graphs += [updates_in_parts(seed).graph for seed in range(6)]
    graphs += [step_of(3).graph, almost_alike()]
    repeated = [format_plan(lower(graph, CPP)) for graph in graphs]
    monkeypatch.setattr(twins._Likeness, "key", lambda *_: None)
    for number, (graph, plan) in enumerate(zip(graphs, repeated, strict=True)):
        assert plan == format_plan(lower(graph, CPP)), number
