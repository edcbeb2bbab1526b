"""Attention beside torch: values, gradients of two orders, half precision, odd rows; and when it is not one op."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import Tensor, no_grad
from pequegrad.dtypes import float32, float64, int64
from pequegrad.errors import DTypeError, ShapeError
from pequegrad.ops import attention, layers
from pequegrad.ops.core import TensorSpec
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, torch

F = torch.nn.functional
RANDOM = np.random.default_rng(11)


def operands(L: int, S: int, E: int, width: int, dtype: type = np.float64, batch: tuple[int, ...] = (2, 3)) -> list:
    return [RANDOM.standard_normal((*batch, *shape)).astype(dtype) for shape in ((L, E), (S, E), (S, width))]


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"scale": -2.0}])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (4, 7, 6, 3), (9, 5, 3, 8), (65, 65, 16, 16)])
def test_results_and_gradients_agree_with_torch(sizes, options):
    assert_like_torch(
        lambda q, k, v: layers.scaled_dot_product_attention(q, k, v, **options),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options),
        *operands(*sizes), tolerance=1e-9,
    )  # fmt: skip


def test_leading_dimensions_broadcast_and_their_gradients_are_summed():
    q, k, v = operands(4, 5, 6, 7)
    assert_like_torch(
        lambda q, k, v: layers.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k.expand(2, 3, -1, -1), v, is_causal=True),
        q, k[:, :1], v, tolerance=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("is_causal", [False, True])
def test_derivatives_of_two_orders_agree_with_differences(is_causal):
    q, k, v = operands(3, 4, 2, 3, batch=(2,))
    assert_gradients_by_differences(
        lambda q, k, v: layers.scaled_dot_product_attention(q, k, v, is_causal=is_causal), q, k, v
    )
    assert_gradients_by_differences(lambda q, k, v: attention.Attention.call(q, k, v, is_causal=is_causal)[1], q, k, v)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype):
    arrays = operands(20, 20, 16, 16, np.float32)
    ours = [Tensor(array).to(dtype) for array in arrays]
    out, sums = attention.Attention.call(*ours, is_causal=True)
    wide = [Tensor(part.to("float32").numpy(), requires_grad=True) for part in ours]
    expected = layers.scaled_dot_product_attention(*wide, is_causal=True)
    assert (out.dtype.name, sums.dtype) == (dtype, float32)
    np.testing.assert_array_equal(out.to("float32").numpy(), expected.detach().to(dtype).to("float32").numpy())
    for part in ours:
        part.requires_grad = True
    layers.scaled_dot_product_attention(*ours, is_causal=True).sum().backward()
    expected.sum().backward()
    for part, other in zip(ours, wide, strict=True):
        assert part.grad.dtype.name == dtype
        np.testing.assert_allclose(part.grad.to("float32").numpy(), other.grad.numpy(), rtol=2e-2, atol=2e-2)


def test_odd_rows_are_those_of_softmax():
    q, k, v = operands(6, 5, 4, 4, batch=())
    q[1, 0], q[2, 1], k[:, 1] = np.nan, np.inf, 1.0
    q[3, 1] = -np.inf
    with no_grad():
        out, sums = (part.numpy() for part in attention.Attention.call(Tensor(q), Tensor(k), Tensor(v)))
    assert np.isnan(out).all(-1).tolist() == [False, True, True, True, False, False]
    assert np.isnan(out).any(-1).tolist() == np.isnan(out).all(-1).tolist()
    assert sums[3] == -np.inf
    scores = q @ k.T / 2
    np.testing.assert_allclose(sums[[0, 4, 5]], np.log(np.exp(scores[[0, 4, 5]]).sum(-1)), rtol=1e-12)


def test_what_kernels_cannot_hold_stays_composite():
    def spec(n: int, dtype=float32) -> TensorSpec:
        return TensorSpec((2, 4, n), dtype)

    assert attention.fits_kernels(spec(128), spec(1)) and attention.fits_kernels(spec(64, float64), spec(64, float64))
    assert not attention.fits_kernels(spec(129), spec(4)) and not attention.fits_kernels(
        spec(65, float64), spec(4, float64)
    )
    assert not attention.fits_kernels(spec(0), spec(4)) and not attention.fits_kernels(spec(4, int64), spec(4, int64))
    q, k, v = operands(3, 4, 200, 5)
    assert_like_torch(layers.scaled_dot_product_attention, F.scaled_dot_product_attention, q, k, v, tolerance=1e-9)


def test_operands_that_do_not_fit_are_refused():
    q, k, v = (Tensor(array) for array in operands(4, 5, 6, 7))
    with pytest.raises(ShapeError, match=r"expected query \(…, L, E\)"):
        attention.Attention.call(q, k[..., :5], v)
    with pytest.raises(ShapeError, match="do not broadcast"):
        attention.Attention.call(q, k[:, :2], v)
    with pytest.raises(ShapeError, match="at least one key"):
        attention.Attention.call(q, k[..., :0, :], v[..., :0, :])
    with pytest.raises(DTypeError, match="one floating-point dtype"):
        attention.Attention.call(q, k.to("float32"), v)
    out, sums = attention.Attention.call(q, k, v)
    with pytest.raises(ShapeError, match="attention_grad: expected"):
        attention.AttentionGrad.call(q, k, v, sums, out[..., :3], sums, 0.5)
