"""Comparison with torch, and with finite differences, that the tests of ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pequegrad import Tensor, autodiff
from pequegrad.ops.core import bind

torch = pytest.importorskip("torch")


def leaves(arrays: Any) -> tuple[list[Tensor], list[Any]]:
    """Return each array as a leaf of pequegrad and of torch; floating-point ones require gradients."""
    ours, theirs = [], []
    for array in arrays:
        wants_grad = array.dtype.kind == "f"
        ours.append(Tensor(array, requires_grad=wants_grad))
        theirs.append(torch.tensor(array, requires_grad=wants_grad))
    return ours, theirs


def assert_like_torch(
    function: Callable[..., Any], reference: Callable[..., Any], *arrays: np.ndarray, tolerance: float = 1e-5
) -> None:
    """Assert that results, their dtypes, and the gradients for a random cotangent agree with torch's."""
    ours, theirs = leaves(arrays)
    results, expected = function(*ours), reference(*theirs)
    results = results if isinstance(results, tuple) else (results,)
    expected = tuple(expected) if isinstance(expected, tuple | list) else (expected,)
    assert len(results) == len(expected)
    generator = np.random.default_rng(0)
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == tuple(wanted.shape)
        assert result.dtype.name == str(wanted.dtype).removeprefix("torch.")
        np.testing.assert_allclose(
            result.detach().numpy(), wanted.detach().numpy(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
        if wanted.requires_grad:
            assert result.requires_grad
            cotangent = generator.standard_normal(result.shape).astype(result.dtype.numpy)
            result.backward(Tensor(cotangent), retain_graph=True)
            wanted.backward(torch.tensor(cotangent), retain_graph=True)
    for ours_leaf, torch_leaf in zip(ours, theirs, strict=True):
        assert (ours_leaf.grad is None) == (torch_leaf.grad is None)
        if torch_leaf.grad is not None:
            np.testing.assert_allclose(
                ours_leaf.grad.numpy(), torch_leaf.grad.numpy(), rtol=tolerance, atol=tolerance, equal_nan=True
            )


def _gradients(function: Callable[..., Any], arrays: Any, create_graph: bool) -> tuple[Any, list[Tensor], list[Any]]:
    tensors = [Tensor(array, requires_grad=array.dtype.kind == "f") for array in arrays]
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    result = function(*tensors)
    weights = Tensor(np.cos(np.arange(result.spec.size, dtype=np.float64)).reshape(result.shape) + 0.5)
    total = (result * weights).sum()
    one = Tensor(np.float64(1))
    return total, inputs, autodiff.backward([total], [one], inputs=inputs, create_graph=create_graph)


def assert_gradients_by_differences(
    function: Callable[..., Any], *arrays: np.ndarray, second_order: bool = True, tolerance: float = 1e-6
) -> None:
    """Assert that first (and second) derivatives in random directions agree with central differences in float64."""
    generator = np.random.default_rng(1)
    directions = [generator.standard_normal(a.shape) if a.dtype.kind == "f" else None for a in arrays]
    step = 1e-5

    def moved(amount: float) -> list[np.ndarray]:
        return [a if d is None else a + amount * d for a, d in zip(arrays, directions, strict=True)]

    along = [d for d in directions if d is not None]

    def slope(at: Any) -> tuple[float, Any, list[Tensor]]:
        _, inputs, gradients = _gradients(function, at, True)
        inner = None
        for gradient, direction in zip(gradients, along, strict=True):
            if gradient is not None:
                term = (gradient * Tensor(np.asarray(direction))).sum()
                inner = term if inner is None else inner + term
        return inner.item(), inner, inputs

    first = slope(arrays)
    values = [_gradients(function, moved(sign * step), False)[0].item() for sign in (1, -1)]
    difference = (values[0] - values[1]) / (2 * step)
    assert first[0] == pytest.approx(difference, rel=tolerance, abs=tolerance)
    if not second_order:
        return
    if first[1].requires_grad:
        again = autodiff.backward([first[1]], [Tensor(np.float64(1))], inputs=first[2])
        curvature = sum(float((g.numpy() * d).sum()) for g, d in zip(again, along, strict=True) if g is not None)
    else:
        curvature = 0.0
    slopes = [slope(moved(sign * step))[0] for sign in (1, -1)]
    assert curvature == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=1e-5, abs=1e-5)


def assert_sample_like_torch(op: Any, sample: Any) -> None:
    """Assert that an op's own sample, forward and backward, agrees with torch."""
    ours = [Tensor(array, requires_grad=i in sample.differentiable) for i, array in enumerate(sample.arrays)]
    theirs = [torch.tensor(array, requires_grad=i in sample.differentiable) for i, array in enumerate(sample.arrays)]
    results, expected = bind(op, *ours, **dict(sample.params)), sample.torch(torch, *theirs)
    results = results if isinstance(results, tuple) else (results,)
    expected = tuple(expected) if isinstance(expected, tuple | list) else (expected,)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.detach().numpy(), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
    if not sample.differentiable:
        return
    cotangent = np.random.default_rng(0).standard_normal(results[0].shape).astype(results[0].dtype.numpy)
    results[0].backward(Tensor(cotangent))
    expected[0].backward(torch.tensor(cotangent))
    for i in sample.differentiable:
        np.testing.assert_allclose(ours[i].grad.numpy(), theirs[i].grad.numpy(), rtol=1e-5, atol=1e-5)
