"""math.h against references in higher precision: error bounds in ULP, and the special values."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    1e-45,
    -1e-45,
    1e-40,
    3e38,
    -3e38,
]


def run(library: ctypes.CDLL, name: str, *arrays: np.ndarray, output: type | None = None) -> np.ndarray:
    arrays = tuple(np.ascontiguousarray(a) for a in arrays)
    result = np.full(arrays[0].shape, 77, dtype=output or arrays[0].dtype)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, result)]
    getattr(library, name)(*pointers, ctypes.c_long(arrays[0].size))
    return result


def ulp_error(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest distance in units of the last place of the float32 nearest to `exact`."""
    with np.errstate(all="ignore"):
        nearest = exact.astype(np.float32)
    finite = np.isfinite(nearest)
    assert np.array_equal(np.isnan(got), np.isnan(nearest)), "NaNs differ"
    infinite = np.isinf(nearest)
    assert np.array_equal(got[infinite], nearest[infinite]), "infinities differ"
    unit = np.maximum(np.spacing(np.abs(nearest[finite])).astype(np.float64), 2.0**-149)
    return float(np.max(np.abs(got[finite].astype(np.float64) - exact[finite]) / unit, initial=0.0))


def spread(low: float, high: float, count: int, seed: int) -> np.ndarray:
    """Magnitudes spread over all exponents between `low` and `high`, both signs, and evenly over the range too."""
    random = np.random.default_rng(seed)
    magnitudes = np.exp(random.uniform(math.log(low), math.log(high), count))
    logarithmic = magnitudes * random.choice([-1.0, 1.0], count)
    return np.concatenate([logarithmic, random.uniform(-high, high, count)]).astype(np.float32)


def reference(function, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(function(x.astype(np.float64)))


UNARY = {  # name: (reference in f64, magnitudes, ULP)
    "exp": (np.exp, (1e-8, 105.0), 1.5),
    "expm1": (np.expm1, (1e-38, 90.0), 2.0),
    "log": (np.log, (1e-44, 3e38), 1.5),
    "log1p": (np.log1p, (1e-38, 3e38), 2.0),
    "sqrt": (np.sqrt, (1e-38, 3e38), 0.51),
    "rsqrt": (lambda x: 1.0 / np.sqrt(x), (1e-38, 3e38), 1.5),
    "reciprocal": (lambda x: 1.0 / x, (1e-37, 1e37), 0.51),
    "sin": (np.sin, (1e-38, 1e5), 1.5),
    "cos": (np.cos, (1e-38, 1e5), 1.5),
    "tanh": (np.tanh, (1e-38, 20.0), 1.5),
    "sigmoid": (lambda x: 1.0 / (1.0 + np.exp(-x)), (1e-8, 105.0), 2.5),
    "softplus": (lambda x: np.logaddexp(x, 0.0), (1e-38, 105.0), 2.0),
    "erf": (np.vectorize(math.erf), (1e-37, 8.0), 1.5),
}


@pytest.mark.parametrize("name", UNARY)
def test_f32_function_is_within_its_ulp_bound(build, name: str) -> None:
    function, (low, high), bound = UNARY[name]
    x = spread(low, high, 30000, seed=1)
    error = ulp_error(run(build("math_probe"), f"{name}_f32", x), reference(function, x))
    print(f"{name}: {error:.3f} ULP")
    assert error <= bound


@pytest.mark.parametrize("form", ["f32", "f64", "scalar_f32", "scalar_f64"])
@pytest.mark.parametrize("name", [*UNARY, "abs", "sign", "floor", "ceil", "round", "trunc", "square"])
def test_function_agrees_with_numpy_on_special_values(build, name: str, form: str) -> None:
    function = UNARY[name][0] if name in UNARY else getattr(np, name)
    dtype = np.float32 if form.endswith("32") else np.float64
    x = np.array(SPECIAL, dtype=dtype)
    got = run(build("math_probe"), f"{name}_{form}", x)
    with np.errstate(all="ignore"):
        expected = np.asarray(function(x.astype(np.float64))).astype(dtype)
    np.testing.assert_allclose(got, expected, rtol=4e-7 if dtype == np.float32 else 1e-15, atol=0)
    zeros = expected == 0
    assert np.array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros])) or name == "sign"


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_large_angles_and_infinite_ones(build, name: str) -> None:
    x = np.concatenate([spread(1e5, 3e38, 500, seed=2), np.array([np.inf, -np.inf, np.nan, 2.0**20], np.float32)])
    error = ulp_error(run(build("math_probe"), f"{name}_f32", x), reference(getattr(np, name), x))
    assert error <= 1.5


@pytest.mark.parametrize("name", ["floor", "ceil", "round", "trunc"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_exact(build, name: str, dtype: type) -> None:
    random = np.random.default_rng(3)
    x = np.concatenate([random.uniform(-5, 5, 1000), random.uniform(-1e17, 1e17, 1000), np.arange(-8, 8) / 2]).astype(
        dtype
    )
    got = run(build("math_probe"), f"{name}_f{8 * dtype().itemsize}", x)
    assert np.array_equal(got, getattr(np, name)(x))


@pytest.mark.parametrize("form", ["f32", "f64", "scalar_f32", "scalar_f64"])
@pytest.mark.parametrize("name", ["pow", "maximum", "minimum", "remainder", "floor_div", "fmod"])
def test_binary_function_agrees_with_numpy(build, name: str, form: str) -> None:
    dtype = np.float32 if form.endswith("32") else np.float64
    random = np.random.default_rng(4)
    values = np.array([*SPECIAL[:12], 3.0, -3.0, 0.3, 7.25], dtype=dtype)
    a, b = (m.ravel().astype(dtype) for m in np.meshgrid(values, values))
    a, b = (
        np.concatenate([a, random.normal(size=99).astype(dtype)]),
        np.concatenate([b, random.normal(size=99).astype(dtype)]),
    )
    function = {"pow": np.power, "floor_div": np.floor_divide}.get(name) or getattr(np, name)
    got = run(build("math_probe"), f"{name}_{form}", a, b)
    with np.errstate(all="ignore"):
        expected = function(a, b)
    np.testing.assert_allclose(got, expected, rtol=4e-7 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("form", ["f32", "f64", "scalar_f32", "scalar_f64"])
@pytest.mark.parametrize("name", ["isnan", "isinf", "isfinite"])
def test_predicates_agree_with_numpy(build, name: str, form: str) -> None:
    x = np.array(SPECIAL, dtype=np.float32 if form.endswith("32") else np.float64)
    got = run(build("math_probe"), f"{name}_{form}", x, output=np.uint8)
    assert np.array_equal(got, getattr(np, name)(x).astype(np.uint8))
