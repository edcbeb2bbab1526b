"""vec.h and reduce.h against NumPy: every element type, partial vectors, casts, integer edge cases."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

TYPES = {
    "b8": np.bool_,
    "u8": np.uint8,
    "i32": np.int32,
    "i64": np.int64,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
}
FLOATS = [0.0, -0.0, 1.0, -1.5, 2.5, 0.1, -3.7, 100.25, 65504.0, 65519.9, 65520.0, 1e-8, 5.96e-8, 6.1e-5, 3e-5]
COUNT = 37  # no multiple of any number of lanes


def values(name: str) -> np.ndarray:
    """COUNT values with the type's edge cases in front."""
    random = np.random.default_rng(7)
    dtype = TYPES[name]
    if name == "b8":
        return random.integers(0, 2, COUNT).astype(bool)
    if name in ("u8", "i32", "i64"):
        limits = np.iinfo(dtype)
        edges = [limits.min, limits.max, 0, 1, limits.max - 1]
        return np.array([*edges, *random.integers(max(limits.min, -50), 50, COUNT - 5)], dtype=dtype)
    edges = [np.inf, -np.inf, np.nan, *FLOATS]
    with np.errstate(over="ignore"):
        return np.array([*edges, *random.normal(0, 20, COUNT - len(edges))]).astype(dtype)


def call(function, *arguments) -> None:
    function(*(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_long(a) for a in arguments))


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal elements, NaN equal to NaN; bfloat16, whose NaNs NumPy's comparison does not know, as float32."""
    if got.dtype == TYPES["bf16"]:
        got, expected = got.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(got, expected)


def as_bits(a: np.ndarray) -> np.ndarray:
    return a.view(f"u{a.dtype.itemsize}")


@pytest.mark.parametrize("name", TYPES)
def test_partial_loads_and_stores_touch_nothing_else(build, name: str) -> None:
    library, x = build("vec_probe"), values(name)
    for count in range(COUNT + 1):
        y = np.frombuffer(bytes([1]) * (COUNT * x.itemsize), x.dtype).copy()
        untouched = y.copy()
        call(getattr(library, f"copy_{name}"), x, y, count)
        assert_same(y[:count], x[:count])
        assert np.array_equal(as_bits(y[count:]), as_bits(untouched[count:]))
    y = np.zeros_like(x)
    call(getattr(library, f"copy_full_{name}"), x, y, COUNT)
    whole = COUNT // library.lane_count() * library.lane_count()
    assert_same(y[:whole], x[:whole])


@pytest.mark.parametrize("name", TYPES)
def test_strided_access_and_gather(build, name: str) -> None:
    library, x = build("vec_probe"), values(name)
    y = np.zeros_like(x)
    call(getattr(library, f"strided_{name}"), x, y, 3, 12)
    expected = np.zeros_like(x)
    expected[:36:3] = x[:36:3]
    assert_same(y, expected)
    at = np.random.default_rng(8).integers(0, COUNT, COUNT)
    call(getattr(library, f"gather_{name}"), x, at, y, COUNT)
    assert_same(y, x[at])


def in_range(x: np.ndarray, target: str) -> np.ndarray:
    """The values whose conversion to `target` C defines."""
    if target not in ("u8", "i32", "i64") or x.dtype.kind in "biu":
        return x
    wide = x.astype(np.float64)
    limits = np.iinfo(TYPES[target])
    with np.errstate(invalid="ignore"):
        return x[(np.trunc(wide) >= limits.min) & (np.trunc(wide) <= limits.max)]


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_cast_equals_numpy(build, source: str, target: str) -> None:
    x = in_range(values(source), target)
    y, scalar = np.zeros(x.shape, TYPES[target]), np.zeros(x.shape, TYPES[target])
    call(getattr(build("vec_probe"), f"cast_{source}_{target}"), x, y, scalar, x.size)
    with np.errstate(all="ignore"):
        # To 16 bits everything goes by way of float32.
        expected = x.astype(np.float32).astype(TYPES[target]) if target in ("f16", "bf16") else x.astype(TYPES[target])
    assert_same(y, expected)
    assert_same(scalar, expected)


def test_all_16_bit_floats_survive_a_round_trip(build) -> None:
    for name in ("f16", "bf16"):
        x = np.arange(65536, dtype=np.uint16).view(TYPES[name])
        y = np.zeros_like(x)
        call(getattr(build("vec_probe"), f"copy_{name}"), x, y, x.size)
        assert_same(y, x)


@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_rounding_to_16_bits_is_to_nearest_even(build, target: str) -> None:
    bits = np.random.default_rng(9).integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[::2] &= np.uint32(0xFFFFF000)  # half of them near or on ties
    x = bits.view(np.float32)
    y, scalar = np.zeros(x.shape, TYPES[target]), np.zeros(x.shape, TYPES[target])
    call(getattr(build("vec_probe"), f"cast_f32_{target}"), x, y, scalar, x.size)
    with np.errstate(all="ignore"):
        expected = x.astype(TYPES[target])
    assert_same(y, expected)
    assert_same(scalar, expected)


@pytest.mark.parametrize("name", ["u8", "i32", "i64"])
@pytest.mark.parametrize(
    "operation",
    ["add", "subtract", "multiply", "negative", "floor_divide", "remainder", "fmod", "bitwise_and", "bitwise_or"]
    + ["bitwise_xor", "invert", "maximum", "minimum", "absolute"],
)
def test_integer_arithmetic_wraps_and_divides_as_numpy(build, operation: str, name: str) -> None:
    x = values(name)
    a, b = (np.ascontiguousarray(m.ravel()) for m in np.meshgrid(x, x))
    z = np.zeros_like(a)
    call(getattr(build("vec_probe"), f"{operation}_{name}"), a, b, z, a.size)
    function = getattr(np, operation)
    with np.errstate(all="ignore"):
        expected = function(a) if operation in ("negative", "invert", "absolute") else function(a, b)
    assert_same(z, expected)


@pytest.mark.parametrize("name", ["b8", "u8", "i32", "i64", "f32", "f64"])
@pytest.mark.parametrize("operation", ["less", "less_equal", "greater", "greater_equal", "equal", "not_equal"])
def test_comparison_and_select_equal_numpy(build, operation: str, name: str) -> None:
    x = values(name)
    a, b = (np.ascontiguousarray(m.ravel()) for m in np.meshgrid(x, x))
    z, chosen = np.zeros(a.shape, bool), np.zeros_like(a)
    call(getattr(build("vec_probe"), f"{operation}_{name}"), a, b, z, chosen, a.size)
    expected = getattr(np, operation)(a, b)
    assert_same(z, expected)
    assert_same(chosen, np.where(expected, a, b))


@pytest.mark.parametrize("name", ["u8", "i32", "i64", "f32", "f64"])
def test_reductions_over_part_of_a_vector(build, name: str) -> None:
    library = build("vec_probe")
    x = np.array([3, 1, 2, 3, 1, 4, 4, 2, 1, 1, 2, 1, 3, 1, 2, 1, 4, 1, 0, 0], TYPES[name])
    out, at = np.zeros(4, x.dtype), np.zeros(2, np.int64)
    for count in range(1, library.lane_count() + 1):
        call(getattr(library, f"reduce_{name}"), x, count, count, out, at)
        part = x[:count]
        with np.errstate(all="ignore"):
            assert out.tolist() == [part.sum(dtype=x.dtype), part.prod(dtype=x.dtype), part.max(), part.min()]
        assert at.tolist() == [part.argmax(), part.argmin()]
    call(getattr(library, f"reduce_{name}"), x, 1, x.size, out, at)
    assert at.tolist() == [5, 18]


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_nan_wins_reductions_at_its_first_place(build, name: str) -> None:
    library = build("vec_probe")
    out, at = np.zeros(4, TYPES[name]), np.zeros(2, np.int64)
    for place in range(library.lane_count()):
        x = np.arange(40, dtype=TYPES[name])
        x[place] = x[place + 3] = np.nan
        call(getattr(library, f"reduce_{name}"), x, library.lane_count(), 40, out, at)
        assert np.isnan(out[2]) and np.isnan(out[3]) and at.tolist() == [place, place]


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_sums_of_rows_side_by_side_are_the_same_bits_as_one_by_one(build, name: str) -> None:
    library = build("vec_probe")
    lanes = library.lane_count()
    x = np.random.default_rng(1).normal(size=(lanes, lanes)).astype(TYPES[name])
    rows, one_by_one = np.zeros(lanes, x.dtype), np.zeros(lanes, x.dtype)
    call(getattr(library, f"reduce_rows_{name}"), x, rows, one_by_one)
    assert_same(rows, one_by_one)
    np.testing.assert_allclose(rows, x.sum(axis=1), rtol=1e-4)


def test_any_and_all_look_at_the_counted_lanes_only(build) -> None:
    library = build("vec_probe")
    lanes, out = library.lane_count(), np.zeros(2, np.int32)
    for count in range(lanes + 1):
        for place in range(lanes):
            for fill in (False, True):
                x = np.full(lanes, fill)
                x[place] = not fill
                call(library.any_all, x, count, out)
                assert out.tolist() == [int(x[:count].any()), int(x[:count].all())]
