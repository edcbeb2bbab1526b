"""Attention without scores in memory, on the simulated device, against softmax written out in NumPy, float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.runtime_cuda.conftest import Probe


def attend(
    probe: Probe,
    sizes: tuple[int, int, int, int],
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    seed: int = 0,
    counts: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    out, sums = np.zeros_like(q), np.zeros(q.shape[:2], q.dtype)
    name = "probe_attention_f32" if q.dtype == np.float32 else "probe_attention_f64"
    probe.call(name, sizes, 1 + seed, q.shape[2], q, k, v, out, sums, seed=seed, counts=counts)
    return out, sums


def reference(shift: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(1, 2) / 8
    row, column = np.indices(scores.shape[1:])
    scores = np.where(column <= row + shift, scores, -np.inf)
    with np.errstate(invalid="ignore"):  # a row that sees nothing
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    sums = exponentials.sum(-1, keepdims=True)
    return exponentials / sums @ v.astype(np.float64), (np.log(sums) + scores.max(-1, keepdims=True))[..., 0]


@pytest.mark.parametrize("sizes", [(2, 70, 130, 130), (1, 129, 129, 0), (3, 1, 1, 0), (2, 5, 67, 62), (1, 64, 64, 0)])
@pytest.mark.parametrize(("depth", "dtype"), [(16, np.float32), (64, np.float32), (128, np.float32), (32, np.float64)])
def test_attention_agrees_with_softmax(
    build: Callable[[str], Probe], sizes: tuple[int, int, int, int], depth: int, dtype: type
) -> None:
    batch, queries, keys, shift = sizes
    for seed in range(3 if depth == 64 else 1):
        random = np.random.default_rng(seed)
        q, k, v = (random.standard_normal((batch, n, depth)).astype(dtype) for n in (queries, keys, keys))
        got = attend(build("attention_probe"), sizes, 3 * q, k, v, seed)
        tolerance = 2e-5 if dtype is np.float32 else 1e-12
        for mine, expected in zip(got, reference(shift, 3 * q, k, v), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=tolerance)


def test_a_row_that_sees_nothing_or_nan_is_nan_and_no_other(build: Callable[[str], Probe]) -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 6, 16)).astype(np.float32) for _ in range(3))
    q[0, 4, 3] = np.nan
    out, _ = attend(build("attention_probe"), (1, 6, 6, -2), q, k, v)
    assert np.isnan(out[0]).all(axis=1).tolist() == [True, True, False, False, True, False]
    np.testing.assert_allclose(out[0, [2, 3, 5]], reference(-2, q, k, v)[0][0, [2, 3, 5]], rtol=1e-5, atol=1e-5)


def test_attention_meets_no_bank_conflict(build: Callable[[str], Probe]) -> None:
    probe = build("attention_probe")
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, 64, 64)).astype(np.float32) for _ in range(3))
    probe.statistics()
    attend(probe, (1, 64, 64, 64), q, k, v, counts=True)
    counts = probe.statistics()
    assert (counts["LOAD_SECTORS"], counts["BANK_CONFLICTS"]) == (3 * 64 * 64 * 4 // 32, 0)
