"""Arithmetic, comparisons, logic and bits: torch's promotion, broadcasting, edges and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pequegrad as pg
from pequegrad import Tensor, dtypes
from pequegrad.errors import DTypeError, ShapeError
from pequegrad.ops.error_function import evaluate_erf
from tests.ops.comparing import assert_like_torch, torch

NAN, INF = math.nan, math.inf
NAMES = [dtype.name for dtype in dtypes.DTYPES]

BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floor_divide": lambda a, b: a // b,
    "remainder": lambda a, b: a % b,
    "pow": lambda a, b: a**b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "lshift": lambda a, b: a << b,
    "rshift": lambda a, b: a >> b,
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
}


def both(function, *builders):
    """Return the results of ``function`` in pequegrad and in torch; an exception stands for itself."""
    results = []
    for library in (0, 1):
        try:
            results.append(function(*(builder(library) for builder in builders)))
        except (TypeError, RuntimeError, NotImplementedError) as error:
            results.append(error)
    return results


def tensor_of(name, values):
    return lambda library: torch.tensor(values, dtype=getattr(torch, name)) if library else Tensor(values, dtype=name)


def as_float(result):
    return result.double().detach().numpy()


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(as_float(ours), as_float(theirs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("second", [*NAMES, "python bool", "python int", "python float"])
@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("name", BINARY)
def test_promotes_and_computes_like_torch_for_every_pair_of_dtypes(name, first, second):
    values = [1, 3, 2]
    numbers = {"python bool": True, "python int": 2, "python float": 2.5}
    other = (lambda library: numbers[second]) if second in numbers else tensor_of(second, [1, 2, 2])
    ours, theirs = both(BINARY[name], tensor_of(first, values), other)
    if isinstance(theirs, Exception):
        if name in ("floor_divide", "remainder", "pow", "lshift", "rshift"):
            return  # torch has no kernel for some dtype; ours may
        if name == "sub" and (first == "bool") != ("bool" in second):
            return  # torch refuses one bool operand too; ours promotes it
        assert isinstance(ours, TypeError), f"torch refuses: {theirs}"
    else:
        if name in ("pow", "floor_divide", "remainder") and isinstance(ours, DTypeError):
            assert first == "bool" and second in ("bool", "python bool")  # refused, where torch gives bits
            return
        assert_same(ours, theirs, tolerance=1e-6 if name == "pow" else 0.0)


@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_zero_dimensional_tensors_are_weak_as_in_torch(first, second):
    assert_same(*both(BINARY["add"], tensor_of(first, [1, 2]), tensor_of(second, 1)))
    assert_same(*both(BINARY["mul"], tensor_of(first, 1), tensor_of(second, 1)))


def test_python_numbers_wrap_into_the_tensors_dtype():
    assert (Tensor([3], dtype="uint8") + 300).tolist() == [47]
    assert (Tensor([3], dtype="uint8") == 259).tolist() == [True]
    assert (Tensor([1], dtype="float16") * 1e10).tolist() == [INF]


def test_reflected_operators_put_the_number_first():
    x = Tensor([1.0, 2.0])
    assert (1 - x).tolist() == [0, -1] and (6 / x).tolist() == [6, 3] and (2**x).tolist() == [2, 4]
    assert (5 // x).tolist() == [5, 2] and (5 % x).tolist() == [0, 1]
    assert (7 & Tensor([3])).tolist() == [3] and (1 << Tensor([2])).tolist() == [4]


def test_numpy_arrays_mix_in_from_both_sides():
    x, array = Tensor([1.0, 2.0]), np.float32([3, 4])
    for result in (x + array, array + x, np.float32(1) * x):
        assert isinstance(result, Tensor) and result.dtype is dtypes.float32
    assert (array - x).tolist() == [2, 2]


EDGE = np.float32([-INF, -2.5, -1, -0.0, 0, 0.5, 1, 2, 3, INF, NAN])


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2, 3, 2.0, 2.5, INF, NAN])
def test_pow_by_a_number_agrees_with_torch_also_in_gradient(exponent):
    # torch's x ** -0.5 is a rsqrt forward, but its gradient knows no sign of zero
    values = EDGE[4:] if exponent == -0.5 else EDGE
    assert_like_torch(lambda x: x**exponent, lambda x: x**exponent, values)


@pytest.mark.parametrize("base", [-2.0, -1.0, 0.0, 0.5, 2.0, INF])
def test_pow_of_a_number_agrees_with_torch_also_in_gradient(base):
    assert_like_torch(lambda y: base**y, lambda y: base**y, EDGE)


@pytest.mark.parametrize("name", ["maximum", "minimum", "fmod", "remainder", "pow", "div", "mul"])
def test_every_pair_of_edges_agrees_with_torch_in_value_and_gradient(name):
    x, y = (grid.reshape(-1).astype(np.float32) for grid in np.meshgrid(EDGE, EDGE))
    assert_like_torch(getattr(pg, name), getattr(torch, name), x, y)


@pytest.mark.parametrize("bounds", [(0, 1), (None, 0.5), (-1, None), (1, 0), (-INF, INF), (0.5, 0.5)])
def test_clamp_agrees_with_torch_at_its_bounds(bounds):
    assert_like_torch(lambda x: x.clamp(*bounds), lambda x: x.clamp(*bounds), EDGE)
    assert_same(*both(lambda x: x.clamp(0, 2.5), tensor_of("int64", [1, 5])))


def test_clamp_by_one_tensor_leaves_the_other_side_open():
    assert_like_torch(lambda x, low: x.clamp(min=low), lambda x, low: x.clamp(min=low), EDGE, np.linspace(-2, 2, 11))


def test_round_goes_to_even_and_knows_decimals():
    assert_like_torch(lambda x: x.round(), lambda x: x.round(), np.float32([-2.5, -0.5, 0.5, 1.5, 2.5]))
    for decimals in (2, -1):
        x = np.float32([1.2345, 15.0, -27.865])
        assert_like_torch(lambda x, d=decimals: x.round(decimals=d), lambda x, d=decimals: x.round(decimals=d), x)


def test_erf_is_within_one_ulp_of_the_c_library():
    x = np.concatenate([np.linspace(-7, 7, 4001), [1e-300, 1e300, INF, -INF, 0.84375, 1.25, 1 / 0.35]])
    with np.errstate(all="ignore"):
        ours = evaluate_erf(np, x)
    exact = np.array([math.erf(value) for value in x])
    assert np.max(np.abs(ours - exact) / np.spacing(np.abs(exact))) <= 1
    assert math.isnan(evaluate_erf(np, np.float64(NAN)))


@pytest.mark.parametrize("name", ["div", "floor_divide", "remainder", "fmod"])
def test_rounding_modes_and_mixed_signs_agree_with_torch(name):
    x, y = np.float32([7, -7, 7, -7, 0]), np.float32([2, 2, -2, -2, 3])
    assert_like_torch(
        lambda a, b: getattr(pg, name)(a, b).detach(), lambda a, b: getattr(torch, name)(a, b).detach(), x, y
    )
    for mode in ("floor", "trunc"):
        whole = x.astype(np.int64), y.astype(np.int64)
        assert_like_torch(
            lambda a, b, m=mode: pg.div(a, b, rounding_mode=m),
            lambda a, b, m=mode: torch.div(a, b, rounding_mode=m),
            *whole,
        )


def test_where_takes_numbers_and_its_gradient_keeps_nan_out():
    condition = np.array([True, False])
    x, y = np.float32([NAN, 1]), np.float32([1, NAN])
    assert_like_torch(
        lambda a, b: pg.where(Tensor(condition), a, b), lambda a, b: torch.where(torch.tensor(condition), a, b), x, y
    )
    assert pg.where(Tensor(condition), 1, 2.0).dtype is dtypes.float32
    assert pg.where(Tensor(condition), Tensor([1, 2]), 0).dtype is dtypes.int64
    x = Tensor([0.0, 4.0], requires_grad=True)
    pg.where(x > 0, x, 1.0).sqrt().sum().backward()
    assert x.grad.tolist() == [0, 0.25]


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: Tensor([1.0, 2]) + Tensor([1.0, 2, 3]), ShapeError, "add: shapes"),
        (lambda: Tensor([True]) - Tensor([True]), DTypeError, "logical_xor"),
        (lambda: -Tensor([True]), DTypeError, "logical_not"),
        (lambda: Tensor([1.0]) & Tensor([1]), DTypeError, "integers or bools"),
        (lambda: ~Tensor([1.0]), DTypeError, "integers or bools"),
        (lambda: Tensor([2]) ** -1, DTypeError, "negative integer powers"),
        (lambda: Tensor([1]) // 0, ZeroDivisionError, "integer division by zero"),
        (lambda: Tensor([1]) % Tensor([0]), ZeroDivisionError, "integer division by zero"),
        (lambda: pg.where(Tensor([1, 0]), 1, 2), DTypeError, "must be bool"),
        (lambda: Tensor([1.0]).clamp(), ValueError, "min, max or both"),
        (lambda: Tensor([1.0]) + "a", DTypeError, "number"),
        (lambda: pg.div(Tensor([1.0]), 2, rounding_mode="up"), ValueError, "rounding_mode"),
    ],
)
def test_wrong_use_is_an_error_that_names_the_cure(function, error, words):
    with pytest.raises(error, match=words):
        function()


def test_comparison_with_something_else_is_false():
    assert (Tensor([1.0]) == None) is False  # noqa: E711
    assert Tensor([1.0]) != "text"


@st.composite
def broadcast_pairs(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    shapes = []
    for _ in range(2):
        start = draw(st.integers(0, len(shape)))
        shapes.append(tuple(draw(st.sampled_from([n, 1])) for n in shape[start:]))
    return shapes


@settings(max_examples=40)
@given(
    shapes=broadcast_pairs(),
    name=st.sampled_from(["add", "sub", "mul", "div", "maximum", "pow"]),
    dtype=st.sampled_from(["float32", "float64"]),
    is_transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_broadcasts_agree_with_torch(shapes, name, dtype, is_transposed, seed):
    generator = np.random.default_rng(seed)
    x, y = ((generator.random(shape) + 0.5).astype(dtype) for shape in shapes)
    if is_transposed:
        x = np.asfortranarray(x)
    assert_like_torch(getattr(pg, name), getattr(torch, name), x, y)
