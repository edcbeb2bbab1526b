"""State is named by where it lies: in the graph, and in the emitted source."""

from __future__ import annotations

import re

import numpy as np

import pequegrad as pg
from pequegrad import nn
from pequegrad.codegen.text import format_plan
from tests.trace.conftest import make_model, make_step


def lowered(function, *arguments):
    with pg.config(quiet=True):
        return pg.compile(function).lower(*arguments)


def names_of(step, role="state"):
    return [item.name for item in step.graph.inputs if item.role == role]


def test_parameters_and_optimizer_state_are_named_by_their_place(batch):
    model = make_model()
    opt = pg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = lowered(make_step(model, opt, nn.CrossEntropyLoss()), *batch)
    parameters = [f"sequential_{i}_{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert set(names_of(step)) == {*parameters, *(f"{name}_momentum_buffer" for name in parameters)}
    assert "update new_sequential_0_weight_momentum_buffer" in str(step.graph)
    slot = names_of(step).index("sequential_2_bias") + 2
    assert re.search(rf"^// step\.argument {slot}: state sequential_2_bias, float32\[3\]$", step.source, re.MULTILINE)


def test_buffers_are_named_and_a_module_within_a_module_by_the_outermost():
    class TinyNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.BatchNorm1d(3)])

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    net = TinyNet()
    names = names_of(lowered(lambda x: net(x), pg.ones((4, 3))))
    assert {"tiny_net_blocks_0_weight", "tiny_net_blocks_1_running_mean"} <= set(names)


def test_two_modules_of_a_class_and_tied_weights_have_names_of_their_own():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    names = names_of(lowered(lambda x: b(a(x)), pg.ones((4, 3))))
    assert names == ["linear_weight", "linear_weight_1"]
    b.weight = a.weight
    assert names_of(lowered(lambda x: b(a(x)), pg.ones((4, 3)))) == ["linear_weight"]


def test_a_carried_gradient_is_named_by_its_parameter():
    layer = nn.Linear(3, 2)

    def step(x):
        layer(x).sum().backward()

    step(pg.ones((4, 3)))
    assert {"linear_weight_grad", "linear_bias_grad"} <= set(names_of(lowered(step, pg.ones((4, 3)))))


def test_tensors_of_an_optimizer_alone_are_numbered_and_others_have_plain_names():
    weight, other = pg.ones((3,), requires_grad=True), pg.ones((3,))
    opt = pg.optim.Adagrad([weight], lr=0.1)

    def step(x):
        (weight * other * x).sum().backward()
        opt.step()

    names = names_of(lowered(step, pg.ones((3,))))
    assert {"parameter0", "parameter0_sum"} <= set(names)
    assert any(re.fullmatch(r"state\d+", name) for name in names)


def test_names_are_identifiers_and_unique_whatever_the_modules_are_called():
    odd = type("Größe", (nn.Linear,), {})
    model = nn.Sequential()
    model.add_module("a-b", odd(3, 3))
    model.add_module("a b", odd(3, 3))
    names = names_of(lowered(lambda x: model(x), pg.ones((4, 3))))
    assert len(set(names)) == len(names) == 4
    assert all(name.isascii() and name.isidentifier() for name in names)


def test_a_key_of_several_lines_stays_within_its_comment():
    step = lowered(lambda named: named["a\nb"] + 1, {"a\nb": pg.ones((4,))})
    for line in step.source.splitlines():
        assert "step.argument 0" not in line or line.startswith("//")
    assert np.array_equal(
        pg.compile(lambda named: named["a\nb"] + 1, strict=True)({"a\nb": pg.ones((4,))}), np.full(4, 2)
    )


def test_equal_steps_of_equal_models_have_equal_plans(batch):
    def text():
        model = make_model()
        opt = pg.optim.Adam(model.parameters())
        return format_plan(lowered(make_step(model, opt, nn.CrossEntropyLoss()), *batch).plan)

    assert text() == text()
