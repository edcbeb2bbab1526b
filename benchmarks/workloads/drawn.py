"""Nets drawn at random, so that no compiler is tuned to the few that have names.

Invariant: the seed alone decides the net.
"""

from __future__ import annotations

import numpy as np

from .base import Adam, AdamW, Optimizer, Sgd
from .layered import (
    ACTIVATIONS,
    Activation,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Layered,
    LayerNorm,
    Linear,
    MaxPool2d,
    MeanPool,
    Residual,
    walk,
)

OPTIMIZERS: tuple[Optimizer, ...] = (Sgd(0.01), Sgd(0.01, momentum=0.9), Adam(1e-3), AdamW(1e-3))
SMALLEST_IMAGE = 4
"""Rows that the images keep, however many convolutions and pools there are."""


def draw_net(seed: int) -> Layered:
    """Return a perceptron or a convnet whose depth, widths, kernels, activations, norms, optimizer and batch are drawn."""
    random = np.random.default_rng([seed, 3])
    activation = Activation(str(random.choice(list(ACTIVATIONS))))
    is_convnet = bool(random.random() < 0.5)
    draw = _draw_convnet if is_convnet else _draw_perceptron
    layers, input_shape = draw(random, activation)
    return Layered(
        name=f"random-{seed}",
        title=" ".join(_describe(layer) for layer in layers),
        layers=tuple(layers),
        input_shape=input_shape,
        batch=int(random.choice([16, 32, 48, 64, 100, 128, 256])),
        loss=str(random.choice(["cross_entropy", "mse"])),
        optimizer=OPTIMIZERS[random.integers(len(OPTIMIZERS))],
        seed=seed,
    )


def _draw_perceptron(random: np.random.Generator, activation: Activation) -> tuple[list[Layer], tuple[int, ...]]:
    inputs = width = int(random.integers(4, 800))
    has_norm = bool(random.random() < 0.4)
    layers: list[Layer] = []
    for _ in range(random.integers(1, 6)):
        wider = int(random.integers(16, 512))
        block: list[Layer] = [Linear(width, wider), *([LayerNorm(wider)] if has_norm else []), activation]
        layers += block
        if random.random() < 0.25:
            layers.append(Residual((Linear(wider, wider), activation)))
        width = wider
    return [*layers, Linear(width, int(random.integers(2, 30)))], (inputs,)


def _draw_convnet(random: np.random.Generator, activation: Activation) -> tuple[list[Layer], tuple[int, ...]]:
    channels = int(random.choice([1, 3, 4]))
    extent = int(random.integers(12, 36))
    input_shape = (channels, extent, extent)
    has_norm = bool(random.random() < 0.5)
    layers: list[Layer] = []
    for _ in range(random.integers(1, 5)):
        if extent < SMALLEST_IMAGE + 4:
            break
        wider = int(random.choice([4, 8, 12, 16, 24, 32, 48]))
        size = int(random.choice([1, 3, 3, 5]))
        convolution = Conv2d(channels, wider, size, padding=int(random.choice([0, size // 2])), bias=not has_norm)
        layers += [convolution, *([BatchNorm2d(wider)] if has_norm else []), activation]
        if random.random() < 0.5:
            layers.append(MaxPool2d(2))
        channels = wider
        *_, (_, shape) = walk(layers, input_shape)
        extent = shape[1]
    if random.random() < 0.5:
        layers.append(MeanPool())
    else:
        layers.append(Flatten())
    *_, (_, shape) = walk(layers, input_shape)
    return [*layers, Linear(shape[0], int(random.integers(2, 30)))], input_shape


def _describe(layer: Layer) -> str:
    match layer:
        case Linear(inputs, outputs):
            return f"{inputs}→{outputs}"
        case Conv2d(inputs, outputs, size, _, padding):
            return f"{inputs}→{outputs} {size}×{size}" + (f" padded {padding}" if padding else "")
        case Activation(kind):
            return kind
        case Residual(body):
            return f"({' '.join(map(_describe, body))} + itself)"
        case _:
            return type(layer).__name__.lower()
