"""Which training steps are timed.

Invariant: data alone; a name stands for one workload on every device.
"""

from __future__ import annotations

from .transformers import Gpt
from .workloads import Adam, AdamW, Conv2d, Flatten, Linear, MaxPool2d, Relu, Sgd, Tanh, Workload

AnyWorkload = Workload | Gpt

GPT = Gpt(
    name="gpt",
    title="GPT of 4 layers, width 128, 64 tokens, AdamW",
    depth=4,
    width=128,
    heads=4,
    length=64,
    vocabulary=65,
    batch=16,
)

WORKLOADS: tuple[AnyWorkload, ...] = (
    Workload(
        name="mlp",
        title="MLP 784-200-10 relu, cross entropy, SGD",
        layers=(Linear(784, 200), Relu(), Linear(200, 10)),
        input_shape=(784,),
        batch=128,
        loss="cross_entropy",
        optimizer=Sgd(0.1),
    ),
    Workload(
        name="conv",
        title="convnet 1→8→16 3×3 relu pool, linear, cross entropy, Adam",
        layers=(
            Conv2d(1, 8, 3),
            Relu(),
            MaxPool2d(2),
            Conv2d(8, 16, 3),
            Relu(),
            MaxPool2d(2),
            Flatten(),
            Linear(400, 10),
        ),
        input_shape=(1, 28, 28),
        batch=512,
        loss="cross_entropy",
        optimizer=Adam(0.01),
    ),
    Workload(
        name="tiny",
        title="MLP 8-64-64-1 tanh, mean squared error, Adam",
        layers=(Linear(8, 64), Tanh(), Linear(64, 64), Tanh(), Linear(64, 1)),
        input_shape=(8,),
        batch=32,
        loss="mse",
        optimizer=Adam(1e-3),
    ),
    Workload(
        name="wide",
        title="MLP 1024-4096-1024 relu, mean squared error, AdamW",
        layers=(Linear(1024, 4096), Relu(), Linear(4096, 1024)),
        input_shape=(1024,),
        batch=256,
        loss="mse",
        optimizer=AdamW(1e-3),
    ),
    GPT,
    Gpt(
        name="gpt2",
        title="GPT-2 124M, 64 tokens, AdamW",
        depth=12,
        width=768,
        heads=12,
        length=64,
        vocabulary=50257,
        batch=4,
    ),
)

GPU_WORKLOADS: tuple[AnyWorkload, ...] = (
    *WORKLOADS[:3],
    GPT,
    Gpt(
        name="gpt2-long",
        # 50,257 tokens, filled up to a multiple of 128, as fast trainers do.
        title="GPT-2 124M, 1024 tokens, bfloat16 products, AdamW",
        depth=12,
        width=768,
        heads=12,
        length=1024,
        vocabulary=50304,
        batch=4,
        precision="bf16",
    ),
)

SMALL_GPT = Gpt(
    name="block",
    title="one transformer block, width 32, 16 tokens, AdamW",
    depth=1,
    width=32,
    heads=4,
    length=16,
    vocabulary=48,
    batch=2,
)
"""For checks of correctness, not for timing."""

BY_NAME = {workload.name: workload for workload in (*WORKLOADS, *GPU_WORKLOADS)}
