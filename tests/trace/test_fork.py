"""Worker processes forked after the thread pool has started: loaders go on, and so do compiled steps."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.data import DataLoader, TensorDataset


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_loader_forks_its_workers_after_the_thread_pool_has_started():
    weight = pg.Tensor(np.full((1024, 1024), 0.5, np.float32))
    step = pg.compile(lambda x: (x @ weight).sum(), strict=True)
    whole = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    first = step(whole[:64]).item()
    assert step.lower(whole[:64]).plan.workers == pg.config.workers()  # large enough to use the pool
    loader = DataLoader(TensorDataset(pg.Tensor(whole)), batch_size=64, num_workers=2)
    sums = [step(batch).item() for (batch,) in loader]
    assert sums[0] == first
    expected = [(whole[i : i + 64] @ weight.numpy()).sum() for i in range(0, 256, 64)]
    np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=1.0)
