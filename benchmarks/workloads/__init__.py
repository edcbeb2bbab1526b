"""Which training steps, and which nets' answers, are timed.

Invariant: a name stands for one workload in every process and on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from .autoencoder import Autoencoder
from .base import Adam, AdamW, Sgd, Workload
from .drawn import draw_net
from .layered import (
    Activation,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Layer,
    Layered,
    Linear,
    MaxPool2d,
    MeanPool,
    Residual,
)
from .physics import Burgers
from .transformers import Gpt

__all__ = ["GPU_WORKLOADS", "SMALL_WORKLOADS", "WORKLOADS", "Workload", "find"]

RELU, TANH = Activation("relu"), Activation("tanh")


def convolved(inputs: int, outputs: int, stride: int = 1) -> tuple[Layer, ...]:
    """Return a padded 3×3 convolution and its batch norm."""
    return Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), BatchNorm2d(outputs)


def stage(inputs: int, outputs: int, stride: int) -> tuple[Layer, ...]:
    """Return a residual block of two convolutions; its shortcut is a strided 1×1 convolution where sizes change."""
    body = (*convolved(inputs, outputs, stride), RELU, *convolved(outputs, outputs))
    if stride == 1:
        return Residual(body), RELU
    return Residual(body, (Conv2d(inputs, outputs, 1, stride=stride, bias=False), BatchNorm2d(outputs))), RELU


MLP = Layered(
    name="mlp",
    title="MLP 784-200-10 relu, cross entropy, SGD",
    layers=(Linear(784, 200), RELU, Linear(200, 10)),
    input_shape=(784,),
    batch=128,
    loss="cross_entropy",
    optimizer=Sgd(0.1),
)
CONV = Layered(
    name="conv",
    title="convnet 1→8→16 3×3 relu pool, linear, cross entropy, Adam",
    layers=(
        Conv2d(1, 8, 3),
        RELU,
        MaxPool2d(2),
        Conv2d(8, 16, 3),
        RELU,
        MaxPool2d(2),
        Flatten(),
        Linear(400, 10),
    ),
    input_shape=(1, 28, 28),
    batch=512,
    loss="cross_entropy",
    optimizer=Adam(0.01),
)
TINY = Layered(
    name="tiny",
    title="MLP 8-64-64-1 tanh, mean squared error, Adam",
    layers=(Linear(8, 64), TANH, Linear(64, 64), TANH, Linear(64, 1)),
    input_shape=(8,),
    batch=32,
    loss="mse",
    optimizer=Adam(1e-3),
)
WIDE = Layered(
    name="wide",
    title="MLP 1024-4096-1024 relu, mean squared error, AdamW",
    layers=(Linear(1024, 4096), RELU, Linear(4096, 1024)),
    input_shape=(1024,),
    batch=256,
    loss="mse",
    optimizer=AdamW(1e-3),
)
RESNET = Layered(
    name="resnet",
    title="ResNet-8 16-32-64, BatchNorm, 3×32×32, cross entropy, SGD with momentum",
    layers=(
        *convolved(3, 16),
        RELU,
        *stage(16, 16, 1),
        *stage(16, 32, 2),
        *stage(32, 64, 2),
        MeanPool(),
        Linear(64, 10),
    ),
    input_shape=(3, 32, 32),
    batch=64,
    loss="cross_entropy",
    optimizer=Sgd(0.05, momentum=0.9),
)
PINN = Burgers(
    name="pinn",
    title="Burgers' equation, 4×64 tanh, second derivatives at 1,024 points, Adam",
    width=64,
    depth=4,
    initial=128,
    batch=1024,
    optimizer=Adam(1e-3),
)
VAE = Autoencoder(
    name="vae",
    title="variational autoencoder 784-400-20-400-784, Adam",
    inputs=784,
    hidden=400,
    codes=20,
    batch=128,
    optimizer=Adam(1e-3),
)
GPT = Gpt(
    name="gpt",
    title="GPT of 4 layers, width 128, 64 tokens, AdamW",
    depth=4,
    width=128,
    heads=4,
    length=64,
    vocabulary=65,
    batch=16,
    optimizer=AdamW(3e-4),
)
GPT2 = Gpt(
    name="gpt2",
    title="GPT-2 124M, 64 tokens, AdamW",
    depth=12,
    width=768,
    heads=12,
    length=64,
    vocabulary=50257,
    batch=4,
    optimizer=AdamW(3e-4),
)
POLICY = Layered(
    name="policy",
    title="MLP 64-256-256-4 tanh, one observation, no gradients",
    layers=(Linear(64, 256), TANH, Linear(256, 256), TANH, Linear(256, 4)),
    input_shape=(64,),
    batch=1,
    loss="mse",
    optimizer=None,
)
GPT2_LONG = dataclasses.replace(
    GPT2,
    name="gpt2-long",
    title="GPT-2 124M, 1024 tokens, bfloat16 products, AdamW",
    length=1024,
    vocabulary=50304,  # filled up to a multiple of 128, as fast trainers do
    precision="bf16",
)

WORKLOADS: tuple[Workload, ...] = (MLP, CONV, TINY, GPT, WIDE, RESNET, PINN, VAE, GPT2, POLICY)
"""Those of benchmarks.cpu."""

GPU_WORKLOADS: tuple[Workload, ...] = (MLP, CONV, TINY, GPT, GPT2_LONG)
"""Those of benchmarks.gpu."""

SMALL_WORKLOADS: tuple[Workload, ...] = (
    dataclasses.replace(MLP, name="mlp-small", batch=4),
    dataclasses.replace(CONV, name="conv-small", batch=2),
    dataclasses.replace(TINY, name="tiny-small", batch=8),
    dataclasses.replace(
        GPT,
        name="gpt-small",
        title="one transformer block, width 32, 16 tokens, AdamW",
        depth=1,
        width=32,
        length=16,
        vocabulary=48,
        batch=2,
    ),
)
"""For checks of correctness, not for timing."""

_BY_NAME: Mapping[str, Workload] = {
    workload.name: workload for workload in (*WORKLOADS, *GPU_WORKLOADS, *SMALL_WORKLOADS)
}


def find(name: str) -> Workload:
    """Return the workload of that name: one of the above, or "random-" and the seed of a net drawn at random.

    Raises KeyError for one that there is not.
    """
    seed = name.removeprefix("random-")
    return draw_net(int(seed)) if seed != name and seed.isdecimal() else _BY_NAME[name]
