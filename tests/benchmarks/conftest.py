"""Benchmarks assign settings for a process of their own; here they share one with other tests."""

import pytest

from pequegrad.config import config


@pytest.fixture(scope="module", autouse=True)
def _settings_as_before():
    before = dict(config.overrides)
    yield
    for name in config.overrides.keys() - before.keys():
        config.reset(name)
    for name, value in before.items():
        setattr(config, name, value)
