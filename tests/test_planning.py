"""memory="small": the arena is smaller, the numbers are the same."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim, planning, targets
from pequegrad.nn import functional as F
from pequegrad.passes.recompute_values import recompute_values
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.nets import convnet, mlp, transformer
from tests.codegen.tracing import compare

RANDOM = np.random.default_rng(0)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Convolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


def perceptron(width):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU())


def training(layer, layers, x, memory, target="cpp", strict=True):
    """Return a compiled training step of a deep net, and the net."""
    pg.manual_seed(0)
    model = nn.Sequential(*(layer(x.shape[1]) for _ in range(layers)))
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    @pg.compile(strict=strict, memory=memory, target=target)
    def step(x):
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    return step, model


def values(shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


NETS = {
    "perceptron": (perceptron, values((256, 32))),
    "residual": (Residual, values((256, 32))),
    "convolution": (Convolution, values((8, 4, 12, 12))),
}


@pytest.mark.parametrize("target", ["cpp", "cuda"])
@pytest.mark.parametrize("net", NETS)
def test_the_arena_of_sixteen_layers_is_at_least_thirty_percent_smaller(net, target):
    layer, x = NETS[net]
    chosen = targets.get(target, architecture="sm_90") if target == "cuda" else targets.get(target)
    before, after = (training(layer, 16, x, memory)[0].lower(x, target=chosen) for memory in ("default", "small"))
    assert after.memory.arena_bytes <= 0.7 * before.memory.arena_bytes
    assert planning.plan_cost(after.plan) <= planning.MOST_COST * planning.plan_cost(before.plan)


@pytest.mark.parametrize("net", NETS)
def test_losses_and_updates_are_those_of_a_step_that_keeps_everything(net):
    layer, x = NETS[net]
    found = []
    for memory in ("default", "small"):
        step, model = training(layer, 6, x, memory)
        losses = [step(x).item() for _ in range(4)]
        found.append((losses, {name: value.numpy().copy() for name, value in model.state_dict().items()}))
    (losses, state), (again, state_again) = found
    assert np.allclose(losses, again, rtol=1e-6, atol=0)
    for name, value in state.items():
        assert np.abs(value - state_again[name]).max() <= 1e-6 * max(1.0, np.abs(value).max()), name


def test_a_step_with_small_memory_equals_the_eager_one():
    layer, x = NETS["residual"]
    step, model = training(layer, 6, x, "small")
    losses = [step(x).item() for _ in range(3)]
    eager, other = training(layer, 6, x, "default")
    with pg.stance("force_eager"):
        expected = [eager(x).item() for _ in range(3)]
    assert np.allclose(losses, expected, rtol=1e-5)
    for a, b in zip(model.parameters(), other.parameters()):
        assert np.allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("target", ["native", "cuda-sim"])
@pytest.mark.parametrize("make", [lambda: mlp(16), lambda: transformer(2, 2, 8, 16, optim.SGD), lambda: convnet(16)])
def test_kernels_that_run_again_are_right_on_both_targets(make, target):
    traced = make()
    graph = planning.optimize(traced.graph)
    for segments in (1, 2):
        step = Compiled(recompute_values(graph, segments), target_for(target))
        compare(run_graph(graph, traced.arrays), step.run(traced.arrays, 2), f"{segments} segments", 1e-5)


def test_two_nets_that_train_in_turns_read_the_weights_of_their_own_moment():
    def run(memory):
        pg.manual_seed(0)
        maker, judge = (nn.Sequential(*(perceptron(16) for _ in range(8))) for _ in range(2))
        first, second = optim.SGD(judge.parameters(), lr=0.05), optim.SGD(maker.parameters(), lr=0.05)

        @pg.compile(strict=True, memory=memory)
        def step(x):
            first.zero_grad()
            loss = (judge(x) - judge(maker(x).detach())).mean()
            loss.backward()
            first.step()
            second.zero_grad()
            other = (judge(maker(x)) ** 2).mean()
            other.backward()
            second.step()
            return loss, other

        x = np.linspace(-1, 1, 128 * 16, dtype=np.float32).reshape(128, 16)
        arena = step.lower(x).memory.arena_bytes
        losses = [part.item() for _ in range(4) for part in step(x)]
        return arena, losses, [p.detach().numpy().copy() for net in (maker, judge) for p in net.parameters()]

    before, after = run("default"), run("small")
    assert after[0] < before[0]
    assert np.allclose(before[1], after[1], rtol=1e-6)
    compare(before[2], after[2], "parameters", 1e-6)
