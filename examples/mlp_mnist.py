"""Train a 784-200-10 perceptron on MNIST with plain SGD: ``python -m examples.mlp_mnist``."""

from __future__ import annotations

from pequegrad import nn, optim

from ._mnist import Recipe, main

RECIPE = Recipe(
    name="mlp_mnist",
    title="MLP 784-200-10, SGD lr 0.1",
    model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10)),
    optimizer=lambda parameters: optim.SGD(parameters, lr=0.1),
    batch_size=128,
    steps=1_000,
    steps_per_evaluation=20,
)

if __name__ == "__main__":
    main(RECIPE)
