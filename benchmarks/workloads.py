"""The training steps that are timed, as data: every framework builds the same net from the same record.

Invariant: a workload names no framework, and its weights and batches are made here alone, from its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Linear:
    """(B, inputs) → (B, outputs), with a bias."""

    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Conv2d:
    """(B, inputs, H, W) → (B, outputs, H-size+1, W-size+1), with a bias; stride 1, no padding."""

    inputs: int
    outputs: int
    size: int


@dataclass(frozen=True, slots=True)
class MaxPool2d:
    """(B, C, H, W) → (B, C, H // size, W // size)."""

    size: int


@dataclass(frozen=True, slots=True)
class Relu:
    pass


@dataclass(frozen=True, slots=True)
class Tanh:
    pass


@dataclass(frozen=True, slots=True)
class Flatten:
    """(B, ...) → (B, product)."""


Layer = Linear | Conv2d | MaxPool2d | Relu | Tanh | Flatten


@dataclass(frozen=True, slots=True)
class Sgd:
    lr: float


@dataclass(frozen=True, slots=True)
class Adam:
    """Betas 0.9 and 0.999, epsilon 1e-8: torch's defaults."""

    lr: float


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled decay of the weights; the rest as torch's defaults."""

    lr: float
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True)
class Workload:
    """One training step: zero the gradients, forward, loss, backward, update."""

    name: str
    title: str
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    """Shape of one sample."""
    batch: int
    loss: str
    """"cross_entropy" (targets int64 (B,)) or "mse" (targets float32 (B, outputs))."""
    optimizer: Sgd | Adam | AdamW
    seed: int = 0
    precision: str = "fp32"
    """Of products: "fp32" or "bf16"."""

    def weights(self) -> list[np.ndarray]:
        """Return float32 weight and bias of each layer that has some, in order, uniform in ±1/√fan_in.

        Linear: (outputs, inputs) and (outputs,); Conv2d: (outputs, inputs, size, size) and (outputs,).
        """
        random = np.random.default_rng([self.seed, 1])
        arrays = []
        for layer in self.layers:
            if isinstance(layer, Linear | Conv2d):
                kernel = (layer.size, layer.size) if isinstance(layer, Conv2d) else ()
                bound = 1 / math.sqrt(layer.inputs * math.prod(kernel))
                for shape in ((layer.outputs, layer.inputs, *kernel), (layer.outputs,)):
                    arrays.append(random.uniform(-bound, bound, shape).astype(np.float32))
        return arrays

    def batches(self, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ``count`` batches (inputs float32 (B, *input_shape), targets), from the workload's seed."""
        random = np.random.default_rng([self.seed, 2])
        outputs = self.shapes()[-1][0]
        batches = []
        for _ in range(count):
            inputs = random.uniform(0, 1, (self.batch, *self.input_shape)).astype(np.float32)
            if self.loss == "cross_entropy":
                targets = random.integers(0, outputs, self.batch)
            else:
                targets = np.sin(inputs.sum(1, keepdims=True)) * np.ones(outputs, np.float32)
            batches.append((inputs, targets))
        return batches

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of one sample after each layer."""
        shapes, shape = [], self.input_shape
        for layer in self.layers:
            match layer:
                case Linear():
                    shape = (layer.outputs,)
                case Conv2d():
                    shape = (layer.outputs, *(extent - layer.size + 1 for extent in shape[1:]))
                case MaxPool2d():
                    shape = (shape[0], *(extent // layer.size for extent in shape[1:]))
                case Flatten():
                    shape = (math.prod(shape),)
            shapes.append(shape)
        return shapes

    def parameter_count(self) -> int:
        """Number of trained floats."""
        return sum(array.size for array in self.weights())

    def flops(self) -> int:
        """Floating-point operations of the products and convolutions in one step, forward and backward.

        Forward, weight gradient and input gradient cost the same; the first layer has no input gradient.
        """
        products = list(self._forward_flops())
        return 3 * sum(products) - products[0]

    def _forward_flops(self) -> Iterator[int]:
        for layer, shape in zip(self.layers, self.shapes(), strict=True):
            if isinstance(layer, Linear):
                yield 2 * self.batch * layer.inputs * layer.outputs
            elif isinstance(layer, Conv2d):
                yield 2 * self.batch * math.prod(shape) * layer.inputs * layer.size**2
