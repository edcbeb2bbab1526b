"""A small program that uses all kinds of state, and what its tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import nn, optim

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Program:
    """A model with dropout and running statistics, its optimizer, and its compiled step."""

    model: Any
    optimizer: Any
    step: Any


def make_program(target: str = "cpp", **options: Any) -> Program:
    pg.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.25), nn.Linear(9, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.02)

    def train_step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return Program(model, optimizer, pg.compile(train_step, target=target, strict=True, **options))


def batches(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((8, 6), dtype=np.float32), rng.integers(0, 3, 8)) for _ in range(count)]


def losses(step: Any, data: Any) -> list[float]:
    return [step(*batch).item() for batch in data]


def export(step: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
    """Compile, save and load a step."""
    step.compile(*args, **kwargs).save(path)
    return pg.load_step(path)


def run_python(code: str, **environment: str) -> str:
    """Run a program in a fresh process and return what it prints."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
