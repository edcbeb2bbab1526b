"""DataLoader: batches of a dataset in order or shuffled, made here or in worker processes.

Invariant: with the same seed the batches are the same, and come in the same order, for any number of workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..ops.core import as_tensor
from ..tensor import Tensor
from .shuffle import Generator, draw_seed, permutation
from .workers import WorkerPool


class DataLoader:
    """Iterate over a dataset in batches of Tensors; torch's arguments in torch's order.

    dataset: has ``__getitem__`` and ``__len__``. batch_size: samples a batch, or None to yield single
    samples. shuffle: a new random order each epoch, from pequegrad.manual_seed or ``generator``. sampler: an
    iterable of indices, batch_sampler: an iterable of lists of indices; each replaces the arguments that it
    contradicts. num_workers: processes that fetch ahead (forked; 0: fetch in this process). collate_fn: list
    of samples → batch; by default arrays are stacked along a new first dimension and become Tensors.
    pin_memory has no effect: eager tensors live in ordinary memory. drop_last: leave out a last batch that is
    not full. timeout: seconds to wait for a worker, 0: for ever. worker_init_fn(worker_id) runs in each
    worker. generator: a numpy.random.Generator or int seed. prefetch_factor: batches fetched ahead per
    worker.

    An exception in a worker is raised here, with the worker's traceback in its message.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        *,
        generator: Generator = None,
        prefetch_factor: int = 2,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ShapeError(f"DataLoader: batch_size must be a positive int or None. Got {batch_size!r}.")
        if num_workers < 0 or prefetch_factor < 1 or timeout < 0:
            raise ValueError(
                "DataLoader: num_workers and timeout must be at least 0 and prefetch_factor at least 1. "
                f"Got {num_workers}, {timeout} and {prefetch_factor}."
            )
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler decides the order, so shuffle must not be given as well.")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError(
                "DataLoader: batch_sampler decides the batches, so batch_size, shuffle, sampler and "
                "drop_last must not be given as well."
            )
        self.dataset = dataset
        self.batch_size = batch_size if batch_sampler is None else None
        self.shuffle = bool(shuffle)
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        # An int seeds one generator for the loader's life: each epoch then has an order of its own.
        self.generator = np.random.default_rng(generator) if isinstance(generator, int) else generator
        self.prefetch_factor = prefetch_factor

    def __len__(self) -> int:
        """Batches an epoch."""
        if self.batch_sampler is not None:
            return _length(self.batch_sampler, "batch_sampler")
        count = _length(self.dataset if self.sampler is None else self.sampler, "sampler")
        if self.batch_size is None:
            return count
        return count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # Drawn at once, not at the first `next`, and for any number of workers, so that the orders of this
        # epoch and of later ones depend on the seed alone.
        requests = self._requests()
        worker_seed = draw_seed(self.generator)
        if self.num_workers == 0:
            return (as_tensors(self._fetch(request)) for request in requests)
        return self._iterate_workers(requests, worker_seed)

    def _requests(self) -> Iterator[Any]:
        """Return what to fetch, in order: lists of indices, or single ones if batch_size is None."""
        if self.batch_sampler is not None:
            return (list(indices) for indices in self.batch_sampler)
        if self.sampler is not None:
            indices: Iterable[int] = self.sampler
        elif self.shuffle:
            indices = permutation(len(self.dataset), self.generator).tolist()
        else:
            indices = range(len(self.dataset))
        if self.batch_size is None:
            return iter(indices)
        return _batches(indices, self.batch_size, self.drop_last)

    def _fetch(self, request: Any) -> Any:
        """Return one batch with NumPy leaves (a user's collate_fn: whatever it returns)."""
        if not isinstance(request, list):
            sample = self.dataset[request]
            return _arrays(sample) if self.collate_fn is None else self.collate_fn(sample)
        if self.collate_fn is not None:
            return self.collate_fn([self.dataset[index] for index in request])
        if getattr(self.dataset, "can_take", False):
            return self.dataset.take(request)
        return collate_arrays([self.dataset[index] for index in request])

    def _iterate_workers(self, requests: Iterator[Any], seed: int) -> Iterator[Any]:
        pool = WorkerPool(self._fetch, self.num_workers, self.worker_init_fn, seed, self.timeout)
        try:
            ahead = self.num_workers * self.prefetch_factor
            for request in itertools.islice(requests, ahead):
                pool.submit(request)
            while pool.outstanding:
                batch = pool.next_result()
                for request in itertools.islice(requests, 1):
                    pool.submit(request)
                yield as_tensors(batch)
        finally:
            pool.close()


def default_collate(samples: list[Any]) -> Any:
    """Stack samples into a batch: arrays, Tensors and numbers become Tensors of shape (len(samples), ...).

    Tuples, lists and dicts are collated item by item; strings and anything else are kept in a list. Raises
    ShapeError if the samples' shapes or structures differ.
    """
    return as_tensors(collate_arrays(samples))


def collate_arrays(samples: list[Any]) -> Any:
    """Stack samples as default_collate does, but into ndarrays: what workers send through a pipe."""
    if not samples:
        raise ShapeError("collate: expected at least one sample. Got an empty batch.")
    first = samples[0]
    if isinstance(first, dict):
        return {key: collate_arrays([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        lengths = {len(sample) for sample in samples}
        if len(lengths) != 1:
            raise ShapeError(f"collate: every sample must have the same number of items. Got {sorted(lengths)}.")
        items = [collate_arrays(list(column)) for column in zip(*samples)]
        if isinstance(first, tuple):
            return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
        return items
    if isinstance(first, float):
        return np.asarray(samples, np.float32)
    if isinstance(first, bool | int):
        return np.asarray(samples)
    if isinstance(first, Tensor | np.ndarray | np.generic):
        arrays = [_arrays(sample) for sample in samples]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1:
            raise ShapeError(
                "collate: all samples of a batch must have the same shape. Got "
                f"{', '.join(map(str, sorted(shapes)))}. Crop or pad them in the dataset, or pass a "
                "collate_fn."
            )
        return np.stack(arrays)
    if first is None:
        raise DTypeError("collate: a sample is None. Return arrays, Tensors or numbers, or pass a collate_fn.")
    return samples


def as_tensors(batch: Any) -> Any:
    """Return ``batch`` with each ndarray in it as a Tensor that shares its memory."""
    return _map_leaves(batch, np.ndarray, as_tensor)


def _arrays(sample: Any) -> Any:
    return _map_leaves(sample, Tensor, lambda tensor: tensor.detach().numpy())


def _map_leaves(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map_leaves(value, kind, function) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        items = [_map_leaves(item, kind, function) for item in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*items)
        return tuple(items) if isinstance(tree, tuple) else items
    return tree


def _batches(indices: Iterable[int], batch_size: int, drop_last: bool) -> Iterator[list[int]]:
    iterator = iter(indices)
    while batch := list(itertools.islice(iterator, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def _length(value: Any, name: str) -> int:
    try:
        return len(value)
    except TypeError:
        raise TypeError(f"len(DataLoader): the {name} has no length. Give it a __len__, or do not ask.") from None
