"""nn.utils beside torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pequegrad import Tensor, nn
from pequegrad.errors import AutogradError, ShapeError

torch = pytest.importorskip("torch")


def pair():
    ours, theirs = [], []
    for shape in ((3, 4), (5,), ()):
        value = np.asarray(np.random.randn(*shape) * 3)
        ours.append(nn.Parameter(Tensor(np.zeros(shape))))
        theirs.append(torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)))
        ours[-1].grad, theirs[-1].grad = Tensor(value), torch.tensor(value)
    for kit, parameters in ((Tensor, ours), (None, theirs)):
        parameters.append(nn.Parameter(kit([1.0])) if kit else torch.nn.Parameter(torch.ones(1)))
    return ours, theirs


def assert_same_gradients(ours, theirs):
    for mine, other in zip(ours, theirs):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            np.testing.assert_allclose(mine.grad.array, other.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_norm_equals_torch(norm_type, max_norm):
    ours, theirs = pair()
    gradients = [p.grad for p in ours]
    total = nn.utils.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert total.shape == () and total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(ours, theirs)
    assert all(p.grad is g for p, g in zip(ours, gradients))


def test_clipping_takes_one_tensor_and_none():
    ours, _ = pair()
    nn.utils.clip_grad_norm_(ours[1], 1.0)
    assert np.linalg.norm(ours[1].grad.array) == pytest.approx(1.0, rel=1e-5)
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0.0


def test_clipping_by_value_equals_torch():
    ours, theirs = pair()
    nn.utils.clip_grad_value_(ours, 0.7)
    torch.nn.utils.clip_grad_value_(theirs, 0.7)
    assert_same_gradients(ours, theirs)


def test_norm_that_is_not_finite_can_be_an_error():
    ours, _ = pair()
    ours[0].grad.fill_(float("nan"))
    with pytest.raises(AutogradError, match="nan"):
        nn.utils.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    assert math.isnan(nn.utils.clip_grad_norm_(ours, 1.0).item())


def test_parameters_as_a_vector_and_back():
    first, second = nn.Parameter(Tensor([[1.0, 2.0]])), nn.Parameter(Tensor(3.0))
    vector = nn.utils.parameters_to_vector([first, second])
    assert vector.tolist() == [1.0, 2.0, 3.0]
    view = first.detach().numpy()
    nn.utils.vector_to_parameters(vector.detach() * 2, [first, second])
    assert view.tolist() == [[2.0, 4.0]] and second.item() == 6.0 and first.requires_grad
    with pytest.raises(ShapeError, match="3 elements"):
        nn.utils.vector_to_parameters(Tensor([1.0]), [first, second])
