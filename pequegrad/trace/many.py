"""Many steps in one call: which rows of which arguments each step takes, and where the results go.

Invariant: bit for bit what as many calls of the step would give; natively repeated is only a step that the state which
it leaves behind selects again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import arrays, pytree
from ..errors import DTypeError, IndexOutOfRange, ShapeError
from ..ops.core import TensorSpec
from ..tensor import Tensor
from .signature import Call

SECONDS = 0.25
"""How long native code runs before Python may see an interrupt."""

Run = Callable[[Call], tuple[Any, Any]]
"""Runs one call; returns its result and the bound step that gave it, or None if eager code did."""
Select = Callable[[Call], Any]
"""Returns the bound step that one call would run, if it exists already, else None."""


def run_many(data: Call, order: Any, run: Run, select: Select, read: Callable[..., Call]) -> Any:
    """Run a step for each row of ``order`` on those rows of the tensors of ``data``; return the results, stacked."""
    rows = read_order(order, data)
    results: _Stacked | None = None
    latest, done, chunk = None, 0, 16
    while done < len(rows):
        args, kwargs = data.rebuild([_take(tensor, rows[done]) for tensor in data.tensors])
        call = read(args, kwargs)
        if latest is not None and results is not None and latest.can_repeat and select(call) is latest:
            start = time.perf_counter()
            part = rows[done : done + chunk]
            results.put_all(done, latest.trace.result_leaves, latest.run_many(data.tensors, part))
            done += len(part)
            chunk = max(16, int(len(part) * SECONDS / max(time.perf_counter() - start, 1e-6)))
            continue
        result, latest = run(call)
        results = results or _Stacked(result, len(rows))
        results.put(done, result)
        done += 1
    assert results is not None
    return results.tree()


def read_order(order: Any, data: Call) -> np.ndarray:
    """Return ``order`` as int64 (steps, rows). Raises ShapeError, DTypeError or IndexOutOfRange before any step runs."""
    rows = order.numpy() if isinstance(order, Tensor) else np.asarray(order)
    if rows.ndim != 2 or not rows.size:
        raise ShapeError(f"run_many: expected an order of shape (steps, rows of a batch), not empty. Got {rows.shape}.")
    if rows.dtype.kind not in "iu":
        raise DTypeError(f"run_many: expected an order of integers, the rows of each step. Got {rows.dtype}.")
    if not data.tensors:
        raise ShapeError("run_many: expected at least one tensor or array to take rows of. Got none.")
    for name, tensor in zip(data.names(), data.tensors):
        if not tensor.ndim:
            raise ShapeError(f"run_many: {name} has no rows: its shape is (). Expected (rows, …).")
        if not 0 <= rows.min() <= rows.max() < tensor.shape[0]:
            wrong = int(rows.min() if rows.min() < 0 else rows.max())
            raise IndexOutOfRange(
                f"run_many: the order names row {wrong}, and {name} has the rows 0 to {tensor.shape[0] - 1}. No step ran."
            )
    return np.ascontiguousarray(rows, np.int64)


def _take(tensor: Tensor, rows: np.ndarray) -> Tensor:
    array = tensor.array[rows]
    return Tensor._wrap(array, TensorSpec(array.shape, tensor.dtype))


class _Stacked:
    """The results of all steps: tensors stacked along a new first dimension, other values those of the last step."""

    def __init__(self, first: Any, steps: int) -> None:
        leaves, self._structure = pytree.flatten(first)
        self._steps = steps
        self._leaves = [self._room(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def _room(self, leaf: Tensor) -> Tensor:
        shape = (self._steps, *leaf.shape)
        array = leaf.array
        empty = arrays.cupy().empty if arrays.is_device_array(array) else np.empty
        return Tensor._wrap(empty(shape, array.dtype), TensorSpec(shape, leaf.dtype))

    def put(self, step: int, result: Any) -> None:
        """Keep the result of one step."""
        for i, leaf in enumerate(pytree.flatten(result)[0]):
            if isinstance(leaf, Tensor):
                self._leaves[i].array[step] = leaf.array
            else:
                self._leaves[i] = leaf

    def put_all(self, step: int, leaves: Sequence[Any], made: Sequence[Any]) -> None:
        """Keep results of several steps from ``step`` on: ``made`` has an array for each output of the graph."""
        for mine, leaf in zip(self._leaves, leaves):
            if isinstance(mine, Tensor):
                array = made[leaf.output]
                mine.array[step : step + len(array)] = array

    def tree(self) -> Any:
        """Return all, nested as the step's own result."""
        return pytree.unflatten(self._structure, self._leaves)
