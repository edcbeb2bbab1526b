"""Convolution and pooling beside torch and finite differences, NaN, infinity and odd geometries included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pequegrad import Tensor
from pequegrad.errors import DTypeError, ShapeError
from pequegrad.ops import pooling, window
from pequegrad.ops.registry import REGISTRY
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, assert_sample_like_torch, torch

F = torch.nn.functional
RANDOM = np.random.default_rng(3)

OPS = [
    "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "max_pool2d", "window_take", "window_put", "avg_pool2d",
    "avg_pool2d_grad",
]  # fmt: skip

small = st.integers(1, 3)
pairs = st.tuples(small, small)


def values(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


@pytest.mark.parametrize("name", OPS)
def test_samples_agree_with_torch(name):
    for sample in REGISTRY[name].samples():
        assert_sample_like_torch(REGISTRY[name], sample)


@settings(max_examples=40)
@given(st.data())
def test_conv2d_of_any_geometry_agrees_with_torch(data):
    kernel, stride, dilation = data.draw(pairs), data.draw(pairs), data.draw(pairs)
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    groups, channels, filters = data.draw(st.integers(1, 2)), data.draw(small), data.draw(small)
    size = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    fits = (n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True))
    assume(all(fits))
    x, w = values(data.draw(st.integers(1, 2)), channels * groups, *size), values(filters * groups, channels, *kernel)
    assert_like_torch(
        lambda x, w, b: window.conv2d(x, w, b, stride, padding, dilation, groups),
        lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation, groups),
        x, w, values(filters * groups), tolerance=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_and_missing_batch_agree_with_torch(padding):
    for kernel in [(3, 3), (2, 4)]:
        assert_like_torch(
            lambda x, w: window.conv2d(x, w, padding=padding, dilation=2),
            lambda x, w: F.conv2d(x, w, padding=padding, dilation=2),
            values(2, 9, 10), values(3, 2, *kernel), tolerance=1e-9,
        )  # fmt: skip


def test_conv1d_agrees_with_torch():
    assert_like_torch(
        lambda x, w, b: window.conv1d(x, w, b, stride=2, padding=1),
        lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1),
        values(2, 3, 9), values(4, 3, 3), values(4), tolerance=1e-9,
    )  # fmt: skip


def test_conv2d_of_an_empty_batch_has_zero_weight_gradient():
    w = Tensor(values(4, 3, 2, 2), requires_grad=True)
    out = window.conv2d(Tensor(values(0, 3, 5, 5)), w)
    assert out.shape == (0, 4, 4, 4)
    out.sum().backward()
    assert not w.grad.numpy().any()


def test_conv2d_in_half_precision_accumulates_in_float32():
    x, w = Tensor(np.ones((1, 512, 3, 3), np.float16)), Tensor(np.ones((1, 512, 3, 3), np.float16))
    assert window.conv2d(x, w).item() == 512 * 9


def test_conv2d_first_and_second_derivatives_agree_with_differences():
    x, w = values(2, 4, 5, 6), values(4, 2, 3, 2)
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    assert_gradients_by_differences(lambda x, w: window.conv2d(x, w, **options) ** 2, x, w)
    g = values(2, 4, 3, 4)
    border = {**options, "padding": (1, 0)}
    assert_gradients_by_differences(lambda g, w: window.Conv2dGradInput.call(g, w, (5, 6), **border) ** 2, g, w)
    assert_gradients_by_differences(lambda x, g: window.Conv2dGradWeight.call(x, g, (3, 2), **border) ** 2, x, g)


@settings(max_examples=40)
@given(st.data())
def test_pooling_of_any_geometry_agrees_with_torch(data):
    kernel, stride, dilation = data.draw(pairs), data.draw(st.none() | pairs), data.draw(pairs)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = data.draw(st.tuples(st.integers(3, 8), st.integers(3, 8)))
    ceil_mode, includes = data.draw(st.booleans()), data.draw(st.booleans())
    fits = (n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True))
    assume(all(fits))
    # Few distinct values: ties decide where the gradient goes.
    x = RANDOM.integers(-2, 3, (2, 2, *size)).astype(np.float64)
    x[RANDOM.random(x.shape) < 0.05] = np.nan
    x[RANDOM.random(x.shape) < 0.1] = -np.inf
    assert_like_torch(
        lambda x: pooling.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, True),
        lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, True),
        x,
    )
    assert_like_torch(
        lambda x: pooling.avg_pool2d(x, kernel, stride, padding, count_include_pad=includes),
        lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=includes),
        np.nan_to_num(x, neginf=0.5),
    )


def test_pooling_first_and_second_derivatives_agree_with_differences():
    x = RANDOM.permutation(120).reshape(2, 2, 5, 6) / 10.0
    assert_gradients_by_differences(lambda x: pooling.max_pool2d(x, (3, 2), (2, 1), (1, 1)) ** 3, x)
    assert_gradients_by_differences(
        lambda x: pooling.avg_pool2d(x, (3, 2), (2, 1), (1, 1), count_include_pad=False) ** 3, x
    )
    assert_gradients_by_differences(lambda x: pooling.adaptive_avg_pool2d(x, (3, 4)) ** 3, x)


@pytest.mark.parametrize("output_size", [1, (2, 3), (3, 4), (5, None), (7, 2), (5, 6)])
def test_adaptive_average_pooling_agrees_with_torch(output_size):
    assert_like_torch(
        lambda x: pooling.adaptive_avg_pool2d(x, output_size),
        lambda x: F.adaptive_avg_pool2d(x, output_size),
        values(2, 3, 5, 6), tolerance=1e-9,
    )  # fmt: skip


def test_divisor_override_agrees_with_torch():
    assert_like_torch(
        lambda x: pooling.avg_pool2d(x, 2, padding=1, divisor_override=3),
        lambda x: F.avg_pool2d(x, 2, padding=1, divisor_override=3),
        values(2, 3, 5, 6), tolerance=1e-9,
    )  # fmt: skip


def test_max_pool_of_integers_and_of_transposed_images():
    x = Tensor(np.arange(36).reshape(1, 1, 6, 6))
    assert pooling.max_pool2d(x, 3).tolist() == [[[[14, 17], [32, 35]]]]
    images = values(1, 2, 4, 6)
    assert_like_torch(lambda x: pooling.max_pool2d(x.mT, 2), lambda x: F.max_pool2d(x.mT, 2), images, tolerance=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, w: window.conv2d(x, w[:, :1]), ShapeError, "needs x with 1 channels"),
        (lambda x, w: window.conv2d(x[:, :, :2], w), ShapeError, "does not fit"),
        (lambda x, w: window.conv2d(x, w, Tensor([1.0])), ShapeError, r"bias must have shape \(4,\)"),
        (lambda x, w: window.conv2d(x, w, padding="same", stride=2), ShapeError, "stride 1"),
        (lambda x, w: window.conv2d(x, w, padding="full"), ShapeError, "same"),
        (lambda x, w: window.conv2d(x, w, stride=0), ShapeError, "at least 1"),
        (lambda x, w: window.conv2d(x[0, 0], w), ShapeError, r"\(N, C, H, W\)"),
        (lambda x, w: window.conv2d(x.double(), w), DTypeError, "float64 and float32"),
        (lambda x, w: pooling.max_pool2d(x, 2, padding=2), ShapeError, "at most half"),
        (lambda x, w: pooling.max_pool2d(x, 7), ShapeError, "does not fit"),
        (lambda x, w: pooling.avg_pool2d(x, 2, ceil_mode=True), ShapeError, "ceil_mode"),
        (lambda x, w: pooling.avg_pool2d(x.long(), 2), DTypeError, "floating-point"),
        (lambda x, w: pooling.adaptive_avg_pool2d(x, 0), ShapeError, "positive"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error, match=text):
        call(Tensor(values(2, 3, 5, 6).astype(np.float32)), Tensor(values(4, 3, 3, 3).astype(np.float32)))
