"""Training steps of three nets, traced: an MLP, a convnet, and a transformer block."""

from __future__ import annotations

import functools

import numpy as np

from pequegrad import nn, optim
from pequegrad.nn import functional
from pequegrad.ops.random import manual_seed
from tests.codegen.tracing import Traced, trace


def training_step(model, optimizer, x, y, loss_of) -> Traced:
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return trace(step, x, y)


def mlp(batch: int = 128) -> Traced:
    """784-200-10, relu, cross entropy, SGD."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    x = random.standard_normal((batch, 784)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return training_step(model, optimizer, x, random.integers(0, 10, batch), functional.cross_entropy)


def convnet(batch: int = 512) -> Traced:
    """Two 3x3 convolutions with relu and max-pooling, a linear layer, cross entropy, Adam."""
    manual_seed(0)
    random = np.random.default_rng(0)
    features = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)
    )
    model = nn.Sequential(features, nn.Flatten(), nn.Linear(400, 10))
    x = random.standard_normal((batch, 1, 28, 28)).astype(np.float32)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    return training_step(model, optimizer, x, random.integers(0, 10, batch), functional.cross_entropy)


class Block(nn.Module):
    """Pre-norm attention and MLP over (B, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, C = x.shape
        parts = self.qkv(self.norm1(x)).split(C, -1)
        q, k, v = (part.reshape(B, T, self.heads, C // self.heads).permute(0, 2, 1, 3) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.permute(0, 2, 1, 3).reshape(B, T, C))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


# With its usual eps of 1e-8 the first update is nearly the sign of the gradient, where sums in another order, as every
# processor's BLAS has its own, are no longer a rounding apart.
SMOOTH_ADAMW = functools.partial(optim.AdamW, eps=1e-3)


def transformer(
    layers: int = 1, batch: int = 4, length: int = 32, width: int = 64, make_optimizer=SMOOTH_ADAMW
) -> Traced:
    """Blocks over given embeddings, mean squared error, AdamW or another optimizer."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
    x, y = (random.standard_normal((batch, length, width)).astype(np.float32) for _ in range(2))
    return training_step(model, make_optimizer(model.parameters(), lr=0.01), x, y, functional.mse_loss)
