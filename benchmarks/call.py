"""Time what a call costs beside its kernels: ``python -m benchmarks.call``.

Each step reads 20 captured tensors of 16 numbers and returns one number, next to no arithmetic. What differs is where
the tensors and a few settings are kept, for all of that is checked at each call: in a module, in a list, in a dict, as
an agent's attributes, or with a step that was saved and loaded; and how arguments are given: one tensor, or a batch of
tensors and settings in containers, by name, with a flag that is now on, now off. Printed are the microseconds of a whole
call from Python, and of the same step inside, by its own clock, which adds a little; signature, guards, binding and
result are what lies between.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pequegrad as pg
from pequegrad import nn

TENSORS, SIZE = 20, 16
ROUNDS, CALLS = 200, 100


class Net(nn.Module):
    """The tensors as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(weight) for weight in make_weights()])

    def forward(self, x: Any) -> Any:
        return reduced(list(self.weights), x)


class Agent:
    """The tensors in a list of an ordinary object, beside its settings."""

    def __init__(self) -> None:
        self.weights = make_weights()
        self.discount, self.rate = 0.99, 0.01
        self.settings = {"entropy": 0.01, "clip": 0.2}

    def step(self, x: Any) -> Any:
        """Return a number that depends on all of it."""
        return reduced(self.weights, x) * self.discount * self.rate + self.settings["entropy"] * self.settings["clip"]


def make_weights() -> list[Any]:
    """Return the captured tensors."""
    return [pg.ones(SIZE) for _ in range(TENSORS)]


def reduced(weights: Sequence[Any], x: Any) -> Any:
    """Return one number that depends on all tensors."""
    total = weights[0] * x
    for weight in weights[1:]:
        total = total + weight * x
    return total.sum()


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Of one call: those by position, and those by name."""


def make_steps() -> dict[str, tuple[Callable[..., Any], list[Arguments]]]:
    """Return the steps by what differs, each with the arguments of calls that take turns."""
    net, listed, named, agent = Net(), make_weights(), dict(enumerate(make_weights())), Agent()
    x, rate = pg.ones(SIZE), np.float32(0.01)
    batch = {"state": x, "action": pg.ones(SIZE), "reward": pg.ones(SIZE), "next": (pg.ones(SIZE), pg.ones(SIZE))}

    def of_batch(batch: dict[str, Any]) -> Any:
        return reduced(listed, batch["state"] * batch["action"] + batch["reward"] * batch["next"][0] * batch["next"][1])

    def by_name(x: Any, *, rate: Any, is_training: bool = True) -> Any:
        return reduced(listed, x * rate if is_training else x)

    return {
        "module": (lambda x: net(x), [((x,), {})]),
        "list": (lambda x: reduced(listed, x), [((x,), {})]),
        "dict": (lambda x: reduced(list(named.values()), x), [((x,), {})]),
        "agent": (agent.step, [((x,), {})]),
        "list, batch in a dict": (of_batch, [((batch,), {})]),
        "list, rate by name": (by_name, [((x,), {"rate": rate})]),
        "list, flag on and off": (by_name, [((x,), {"rate": rate, "is_training": flag}) for flag in (True, False)]),
    }


def call_microseconds(step: Callable[..., Any], turns: Sequence[Arguments]) -> float:
    """Return the median of a call, over rounds of many."""
    for args, kwargs in (*turns, *turns):
        step(*args, **kwargs)
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS // len(turns)):
            for args, kwargs in turns:
                step(*args, **kwargs)
        rounds.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(rounds)


def loaded(step: Any, turns: Sequence[Arguments]) -> Callable[..., Any]:
    """Return a compiled step as another process would have it."""
    args, kwargs = turns[0]
    with tempfile.TemporaryDirectory(prefix="benchmark-call-") as folder:
        step.compile(*args, **kwargs).save(Path(folder) / "step")
        return pg.load_step(Path(folder) / "step")


def main() -> None:
    """Measure and print."""
    print(f"{TENSORS} captured tensors in   a call   inside of it")
    for name, (function, turns) in make_steps().items():
        step = pg.compile(function, strict=True)
        args, kwargs = turns[0]
        inside = step.profile(*args, **kwargs, seconds=0.2).microseconds
        steps = {name: step, f"{name}, loaded": loaded(step, turns)} if name == "list" else {name: step}
        for title, called in steps.items():
            print(f"{title:<22} {call_microseconds(called, turns):5.2f} µs   {inside:5.2f} µs", flush=True)


if __name__ == "__main__":
    main()
