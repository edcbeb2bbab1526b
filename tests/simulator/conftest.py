"""The simulated libraries, compiled once per session."""

from __future__ import annotations

import pytest

from tests.simulator.simulating import HERE, LIBRARY_FLAGS, Simulated, compile_text


def build(name: str, factory: pytest.TempPathFactory) -> Simulated:
    return Simulated(compile_text(HERE / f"{name}.cu", factory.mktemp(name) / f"{name}.so", *LIBRARY_FLAGS))


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return build("device", tmp_path_factory)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return build("planted", tmp_path_factory)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return build("host", tmp_path_factory)
