"""A profile names every kernel, adds up, and leaves the user's state alone."""

import re

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.errors import DeviceError
from pequegrad.nn import functional as F

X = np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)


def training(**options):
    pg.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @pg.compile(strict=True, **options)
    def step(x):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x[:, :3])
        loss.backward()
        optimizer.step()
        return loss

    return step, model, optimizer


def test_every_kernel_has_its_time_and_the_sum_is_at_most_the_whole():
    step, _, _ = training()
    found = step.profile(X, seconds=0.05)
    plan = step.lower(X).plan
    assert [(k.family, k.origin) for k in found.kernels] == [(k.family, str(k.origin)) for k in plan.kernels]
    assert all(0 <= kernel.microseconds <= kernel.slowest for kernel in found.kernels)
    assert sum(kernel.microseconds for kernel in found.kernels) + found.waiting > 0
    products = [kernel for kernel in found.kernels if kernel.multiply_adds]
    assert max(kernel.multiply_adds for kernel in products) == 32 * 6 * 5
    assert all(kernel.gflops > 0 and kernel.bytes > 0 for kernel in products if kernel.slowest)


def test_a_profile_prints_a_table_with_the_slowest_first():
    step, _, _ = training()
    found = step.profile(X, seconds=0.05)
    head, titles, *rows = str(found).splitlines()
    assert head.startswith("step: ")
    assert "GFLOP/s" in titles
    times = [float(re.match(r" *([\d,.]+)", row)[1].replace(",", "")) for row in rows]
    assert times == sorted(times, reverse=True)
    assert len(rows) == len(found.kernels)
    assert any("test_profiling.py" in row for row in rows)


def test_a_profile_changes_no_state_and_draws_no_random_numbers():
    def losses(is_profiled):
        step, model, _optimizer = training()
        first = step(X).item()
        versions = [parameter.storage.version for parameter in model.parameters()]
        if is_profiled:
            step.profile(X, seconds=0.02)
        assert versions == [parameter.storage.version for parameter in model.parameters()]
        return [first, *(step(X).item() for _ in range(3))]

    assert losses(True) == losses(False)


@pytest.mark.parametrize("workers", [1, 2])
def test_several_workers_are_timed_each(workers):
    step = pg.compile(lambda x, y: (x @ y).sum(), strict=True)
    a = np.ones((256, 256), np.float32)
    with pg.config(num_threads=workers):
        assert step.profile(a, a, seconds=0.02).workers == workers


def test_a_target_without_a_clock_says_so():
    step, _, _ = training(target="cuda-sim")
    with pytest.raises(DeviceError, match="no clock"):
        step.profile(X)


def test_a_bad_index_is_reported():
    step = pg.compile(lambda x, i: x[i], strict=True)
    with pytest.raises(pg.errors.IndexOutOfRange):
        step.profile(X, np.array([32]), seconds=0.02)
