"""Compiled training steps do what the same steps do eagerly: parameters, optimizer state and losses."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import nn, optim


def mlp():
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 10),
    )  # fmt: skip


# No bias before a norm, and none for keys: its gradient is zero but for rounding, which Adam blows up to a full step.
def normalized():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.LayerNorm(196), nn.Dropout(0.3), nn.Linear(196, 10),
    )  # fmt: skip


class Attention(nn.Module):
    """A transformer block over rows of the image, and a classifier."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(28), nn.LayerNorm(28)
        self.qkv, self.project = nn.Linear(28, 84, bias=False), nn.Linear(28, 28)
        self.up, self.down, self.head = nn.Linear(28, 56), nn.Linear(56, 28), nn.Linear(28, 10)

    def forward(self, x):
        x = x.reshape(x.shape[0], 28, 28)
        q, k, v = self.qkv(self.norm1(x)).reshape(x.shape[0], 28, 3, 4, 7).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.permute(0, 2, 1, 3).reshape(x.shape[0], 28, 28))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(x.mean(1))


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=1e-3, weight_decay=0.05),
}
CASES = [
    (mlp, "sgd", (784,)), (mlp, "adamw", (784,)), (convnet, "adam", (1, 28, 28)), (convnet, "momentum", (1, 28, 28)),
    (normalized, "adam", (1, 28, 28)), (Attention, "adamw", (1, 28, 28)),
]  # fmt: skip


def train(make, optimizer, shape, dtype, steps, is_compiled, batch=16):
    """Return the losses, the model's state and the optimizer's state after some steps on seeded data."""
    pg.manual_seed(7)
    model = make().to(dtype)
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        return loss

    run = pg.compile(step, strict=True) if is_compiled else step
    random = np.random.default_rng(3)
    losses = []
    for _ in range(steps):
        x = pg.Tensor(random.standard_normal((batch, *shape)), dtype=dtype)
        y = pg.Tensor(random.integers(0, 10, batch))
        losses.append(run(x, y))
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for number, entry in copy.copy(opt.state_dict()["state"]).items():
        state |= {f"{number}.{key}": np.array(value) for key, value in entry.items()}
    return np.array([loss.item() for loss in losses]), state


@pytest.mark.parametrize(("make", "optimizer", "shape"), CASES)
def test_fifty_float64_steps_equal_eager_ones(make, optimizer, shape):
    eager_losses, eager_state = train(make, optimizer, shape, pg.float64, 50, False)
    losses, state = train(make, optimizer, shape, pg.float64, 50, True)
    np.testing.assert_allclose(losses, eager_losses, rtol=0, atol=1e-9)
    assert losses[-1] != losses[0]
    for name, expected in eager_state.items():
        np.testing.assert_allclose(state[name], expected, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("make", "optimizer", "shape"), CASES)
def test_one_float32_step_equals_the_eager_one_in_norm(make, optimizer, shape):
    eager_losses, eager_state = train(make, optimizer, shape, pg.float32, 1, False)
    losses, state = train(make, optimizer, shape, pg.float32, 1, True)
    np.testing.assert_allclose(losses, eager_losses, rtol=1e-5)
    for name, expected in eager_state.items():
        error = np.linalg.norm((state[name] - expected).ravel().astype(np.float64))
        assert error <= 1e-5 * np.linalg.norm(expected.ravel().astype(np.float64)) + 1e-12, (name, error)
