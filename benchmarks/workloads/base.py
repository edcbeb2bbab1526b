"""What a workload is: one training step, or a net's answer alone, as data, which every framework builds from the same record.

Invariant: a record names no framework; its weights and batches are made from its seed alone.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sgd:
    """Plain, or with torch's momentum."""

    lr: float
    momentum: float = 0.0
    states = property(lambda self: 1 if self.momentum else 0, doc="Arrays of state for each parameter.")


@dataclass(frozen=True)
class Adam:
    """Betas 0.9 and 0.999, epsilon 1e-8: torch's defaults."""

    lr: float
    states = property(lambda self: 2, doc="Arrays of state for each parameter.")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled decay of the weights; the rest as torch's defaults."""

    lr: float
    weight_decay: float = 0.01
    states = property(lambda self: 2, doc="Arrays of state for each parameter.")


Optimizer = Sgd | Adam | AdamW


@dataclass(frozen=True, kw_only=True)
class Workload(abc.ABC):
    """One training step: zero the gradients, forward, loss, backward, update. Without an optimizer: the loss alone, for which
    no gradients are kept."""

    name: str
    title: str
    batch: int
    optimizer: Optimizer | None
    precision: str = "fp32"
    """Of products: "fp32" or "bf16"."""
    seed: int = 0

    @property
    def has_images(self) -> bool:
        """Whether the first array of a batch is (B, C, H, W), so that the order of axes is a choice."""
        return False

    @abc.abstractmethod
    def weights(self) -> Iterator[np.ndarray]:
        """Yield each float32 parameter's first value, in the order of ``module(...).parameters()``."""

    def buffers(self) -> list[np.ndarray]:
        """Return the first value of what a step changes beside parameters, for ``loss_in_jax``."""
        return []

    @abc.abstractmethod
    def make_batch(self, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return the arrays of one batch: float32, or int64 for classes and tokens."""

    def batches(self, count: int) -> list[tuple[np.ndarray, ...]]:
        """Return ``count`` batches, from the workload's seed."""
        random = np.random.default_rng([self.seed, 2])
        return [self.make_batch(random) for _ in range(count)]

    @abc.abstractmethod
    def flops(self) -> int:
        """Floating-point operations of the products and convolutions in one step, forward and, where it trains, backward."""

    @abc.abstractmethod
    def module(self, framework: Any) -> Any:
        """Return a Module of torch or pequegrad, spelt alike, that maps the arrays of a batch to the loss."""

    def jax_variants(self) -> tuple[str, ...]:
        """Return the ways to write the step in JAX that are worth trying."""
        return ("default",)

    @abc.abstractmethod
    def loss_in_jax(
        self, jax: Any, parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...], variant: str
    ) -> tuple[Any, list[Any]]:
        """Return the loss and the new buffers, by JAX."""

    def parameter_count(self) -> int:
        """Number of trained floats."""
        return sum(weight.size for weight in self.weights())

    def least_bytes(self) -> int:
        """Bytes that any such step must move: each parameter and its optimizer state read and written once, or parameters
        only read where nothing is trained, and the batch read."""
        batch = sum(array.nbytes for array in self.batches(1)[0])
        moves = 2 * (1 + self.optimizer.states) if self.optimizer else 1
        return 4 * self.parameter_count() * moves + batch


def uniform(random: np.random.Generator, fan_in: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers in ±1/√fan_in: torch's initial weights and biases."""
    bound = 1 / math.sqrt(fan_in)
    return random.uniform(-bound, bound, shape).astype(np.float32)


LOSSES = {"cross_entropy": "cross_entropy", "mse": "mse_loss"}
"""The losses' names in nn.functional, which torch and pequegrad share."""


def loss_in_jax(jax: Any, loss: str, outputs: Any, targets: Any) -> Any:
    """Return the mean loss of outputs (B, N) for targets: classes (B,), or numbers (B, N)."""
    jnp = jax.numpy
    if loss == "mse":
        return jnp.mean((outputs - targets) ** 2)
    log_probabilities = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, targets[:, None], axis=1))
