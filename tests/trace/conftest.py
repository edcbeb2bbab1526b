"""How tests compile: strictly, with the graph run node by node in NumPy, or through the C++ target."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn
from pequegrad.compiler import CompiledFunction, Options
from pequegrad.trace.step import interpret


@pytest.fixture(params=["numpy", "cpp"])
def compiled(request):
    """``compiled(function, **options)``: a strictly compiled function."""
    backend = interpret if request.param == "numpy" else None

    def compile_strictly(function, **options):
        return CompiledFunction(function, Options(strict=True, **options), backend)

    with pg.config(quiet=True):
        yield compile_strictly


@pytest.fixture
def traced():
    """As ``compiled``, in NumPy alone: for what is decided before any code is generated."""

    def compile_strictly(function, **options):
        return CompiledFunction(function, Options(strict=True, **options), interpret)

    return compile_strictly


@pytest.fixture
def batch():
    """Inputs and labels of one batch."""
    rng = np.random.default_rng(1)
    return pg.Tensor(rng.standard_normal((8, 5)).astype(np.float32)), pg.Tensor(rng.integers(0, 3, 8))


def make_model(seed=0):
    """Return a small MLP with reproducible parameters."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    for parameter in model.parameters():
        parameter.detach().copy_(pg.Tensor(rng.standard_normal(parameter.shape).astype(np.float32) * 0.3))
    return model


def make_step(model, opt, loss_function):
    """Return the usual training step."""

    def train_step(x, y):
        opt.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        opt.step()
        return loss

    return train_step


def state_of(model):
    """Return copies of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor.detach().numpy().copy() for tensor in tensors]


def assert_same_state(model, other, rtol=1e-5):
    """Fail unless two models have (nearly) the same parameters and buffers."""
    for mine, theirs in zip(state_of(model), state_of(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=1e-6)
