"""gemm.h against NumPy in float64: every stride order, odd sizes, long sums, shares of several workers."""

from __future__ import annotations

import ctypes
import platform
import re

import numpy as np
import pytest

from tests.runtime.native import FLAGS, HERE, INCLUDE, WIDTHS, compile_cpp

SIZES = [
    (1, 1, 1), (0, 5, 3), (5, 0, 3), (5, 7, 0), (1, 200, 17), (17, 1, 33), (9, 50, 10), (128, 10, 200), (64, 200, 784),
    (23, 49, 100), (8, 48, 64), (7, 47, 63), (33, 97, 31), (40, 70, 1024), (12, 33, 5000), (3, 4, 9000),
    (53, 700, 130), (1100, 90, 400), (130, 520, 257), (130, 1600, 70), (70, 1020, 130), (137, 700, 1100),
    (72, 1024, 600), (300, 500, 2100),
]  # fmt: skip


def scratch_bytes(
    rows: int, depth: int, itemsize: int, lanes: int, tile_rows: int, width: int, l1: int, l2: int
) -> int:
    """The formula that gemm.h documents."""
    found = []
    mosts = [2048 if l2 >= 1 << 20 else 1536, *([4096] if l2 >= 1 << 20 and l1 >= 48 << 10 else [])]
    for most in mosts:
        blocks = max(1, -(-depth // (most // itemsize)))
        block = -(-depth // blocks)
        block += -block % lanes
        columns = min(1024, 3 * l2 // 4 // itemsize // max(block, 1)) // width * width
        kept = -(-rows // max(1, -(-rows // 1024)))
        sums = (kept if blocks > 1 else tile_rows) * columns
        elements = 2 * block * columns + 16 * tile_rows * (block + lanes) + sums
        found.append(-(-elements * itemsize // 64) * 64)
    return max(found)


def operand(random: np.random.Generator, shape: tuple[int, int], order: str, dtype: type) -> np.ndarray:
    whole = random.integers(-8, 9, size=(shape[0] + 2, 2 * shape[1] + 3)).astype(dtype) / 8
    if order == "C":
        return np.ascontiguousarray(whole[: shape[0], : shape[1]])
    if order == "F":
        return np.asfortranarray(whole[: shape[0], : shape[1]])
    return whole[1 : shape[0] + 1, 2 : 2 + 2 * shape[1] : 2]  # neither stride is one


def product(
    library: ctypes.CDLL, a: np.ndarray, b: np.ndarray, workers: int, updates: int = 0, runs_on: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    (m, k), n = a.shape, b.shape[1]
    name = "f32" if a.dtype == np.float32 else "f64"
    scratch_of = getattr(library, f"scratch_{name}")
    scratch_of.restype = ctypes.c_long
    size = scratch_of(ctypes.c_long(m), ctypes.c_long(k))
    tile = np.zeros(4, np.int64)
    library.tile_of(ctypes.c_void_p(tile.ctypes.data))
    rows, width = tile[:2] if name == "f32" else tile[2:]
    assert size == scratch_bytes(m, k, a.itemsize, library.lanes, int(rows), int(width), library.l1, library.l2)
    guarded = np.full(size + 128, 0xAB, np.uint8)
    start = -guarded.ctypes.data % 64
    c, touched = np.full((m, n), np.nan, a.dtype), np.zeros((m, n), np.int32)
    pointer = [ctypes.c_void_p(x) for x in (a.ctypes.data, b.ctypes.data, c.ctypes.data, guarded.ctypes.data + start)]
    strides = [ctypes.c_long(s // a.itemsize) for s in (*a.strides, *b.strides)]
    getattr(library, f"gemm_{name}")(
        (ctypes.c_long * 3)(m, n, k), pointer[0], *strides[:2], pointer[1], *strides[2:], pointer[2], pointer[3],
        workers, ctypes.c_void_p(touched.ctypes.data), updates, ctypes.c_bool(runs_on),
    )  # fmt: skip
    assert np.all(guarded[:start] == 0xAB) and np.all(guarded[start + size :] == 0xAB), "wrote outside its scratch"
    return c, touched


@pytest.fixture(params=[(32, 512), (48, 1024)], ids=lambda kib: f"l1_{kib[0]}-l2_{kib[1]}")
def library(build, lanes: int, request: pytest.FixtureRequest) -> ctypes.CDLL:
    l1, l2 = request.param
    probe = build("gemm_probe", f"-DPG_L1_KIB={l1}", f"-DPG_L2_KIB={l2}")
    probe.lanes, probe.l1, probe.l2 = lanes, l1 << 10, l2 << 10
    return probe


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF", "SS"])
def test_product_equals_numpy_for_every_stride_order(library, orders: str, dtype: type) -> None:
    random = np.random.default_rng(10)
    for m, n, k in SIZES:
        a, b = operand(random, (m, k), orders[0], dtype), operand(random, (k, n), orders[1], dtype)
        c, touched = product(library, a, b, workers=1)
        assert np.all(touched == 1), "the epilogue must see each element once"
        # Multiples of 1/64 of this size add up without rounding in either type.
        np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64), err_msg=str((m, n, k)))


@pytest.fixture
def small_cache(build, lanes: int) -> ctypes.CDLL:
    """For a machine whose L2 is so small that rows of A come from memory soon."""
    probe = build("gemm_probe", "-DPG_L1_KIB=32", "-DPG_L2_KIB=256")
    probe.lanes, probe.l1, probe.l2 = lanes, 32 << 10, 256 << 10
    return probe


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC"])
def test_rows_that_come_from_memory_meet_several_blocks_of_columns_at_once(
    small_cache, orders: str, dtype: type
) -> None:
    """The sums of all these blocks wait, from one cut of k to the next, side by side in a scratch that is no larger for it."""
    random = np.random.default_rng(15)
    # Of sixteen lanes: seven blocks at once, three, and two of five.
    for m, n, k in [(60, 300, 18000), (301, 140, 3700), (600, 233, 1801)]:
        a, b = operand(random, (m, k), orders[0], dtype), operand(random, (k, n), orders[1], dtype)
        expected = a.astype(np.float64) @ b.astype(np.float64)
        for workers in (1, 2):
            c, touched = product(small_cache, a, b, workers)
            assert np.all(touched == 1), (m, n, k)
            np.testing.assert_array_equal(c, expected, err_msg=str((m, n, k)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lines_asked_for_ahead_change_no_bit_and_reach_not_too_far(library, dtype: type) -> None:
    random = np.random.default_rng(12)
    for m, n, k in [(64, 200, 784), (17, 1, 33), (53, 700, 130), (8, 48, 64), (40, 97, 1030)]:
        a, b = (random.normal(size=shape).astype(dtype) for shape in ((m, k), (k, n)))
        plain, _ = product(library, a, b, 2)
        # Seven are more than are followed: the rest is left alone.
        for updates in (1, 2, 7):
            ahead, touched = product(library, a, b, 2, updates)
            assert np.all(touched == 1) and np.array_equal(plain, ahead)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_sums_that_are_only_stored_are_the_same_bits_and_nothing_beside_them(library, orders: str, dtype: type) -> None:
    """Rows of C lie apart from each other: a micro-kernel that stores its whole tile must not write between them."""
    random = np.random.default_rng(13)
    name = "f32" if dtype == np.float32 else "f64"
    # One row and many, one panel and many, k that is cut and not, none at all.
    for m, n, k in [
        (1, 16, 5),
        (5, 32, 0),
        (0, 16, 4),
        (23, 112, 100),
        (64, 128, 784),
        (137, 48, 1100),
        (70, 1040, 130),
        (300, 496, 2100),
    ]:
        a, b = (
            np.asarray(random.normal(size=shape), dtype, order=order)
            for shape, order in zip(((m, k), (k, n)), orders, strict=True)
        )
        for workers, updates in ((1, 0), (2, 1)):
            expected, _ = product(library, a, b, workers)
            c = np.full((m + 2, n + 32), 7, dtype)
            scratch = np.zeros(getattr(library, f"scratch_{name}")(ctypes.c_long(m), ctypes.c_long(k)) + 64, np.uint8)
            pointer = [ctypes.c_void_p(x) for x in (a.ctypes.data, b.ctypes.data, c[1:, 16:].ctypes.data)]
            strides = [ctypes.c_long(s // a.itemsize) for s in (*a.strides, *b.strides)]
            getattr(library, f"gemm_into_{name}")(
                (ctypes.c_long * 3)(m, n, k), pointer[0], *strides[:2], pointer[1], *strides[2:], pointer[2], ctypes.c_long(n + 32),
                ctypes.c_void_p(scratch.ctypes.data - scratch.ctypes.data % -64), workers, updates,
            )  # fmt: skip
            assert np.array_equal(c[1:-1, 16:-16], expected), (m, n, k)
            c[1:-1, 16:-16] = 7
            assert np.all(c == 7), "wrote outside of C"


@pytest.mark.parametrize(
    ("probe", "kernel", "flags"),
    [
        ("gemm_probe", "gemm_kernel_ahead", ()),
        ("conv_probe", "conv2d_vectors_strip", ()),
        ("conv_probe", "conv2d_winograd_products", ("-DPROBE_WINOGRAD",)),
    ],
)
def test_the_compiler_leaves_asking_ahead_in_the_kernel(
    lanes: int, tmp_path, probe: str, kernel: str, flags: tuple
) -> None:
    """g++ takes what only prefetches for what does nothing, and dropped it from the sums until it was inlined at once."""
    assembly = tmp_path / "probe.s"
    march = WIDTHS[lanes][0] if platform.machine() in ("x86_64", "AMD64") else "-O2"
    compile_cpp(
        [
            *FLAGS,
            march,
            *flags,
            f"-DPG_LANES={lanes}",
            f"-I{INCLUDE}",
            "-S",
            str(HERE / f"{probe}.cpp"),
            "-o",
            str(assembly),
        ]
    )
    bodies = re.findall(rf"^\w*{kernel}[\w.]*:\n(.*?)^\s*\.size", assembly.read_text(), re.MULTILINE | re.DOTALL)
    assert len(bodies) >= 2, "float and double, each of one width or more"
    assert all(re.search(r"\bprefetch|\bprfm\b", body) for body in bodies)


def test_columns_turned_beside_the_sums_are_the_same_bits_as_packed_at_once(library) -> None:
    """Panels of a B that lies transposed are packed by micro-kernels of the panel before: all columns but those that no vector
    is full of, of pairs of k, and whatever the number of tiles that pass by."""
    random = np.random.default_rng(14)
    for m, n, k in [
        (100, 128, 784),
        (200, 97, 300),
        (64, 50, 785),
        (137, 40, 257),
        (72, 33, 401),
        (90, 200, 270),
        (47, 144, 256),
    ]:
        a = random.normal(size=(m, k)).astype(np.float32)
        b = random.normal(size=(k, n)).astype(np.float32)
        plain, _ = product(library, a, b, 1)
        for workers in (1, 2):
            turned, touched = product(library, a, np.asfortranarray(b), workers)
            assert np.all(touched == 1), (m, n, k)
            np.testing.assert_array_equal(turned, plain, err_msg=str((m, n, k)))


def test_bits_do_not_depend_on_the_shares(library) -> None:
    random = np.random.default_rng(11)
    for m, n, k in [(64, 200, 784), (33, 97, 31), (12, 33, 5000), (300, 60, 15000)]:
        a = random.normal(size=(m, k)).astype(np.float32)
        b = random.normal(size=(n, k)).astype(np.float32).T
        one, _ = product(library, a, b, workers=1)
        for workers in (2, 3, 4, 6):
            many, touched = product(library, a, b, workers)
            assert np.all(touched == 1)
            assert np.array_equal(one, many)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_handed_over_as_one_are_the_same_bits(library, dtype: type) -> None:
    random = np.random.default_rng(13)
    for m, n, k in [*SIZES, (64, 8, 32), (65, 2, 32), (9, 57, 40), (70, 161, 30), (21, 287, 8)]:
        a, b = random.normal(size=(m, k)).astype(dtype), random.normal(size=(k, n)).astype(dtype)
        plain, _ = product(library, a, b, 1)
        for workers in (1, 2):
            joined, touched = product(library, a, b, workers, runs_on=True)
            assert np.all(touched == 1), (m, n, k)
            np.testing.assert_array_equal(joined, plain, err_msg=str((m, n, k)))


def rectangle(library, m: int, n: int, k: int, worker: int, turned: str = "") -> list[int]:
    """The rows and columns of one of two workers; ``turned``: which of A and B lie transposed."""
    bounds = np.zeros(4, np.int64)
    extents = (ctypes.c_long(extent) for extent in (m, n, k))
    library.rectangle(*extents, "a" in turned, "b" in turned, worker, 2, ctypes.c_void_p(bounds.ctypes.data))
    return bounds.tolist()


def test_a_layers_weight_and_its_gradient_give_a_worker_the_same_rows(library) -> None:
    """So that what one worker changes is not read from the other's cache; with narrow vectors arithmetic outweighs that."""
    if library.lanes < 8:
        pytest.skip("narrow vectors: an even split of the arithmetic counts for more")

    for outputs, samples, inputs in [(200, 128, 384), (384, 128, 200), (512, 128, 384)]:
        for worker in range(2):
            forward = rectangle(library, outputs, samples, inputs, worker, "b")
            gradient = rectangle(library, outputs, inputs, samples, worker)
            assert forward[:2] == gradient[:2] and forward[1] - forward[0] == outputs // 2
    # Few rows of A, or many columns, are no reason to pack all of B twice.
    assert rectangle(library, 10, 4096, 128, 0) == [0, 10, 0, 2048]
    assert rectangle(library, 512, 768, 3072, 0) == [0, 512, 0, 384]
    assert rectangle(library, 256, 2304, 784, 0, "b") == [0, 256, 0, 1152]
    # Nor are many rows of A read twice for few columns, or packed twice.
    assert rectangle(library, 4096, 768, 128, 0) == [0, 2048, 0, 768]
    assert rectangle(library, 512, 128, 1024, 0, "a") == [0, 256, 0, 128]
    # But where rows are packed, better that than sums that are added up beyond L2.
    if library.lanes == 16:
        assert rectangle(library, 4096, 256, 1024, 0, "a") == [0, 4096, 0, 128]


def test_shares_cover_everything_once(library) -> None:
    for total in (0, 1, 15, 16, 17, 100, 1001):
        for grain in (1, 16):
            for workers in (1, 2, 3, 8, 20):
                bounds = np.zeros((workers, 2), np.int64)
                library.shares(ctypes.c_long(total), ctypes.c_long(grain), workers, ctypes.c_void_p(bounds.ctypes.data))
                covered = [i for begin, end in bounds for i in range(begin, end)]
                assert covered == list(range(total))
                assert all(begin % grain == 0 for begin, end in bounds if begin < end)
