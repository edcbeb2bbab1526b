"""Gradients of norms: what a sum waits for is made where it is summed, from values that are written anyway."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import nn, optim
from pequegrad.codegen.leaving import leaving_values
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Conv2d, Row, Store
from pequegrad.nn import functional as F
from pequegrad.ops.random import manual_seed
from tests.codegen.nets import training_step
from tests.codegen.test_blocks import CPP, optimized
from tests.codegen.tracing import check_plan, trace

NETS = {
    "BatchNorm between convolutions": lambda: (
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5),
    ),
    "LayerNorm between products": lambda: (
        nn.Flatten(), nn.Linear(288, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 24), nn.LayerNorm(24),
        nn.Linear(24, 5),
    ),
}  # fmt: skip


def step_of(name):
    manual_seed(0)
    model = nn.Sequential(*NETS[name]())
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 2, 12, 12)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return optimized(training_step(model, optimizer, x, random.integers(0, 5, 4), F.cross_entropy))


@pytest.mark.parametrize("name", NETS)
def test_a_product_or_convolution_writes_one_value_for_the_norm_after_it(name):
    plan = check_plan(step_of(name))
    for kernel in plan.kernels:
        if isinstance(kernel, Contract | Conv2d):
            wide = [
                s for s in kernel.epilogue if isinstance(s, Store) and plan.buffers[s.access.buffer].scope == "arena"
            ]
            # The other one may be a mask, or what the next gradient reads.
            assert len(wide) <= 2, kernel.origin
    gradients = [k for k in plan.kernels if isinstance(k, Conv2d) and k.kind == "grad_input"]
    assert all(sum(isinstance(s, Store) for s in k.epilogue) == 1 for k in gradients)


def test_what_another_product_reads_is_not_left():
    x = np.ones((16, 16), np.float32)

    def step(x, w):
        hidden = x @ w
        scaled = hidden * w
        return scaled @ w, scaled.sum(), hidden.sum()

    traced = trace(step, x, x)
    assert not leaving_values(traced.graph)
    check_plan(traced)


def test_what_is_only_summed_is_left_where_its_operand_is_written_anyway():
    x = np.arange(256, dtype=np.float32).reshape(16, 16) / 256

    def alone(x, w):
        return ((x @ w) * w).sum()

    def beside(x, w):
        hidden = x @ w
        return (hidden * w).sum(), hidden.sum()

    def beside_what_inputs_make(x, w):
        return ((x @ w) * (1 - w)).sum()

    assert not leaving_values(trace(alone, x, x).graph)
    assert not leaving_values(trace(beside_what_inputs_make, x, x).graph)
    traced = trace(beside, x, x)
    assert [value.shape for value in leaving_values(traced.graph)] == [(16, 16)]
    plan = lower(traced.graph, CPP)
    (product,) = (kernel for kernel in plan.kernels if isinstance(kernel, Contract))
    assert sum(isinstance(s, Store) for s in product.epilogue) == 1
    assert any(isinstance(kernel, Row) and "mul" in kernel.origin.ops for kernel in plan.kernels)
    check_plan(traced)


def test_what_is_made_of_a_product_for_it_alone_is_made_beside_it():
    """Left to the sums, the second product and its sum with the first would both be read, where their sum is one value."""
    x = np.arange(256, dtype=np.float32).reshape(16, 16) / 256

    def step(x, w):
        hidden = x @ w
        both = hidden + hidden @ x
        return (both * 3).sum(), hidden.sum()

    traced = trace(step, x, x)
    assert not leaving_values(traced.graph)
    check_plan(traced)


def test_the_product_before_a_binary_cross_entropy_writes_its_terms_and_its_gradient_alone():
    manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 48))
    random = np.random.default_rng(0)
    x, target = random.standard_normal((16, 32)), random.uniform(0, 1, (16, 48))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    traced = optimized(
        training_step(
            model, optimizer, x.astype(np.float32), target.astype(np.float32), F.binary_cross_entropy_with_logits
        )
    )
    plan = check_plan(traced)
    # Samples may lie innermost, the product then being that of the transposed operands.
    (product,) = (k for k in plan.kernels if isinstance(k, Contract) and ({k.m, k.n}, k.k) == ({16, 48}, 24))
    assert sum(isinstance(s, Store) for s in product.epilogue) == 2
