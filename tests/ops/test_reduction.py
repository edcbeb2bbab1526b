"""Reductions, statistics and running sums: torch's values, gradients at ties and edges, dtypes and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pequegrad as pg
from pequegrad import Tensor, dtypes
from pequegrad.errors import DTypeError, ShapeError
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, torch

NAN, INF = math.nan, math.inf
X = np.float32([[1, 3, 3, -1], [-2, -2, -5, 0.5], [4, 0, 0, 2]])
CUBE = np.sin(np.arange(2 * 3 * 4, dtype=np.float32)).reshape(2, 3, 4)

FUNCTIONS = {
    "sum": lambda x: x.sum(),
    "sum dims": lambda x: x.sum((0, -1)),
    "sum keepdim": lambda x: x.sum(1, keepdim=True),
    "sum of no dims": lambda x: x.sum(()),
    "mean": lambda x: x.mean(),
    "mean dims": lambda x: x.mean((0, 2), keepdim=True),
    "prod": lambda x: x.prod(),
    "prod dim": lambda x: x.prod(1),
    "amax": lambda x: x.amax(),
    "amax dims": lambda x: x.amax((0, 1), keepdim=True),
    "amin": lambda x: x.amin(-1),
    "max": lambda x: x.max(),
    "max dim": lambda x: tuple(x.max(1)),
    "min dim keepdim": lambda x: tuple(x.min(-1, keepdim=True)),
    "min": lambda x: x.min(),
    "argmax": lambda x: x.argmax(),
    "argmax dim": lambda x: x.argmax(1),
    "argmin keepdim": lambda x: x.argmin(-1, keepdim=True),
    "argmax keepdim of all": lambda x: x.argmax(keepdim=True),
    "var": lambda x: x.var(),
    "var dims": lambda x: x.var((0, 1)),
    "var biased": lambda x: x.var(1, correction=0),
    "var unbiased=False": lambda x: x.var(1, unbiased=False),
    "var positional": lambda x: x.var(False),
    "std": lambda x: x.std(1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1),
    "logsumexp dims": lambda x: x.logsumexp((0, 2), keepdim=True),
    "any": lambda x: (x > 0).any(),
    "any dims": lambda x: (x > 0).any((0, 1)),
    "all dim": lambda x: (x > -3).all(1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum last": lambda x: x.cumsum(-1),
    "norm": lambda x: x.norm(),
    "norm dim": lambda x: x.norm(dim=1),
    "norm 1": lambda x: x.norm(1, dim=-1, keepdim=True),
    "norm 3": lambda x: x.norm(3),
    "norm inf": lambda x: x.norm(INF),
    "norm -inf": lambda x: x.norm(-INF),
    "aminmax": lambda x: tuple(x.aminmax()),
    "count_nonzero": lambda x: x.count_nonzero(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_agrees_with_torch(name):
    assert_like_torch(FUNCTIONS[name], FUNCTIONS[name], CUBE)


@pytest.mark.parametrize("name", ["amax", "amin", "max", "min", "max dim", "argmax dim", "prod", "norm inf"])
def test_ties_and_zeros_share_or_choose_as_in_torch(name):
    assert_like_torch(FUNCTIONS[name], FUNCTIONS[name], X)


@pytest.mark.parametrize(
    "values", [[0.0, 0, 0], [2.0, 2, 2], [INF, 1, -1], [-INF, -INF, -INF], [NAN, 1, 2], [1e30, -1e30, 0], [5.0]]
)
@pytest.mark.parametrize(
    "name", ["sum", "mean", "amin", "argmax", "logsumexp last", "var", "std all", "norm", "norm 3"]
)
def test_edges_agree_with_torch_in_value_and_gradient(name, values):
    function = {**FUNCTIONS, "logsumexp last": lambda x: x.logsumexp(-1), "std all": lambda x: x.std()}[name]
    if name in ("norm 3", "var", "std all") and not np.all(np.abs(values) < 1e9):
        return  # NaN here, which way of writing the formula decides where
    assert_like_torch(function, function, np.float32(values))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (1,), (1, 1), ()])
@pytest.mark.parametrize("name", ["sum", "mean", "prod", "any", "norm", "count all"])
def test_empty_single_and_0d_agree_with_torch(name, shape):
    function = {**FUNCTIONS, "count all": lambda x: x.count_nonzero()}[name]
    assert_like_torch(function, function, np.ones(shape, np.float32))


def test_empty_groups_have_no_extreme_but_an_empty_result_is_fine():
    assert Tensor(np.zeros((0, 3), np.float32)).amax(1).shape == (0,)
    for function in (lambda x: x.amax(), lambda x: x.amin(0), lambda x: x.argmax(), lambda x: x.max(0)):
        with pytest.raises(ShapeError, match="must not be empty"):
            function(Tensor(np.zeros((0, 3), np.float32)))


def test_0d_tensors_reduce_along_their_missing_dimension():
    for function in (lambda x: x.sum(0), lambda x: x.amax(-1), lambda x: tuple(x.max(0)), lambda x: x.cumsum(0)):
        assert_like_torch(function, function, np.float32(2.5))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64"])
def test_integers_sum_to_int64_and_keep_their_dtype_in_extremes(dtype):
    values = [1, 0, 1] if dtype == "bool" else [3, 0, 7]
    ours, theirs = Tensor(values, dtype=dtype), torch.tensor(values, dtype=getattr(torch, dtype))
    for name in ("sum", "prod", "amax", "amin", "any", "all"):
        result, expected = getattr(ours, name)(), getattr(theirs, name)()
        assert (result.dtype.name, result.item()) == (str(expected.dtype).removeprefix("torch."), expected.item()), name
    assert ours.cumsum(0).tolist() == theirs.cumsum(0).tolist()
    assert ours.max(0).values.dtype.name == dtype
    assert ours.sum(dtype="float32").dtype is dtypes.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_accumulates_in_float32(dtype):
    ones = Tensor(np.ones(5000, np.float32)).to(dtype)
    exact = torch.ones(5000, dtype=getattr(torch, dtype))
    assert ones.sum().item() == exact.sum().item()
    assert ones.mean().item() == 1
    assert ones.cumsum(0)[-1].item() == exact.sum().item()
    large = Tensor([60000.0, 60000.0], dtype="float16")
    assert large.mean().item() == 60000 and large.sum().item() == INF
    assert (ones.var().dtype.name, ones.logsumexp(0).dtype.name, ones.norm().dtype.name) == (dtype,) * 3


@pytest.mark.parametrize("values", [[1.5, -2.0, 3.0], [0.0, 2.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
def test_gradients_of_prod_hold_to_second_order_with_zeros(values):
    assert_gradients_by_differences(lambda x: x.prod(0), np.float64(values))


@pytest.mark.parametrize("name", ["var", "std", "norm", "logsumexp", "mean dims", "max dim values", "cumsum", "norm 3"])
def test_composites_have_gradients_of_two_orders(name):
    function = {**FUNCTIONS, "max dim values": lambda x: x.max(1).values}[name]
    assert_gradients_by_differences(function, CUBE.astype(np.float64), tolerance=1e-5)


def test_logsumexp_does_not_overflow():
    assert Tensor([1000.0, 1000.0]).logsumexp(0).item() == pytest.approx(1000 + math.log(2))
    assert Tensor([1, 2]).logsumexp(0).dtype is dtypes.float32


def test_max_is_three_functions():
    values, indices = pg.max(Tensor(X), 1)
    assert values.tolist() == [3, 0.5, 4] and indices.tolist() == [1, 3, 0]
    assert pg.max(Tensor(X), dim=1, keepdim=True).indices.shape == (3, 1)
    assert pg.max(Tensor([1.0, 2]), Tensor([0.0, 3])).tolist() == [1, 3]
    assert pg.max(Tensor(X)).item() == 4


def test_std_mean_and_var_mean_agree_with_torch():
    for name in ("std_mean", "var_mean"):
        assert_like_torch(
            lambda x, n=name: getattr(pg, n)(x, 1, keepdim=True),
            lambda x, n=name: getattr(torch, n)(x, 1, keepdim=True),
            X,
        )


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: Tensor([1, 2]).mean(), DTypeError, r"Use \.float\(\)"),
        (lambda: Tensor([1, 2]).var(), DTypeError, "floating-point"),
        (lambda: Tensor([1.0]).sum(1), ShapeError, r"dim must be in \[-1, 0\]"),
        (lambda: Tensor(X).sum((0, 0)), ShapeError, "named twice"),
        (lambda: Tensor(X).argmax((0, 1)), DTypeError, "one int"),
        (lambda: Tensor(X).cumsum(2), ShapeError, "dim must be"),
        (lambda: Tensor(X).norm("nuc"), DTypeError, "p must be"),
    ],
)
def test_wrong_use_is_an_error_that_names_the_cure(function, error, words):
    with pytest.raises(error, match=words):
        function()


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    name=st.sampled_from(["sum", "mean", "prod", "amax", "amin", "logsumexp", "var", "cumsum", "argmax", "norm"]),
    data=st.data(),
)
def test_random_shapes_and_dims_agree_with_torch(shape, name, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    values = np.random.default_rng(sum(shape)).integers(-2, 3, shape).astype(np.float32)
    if data.draw(st.booleans()):
        values = np.asfortranarray(values)
    arguments = {"dim": dim} if name == "cumsum" else {"dim": dim, "keepdim": data.draw(st.booleans())}
    if name == "var":
        arguments["correction"] = 0
    if name == "argmax":  # of ties torch promises none; ours is the first
        values = values + np.linspace(0, 0.5, values.size, dtype=np.float32).reshape(values.shape)
    assert_like_torch(lambda x: getattr(x, name)(**arguments), lambda x: getattr(x, name)(**arguments), values)
