"""Python's indexing and assignment, gather, scatter and sort beside torch; indices out of range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pequegrad import Tensor
from pequegrad.errors import DTypeError, IndexOutOfRange, ShapeError
from pequegrad.ops import gathering, indexing, layers
from pequegrad.ops.registry import REGISTRY
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, assert_sample_like_torch, torch

RANDOM = np.random.default_rng(11)
X = RANDOM.standard_normal((3, 4, 5))


@pytest.mark.parametrize("name", ["gather", "scatter_add", "scatter", "sort"])
def test_samples_agree_with_torch(name):
    for sample in REGISTRY[name].samples():
        assert_sample_like_torch(REGISTRY[name], sample)


ROWS, MASK = np.array([2, 0, -1]), RANDOM.random((3, 4)) > 0.5
KEYS = {
    "int": (1,),
    "negative int": (-1, 2),
    "ints and slice": (0, slice(1, 3), -2),
    "none": (None, 1, None, slice(None), None),
    "ellipsis": (Ellipsis, 1),
    "ellipsis inside": (0, Ellipsis, 2),
    "array": (ROWS,),
    "array later": (slice(None), ROWS),
    "list": ([0, 2],),
    "empty list": ([],),
    "two arrays": (ROWS, np.array([1, 1, 3])),
    "broadcast arrays": (ROWS[:, None], np.array([[0, 2]])),
    "adjacent in the middle": (slice(None), np.array([[0, 1], [2, 3]]), np.array([1, -1])),
    "apart": (ROWS, slice(1, 4), np.array([0, 1, 4])),
    "int and array": (0, slice(None), ROWS),
    "array and none": (ROWS, None, slice(None), np.array([1, 2, 3])),
    "mask of all": (RANDOM.random((3, 4, 5)) > 0.5,),
    "mask of two": (MASK,),
    "mask of one": (slice(None), np.array([True, False, True, True])),
    "mask and array": (np.array([True, False, True]), slice(None), np.array([1, 3])),
    "empty mask": (np.zeros((3, 4), bool),),
    "array and slice with step": (ROWS, slice(None, None, 2)),
}


def for_torch(key):
    return tuple(torch.tensor(part) if isinstance(part, np.ndarray) else part for part in key)


@pytest.mark.parametrize("name", KEYS)
def test_reading_agrees_with_torch(name):
    key = KEYS[name]
    assert_like_torch(lambda x: x[key], lambda x: x[for_torch(key)], X)
    as_tensors = tuple(Tensor(part) if isinstance(part, np.ndarray) else part for part in key)
    np.testing.assert_array_equal(Tensor(X)[as_tensors].numpy(), torch.tensor(X)[for_torch(key)].numpy())


@pytest.mark.parametrize("name", KEYS)
def test_writing_agrees_with_torch(name):
    key = KEYS[name]
    shape = tuple(torch.tensor(X)[for_torch(key)].shape)
    unique = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)

    def write(x, value, key):
        y = x * 2
        y[key] = value
        return y

    assert_like_torch(lambda x, v: write(x, v, key), lambda x, v: write(x, v, for_torch(key)), X, unique)
    assert_like_torch(lambda x: write(x, 7.5, key), lambda x: write(x, 7.5, for_torch(key)), X)
    if shape:
        row = RANDOM.standard_normal((1, *shape[-1:]))
        assert_like_torch(lambda x, v: write(x, v, key), lambda x, v: write(x, v, for_torch(key)), X, row)


@settings(max_examples=40)
@given(st.data())
def test_mixed_keys_agree_with_torch(data):
    key = []
    for extent in X.shape[: data.draw(st.integers(1, 3))]:
        kind = data.draw(st.sampled_from(["int", "slice", "array", "new"]))
        if kind == "new":
            key.append(None)
        if kind == "int":
            key.append(data.draw(st.integers(-extent, extent - 1)))
        elif kind == "array":
            key.append(np.array(data.draw(st.lists(st.integers(-extent, extent - 1), min_size=2, max_size=2))))
        else:
            start = data.draw(st.integers(0, extent))
            key.append(slice(start, data.draw(st.none() | st.integers(-extent, extent)), data.draw(st.integers(1, 2))))
    key = tuple(key)
    assert_like_torch(lambda x: x[key], lambda x: x[for_torch(key)], X)


def test_basic_indexing_is_a_view_and_arrays_copy():
    x = Tensor(X)
    assert x[1, None, ::-2].storage is x.storage
    assert x[[0, 1]].storage is not x.storage
    x[1][2][3] = 42.0
    assert x[1, 2, 3].item() == 42
    x[0, :2] += 1.0
    np.testing.assert_allclose(x.numpy()[0, :2], X[0, :2] + 1)
    x[[0, 2]] *= 0.0
    assert not x.numpy()[[0, 2]].any()


def test_traced_like_zero_dimensional_index():
    assert Tensor(X)[Tensor(2)].shape == (4, 5)
    np.testing.assert_array_equal(Tensor(X)[:, Tensor(-1)].numpy(), X[:, -1])


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (3, IndexOutOfRange, "index 3 is out of range for dimension 0 of shape (3, 4, 5): expected -3 <= index < 3"),
        ((0, -5), IndexOutOfRange, "index -5"),
        ([0, 3], IndexOutOfRange, "index 3 is out of range for dimension 0 of extent 3"),
        ((slice(None), np.array([0, -5])), IndexOutOfRange, "index -5 is out of range for dimension 1 of extent 4"),
        ((0, 0, 0, 0), IndexOutOfRange, "too many indices"),
        ((Ellipsis, Ellipsis), IndexOutOfRange, "one ellipsis"),
        (slice(None, None, 0), IndexOutOfRange, "step"),
        (np.zeros((3, 5), bool), IndexOutOfRange, "mask"),
        (1.5, DTypeError, "Got float"),
        ("a", DTypeError, "Got str"),
        (np.array([0.5]), DTypeError, "integer dtype"),
        (slice("a", None), DTypeError, "bounds of a slice"),
        (True, DTypeError, "single bool"),
    ],
)
def test_a_bad_key_is_named(key, error, text):
    with pytest.raises(error) as caught:
        Tensor(X)[key]
    assert text in str(caught.value)
    with pytest.raises(error):
        Tensor(X)[key] = 1.0


def test_value_that_does_not_fit_is_an_error():
    with pytest.raises(ShapeError):
        Tensor(X)[0] = np.ones(3)


ALONG = np.array([[0, 3, 1], [2, 2, 0]])
SAME_NAME = {
    "gather": lambda x, i: x[0].gather(1, i),
    "scatter": lambda x, i: x[0].scatter(1, i, x[1, :2, :3]),
    "scatter a number": lambda x, i: x[0].scatter(0, i[:, :2], 5.0),
    "scatter_add": lambda x, i: x[0].scatter_add(1, i, x[1, :2, :3]),
    "index_select": lambda x, i: x.index_select(1, i[0]),
    "take": lambda x, i: x.take(i),
    "take_along_dim": lambda x, i: x.take_along_dim(i[:1, :1, None], 0),
    "index_add": lambda x, i: x.index_add(1, i[0], x[:, :3], alpha=2),
    "index_copy": lambda x, i: x.index_copy(1, i[0], x[:, 1:]),
    "index_fill": lambda x, i: x.index_fill(2, i[0], 3.0),
    "index_put": lambda x, i: x.index_put((i[0] % 3, i[0]), x[:, 0, :]),
    "index_put accumulating": lambda x, i: x.index_put((i[1] % 3, i[1]), x[0, 0], accumulate=True),
    "masked_fill": lambda x, i: x.masked_fill(x > 0, -1.0),
    "masked_select": lambda x, i: x.masked_select(x > 0),
    "sort": lambda x, i: x.sort(1, descending=True),
    "argsort": lambda x, i: x.argsort(0),
    "topk": lambda x, i: x.topk(2, 1),
    "topk least": lambda x, i: x.topk(3, largest=False),
}


@pytest.mark.parametrize("name", SAME_NAME)
def test_function_agrees_with_torch(name):
    # The index takes no gradient; it is int64 on both sides.
    assert_like_torch(SAME_NAME[name], SAME_NAME[name], X, ALONG)


def test_nonzero_and_one_hot_agree_with_torch():
    array = np.array([[0, 2, 0], [1, 0, 3]])
    np.testing.assert_array_equal(Tensor(array).nonzero().numpy(), torch.tensor(array).nonzero().numpy())
    for ours, theirs in zip(Tensor(array).nonzero(True), torch.tensor(array).nonzero(as_tuple=True), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    for classes in (-1, 5):
        expected = torch.nn.functional.one_hot(torch.tensor(array), classes)
        np.testing.assert_array_equal(indexing.one_hot(Tensor(array), classes).numpy(), expected.numpy())


def test_gradients_agree_with_differences():
    index = np.array([[0, 3, 3], [2, 2, 0]])
    x, src = X[0], X[1, :2, :3]
    assert_gradients_by_differences(lambda x: x.gather(1, Tensor(index)) ** 3, x)
    assert_gradients_by_differences(lambda x, s: x.scatter_add(1, Tensor(index), s) ** 3, x, src)
    assert_gradients_by_differences(lambda x: x[Tensor(index)] ** 3, x)
    assert_gradients_by_differences(lambda x: x.sort(1)[0] ** 3, x)
    unique = np.array([[0, 3, 1], [2, 1, 0]])
    assert_gradients_by_differences(lambda x, s: x.scatter(1, Tensor(unique), s) ** 3, x, src)


def test_embedding_adds_up_repeated_rows_and_spares_the_padding():
    index = np.array([[1, 2, 1], [0, 3, 2]])
    for padding_idx in (None, 2, -1):
        assert_like_torch(
            lambda w, p=padding_idx: layers.embedding(Tensor(index), w, p),
            lambda w, p=padding_idx: torch.nn.functional.embedding(torch.tensor(index), w, p),
            X[0],
        )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda x: x.gather(0, Tensor([[0, 3]])),
            IndexOutOfRange,
            "index 3 is out of range for dimension 0 of extent 3",
        ),
        (lambda x: x.gather(0, Tensor([[-1]])), IndexOutOfRange, "index -1"),
        (lambda x: x.gather(0, Tensor([0])), ShapeError, "2 dimensions"),
        (lambda x: x.gather(0, Tensor([[0.0]])), DTypeError, "integer dtype"),
        (lambda x: x.scatter(0, Tensor([[0, 1]]), Tensor([[1.0]])), ShapeError, "cover the index"),
        (lambda x: layers.embedding(Tensor([4]), x), IndexOutOfRange, "index 4"),
        (lambda x: indexing.one_hot(Tensor([3]), 3), IndexOutOfRange, "class 3"),
        (lambda x: x.topk(5, 0), IndexOutOfRange, r"\[0, 3\]"),
        (lambda x: x.masked_fill(x, 0.0), DTypeError, "bool"),
        (lambda x: x.index_select(0, Tensor([[0]])), ShapeError, "vector"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error, match=text):
        call(Tensor(X[:, :, 0]))


def test_sort_places_nan_last_and_keeps_ties_in_order():
    x = np.array([np.nan, 1, -np.inf, 1, np.inf, np.nan])
    for descending in (False, True):
        expected = torch.sort(torch.tensor(x), descending=descending, stable=True)
        values, order = gathering.sort(Tensor(x), descending=descending)
        np.testing.assert_array_equal(values.numpy(), expected.values.numpy())
        np.testing.assert_array_equal(order.numpy(), expected.indices.numpy())
