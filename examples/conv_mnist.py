"""Train the classic small convnet on MNIST with Adam, one epoch: ``python -m examples.conv_mnist``."""

from __future__ import annotations

from pequegrad import nn, optim

from ._mnist import Recipe, main


def convnet() -> nn.Module:
    """Return the net: (B, 1, 28, 28) → logits (B, 10), 5,258 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 10),
    )


RECIPE = Recipe(
    name="conv_mnist",
    title="convnet 1→8→16, 3×3, Adam lr 0.01",
    model=convnet,
    optimizer=lambda parameters: optim.Adam(parameters, lr=0.01),
    batch_size=512,
    steps=117,  # one epoch
    steps_per_evaluation=5,
)

if __name__ == "__main__":
    main(RECIPE)
