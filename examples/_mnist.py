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
from tqdm import tqdm

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import nn, optim
from pequegrad.data import DataLoader, TensorDataset, mnist
from pequegrad.errors import DataError, DeviceError

DATA = Path(__file__).parent / "data" / "mnist"
GOAL = 0.90
# It divides the 10,000 test images, so that one compiled shape serves for all of them.
EVALUATION_BATCH = 1_000
# Reading a loss waits for the step; every tenth is enough for the eye and costs nothing.
STEPS_PER_LOSS = 10
# The simulator takes 0.1 s for a step of the MLP and 2 s for one of the convnet.
SIMULATED_STEPS = 5


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one example trains, and how."""

    name: str
    """The module's, as in ``python -m examples.NAME``."""
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

    def after(self, seconds: float) -> Progress:
        """Return where training stands after one step more, which took ``seconds``."""
        if self.steps == 0:
            return Progress(1, seconds, 0.0)
        return Progress(self.steps + 1, self.first_step_seconds, self.other_seconds + seconds)

    @property
    def rate(self) -> str:
        """ ", N steps/s" without the first step, or nothing if there was no other."""
        if self.steps < 2:
            return ""
        rate = (self.steps - 1) / self.other_seconds
        return f", {rate:.{0 if rate >= 10 else 1}f} steps/s"

    def __str__(self) -> str:
        first, others = self.first_step_seconds, self.other_seconds
        count = f"{self.steps} step{'s' * (self.steps > 1)}"
        return f"{count} in {first + others:.2f} s of training (the first step {first:.2f} s, the rest {others:.2f} s)"


def main(recipe: Recipe, arguments: list[str] | None = None) -> None:
    """Train as ``recipe`` and the command line say, and print accuracy and times."""
    parser = make_parser(recipe)
    options = parser.parse_args(arguments)
    device, target = place(parser, options)
    if options.steps is None:
        options.steps = SIMULATED_STEPS if target else recipe.steps
    try:
        train_images, train_labels = mnist(options.data, train=True)
        test_images, test_labels = mnist(options.data, train=False)
    except DataError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")

    if options.batch_size > len(train_images):
        parser.error(f"--batch-size: at most {len(train_images)}, the training images. Got {options.batch_size}.")

    pg.manual_seed(options.seed)
    loader = DataLoader(TensorDataset(train_images, train_labels), options.batch_size, shuffle=True, drop_last=True)
    model = recipe.model().to(device)
    optimizer = recipe.optimizer(model.parameters())

    @pg.compile(target=target)
    def train_step(images, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    @pg.no_grad()
    def predict(images):
        return model(images)

    if target is None:  # the simulator would take minutes for the test images
        predict = pg.compile(predict)

    def accuracy() -> float:
        hits = 0
        for start in range(0, len(test_images), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            logits = predict(pg.tensor(test_images[rows], device=device)).numpy()
            hits += int(np.sum(logits.argmax(axis=1) == test_labels[rows]))
        return hits / len(test_images)

    with pg.stance("force_eager") if options.eager else contextlib.nullcontext():
        how = "eager" if options.eager else "compiled"
        where = ", on a GPU" if device == "cuda" else ", CUDA in the simulator" if target else ""
        print(f"{recipe.title}, batch {options.batch_size}, {how}{where}", flush=True)
        # It compiles here, and not in the middle of the progress bar.
        predict(pg.tensor(test_images[:EVALUATION_BATCH], device=device))
        progress, goal = train(recipe, options.steps, train_step, endless(loader), accuracy)
        final = accuracy()

    print(f"test accuracy: {100 * final:.2f} % of {len(test_images):,} images")
    print(f"first {100 * GOAL:.0f} %: {goal or 'not reached'}")
    print(f"in all: {progress}{progress.rate}")


def place(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, str | None]:
    """Return where the model is to lie, and the target of its step (None: that of the device); or say what is missing."""
    if options.eager and options.cuda_sim:
        parser.error("--cuda-sim compiles, and --eager does not: choose one.")
    if options.cuda:
        try:
            pg.zeros(1, device="cuda")
        except DeviceError as error:
            if not options.cuda_sim:
                parser.exit(
                    1,
                    f"{parser.prog}: error: --cuda: {error.args[0]}\nWith --cuda-sim the step runs in the simulator.\n",
                )
            print(f"--cuda: {error.args[0]}")
        else:
            return "cuda", None
    if options.cuda_sim:
        few = "." if options.steps else f": {SIMULATED_STEPS} steps, unless --steps says otherwise."
        print(f"The step is compiled as CUDA and runs in the simulator, each thread in turn, which is slow{few}")
    return "cpu", "cuda-sim" if options.cuda_sim else None


def train(
    recipe: Recipe,
    steps: int,
    train_step: Callable[[Any, Any], Any],
    batches: Iterator[Any],
    accuracy: Callable[[], float],
) -> tuple[Progress, Progress | None]:
    """Run ``steps`` steps; return where it stood at the end, and where the accuracy first was GOAL."""

    def timed_step() -> tuple[float | None, float]:
        start = time.perf_counter()
        images, labels = next(batches)
        loss = train_step(images, labels)
        step = progress.steps + 1
        read = loss.item() if step % STEPS_PER_LOSS == 0 or step in (1, steps) else None
        return read, time.perf_counter() - start

    progress, goal = Progress(0, 0.0, 0.0), None
    shown, seconds = timed_step()  # before the bar, because it may compile and say so
    progress = progress.after(seconds)
    layout = "{percentage:3.0f} %|{bar:30}| {n_fmt}/{total_fmt} steps{postfix}"
    with tqdm(total=steps, initial=1, bar_format=layout, mininterval=0.2) as bar:
        bar.set_postfix_str(f"loss {shown:.4f}{progress.rate}")
        while progress.steps < steps:
            shown, seconds = timed_step()
            progress = progress.after(seconds)
            bar.update()
            if shown is not None:
                bar.set_postfix_str(f"loss {shown:.4f}{progress.rate}", refresh=progress.steps == steps)
            is_due = progress.steps % recipe.steps_per_evaluation == 0
            if goal is None and is_due and accuracy() >= GOAL:
                goal = progress
    return progress, goal


def make_parser(recipe: Recipe) -> argparse.ArgumentParser:
    """Return the command line that all MNIST examples have."""
    parser = argparse.ArgumentParser(
        f"python -m examples.{recipe.name}", description=f"Train on MNIST: {recipe.title}."
    )
    parser.add_argument("--eager", action="store_true", help="run step by step on NumPy, without compiling")
    parser.add_argument("--cuda", action="store_true", help="train on a GPU")
    parser.add_argument(
        "--cuda-sim",
        action="store_true",
        help="run the step's CUDA in the simulator; with --cuda, where there is no GPU",
    )
    steps = f"training steps ({recipe.steps}; in the simulator {SIMULATED_STEPS})"
    parser.add_argument("--steps", type=positive, help=steps)
    parser.add_argument("--batch-size", type=positive, default=recipe.batch_size, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and shuffling (%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four .gz files (%(default)s)")
    return parser


def positive(text: str) -> int:
    """Parse a positive integer for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer; got {text}")
    return int(text)


def endless(loader: DataLoader) -> Iterator[Any]:
    """Yield batches epoch after epoch, each in a new order."""
    while True:
        yield from loader
