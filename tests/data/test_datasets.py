"""Datasets: lengths, rows, subsets, random splits."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.data import Subset, TensorDataset, random_split
from pequegrad.errors import DTypeError, ShapeError


def test_tensor_dataset_gives_rows_of_each_tensor():
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    dataset = TensorDataset(x, y)
    assert len(dataset) == 4
    row, label = dataset[2]
    assert row.tolist() == [6, 7, 8] and label == 2


def test_take_equals_stacked_samples_for_tensors_and_arrays():
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    dataset = TensorDataset(pg.Tensor(x), x)
    for taken in dataset.take([3, 0]):
        assert np.array_equal(taken, x[[3, 0]])


@pytest.mark.parametrize("kind", ["dense", "transposed", "every other", "tensor", "read-only"])
def test_take_copies_rows_however_they_lie(kind):
    x = np.arange(60.0).reshape(6, 10)
    x = {"transposed": x.T, "every other": x[::2, ::3]}.get(kind, x)
    if kind == "read-only":
        x.flags.writeable = False
    rows = [2, 0, 2, -1]
    (found,) = TensorDataset(pg.Tensor(x) if kind == "tensor" else x).take(rows)
    np.testing.assert_array_equal(found, x[rows])
    assert found.flags.owndata and found.flags.writeable
    with pytest.raises(IndexError):
        TensorDataset(x).take([0, len(x)])


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ((), "at least one"),
        ((np.zeros(3), np.zeros(4)), "same first dimension. Got 3, 4"),
        ((np.float32(3),), "argument 0 must be a Tensor"),
        (([1, 2],), "argument 0 must be a Tensor"),
    ],
)
def test_tensor_dataset_refuses_what_has_no_rows(tensors, complaint):
    with pytest.raises(ShapeError, match=complaint):
        TensorDataset(*tensors)


def test_subset_of_subset_maps_indices_through():
    dataset = TensorDataset(np.arange(10))
    subset = Subset(Subset(dataset, [9, 7, 5, 3]), [3, 0])
    assert [int(subset[i][0]) for i in range(2)] == [3, 9]
    assert subset.can_take and subset.take([1, 0])[0].tolist() == [9, 3]
    assert not Subset([1, 2, 3], [0]).can_take


def test_random_split_is_a_partition_and_repeats_by_seed():
    dataset = TensorDataset(np.arange(10))
    pg.manual_seed(5)
    first, second = random_split(dataset, [7, 3])
    assert sorted(first.indices + second.indices) == list(range(10)) and (len(first), len(second)) == (7, 3)
    pg.manual_seed(5)
    assert random_split(dataset, [7, 3])[0].indices == first.indices
    by_generator = [random_split(dataset, [7, 3], np.random.default_rng(1))[0].indices for _ in range(2)]
    assert by_generator[0] == by_generator[1]


def test_random_split_rounds_fractions_as_torch_does():
    torch = pytest.importorskip("torch")
    fractions = [0.33, 0.33, 0.34]
    ours = [len(part) for part in random_split(range(101), fractions, 0)]
    assert ours == [len(part) for part in torch.utils.data.random_split(range(101), fractions)]


def test_random_split_refuses_lengths_that_do_not_sum():
    with pytest.raises(ShapeError, match=r"must sum to 10.*Got \[7, 4\], which sum to 11"):
        random_split(range(10), [7, 4])


def test_generator_of_another_kind_is_refused():
    with pytest.raises(DTypeError, match=r"numpy\.random\.default_rng\(seed\)"):
        random_split(range(10), [5, 5], "seed")
