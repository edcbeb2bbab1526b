"""Blocks with convolutions and windows have their samples innermost: where they may, and to the same result."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pequegrad import nn, optim, targets
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Conv2d, Map, Row, Store, Window
from pequegrad.codegen.schedule import MODEL, Choices
from pequegrad.codegen.text import format_plan
from pequegrad.nn import functional as F
from pequegrad.ops.creation import iota
from pequegrad.ops.random import manual_seed
from pequegrad.records import replace
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.nets import convnet, training_step
from tests.codegen.test_blocks import CPP, WITHOUT, optimized
from tests.codegen.tracing import check_plan, compare

SCALAR = targets.get("cpp", instruction_set="scalar")


class Scaled(nn.Module):
    """A parameter per channel, and pointwise work between."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(np.linspace(0.5, 1.5, channels, dtype=np.float32).reshape(channels, 1, 1))

    def forward(self, x):
        return (x * self.scale).tanh()


class Numbered(nn.Module):
    """Every place times the number of its column, or of its channel."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return x * iota((x.shape[self.dim], *(1,) * (-1 - self.dim)), 0).to(x.dtype)


NETS = {
    "border, groups and dilation": lambda: (
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4), Scaled(12),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 8 * 8, 5),
    ),
    "windows that meet": lambda: (
        nn.Conv2d(2, 6, (3, 2), stride=(2, 1)), nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(),
        nn.AvgPool2d(3, stride=1, padding=1), nn.Flatten(), nn.Linear(6 * 4 * 8, 5),
    ),
    "a convolution at stride 2 after one at stride 1": lambda: (
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(), nn.Flatten(),
        nn.Linear(8 * 3 * 3, 5),
    ),
    "norms over a sample": lambda: (
        nn.Conv2d(2, 8, 5), nn.LayerNorm((8, 12, 12)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(8 * 36),
        nn.Linear(8 * 36, 5),
    ),
    "numbers of channels": lambda: (
        nn.Conv2d(2, 6, 3), Numbered(-3), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 144, 5),
    ),
    "numbers of columns": lambda: (
        nn.Conv2d(2, 6, 3), Numbered(-1), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 144, 5),
    ),
    "no head": lambda: (nn.Conv2d(2, 4, 1), nn.SiLU(), nn.Conv2d(4, 5, 16), nn.Flatten()),
}  # fmt: skip


class Shortcut(nn.Module):
    """Two convolutions with BatchNorm, at stride 2, and a 1x1 convolution around them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.around = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x):
        inner = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return (inner + self.around(x)).relu()


NETS["statistics over the batch"] = lambda: (
    nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Shortcut(8, 16), nn.AvgPool2d(4), nn.Flatten(),
    nn.Linear(16 * 4, 5),
)  # fmt: skip
NETS["as many channels as samples"] = lambda: (
    nn.Conv2d(2, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32),
    nn.Flatten(), nn.Linear(32 * 25, 5),
)  # fmt: skip
# A product that draws numbers has no axis of samples; it stopped the whole step with a KeyError.
NETS["numbers drawn behind the last convolution"] = lambda: (
    nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 40), nn.ReLU(), nn.Linear(40, 40), nn.Dropout(0.5),
    nn.Linear(40, 5),
)  # fmt: skip
STAYING = {
    "numbers drawn between": lambda: (
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 144, 5),
    ),
}  # fmt: skip


def step_of(name, batch):
    manual_seed(0)
    model = nn.Sequential(*(NETS.get(name) or STAYING[name])())
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, 2, 16, 16)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimized(training_step(model, optimizer, x, random.integers(0, 5, batch), F.cross_entropy))


def blocked(plan):
    return [kernel for phase in plan.phases if phase.blocks is not None for kernel in phase.kernels]


def test_convolutions_pooling_and_what_lies_between_have_their_samples_innermost():
    plan = lower(optimized(convnet(512)).graph, CPP, 2)
    kernels = blocked(plan)
    convolutions = [kernel for kernel in kernels if isinstance(kernel, Conv2d)]
    assert len(convolutions) == 5
    assert all(kernel.shape.N == 1 for kernel in convolutions)
    assert {kernel.shape.lanes for kernel in kernels if isinstance(kernel, Conv2d | Window)} == {32}
    # The images, which the caller gives, are copied once for the forward pass and the weight's gradient; relu follows pooling.
    assert [kernel.origin.ops for kernel in kernels if isinstance(kernel, Map)] == [("copy",), *[("relu", "le")] * 2]
    softmax = next(kernel for kernel in kernels if isinstance(kernel, Row) and len(kernel.stages) > 1)
    assert softmax.lanes_are_rows
    assert {kernel.n for kernel in kernels if isinstance(kernel, Contract)} == {32, 400}


def test_what_no_vector_gains_from_stays():
    graph = optimized(convnet(512)).graph
    assert any(kernel.shape.N > 1 for kernel in blocked(lower(graph, SCALAR, 2)) if isinstance(kernel, Conv2d))


@pytest.mark.parametrize("name", NETS)
def test_plans_of_many_nets_mean_the_same(name):
    kernels = blocked(check_plan(step_of(name, 512)))
    assert all(k.shape.lanes > 1 for k in kernels if isinstance(k, Conv2d | Window))


@pytest.mark.parametrize("batch", [512, 400])
@pytest.mark.parametrize("name", NETS)
def test_steps_of_many_nets_agree_with_those_without_blocks(name, batch):
    traced = step_of(name, batch)
    expected, found = (Compiled(traced.graph, target).run(traced.arrays, 2) for target in (WITHOUT, CPP))
    compare(expected, found, name, rtol=2e-4)


@pytest.mark.parametrize("width", ["x86-64-v3", "x86-64-v2"])
def test_narrower_vectors_agree(width):
    traced = step_of("border, groups and dilation", 256)
    narrow = target_for(width)
    expected = Compiled(traced.graph, replace(narrow, has_blocks=False)).run(traced.arrays, 2)
    compare(expected, Compiled(traced.graph, narrow).run(traced.arrays, 2), width, rtol=2e-4)


def side_by_side(plan):
    return [k for k in plan.kernels if isinstance(k, Conv2d | Window) and k.shape.lanes > 1]


@pytest.mark.parametrize("name", NETS)
def test_what_fits_in_a_cache_has_its_samples_innermost_too(name):
    plan = check_plan(step_of(name, 32))
    assert not blocked(plan)
    assert side_by_side(plan)


@pytest.mark.parametrize("name", [*NETS, *STAYING])
def test_whole_steps_with_samples_innermost_agree(name):
    traced = step_of(name, 32)
    expected, found = (Compiled(traced.graph, target).run(traced.arrays, 2) for target in (WITHOUT, CPP))
    compare(expected, found, name, rtol=2e-4)


@pytest.mark.parametrize("name", STAYING)
def test_convolutions_that_draw_numbers_stay(name):
    assert not side_by_side(check_plan(step_of(name, 32)))


def test_images_of_which_a_row_leaves_the_cache_stay():
    manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 62, 5))
    x = np.zeros((32, 64, 8, 64), np.float32)
    traced = training_step(model, optim.SGD(model.parameters(), lr=0.1), x, np.zeros(32, np.int64), F.cross_entropy)
    assert not side_by_side(lower(optimized(traced).graph, CPP, 2))


def perceptron(batch, sizes, *between):
    manual_seed(0)
    layers = [
        layer for fan_in, fan_out in itertools.pairwise(sizes) for layer in (nn.Linear(fan_in, fan_out), *between)
    ]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 5))
    x = np.random.default_rng(0).standard_normal((batch, sizes[0])).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimized(training_step(model, optimizer, x, np.arange(batch) % 5, F.cross_entropy))


PERCEPTRONS = {
    "activations": lambda: perceptron(32, (70, 120, 90), nn.GELU()),
    "norms over a sample": lambda: perceptron(32, (120, 120, 120), nn.LayerNorm(120), nn.ReLU()),
    "statistics over the batch": lambda: perceptron(32, (120, 120, 120), nn.BatchNorm1d(120), nn.Tanh()),
    "as many features as samples": lambda: perceptron(32, (32, 32, 48), nn.ReLU()),
    "twice as many features as samples": lambda: perceptron(32, (64, 64, 64), nn.Tanh()),
}
OUTERMOST = Choices(samples_last=False)


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_products_of_few_samples_have_them_innermost_and_agree(name):
    traced = PERCEPTRONS[name]()
    plan = check_plan(traced)
    assert format_plan(plan) != format_plan(check_plan(traced, choices=OUTERMOST))
    expected, found = (
        Compiled(traced.graph, CPP, choices=choices).run(traced.arrays, 2) for choices in (OUTERMOST, MODEL)
    )
    compare(expected, found, name, rtol=1e-5)


def test_weights_are_read_where_they_lie():
    plan = lower(PERCEPTRONS["activations"]().graph, CPP, 2)
    forward = [kernel for kernel in plan.kernels if isinstance(kernel, Contract)][:3]
    assert [(kernel.m, kernel.n, kernel.k) for kernel in forward] == [(120, 32, 70), (90, 32, 120), (5, 32, 90)]
    assert all(kernel.a.strides == (kernel.k, 1) for kernel in forward)
    assert all(kernel.b.strides == (32, 1) for kernel in forward[1:])


def test_a_loss_over_every_feature_is_summed_sample_by_sample():
    """Cut into 64 chunks, of two samples each, it kept all that it read with the samples outermost."""
    manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 784))
    x, y = (np.random.default_rng(0).standard_normal((128, n)).astype(np.float32) for n in (400, 784))
    traced = optimized(training_step(model, optim.SGD(model.parameters(), lr=0.1), x, y, F.mse_loss))
    products = [kernel for kernel in check_plan(traced).kernels if isinstance(kernel, Contract)]
    assert {kernel.n for kernel in products} == {128, 400, 600}
    stores = [s.access for kernel in products for s in kernel.epilogue if isinstance(s, Store)]
    assert all(access.strides[-1] == 1 for access in stores)


@pytest.mark.parametrize(
    "batch, between", [(30, ()), (2048, ()), (32, (nn.Dropout(0.3),))], ids=["odd", "many", "numbers drawn"]
)
def test_products_that_would_not_gain_stay(batch, between):
    traced = perceptron(batch, (32, 32, 32), *between, nn.ReLU())
    assert format_plan(lower(traced.graph, CPP, 2)) == format_plan(lower(traced.graph, CPP, 2, choices=OUTERMOST))
