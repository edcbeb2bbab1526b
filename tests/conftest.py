"""What every test stands on: a disk cache of its own, no PEQUEGRAD_* settings from outside, fixed seeds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# Compiling inside a property takes seconds the first time, so hypothesis must not count them against the
# test; derandomized, a failure repeats by the same command.
settings.register_profile("pequegrad", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pequegrad")


def pytest_configure(config: pytest.Config) -> None:
    """Drop the caller's settings before anything is imported or forked."""
    for name in [name for name in os.environ if name.startswith("PEQUEGRAD_")]:
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One disk cache for the whole run, shared by the xdist workers: the binding is built once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "pequegrad-cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["PEQUEGRAD_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start each test from the same NumPy seed; tests of pequegrad's own seed it themselves."""
    np.random.seed(0)


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
