"""Gather, scatter and running sums on the simulated device."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from tests.runtime_cuda.conftest import Probe

SHAPES = {
    # outer, extent, count, inner, one index an element
    "embedding": (1, 40, 300, 12, 0),
    "broad_rows": (1, 5, 9, 300, 0),
    "sliced": (3, 7, 11, 4, 0),
    "single": (1, 1, 1, 1, 0),
    "classes": (33, 10, 1, 1, 1),
    "per_element": (2, 6, 5, 20, 1),
    "per_element_broad": (2, 3, 4, 260, 1),
}


def run(
    probe: Probe, sizes: tuple[int, ...], dtype: type, seed: int, index: np.ndarray, width: int = 1
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Return (table, source), (gathered, added, replaced, added by atomics) and the report."""
    outer, extent, count, inner, _ = sizes
    random = np.random.default_rng(seed)
    table = random.standard_normal((outer, extent, inner)).astype(dtype)
    source = random.standard_normal((outer, count, inner)).astype(dtype)
    results = [np.zeros_like(source), *(np.zeros_like(table) for _ in range(3))]
    failure = np.zeros(4, np.int64)
    name = "probe_index_f32" if dtype is np.float32 else "probe_index_bf16"
    probe.call(name, sizes, 1 + 3 * seed, width, table, index, source, *results, failure, seed=seed)
    return [table, source], results, failure


def make_index(sizes: tuple[int, ...], seed: int) -> np.ndarray:
    outer, extent, count, inner, per_element = sizes
    shape = (outer, count, inner) if per_element else (count,)
    return np.random.default_rng(100 + seed).integers(0, extent, shape)


def whole(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return index if index.ndim == 3 else np.broadcast_to(index[None, :, None], shape)


@pytest.mark.parametrize("name", SHAPES)
def test_gather_and_scatter_agree_with_numpy(build: Callable[[str], Probe], name: str) -> None:
    sizes = SHAPES[name]
    for seed in range(3):
        index = make_index(sizes, seed)
        width = 4 if sizes[3] % 4 == 0 and not sizes[4] and seed else 1
        (table, source), (gathered, added, replaced, atomic), failure = run(
            build("image_probe"), sizes, np.float32, seed, index, width
        )
        full = whole(index, source.shape)
        np.testing.assert_array_equal(gathered, np.take_along_axis(table, full, 1))
        expected = table.copy()  # in float32 and in rising i: the same bits
        latest = table.copy()
        for i in range(sizes[2]):
            at = full[:, i : i + 1]
            np.put_along_axis(expected, at, np.take_along_axis(expected, at, 1) + source[:, i : i + 1], 1)
            np.put_along_axis(latest, at, source[:, i : i + 1], 1)
        np.testing.assert_array_equal(added, expected)
        np.testing.assert_array_equal(replaced, latest)
        np.testing.assert_allclose(atomic, expected, rtol=1e-4, atol=1e-5)
        assert failure.tolist() == [0, 0, 0, 0]


def test_sixteen_bits_are_rounded_after_each_addition(build: Callable[[str], Probe]) -> None:
    sizes = (1, 4, 20, 8, 0)
    index = make_index(sizes, 1)
    (table, source), (gathered, added, replaced, _), _ = run(build("image_probe"), sizes, ml_dtypes.bfloat16, 1, index)
    np.testing.assert_array_equal(gathered, table[:, index])
    expected = table.copy()
    for i, at in enumerate(index):
        expected[:, at] = expected[:, at] + source[:, i]
    np.testing.assert_array_equal(added, expected)
    table[:, index] = source
    np.testing.assert_array_equal(replaced, table)


@pytest.mark.parametrize("name", ["embedding", "per_element"])
@pytest.mark.parametrize("wrong", [-1, 40])
def test_a_wrong_index_is_reported_and_touches_nothing(build: Callable[[str], Probe], name: str, wrong: int) -> None:
    sizes = SHAPES[name]
    index = make_index(sizes, 0)
    index.flat[3] = wrong
    (table, source), (gathered, added, replaced, _), failure = run(build("image_probe"), sizes, np.float32, 0, index)
    assert failure.tolist() == [1, 7, wrong, sizes[1]]
    full, right = whole(index, source.shape), whole(index != wrong, source.shape)
    safe = np.where(right, full, 0)
    np.testing.assert_array_equal(gathered, np.where(right, np.take_along_axis(table, safe, 1), 0))
    expected = table.copy()
    for i in range(sizes[2]):
        at = safe[:, i : i + 1]
        more = np.where(right[:, i : i + 1], source[:, i : i + 1], 0)
        np.put_along_axis(expected, at, np.take_along_axis(expected, at, 1) + more, 1)
        kept = np.where(right[:, i : i + 1], source[:, i : i + 1], np.take_along_axis(table, at, 1))
        np.put_along_axis(table, at, kept, 1)
    np.testing.assert_array_equal(added, expected)
    np.testing.assert_array_equal(replaced, table)


@pytest.mark.parametrize("sizes", [(3, 600, 1), (2, 64, 1), (5, 7, 1), (2, 9, 40), (1, 1, 1)])
def test_running_sums_agree_with_numpy(build: Callable[[str], Probe], sizes: tuple[int, int, int]) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        floats = random.standard_normal(sizes)
        integers = random.integers(-(2**62), 2**62, sizes)
        for source, name in ((floats, "probe_running_sum_f64"), (integers, "probe_running_sum_i64")):
            out = np.zeros_like(source)
            build("image_probe").call(name, sizes, 1 + seed, source, out, seed=seed)
            expected = np.cumsum(source, axis=1)
            if source is floats:
                np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
            else:
                np.testing.assert_array_equal(out, expected)
