"""Views, slices, padding, joins and constants: torch's values and gradients, and views that write through."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pequegrad import Tensor
from pequegrad.errors import DeviceError, IndexOutOfRange, ShapeError
from pequegrad.ops import creation, joining, slicing
from pequegrad.ops.registry import REGISTRY
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, assert_sample_like_torch, torch

X = np.sin(np.arange(2 * 3 * 4, dtype=np.float32)).reshape(2, 3, 4)

OPS = ["slice", "slice_update", "pad", "concat", "iota", "diagonal"]


@pytest.mark.parametrize("name", OPS)
def test_samples_agree_with_torch(name):
    for sample in REGISTRY[name].samples():
        assert_sample_like_torch(REGISTRY[name], sample)


SAME_NAME = {
    "reshape": lambda x: x.reshape(4, -1),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, -1),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "mT": lambda x: x.mT,
    "expand": lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:1].squeeze(),
    "squeeze one": lambda x: x[:1].unsqueeze(0).squeeze(0),
    "squeeze none": lambda x: x.squeeze(1),
    "flatten": lambda x: x.flatten(1),
    "flatten of a transpose": lambda x: x.transpose(0, 2).flatten(0, 1),
    "unflatten": lambda x: x.unflatten(2, (2, -1)),
    "movedim": lambda x: x.movedim(0, -1),
    "movedim two": lambda x: x.movedim((0, 1), (2, 0)),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "select": lambda x: x.select(1, -1),
    "flip": lambda x: x.flip(0, 2),
    "split": lambda x: x.split(2, 1),
    "split sizes": lambda x: x.split([1, 3], 2),
    "chunk": lambda x: x.chunk(3, -1),
    "unbind": lambda x: x.unbind(1),
    "roll": lambda x: x.roll((1, -5), (0, 2)),
    "roll all": lambda x: x.roll(7),
    "repeat": lambda x: x.repeat(2, 1, 3, 2),
    "tile": lambda x: x.tile(2, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(1),
    "tril of nothing": lambda x: x[:, :0].tril(),
    "diagonal": lambda x: x.diagonal(1, 0, 2),
    "diagonal below": lambda x: x.diagonal(-1, 1, 2),
    "diagonal outside": lambda x: x.diagonal(9, 1, 2),
    "diag": lambda x: x[0].diag(),
    "diag of vector": lambda x: x[0, 0].diag(),
    "negative start": lambda x: x[..., -3:-1],
    "empty slice": lambda x: x[1:1].sum(0),
    "t": lambda x: x[0].t(),
}


@pytest.mark.parametrize("name", SAME_NAME)
def test_function_agrees_with_torch(name):
    assert_like_torch(SAME_NAME[name], SAME_NAME[name], X)


def test_pad_agrees_with_torch_also_where_it_crops():
    for widths in [(1, 2), (0, 1, 2, 0), (-1, 2, 0, -1), (0, 0), (1, 1, 1, 1, 1, 1)]:
        assert_like_torch(
            lambda x, w=widths: slicing.pad(x, w, value=2.5),
            lambda x, w=widths: torch.nn.functional.pad(x, w, value=2.5),
            X,
        )


def test_cat_and_stack_agree_with_torch():
    y = np.ones((2, 1, 4), np.float32)
    assert_like_torch(lambda a, b: joining.cat([a, b, a], 1), lambda a, b: torch.cat([a, b, a], 1), X, y)
    assert_like_torch(lambda a: joining.stack([a, a * 2], -1), lambda a: torch.stack([a, a * 2], -1), X)
    promoted = joining.cat([Tensor([1, 2]), Tensor([0.5])])
    assert promoted.dtype.name == "float32" and promoted.tolist() == [1, 2, 0.5]


@settings(max_examples=40)
@given(st.data())
def test_any_slice_with_steps_reads_and_writes_as_numpy(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    bound = st.none() | st.integers(-8, 8)
    step = st.integers(-3, 3).filter(bool)
    key = tuple(slice(data.draw(bound), data.draw(bound), data.draw(step)) for _ in shape)
    array = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    tensor = Tensor(array, requires_grad=True)
    shown = tensor[key]
    np.testing.assert_array_equal(shown.detach().numpy(), array[key])
    (shown * shown).sum().backward()
    expected = np.zeros(shape)
    expected[key] = 2 * array[key]
    np.testing.assert_array_equal(tensor.grad.numpy(), expected)
    changed = Tensor(array)
    changed[key] = -1.0
    array[key] = -1
    np.testing.assert_array_equal(changed.numpy(), array)


@settings(max_examples=25)
@given(st.data())
def test_chains_of_views_share_memory_and_write_through(data):
    x = Tensor(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    view = x
    for _ in range(data.draw(st.integers(1, 4))):
        choice = data.draw(st.sampled_from(["permute", "slice", "unsqueeze", "squeeze"]))
        if choice == "permute":
            view = view.permute(*data.draw(st.permutations(range(view.ndim))))
        elif choice == "slice":
            view = view[::-1] if data.draw(st.booleans()) else view[..., 1:]
        elif choice == "unsqueeze":
            view = view.unsqueeze(data.draw(st.integers(0, view.ndim)))
        else:
            view = view.squeeze()
    assert view.storage is x.storage
    view.add_(100.0)
    assert (x.numpy() >= 100).sum() == view.numel()


def test_gradient_flows_through_a_write_to_a_slice():
    def ours(x):
        y = x * 2
        y[0, 1:, ::2] = x[1, :2, :2] * 3
        y.transpose(0, 2)[1].mul_(5)
        return y

    def theirs(x):
        y = x * 2
        y[0, 1:, ::2] = x[1, :2, :2] * 3
        y.transpose(0, 2)[1].mul_(5)
        return y

    assert_like_torch(ours, theirs, X)


def test_gradients_agree_with_differences():
    x = X.astype(np.float64)
    assert_gradients_by_differences(lambda t: slicing.pad(t[:, ::-2], (1, -1, 2, 0)) ** 3, x)
    assert_gradients_by_differences(lambda t: joining.cat([t, t.flip(2) ** 2], 1) ** 2, x)
    assert_gradients_by_differences(lambda t: slicing.slice_update(t, t[:1] ** 2, (1, 0, 0)) ** 2, x)


def test_flip_repeat_and_roll_copy():
    x = Tensor([1.0, 2.0])
    for copy in (x.flip(0), x.repeat(1), x.roll(0), x.roll(1)):
        copy.zero_()
    assert x.tolist() == [1, 2]


def test_view_raises_where_it_would_have_to_copy():
    x = Tensor(X).transpose(0, 2)
    with pytest.raises(ShapeError, match=r"Use \.reshape"):
        x.view(24)
    assert x.view(4, 3, 2, 1).storage is x.storage


def test_creation_agrees_with_torch():
    pairs = [
        (creation.zeros(2, 3), torch.zeros(2, 3)),
        (creation.ones((2,), dtype="int32"), torch.ones(2, dtype=torch.int32)),
        (creation.arange(5), torch.arange(5)),
        (creation.arange(7, 1, -2), torch.arange(7, 1, -2)),
        (creation.arange(0, 1, 0.1), torch.arange(0, 1, 0.1)),
        (creation.arange(0), torch.arange(0)),
        (creation.linspace(-1, 2, 7), torch.linspace(-1, 2, 7)),
        (creation.linspace(3, 4, 1), torch.linspace(3, 4, 1)),
        (creation.eye(2, 3), torch.eye(2, 3)),
        (creation.zeros_like(Tensor([1])), torch.zeros_like(torch.tensor([1]))),
        (creation.full_like(Tensor([1.0]), 7), torch.full_like(torch.tensor([1.0]), 7)),
        (Tensor([True]).new_ones(2), torch.tensor([True]).new_ones(2)),
    ]
    for ours, theirs in pairs:
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6, atol=1e-7)


def test_iota_counts_along_each_dimension():
    for dim in range(3):
        np.testing.assert_array_equal(creation.iota((2, 3, 4), dim).numpy(), np.indices((2, 3, 4))[dim])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x.narrow(0, 1, 5), IndexOutOfRange, "5 elements from 1"),
        (lambda x: x.select(0, 2), IndexOutOfRange, "-2 <= index < 2"),
        (lambda x: joining.cat([x, x[0]]), ShapeError, "tensor 1"),
        (lambda x: joining.cat([]), ShapeError, "at least one"),
        (lambda x: joining.stack([x, x[:1]]), ShapeError, "tensor 1"),
        (lambda x: x.split([1, 1], 2), ShapeError, "add up to 4"),
        (lambda x: x.unflatten(2, (3, -1)), ShapeError, "does not split"),
        (lambda x: slicing.pad(x, (-5, 0)), ShapeError, "crops more"),
        (lambda x: slicing.pad(x, (1, 1), mode="reflect"), ShapeError, "constant"),
        (lambda x: x.flatten(2, 1), ShapeError, "comes after"),
        (lambda x: x.movedim((0, 0), (1, 2)), ShapeError, "each once"),
        (lambda x: x.repeat(2), ShapeError, "at least 3"),
        (lambda x: x[0, 0].tril(), ShapeError, "at least 2"),
        (lambda x: x.t(), ShapeError, "at most 2"),
        (lambda x: creation.arange(0, 5, -1), ShapeError, "do not lead"),
        (lambda x: creation.zeros(2, device="cuda"), DeviceError, "cuda"),
        (lambda x: slicing.slice_(x, (0, 0, 3), (1, 1, 2)), ShapeError, "dimension 2"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error, match=text):
        call(Tensor(X))
