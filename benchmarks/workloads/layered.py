"""Nets that are chains of layers: perceptrons, convnets, and chains with shortcuts around parts of them.

Invariant: `Layered.weights` is in the order of torch's parameters(), and `forward_in_jax` takes them in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import LOSSES, Workload, loss_in_jax, uniform

Shape = tuple[int, ...]

NORM_EPSILON = 1e-5
NORM_MOMENTUM = 0.1


@dataclass(frozen=True)
class Linear:
    """(B, inputs) → (B, outputs), with a bias."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class Conv2d:
    """(B, inputs, H, W) → (B, outputs, (H + 2 padding - size) // stride + 1, …); square kernels."""

    inputs: int
    outputs: int
    size: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class MaxPool2d:
    """(B, C, H, W) → (B, C, H // size, W // size)."""

    size: int


@dataclass(frozen=True)
class MeanPool:
    """(B, C, H, W) → (B, C): the mean over the image."""


@dataclass(frozen=True)
class BatchNorm2d:
    """Over B, H and W, by the batch's own statistics; running ones are kept."""

    channels: int


@dataclass(frozen=True)
class LayerNorm:
    """Over the last axis."""

    width: int


@dataclass(frozen=True)
class Activation:
    """One of ACTIVATIONS."""

    kind: str


@dataclass(frozen=True)
class Flatten:
    """(B, ...) → (B, product)."""


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x); an empty shortcut is x."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()


Layer = Linear | Conv2d | MaxPool2d | MeanPool | BatchNorm2d | LayerNorm | Activation | Flatten | Residual

# Each kind's class in nn, and its name in jax.nn.
ACTIVATIONS = {
    "relu": ("ReLU", "relu"),
    "tanh": ("Tanh", "tanh"),
    "sigmoid": ("Sigmoid", "sigmoid"),
    "silu": ("SiLU", "silu"),
    "gelu": ("GELU", "gelu"),
}


def flat(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yield the layers that have no others in them, in the order of their parameters."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from flat(layer.body)
            yield from flat(layer.shortcut)
        else:
            yield layer


def walk(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Yield each layer of `flat` with the shape of one sample after it."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from walk(layer.shortcut, shape)
            *inside, last = walk(layer.body, shape)
            yield from inside
            yield last
            shape = last[1]
            continue
        match layer:
            case Linear():
                shape = (*shape[:-1], layer.outputs)
            case Conv2d():
                extents = ((extent + 2 * layer.padding - layer.size) // layer.stride + 1 for extent in shape[1:])
                shape = (layer.outputs, *extents)
            case MaxPool2d():
                shape = (shape[0], *(extent // layer.size for extent in shape[1:]))
            case MeanPool():
                shape = shape[:1]
            case Flatten():
                shape = (math.prod(shape),)
        yield layer, shape


@dataclass(frozen=True, kw_only=True)
class Layered(Workload):
    """A net of layers, from samples of one shape to a loss."""

    layers: tuple[Layer, ...]
    input_shape: Shape
    """Shape of one sample."""
    loss: str
    """"cross_entropy" (targets int64 (B,)) or "mse" (targets float32 (B, outputs))."""

    @property
    def has_images(self) -> bool:
        return len(self.input_shape) == 3

    def weights(self) -> Iterator[np.ndarray]:
        """Yield weight and bias of each layer that has some: uniform in ±1/√fan_in; of norms 1 and 0."""
        random = np.random.default_rng([self.seed, 1])
        for layer in flat(self.layers):
            match layer:
                case Linear(inputs, outputs):
                    yield uniform(random, inputs, (outputs, inputs))
                    yield uniform(random, inputs, (outputs,))
                case Conv2d(inputs, outputs, size):
                    fan_in = inputs * size**2
                    yield uniform(random, fan_in, (outputs, inputs, size, size))
                    if layer.bias:
                        yield uniform(random, fan_in, (outputs,))
                case BatchNorm2d(width) | LayerNorm(width):
                    yield np.ones(width, np.float32)
                    yield np.zeros(width, np.float32)

    def buffers(self) -> list[np.ndarray]:
        """Return the running mean and variance of each batch norm."""
        norms = [layer for layer in flat(self.layers) if isinstance(layer, BatchNorm2d)]
        return [np.full(norm.channels, value, np.float32) for norm in norms for value in (0, 1)]

    def make_batch(self, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        inputs = random.uniform(0, 1, (self.batch, *self.input_shape)).astype(np.float32)
        outputs = self.shapes()[-1][0]
        if self.loss == "cross_entropy":
            return inputs, random.integers(0, outputs, self.batch)
        return inputs, np.sin(inputs.reshape(self.batch, -1).sum(1, keepdims=True)) * np.ones(outputs, np.float32)

    def shapes(self) -> list[Shape]:
        """Return the shape of one sample after each layer."""
        return [shape for _, shape in walk(self.layers, self.input_shape)]

    def flops(self) -> int:
        """Forward, weight gradient and input gradient cost the same; the first layer has no input gradient."""
        products = list(self._forward_flops())
        return 3 * sum(products) - products[0] if self.optimizer else sum(products)

    def _forward_flops(self) -> Iterator[int]:
        for layer, shape in walk(self.layers, self.input_shape):
            if isinstance(layer, Linear):
                yield 2 * self.batch * layer.inputs * layer.outputs
            elif isinstance(layer, Conv2d):
                yield 2 * self.batch * math.prod(shape) * layer.inputs * layer.size**2

    def module(self, framework: Any) -> Any:
        loss_function = getattr(framework.nn.functional, LOSSES[self.loss])

        class Net(framework.nn.Module):
            def __init__(self, layers: Any) -> None:
                super().__init__()
                self.layers = layers

            def forward(self, x: Any, y: Any) -> Any:
                return loss_function(self.layers(x), y)

        return Net(sequential(framework.nn, self.layers))

    def jax_variants(self) -> tuple[str, ...]:
        """Images NCHW or NHWC; max pooling as a window reduction, as libraries spell it, or as a maximum over two axes
        of a reshaped image, whose gradient is faster on the CPU (and at ties the same here, where a relu is before it).
        """
        if not self.has_images:
            return ("default",)
        pools = ("", " reshaped pool") if any(isinstance(layer, MaxPool2d) for layer in flat(self.layers)) else ("",)
        return tuple(order + pool for pool in pools for order in ("NCHW", "NHWC"))

    def loss_in_jax(
        self, jax: Any, parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...], variant: str
    ) -> tuple[Any, list[Any]]:
        x, y = batch
        in_jax = InJax(jax, variant, parameters, buffers)
        outputs = in_jax.run(self.layers, x)
        return loss_in_jax(jax, self.loss, outputs.reshape(len(outputs), -1), y), in_jax.new_buffers


def sequential(nn: Any, layers: Sequence[Layer]) -> Any:
    """Return the layers as a Sequential of torch or pequegrad, with weights of any values."""

    class Shortcut(nn.Module):
        def __init__(self, body: Any, shortcut: Any) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.shortcut(x)

    modules: list[Any] = []
    for layer in layers:
        match layer:
            case Linear(inputs, outputs):
                modules.append(nn.Linear(inputs, outputs))
            case Conv2d(inputs, outputs, size, stride, padding, bias):
                modules.append(nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=bias))
            case MaxPool2d(size):
                modules.append(nn.MaxPool2d(size))
            case MeanPool():
                modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            case BatchNorm2d(channels):
                modules.append(nn.BatchNorm2d(channels))
            case LayerNorm(width):
                modules.append(nn.LayerNorm(width))
            case Activation(kind):
                modules.append(getattr(nn, ACTIVATIONS[kind][0])())
            case Flatten():
                modules.append(nn.Flatten())
            case Residual(body, shortcut):
                modules.append(Shortcut(sequential(nn, body), sequential(nn, shortcut)))
    return nn.Sequential(*modules)


class InJax:
    """One forward pass in JAX: parameters and buffers are taken in order as layers need them."""

    def __init__(self, jax: Any, variant: str, parameters: list[Any], buffers: list[Any]) -> None:
        self.jax, self.jnp, self.lax = jax, jax.numpy, jax.lax
        self.is_nhwc, self.is_reshaped = variant.startswith("NHWC"), variant.endswith("reshaped pool")
        self.parameters, self.buffers = iter(parameters), iter(buffers)
        self.new_buffers: list[Any] = []

    def run(self, layers: Sequence[Layer], x: Any) -> Any:
        """Return the layers' output for the images NCHW, or NHWC by the variant."""
        for layer in layers:
            match layer:
                case Residual():
                    body = self.run(layer.body, x)
                    x = body + self.run(layer.shortcut, x)
                case Linear():
                    weight = next(self.parameters)
                    x = x @ weight.T + next(self.parameters)
                case Conv2d():
                    x = self._convolution(layer, x)
                case MaxPool2d(size):
                    x = self._max_pool(size, x)
                case MeanPool():
                    x = x.mean((1, 2) if self.is_nhwc else (2, 3))
                case BatchNorm2d():
                    x = self._batch_norm(x)
                case LayerNorm():
                    scale, shift = next(self.parameters), next(self.parameters)
                    x = self._normalised(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True)) * scale + shift
                case Activation("gelu"):
                    x = self.jax.nn.gelu(x, approximate=False)
                case Activation(kind):
                    x = getattr(self.jax.nn, ACTIVATIONS[kind][1])(x)
                case Flatten():
                    # The weights that follow are in torch's order: channels first.
                    x = (x.transpose(0, 3, 1, 2) if self.is_nhwc and x.ndim == 4 else x).reshape(len(x), -1)
        return x

    def _normalised(self, x: Any, mean: Any, variance: Any) -> Any:
        return (x - mean) * self.lax.rsqrt(variance + NORM_EPSILON)

    def _of_channels(self, vector: Any) -> Any:
        return vector if self.is_nhwc else vector[:, None, None]

    def _convolution(self, layer: Conv2d, x: Any) -> Any:
        order = "NHWC" if self.is_nhwc else "NCHW"
        padding = [(layer.padding, layer.padding)] * 2
        strides = (layer.stride, layer.stride)
        weight = next(self.parameters)
        y = self.lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=(order, "OIHW", order))
        return y + self._of_channels(next(self.parameters)) if layer.bias else y

    def _max_pool(self, size: int, x: Any) -> Any:
        if not self.is_reshaped:
            window = (1, size, size, 1) if self.is_nhwc else (1, 1, size, size)
            return self.lax.reduce_window(x, -self.jnp.inf, self.lax.max, window, window, "VALID")
        first = 1 if self.is_nhwc else 2  # the axis of rows
        rows, columns = x.shape[first] // size, x.shape[first + 1] // size
        x = x[:, : rows * size, : columns * size] if self.is_nhwc else x[..., : rows * size, : columns * size]
        shape = (*x.shape[:first], rows, size, columns, size, *x.shape[first + 2 :])
        return x.reshape(shape).max((first + 1, first + 3))

    def _batch_norm(self, x: Any) -> Any:
        scale, shift = (self._of_channels(next(self.parameters)) for _ in range(2))
        axes = (0, 1, 2) if self.is_nhwc else (0, 2, 3)
        mean, variance = x.mean(axes), x.var(axes)
        unbiased = variance * (x.size / mean.size / (x.size / mean.size - 1))
        for new in (mean, unbiased):
            self.new_buffers.append((1 - NORM_MOMENTUM) * next(self.buffers) + NORM_MOMENTUM * new)
        return self._normalised(x, self._of_channels(mean), self._of_channels(variance)) * scale + shift
