"""Matrix products and einsum beside torch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pequegrad import Tensor
from pequegrad.errors import DTypeError, ShapeError
from pequegrad.ops import contraction
from pequegrad.ops.registry import REGISTRY
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, assert_sample_like_torch, torch

RANDOM = np.random.default_rng(7)


def values(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


def test_samples_agree_with_torch():
    for sample in REGISTRY["matmul"].samples():
        assert_sample_like_torch(REGISTRY["matmul"], sample)


@settings(max_examples=40)
@given(st.data())
def test_matmul_of_any_shapes_agrees_with_torch(data):
    extent = st.integers(0, 4)
    rows, inner, columns = data.draw(extent), data.draw(extent), data.draw(extent)
    batch = data.draw(st.lists(st.integers(1, 3), max_size=2))
    first = [data.draw(st.sampled_from([1, n])) for n in batch]
    second = [data.draw(st.sampled_from([1, n])) for n in batch][data.draw(st.integers(0, len(batch))) :]
    x = values(inner) if data.draw(st.integers(0, 4)) == 0 else values(*first, rows, inner)
    y = values(inner) if data.draw(st.integers(0, 4)) == 0 else values(*second, inner, columns)
    assert_like_torch(contraction.matmul, torch.matmul, x, y, tolerance=1e-10)


def test_matmul_of_transposed_and_reversed_views_agrees_with_torch():
    assert_like_torch(
        lambda x, y: x.mT @ y[:, ::2], lambda x, y: x.mT @ y[:, ::2], values(5, 3), values(5, 6), tolerance=1e-10
    )


EQUATIONS = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "bij,bjk": [(2, 3, 4), (2, 4, 5)],
    "...ij,...jk->...ik": [(2, 1, 3, 4), (5, 4, 2)],
    "i,j->ji": [(3,), (4,)],
    "ii->i": [(3, 3)],
    "ii": [(3, 3)],
    "bii,i->b": [(2, 3, 3), (3,)],
    "ij->": [(2, 3)],
    "ij->ji": [(2, 3)],
    "bhqd,bhkd->bhqk": [(2, 3, 4, 5), (2, 3, 6, 5)],
    "ij,jk,kl->il": [(2, 3), (3, 4), (4, 5)],
    "ij,ij->i": [(2, 3), (2, 3)],
    "abc,cd,b->ad": [(2, 3, 4), (4, 5), (3,)],
    "...,...": [(2, 3), (3,)],
    "ij,kl->": [(2, 3), (4, 5)],
    ",i->i": [(), (3,)],
    "iij,jk->ik": [(2, 2, 3), (3, 4)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_agrees_with_torch(equation):
    arrays = [values(*shape) for shape in EQUATIONS[equation]]
    assert_like_torch(
        lambda *t: contraction.einsum(equation, *t), lambda *t: torch.einsum(equation, *t), *arrays, tolerance=1e-10
    )


def test_other_products_agree_with_torch():
    for name, shapes in {
        "mm": [(2, 3), (3, 4)],
        "mv": [(2, 3), (3,)],
        "bmm": [(2, 3, 4), (2, 4, 1)],
        "dot": [(3,), (3,)],
        "outer": [(3,), (2,)],
    }.items():
        arrays = [values(*shape) for shape in shapes]
        assert_like_torch(getattr(contraction, name), getattr(torch, name), *arrays, tolerance=1e-10)
    for dims in (2, 1, ([0, 2], [1, 0])):
        arrays = (values(3, 2, 3), values(3, 3, 4)) if dims != 2 else (values(2, 3, 4), values(3, 4, 5))
        assert_like_torch(
            lambda x, y, d=dims: contraction.tensordot(x, y, d),
            lambda x, y, d=dims: torch.tensordot(x, y, d),
            *arrays,
            tolerance=1e-10,
        )
    assert_like_torch(
        lambda b, x, y: contraction.addmm(b, x, y, beta=2, alpha=0.5),
        lambda b, x, y: torch.addmm(b, x, y, beta=2, alpha=0.5),
        values(4), values(2, 3), values(3, 4), tolerance=1e-10,
    )  # fmt: skip


def test_gradients_agree_with_differences():
    assert_gradients_by_differences(lambda x, y: (x @ y) ** 2, values(2, 3, 4), values(4, 2))
    assert_gradients_by_differences(lambda x, y: x @ y, values(2, 1, 3, 4), values(3, 4, 2))
    assert_gradients_by_differences(lambda x, y: contraction.einsum("iij,jk->k", x, y), values(2, 2, 3), values(3, 2))


def test_half_precision_accumulates_in_float32():
    ones = Tensor(np.ones((1, 4096), np.float16))
    for dtype in ("float16", "bfloat16"):
        product = ones.to(dtype) @ ones.to(dtype).T
        assert product.dtype.name == dtype and product.item() == 4096


def test_integers_multiply_exactly_and_nan_spreads():
    x = Tensor([[2**40, 1]])
    assert (x @ Tensor([[1], [3]])).item() == 2**40 + 3
    spread = Tensor([[np.nan, 1.0], [1.0, 1.0]]) @ Tensor([[0.0], [1.0]])
    assert np.isnan(spread.numpy()[0, 0]) and spread.numpy()[1, 0] == 1


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x @ x, ShapeError, "last extent"),
        (lambda x: x @ Tensor(2.0), ShapeError, "at least 1 dimension"),
        (lambda x: x @ x.T.double(), DTypeError, "float32 and float64"),
        (lambda x: x.bmm(x), ShapeError, "3 and 3 dimensions"),
        (lambda x: contraction.einsum("ij,jk->ik", x, x), ShapeError, "index 'j' is both 3 and 2"),
        (lambda x: contraction.einsum("ij->k", x), ShapeError, "names 'k'"),
        (lambda x: contraction.einsum("i->i", x), ShapeError, "does not name the 2"),
        (lambda x: contraction.einsum("ij->ii", x), ShapeError, "twice"),
        (lambda x: contraction.einsum("ij,jk", x), ShapeError, "2 operands"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error, match=text):
        call(Tensor(values(2, 3).astype(np.float32)))
