"""DataLoader: what a batch holds, which order batches have, and what workers do."""

from __future__ import annotations

import collections
import multiprocessing
import os
import time

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.data import DataLoader, Dataset, TensorDataset, default_collate
from pequegrad.errors import DTypeError, ShapeError

Pair = collections.namedtuple("Pair", "x y")


class Squares(Dataset):
    """A dataset without ``take``: the general road."""

    def __init__(self, count=10):
        self.count = count

    def __getitem__(self, index):
        return {"x": np.float32([index, index]), "square": index * index, "name": f"n{index}"}

    def __len__(self):
        return self.count


class SlowFirst(Squares):
    def __getitem__(self, index):
        if index == 0:
            time.sleep(0.3)
        return index


class Failing(Squares):
    def __getitem__(self, index):
        if index == 5:
            raise KeyError("sample 5 is rotten")
        return index


class Dying(Squares):
    def __getitem__(self, index):
        os._exit(7)


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)


class FailingOddly(Squares):
    def __getitem__(self, index):
        raise TwoArguments(1, 2)


class Unpicklable(Squares):
    def __getitem__(self, index):
        return lambda: index


class Noise(Squares):
    def __getitem__(self, index):
        return np.random.rand()


class Sleeping(Squares):
    def __getitem__(self, index):
        time.sleep(60)


def numbers(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_tensors_in_order(workers):
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10)
    batches = list(DataLoader(TensorDataset(x, y), batch_size=4, num_workers=workers))
    assert [batch[0].shape for batch in batches] == [(4, 2), (4, 2), (2, 2)]
    assert all(isinstance(tensor, pg.Tensor) for batch in batches for tensor in batch)
    assert batches[0][0].dtype is pg.float32 and batches[0][1].dtype is pg.int64
    assert np.array_equal(np.concatenate([batch[0].numpy() for batch in batches]), x)


def test_drop_last_and_length_agree():
    for count in (8, 9, 11, 12):
        for drop_last in (False, True):
            loader = DataLoader(TensorDataset(np.arange(count)), batch_size=4, drop_last=drop_last)
            assert len(loader) == len(list(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_dict_samples_are_collated_by_key(workers):
    (batch,) = DataLoader(Squares(3), batch_size=3, num_workers=workers)
    assert batch["x"].shape == (3, 2) and batch["square"].tolist() == [0, 1, 4]
    assert batch["square"].dtype is pg.int64 and batch["name"] == ["n0", "n1", "n2"]


def test_collate_matches_torch_in_structure_and_dtype():
    torch = pytest.importorskip("torch")
    from torch.utils.data import default_collate as torch_collate

    samples = [Pair(np.float32([i]), (i, True, [i, i + 1])) for i in range(3)]
    ours, theirs = default_collate(samples), torch_collate(samples)
    assert type(ours) is Pair and type(ours.y[2]) is list
    assert ours.x.tolist() == theirs.x.tolist()
    for mine, other in zip(ours.y[:2], theirs.y[:2]):
        assert mine.tolist() == other.tolist() and mine.dtype.name == str(other.dtype).removeprefix("torch.")
    assert torch.stack(tuple(theirs.y[2])).tolist() == [column.tolist() for column in ours.y[2]]


def test_a_custom_collate_fn_gets_the_list_of_samples():
    loader = DataLoader(Squares(4), batch_size=2, collate_fn=lambda samples: [s["name"] for s in samples])
    assert list(loader) == [["n0", "n1"], ["n2", "n3"]]


def test_batch_size_none_yields_samples():
    samples = list(DataLoader(Squares(3), batch_size=None))
    assert len(samples) == 3 and samples[2]["x"].tolist() == [2.0, 2.0] and samples[2]["square"] == 4


def test_sampler_and_batch_sampler_decide_the_order():
    dataset = TensorDataset(np.arange(6))
    assert [b[0].tolist() for b in DataLoader(dataset, 2, sampler=[5, 3, 1])] == [[5, 3], [1]]
    assert [b[0].tolist() for b in DataLoader(dataset, batch_sampler=[[0], [2, 4]])] == [[0], [2, 4]]
    with pytest.raises(ValueError, match="sampler decides the order"):
        DataLoader(dataset, 2, shuffle=True, sampler=[1])
    with pytest.raises(ValueError, match="batch_sampler decides the batches"):
        DataLoader(dataset, 2, batch_sampler=[[1]])


def test_shuffle_visits_each_sample_once_and_anew_each_epoch():
    pg.manual_seed(0)
    loader = DataLoader(TensorDataset(np.arange(100)), batch_size=10, shuffle=True)
    first, second = ([value for (batch,) in loader for value in batch.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second != list(range(100))


@pytest.mark.parametrize("generator", [None, 3])
def test_orders_depend_on_the_seed_alone_not_on_the_number_of_workers(generator):
    def epochs(workers):
        pg.manual_seed(11)
        dataset = TensorDataset(np.arange(20))
        loader = DataLoader(dataset, 5, shuffle=True, num_workers=workers, generator=generator)
        return [[batch[0].tolist() for batch in loader] for _ in range(2)]

    assert epochs(0) == epochs(2) == epochs(3)


def test_a_fast_worker_does_not_overtake_a_slow_one():
    assert numbers(DataLoader(SlowFirst(8), batch_size=2, num_workers=2)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_an_exception_in_a_worker_comes_with_its_type_and_traceback():
    loader = DataLoader(Failing(8), batch_size=2, num_workers=2)
    batches = iter(loader)
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(KeyError, match="sample 5 is rotten") as caught:
        next(batches)
    assert "worker process 0" in str(caught.value) and "in __getitem__" in str(caught.value)


def test_an_exception_that_cannot_be_made_again_becomes_a_runtime_error():
    with pytest.raises(RuntimeError, match="Caught TwoArguments"):
        list(DataLoader(FailingOddly(2), num_workers=1))


def test_an_exception_in_worker_init_fn_is_raised():
    def initialize(worker_id):
        raise OSError(f"no file for worker {worker_id}")

    with pytest.raises(OSError, match="no file for worker 0"):
        list(DataLoader(Squares(2), num_workers=1, worker_init_fn=initialize))


def test_a_result_that_cannot_be_sent_is_an_error_not_a_hang():
    with pytest.raises(Exception, match=r"(?s)DataLoader worker process 0.*pickle"):
        list(DataLoader(Unpicklable(2), num_workers=1, collate_fn=lambda samples: samples[0]))


def test_a_worker_that_dies_is_named_with_its_exit_code():
    with pytest.raises(RuntimeError, match="died with exit code 7"):
        list(DataLoader(Dying(2), num_workers=1))


def test_timeout_raises():
    with pytest.raises(RuntimeError, match=r"no batch within timeout=0\.2 s"):
        list(DataLoader(Sleeping(2), num_workers=1, timeout=0.2))


def test_no_process_is_left_after_a_loop_is_abandoned():
    batches = iter(DataLoader(Squares(100), batch_size=1, num_workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_workers_draw_different_random_numbers():
    pg.manual_seed(0)
    values = [value for batch in DataLoader(Noise(2), batch_size=1, num_workers=2) for value in batch.tolist()]
    assert values[0] != values[1]


def test_an_empty_dataset_gives_no_batch():
    assert list(DataLoader(TensorDataset(np.zeros((0, 3))), batch_size=4)) == []


@pytest.mark.parametrize(("batch_size", "shown"), [(0, "0"), (-1, "-1"), (2.5, "2.5"), ("4", "'4'")])
def test_a_wrong_batch_size_is_refused(batch_size, shown):
    with pytest.raises(ShapeError, match=f"batch_size must be a positive int or None. Got {shown}"):
        DataLoader(Squares(), batch_size=batch_size)


def test_samples_of_different_shapes_are_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"Got \(2,\), \(3,\)"):
        default_collate([np.zeros(2), np.zeros(3)])
    with pytest.raises(ShapeError, match=r"same number of items. Got \[1, 2\]"):
        default_collate([(1,), (1, 2)])
    with pytest.raises(DTypeError, match="a sample is None"):
        default_collate([None, None])
