"""Fixtures of the tests of saved steps: one program, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.export.helpers import batches, losses, make_program


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A saved C++ step, which tests must not change."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ on this machine")
    program = make_program()
    losses(program.step, batches(2))
    folder = tmp_path_factory.mktemp("saved") / "step"
    program.step.compile(*batches(1)[0]).save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved step, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))
