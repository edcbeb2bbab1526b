"""GPT-2 in several sizes: the record that all frameworks build, its net for those that speak torch's names, and JAX's.

Invariant: the record names no framework; `weights` is in the order of `parameters()` of `make_gpt`'s module, and
`forward_in_jax` reads them in it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .workloads import AdamW


@dataclass(frozen=True, slots=True)
class Gpt:
    """One training step of GPT-2 (Radford et al. 2019), its head tied to the token table; see `Workload`."""

    name: str
    title: str
    depth: int
    width: int
    heads: int
    length: int
    vocabulary: int
    batch: int
    optimizer: AdamW = field(default_factory=lambda: AdamW(3e-4))
    precision: str = "fp32"
    """Of products: "fp32" or "bf16"."""
    seed: int = 0
    loss: str = "cross_entropy"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (T,)."""
        return (self.length,)

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each parameter, in order."""
        C = self.width
        block = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)]
        return [(self.vocabulary, C), (self.length, C), *(block * self.depth), (C,), (C,)]

    def weights(self) -> list[np.ndarray]:
        """Return float32 parameters: tables and matrices normal with 0.02, scales 1, biases 0."""
        return list(_weights(self))

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ``count`` batches (tokens int64 (B, T), next tokens int64 (B * T,)), from the seed."""
        random = np.random.default_rng([self.seed, 2])
        rows = [random.integers(0, self.vocabulary, (self.batch, self.length + 1)) for _ in range(count)]
        return [(np.ascontiguousarray(row[:, :-1]), np.ascontiguousarray(row[:, 1:]).reshape(-1)) for row in rows]

    def parameter_count(self) -> int:
        """Number of trained floats."""
        return sum(math.prod(shape) for shape in self.shapes())

    def flops(self) -> int:
        """Floating-point operations of the products in one step, forward and backward; attention counted in full,
        without use of the mask, as is usual (Chowdhery et al. 2022, appendix B)."""
        B, T, C = self.batch, self.length, self.width
        products = self.depth * 2 * B * T * 12 * C * C + 2 * B * T * C * self.vocabulary
        return 3 * (products + self.depth * 4 * B * T * T * C)


@functools.lru_cache(maxsize=1)
def _weights(workload: Gpt) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng([workload.seed, 1])
    arrays = []
    for i, shape in enumerate(workload.shapes()):
        if len(shape) == 2:
            arrays.append(random.standard_normal(shape, dtype=np.float32) * np.float32(0.02))
            continue
        # The vectors of a block: scale and bias of a norm, or the bias of a product.
        last = len(workload.shapes()) - 2
        is_scale = i == last or (i < last and (i - 2) % 12 in (0, 6))
        arrays.append(np.full(shape, float(is_scale), np.float32))
    return tuple(arrays)


def make_gpt(framework: Any, workload: Gpt) -> Any:
    """Return the net, a Module of torch or of pequegrad: tokens (B, T) → logits (B * T, V)."""
    nn, functional = framework.nn, framework.nn.functional
    C, heads = workload.width, workload.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.qkv, self.mix = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.norm2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            parts = self.qkv(self.norm1(x)).split(C, -1)
            q, k, v = (part.reshape(B, T, heads, C // heads).permute(0, 2, 1, 3) for part in parts)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.mix(mixed.permute(0, 2, 1, 3).reshape(B, T, C))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(workload.vocabulary, C)
            self.position = nn.Embedding(workload.length, C)
            self.blocks = nn.Sequential(*(Block() for _ in range(workload.depth)))
            self.norm = nn.LayerNorm(C)

        def forward(self, tokens: Any) -> Any:
            x = self.blocks(self.token(tokens) + self.position.weight)
            logits = functional.linear(self.norm(x), self.token.weight)
            return logits.reshape(-1, workload.vocabulary)

    return Net()


def forward_in_jax(jax: Any, workload: Gpt, parameters: list[Any], tokens: Any, is_half: bool) -> Any:
    """Return the logits (B * T, V) in float32; ``is_half``: parameters and activations in bfloat16, not norms."""
    jnp = jax.numpy
    dtype = jnp.bfloat16 if is_half else jnp.float32
    rest = iter(parameters)

    def take() -> Any:
        return next(rest).astype(dtype)

    def norm(x: Any) -> Any:
        scale, bias = next(rest), next(rest)
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias).astype(dtype)

    def linear(x: Any) -> Any:
        weight, bias = take(), take()
        return x @ weight.T + bias

    B, T = tokens.shape
    token, position = take(), take()
    x = token[tokens] + position
    for _ in range(workload.depth):
        q, k, v = jnp.split(linear(norm(x)).reshape(B, T, 3 * workload.heads, -1), 3, axis=2)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.reshape(B, T, -1))
        x = x + linear(jax.nn.gelu(linear(norm(x)), approximate=True))
    return (norm(x) @ token.T).reshape(B * T, -1).astype(jnp.float32)
