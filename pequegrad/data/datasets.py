"""Datasets: anything with a length and an index, and the ones that pequegrad brings.

Invariant: a dataset never changes by being read. Its ``take``, where ``can_take`` says that it has one, gives
what collating single samples would give, only faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..tensor import Tensor
from .shuffle import Generator, permutation


class Dataset:
    """Base of map-style datasets: subclasses define ``__getitem__(index)`` and ``__len__()``."""

    def __getitem__(self, index: int) -> Any:
        """Return sample ``index``: any nesting of tuples, lists and dicts of arrays, Tensors and numbers."""
        raise TypeError(f"{type(self).__name__} must define __getitem__(index).")

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define __len__().")


class TensorDataset(Dataset):
    """Samples are the rows of Tensors or arrays of equal length along their first dimension."""

    can_take = True

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ShapeError("TensorDataset: expected at least one Tensor or array. Got none.")
        for position, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor | np.ndarray) or tensor.ndim == 0:
                raise ShapeError(
                    f"TensorDataset: argument {position} must be a Tensor or ndarray with at least one "
                    f"dimension. Got {tensor!r}."
                )
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1:
            raise ShapeError(
                f"TensorDataset: all tensors must have the same first dimension. Got {', '.join(map(str, lengths))}."
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, indices: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Return the rows ``indices`` of each tensor, stacked: arrays of shape (len(indices), ...)."""
        rows = np.asarray(indices, np.int64)
        return tuple(_rows(_array(tensor), rows) for tensor in self.tensors)


class Subset(Dataset):
    """The samples ``indices`` of another dataset, in that order."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    @property
    def can_take(self) -> bool:
        """Whether the underlying dataset has ``take``."""
        return getattr(self.dataset, "can_take", False)

    def take(self, indices: Sequence[int]) -> Any:
        """Return the batch of samples ``indices`` of this subset; see TensorDataset.take."""
        return self.dataset.take([self.indices[i] for i in indices])

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(dataset: Any, lengths: Sequence[int | float], generator: Generator = None) -> list[Subset]:
    """Split ``dataset`` at random into Subsets of ``lengths``, which are counts or fractions that sum to 1.

    As in torch, fractions are rounded down and the remainder goes round-robin to the first ones. Raises
    ShapeError if the counts do not sum to ``len(dataset)``. ``generator``: see DataLoader.
    """
    total = len(dataset)
    if all(0 <= length <= 1 for length in lengths) and np.isclose(sum(lengths), 1):
        counts = [int(total * fraction) for fraction in lengths]
        for i in range(total - sum(counts)):
            counts[i % len(counts)] += 1
    else:
        counts = [int(length) for length in lengths]
    if sum(counts) != total:
        raise ShapeError(
            f"random_split: lengths must sum to {total}, the dataset's length, or be fractions that sum to "
            f"1. Got {list(lengths)}, which sum to {sum(lengths)}."
        )
    order = permutation(total, generator).tolist()
    ends = np.cumsum(counts).tolist()
    return [Subset(dataset, order[end - count : end]) for count, end in zip(counts, ends)]


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy() if isinstance(tensor, Tensor) else tensor


def _rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return some rows, copied. `take` does it in four fifths of the time of an index, of an array whose elements are apart
    only after it has copied all of it."""
    return array.take(rows, 0) if array.flags.c_contiguous else array[rows]
