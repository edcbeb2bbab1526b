"""What the MNIST examples share: options, training loop, progress bar, evaluation and the closing report.

Invariant: an example differs from another only by its Recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pequegrad.nn.functional as F
from tqdm import tqdm

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.data import DataLoader, TensorDataset, mnist
from pequegrad.errors import DataError

DATA = Path(__file__).parent / "data" / "mnist"
GOAL = 0.90
# It divides the 10,000 test images, so that one compiled shape serves for all of them.
EVALUATION_BATCH = 1_000
# Reading a loss waits for the step; every tenth is enough for the eye and costs nothing.
STEPS_PER_LOSS = 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one example trains, and how."""

    title: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[Any], optim.Optimizer]
    batch_size: int
    steps: int
    steps_per_evaluation: int
    """How often the whole test set is evaluated until GOAL is reached."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: steps done, and the seconds that they took, the first one apart."""

    steps: int
    first_step_seconds: float
    other_seconds: float

    @property
    def steps_per_second(self) -> float:
        return (self.steps - 1) / self.other_seconds if self.other_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.steps} steps in {self.first_step_seconds + self.other_seconds:.2f} s of training "
            f"({self.first_step_seconds:.2f} s for the first step, {self.other_seconds:.2f} s for the others)"
        )


def main(recipe: Recipe, arguments: list[str] | None = None) -> None:
    """Train as ``recipe`` and the command line say, and print accuracy and times."""
    parser = make_parser(recipe)
    options = parser.parse_args(arguments)
    if options.cuda:
        parser.error("--cuda: this version has no CUDA target yet. Run without it, on the CPU.")
    try:
        train_images, train_labels = mnist(options.data, train=True)
        test_images, test_labels = mnist(options.data, train=False)
    except DataError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")

    if options.batch_size > len(train_images):
        parser.error(
            f"--batch-size: at most {len(train_images)}, the training images. Got {options.batch_size}."
        )

    pg.manual_seed(options.seed)
    loader = DataLoader(
        TensorDataset(train_images, train_labels), options.batch_size, shuffle=True, drop_last=True
    )
    model = recipe.model()
    optimizer = recipe.optimizer(model.parameters())

    @pg.compile
    def train_step(images, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    @pg.compile
    @pg.no_grad()
    def predict(images):
        return model(images)

    def accuracy() -> float:
        hits = 0
        for start in range(0, len(test_images), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            logits = predict(test_images[rows]).numpy()
            hits += int(np.sum(logits.argmax(axis=1) == test_labels[rows]))
        return hits / len(test_images)

    with pg.stance("force_eager") if options.eager else contextlib.nullcontext():
        print(f"{recipe.title}, batch {options.batch_size}, {'eager' if options.eager else 'compiled'}")
        progress, goal = train(recipe, options.steps, train_step, endless(loader), accuracy)
        final = accuracy()

    print(f"test accuracy: {100 * final:.2f} % of {len(test_images):,} images")
    print(f"first {GOAL:.0%}: {goal or f'not within {options.steps} steps'}")
    print(f"in all: {progress}; {progress.steps_per_second:.0f} steps/s after the first")


def train(
    recipe: Recipe,
    steps: int,
    train_step: Callable[[Any, Any], Any],
    batches: Iterator[Any],
    accuracy: Callable[[], float],
) -> tuple[Progress, Progress | None]:
    """Run ``steps`` steps; return where it stood at the end, and where the accuracy first was GOAL."""
    progress, goal = Progress(0, 0.0, 0.0), None
    layout = "{percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} steps {postfix}"
    with tqdm(total=steps, bar_format=layout, mininterval=0.2) as bar:
        for step in range(1, steps + 1):
            start = time.perf_counter()
            images, labels = next(batches)
            loss = train_step(images, labels)
            shown = loss.item() if step % STEPS_PER_LOSS == 0 or step in (1, steps) else None
            seconds = time.perf_counter() - start

            if step == 1:
                progress = Progress(1, seconds, 0.0)
            else:
                progress = Progress(step, progress.first_step_seconds, progress.other_seconds + seconds)
            if shown is not None:
                text = f"loss {shown:.4f}, {progress.steps_per_second:.0f} steps/s"
                bar.set_postfix_str(text, refresh=step == steps)
            bar.update()
            is_due = step % recipe.steps_per_evaluation == 0
            if goal is None and is_due and accuracy() >= GOAL:
                goal = progress
    return progress, goal


def make_parser(recipe: Recipe) -> argparse.ArgumentParser:
    """Return the command line that all MNIST examples have."""
    parser = argparse.ArgumentParser(description=f"Train on MNIST: {recipe.title}.")
    parser.add_argument("--eager", action="store_true", help="run step by step on NumPy, without compiling")
    parser.add_argument("--cuda", action="store_true", help="train on a GPU")
    parser.add_argument("--steps", type=positive, default=recipe.steps, help="training steps (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=recipe.batch_size, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and shuffling (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files (%(default)s)")
    return parser


def positive(text: str) -> int:
    """Parse a positive integer for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer; got {text}")
    return value


def endless(loader: DataLoader) -> Iterator[Any]:
    """Yield batches epoch after epoch, each in a new order."""
    while True:
        yield from loader
