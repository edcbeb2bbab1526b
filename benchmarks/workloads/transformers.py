"""GPT-2 in several sizes (Radford et al. 2019), its head tied to the token table.

Invariant: `Gpt.weights` is in the order of torch's parameters(), and `loss_in_jax` takes them in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Workload, loss_in_jax


@dataclass(frozen=True, kw_only=True)
class Gpt(Workload):
    """Tokens (B, T) to the mean cross entropy of the next ones."""

    depth: int
    width: int
    heads: int
    length: int
    vocabulary: int

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each parameter, in order."""
        C = self.width
        block = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (4 * C, C), (4 * C,), (C, 4 * C), (C,)]
        return [(self.vocabulary, C), (self.length, C), *(block * self.depth), (C,), (C,)]

    def weights(self) -> Iterator[np.ndarray]:
        """Yield tables and matrices, normal with 0.02; scales 1 and biases 0."""
        random = np.random.default_rng([self.seed, 1])
        shapes = self.shapes()
        last = len(shapes) - 2
        for i, shape in enumerate(shapes):
            if len(shape) == 2:
                yield random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            else:
                # Of the twelve parameters of a block, the first and the seventh are scales of norms.
                is_scale = i == last or (i < last and (i - 2) % 12 in (0, 6))
                yield np.full(shape, float(is_scale), np.float32)

    def make_batch(self, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return tokens (B, T) and the next tokens (B * T,)."""
        tokens = random.integers(0, self.vocabulary, (self.batch, self.length + 1))
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]).reshape(-1)

    def parameter_count(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes())

    def flops(self) -> int:
        """Attention is counted in full, without use of the mask, as is usual (Chowdhery et al. 2022, appendix B)."""
        B, T, C = self.batch, self.length, self.width
        products = self.depth * 2 * B * T * 12 * C * C + 2 * B * T * C * self.vocabulary
        return 3 * (products + self.depth * 4 * B * T * T * C)

    def module(self, framework: Any) -> Any:
        nn, functional = framework.nn, framework.nn.functional
        C, T, heads, vocabulary = self.width, self.length, self.heads, self.vocabulary

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
            def __init__(self, depth: int) -> None:
                super().__init__()
                self.token, self.position = nn.Embedding(vocabulary, C), nn.Embedding(T, C)
                self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
                self.norm = nn.LayerNorm(C)

            def forward(self, tokens: Any, targets: Any) -> Any:
                x = self.blocks(self.token(tokens) + self.position.weight)
                logits = functional.linear(self.norm(x), self.token.weight)
                return functional.cross_entropy(logits.reshape(-1, vocabulary), targets)

        return Net(self.depth)

    def jax_variants(self) -> tuple[str, ...]:
        """Attention as XLA writes it, or by cuDNN's kernel, which takes half precision on a GPU alone."""
        return ("default", "cudnn") if self.precision == "bf16" else ("default",)

    def loss_in_jax(
        self, jax: Any, parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...], variant: str
    ) -> tuple[Any, list[Any]]:
        jnp = jax.numpy
        dtype = jnp.bfloat16 if self.precision == "bf16" else jnp.float32
        implementation = "cudnn" if variant == "cudnn" else None
        rest = iter(parameters)

        def norm(x: Any) -> Any:
            scale, bias = next(rest), next(rest)
            x = x.astype(jnp.float32)
            centred = x - x.mean(-1, keepdims=True)
            return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias).astype(dtype)

        def linear(x: Any) -> Any:
            weight, bias = next(rest).astype(dtype), next(rest).astype(dtype)
            return x @ weight.T + bias

        tokens, targets = batch
        B, T = tokens.shape
        token, position = next(rest).astype(dtype), next(rest).astype(dtype)
        x = token[tokens] + position
        for _ in range(self.depth):
            q, k, v = jnp.split(linear(norm(x)).reshape(B, T, 3 * self.heads, -1), 3, axis=2)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
            x = x + linear(mixed.reshape(B, T, -1))
            x = x + linear(jax.nn.gelu(linear(norm(x)), approximate=True))
        logits = (norm(x) @ token.T).reshape(B * T, -1).astype(jnp.float32)
        return loss_in_jax(jax, "cross_entropy", logits, targets), []
