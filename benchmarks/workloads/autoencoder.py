"""A variational autoencoder of images in [0, 1] (Kingma and Welling 2014).

Invariant: the noise is part of the batch, so that every framework samples the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Workload, uniform


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Workload):
    """inputs → hidden → mean and log-variance of ``codes`` numbers → hidden → inputs."""

    inputs: int
    hidden: int
    codes: int

    def sizes(self) -> list[tuple[int, int]]:
        """Return (inputs, outputs) of the four linear layers."""
        return [
            (self.inputs, self.hidden),
            (self.hidden, 2 * self.codes),
            (self.codes, self.hidden),
            (self.hidden, self.inputs),
        ]

    def weights(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng([self.seed, 1])
        for inputs, outputs in self.sizes():
            yield uniform(random, inputs, (outputs, inputs))
            yield uniform(random, inputs, (outputs,))

    def make_batch(self, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return images (B, inputs) and noise (B, codes)."""
        images = random.uniform(0, 1, (self.batch, self.inputs)).astype(np.float32)
        return images, random.standard_normal((self.batch, self.codes), dtype=np.float32)

    def flops(self) -> int:
        """The images need no gradient."""
        products = [2 * self.batch * inputs * outputs for inputs, outputs in self.sizes()]
        return 3 * sum(products) - products[0]

    def module(self, framework: Any) -> Any:
        nn, functional = framework.nn, framework.nn.functional
        batch, codes = self.batch, self.codes

        class Net(nn.Module):
            def __init__(self, sizes: list[tuple[int, int]]) -> None:
                super().__init__()
                self.read, self.encode, self.decode, self.draw = (nn.Linear(*size) for size in sizes)

            def forward(self, images: Any, noise: Any) -> Any:
                code = self.encode(functional.relu(self.read(images)))
                mean, log_variance = code[:, :codes], code[:, codes:]
                z = mean + noise * (0.5 * log_variance).exp()
                logits = self.draw(functional.relu(self.decode(z)))
                error = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
                divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
                return (error + divergence) / batch

        return Net(self.sizes())

    def loss_in_jax(
        self, jax: Any, parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...], variant: str
    ) -> tuple[Any, list[Any]]:
        jnp = jax.numpy
        pairs = iter(list(zip(parameters[::2], parameters[1::2])))

        def linear(x: Any) -> Any:
            weight, bias = next(pairs)
            return x @ weight.T + bias

        images, noise = batch
        mean, log_variance = jnp.split(linear(jax.nn.relu(linear(images))), 2, axis=1)
        z = mean + noise * jnp.exp(0.5 * log_variance)
        logits = linear(jax.nn.relu(linear(z)))
        error = (jnp.maximum(logits, 0) - logits * images + jnp.log1p(jnp.exp(-jnp.abs(logits)))).sum()
        divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum()
        return (error + divergence) / self.batch, []
