"""Workers that take of each other's tiles: gemm.h and queue.h, by threads of which one is slow."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

# Rows by whole tiles or not, k in one part and in several, columns in one block and in several, both near and far.
SIZES = [
    (100, 200, 60), (128, 1600, 70), (200, 128, 784), (53, 65, 1100), (300, 33, 3000),
    (7, 100, 40), (1, 64, 700), (0, 5, 3), (64, 30, 0), (300, 800, 1100), (210, 500, 2100),
]  # fmt: skip


@pytest.fixture(params=[(32, 512), (48, 1024)], ids=lambda kib: f"l1_{kib[0]}-l2_{kib[1]}")
def library(build, lanes: int, request: pytest.FixtureRequest) -> ctypes.CDLL:
    l1, l2 = request.param
    return build("gemm_team_probe", "-pthread", f"-DPG_L1_KIB={l1}", f"-DPG_L2_KIB={l2}")


def product(
    library,
    a: np.ndarray,
    b: np.ndarray,
    workers: int,
    slow: int = -1,
    microseconds: int = 0,
    runs_on: bool = False,
    meets: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the product, and which worker handed over each element. ``meets``: all wait for the slow one's first hand-over."""
    (m, k), n = a.shape, b.shape[1]
    c, who, touched = np.full((m, n), np.nan, np.float32), np.full((m, n), -1, np.int32), np.zeros((m, n), np.int32)
    strides = [ctypes.c_long(s // 4) for s in (*a.strides, *b.strides)]
    library.team_product(
        (ctypes.c_long * 3)(m, n, k), ctypes.c_void_p(a.ctypes.data), *strides[:2], ctypes.c_void_p(b.ctypes.data), *strides[2:],
        *(ctypes.c_void_p(x.ctypes.data) for x in (c, who, touched)),
        workers, slow, ctypes.c_long(microseconds), ctypes.c_bool(runs_on), ctypes.c_bool(meets),
    )  # fmt: skip
    assert np.all(touched == 1), "each element is handed over once"
    return c, who


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("runs_on", [False, True])
def test_bits_do_not_depend_on_who_takes_a_tile(library, orders: str, runs_on: bool) -> None:
    random = np.random.default_rng(20)
    for m, n, k in SIZES:
        a = np.asarray(random.normal(size=(m, k)).astype(np.float32), order=orders[0])
        b = np.asarray(random.normal(size=(k, n)).astype(np.float32), order=orders[1])
        alone, _ = product(library, a, b, 1, runs_on=runs_on)
        np.testing.assert_allclose(alone, a.astype(np.float64) @ b, rtol=1e-4, atol=1e-3)
        for workers, slow in [(2, 0), (2, 1), (3, -1), (4, 2)]:
            taken, _ = product(library, a, b, workers, slow, 1, runs_on)
            np.testing.assert_array_equal(taken, alone, err_msg=str((m, n, k, workers, slow)))


@pytest.mark.parametrize("orders", ["CC", "FC"])
def test_sums_of_several_blocks_wait_where_others_add_to_them(build, orders: str) -> None:
    """Rows that come from memory meet several blocks of columns for each cut of k, whoever takes them."""
    far = build("gemm_team_probe", "-pthread", "-DPG_L1_KIB=32", "-DPG_L2_KIB=256")
    random = np.random.default_rng(22)
    for m, n, k in [(601, 150, 3600), (1201, 97, 1801)]:
        a = np.asarray(random.normal(size=(m, k)).astype(np.float32), order=orders[0])
        b = np.asarray(random.normal(size=(k, n)).astype(np.float32), order=orders[1])
        alone, _ = product(far, a, b, 1)
        np.testing.assert_allclose(alone, a.astype(np.float64) @ b, rtol=1e-4, atol=1e-3)
        for workers, slow in [(2, 0), (2, 1), (4, 2)]:
            taken, _ = product(far, a, b, workers, slow, 1)
            np.testing.assert_array_equal(taken, alone, err_msg=str((m, n, k, workers, slow)))


@pytest.mark.parametrize(("m", "n", "k", "order"), [(400, 16, 80, "C"), (1000, 200, 80, "F"), (400, 16, 1100, "C")])
def test_what_a_slow_worker_does_not_come_to_others_take(library, m: int, n: int, k: int, order: str) -> None:
    random = np.random.default_rng(21)
    a = np.asarray(random.normal(size=(m, k)).astype(np.float32), order=order)
    b = random.normal(size=(k, n)).astype(np.float32)
    _, who = product(library, a, b, 2, slow=1, microseconds=200, meets=True)
    shares = [np.count_nonzero(who == worker) for worker in range(2)]
    assert shares[0] > 0.6 * m * n, f"the fast worker did {shares[0]}, the slow one {shares[1]} elements"


def test_each_unit_is_taken_once(library) -> None:
    for workers in (1, 2, 3, 7):
        for total in (0, 1, 5, 16, 1000):
            counts = np.zeros(total, np.int32)
            library.take_units(workers, ctypes.c_long(total), ctypes.c_void_p(counts.ctypes.data))
            assert np.all(counts == 1)
