"""A GPU for tests on machines without one: the stand-in for CuPy in its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pequegrad import arrays
from pequegrad.ops.random import default_generator
from tests.device import fake_cupy


def forget() -> None:
    """Forget every device, and the random state that may lie on one."""
    arrays.forget()
    default_generator._state = None


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, as ``import cupy`` finds it; forgotten afterwards."""
    forget()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    yield fake_cupy
    forget()


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CuPy that finds no GPU."""
    forget()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(fake_cupy, "devices", [fake_cupy.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device")])
    yield
    forget()


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No CuPy at all, wherever this runs."""
    forget()
    monkeypatch.setitem(sys.modules, "cupy", None)
    yield
    forget()
