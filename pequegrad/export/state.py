"""The state of a loaded step: arrays and numbers by name, to read and to change.

Invariant: an array stays in its place for as long as the step lives, so that the step may keep its address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .. import arrays
from ..dtypes import as_dtype
from ..errors import DTypeError, ShapeError
from ..ops.core import TensorSpec
from ..tensor import Tensor


class State(Mapping[str, Any]):
    """All that a loaded step reads or changes beside its arguments, in a mapping that takes new values but no new names.

    Tensors are the step's own memory and change with each call; ``.clone()`` what is to stay. Numbers, such as
    ``state["optimizer.param_groups.0.lr"]``, are floats.
    """

    def __init__(self, tensors: dict[str, Tensor], numbers: dict[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._numbers = numbers

    def __getitem__(self, name: str) -> Any:
        if name in self._numbers:
            return float(self._numbers[name])
        if name in self._tensors:
            return self._tensors[name]
        raise KeyError(f"{name!r} is no state of this step. Expected one of {', '.join(self)}.")

    def __setitem__(self, name: str, value: Any) -> None:
        """Put a number or the contents of a tensor in the place of what is there.

        Raises KeyError for an unknown name, ShapeError and DTypeError for what is not alike.
        """
        current = self[name]
        if not isinstance(current, Tensor):
            self._numbers[name][...] = float(value)
            return
        array = value.array if isinstance(value, Tensor) else np.asarray(value)
        if array.shape != current.shape:
            raise ShapeError(f"state[{name!r}] has shape {current.shape}. Got {array.shape}.")
        if isinstance(value, Tensor | np.ndarray) and as_dtype(array.dtype) is not current.dtype:
            raise DTypeError(f"state[{name!r}] has dtype {current.dtype.name}. Got {array.dtype}. Convert it first.")
        arrays.copy_into(current.array, array.astype(current.dtype.numpy, copy=False))
        current.storage.version += 1

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._numbers

    def __len__(self) -> int:
        return len(self._tensors) + len(self._numbers)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set each of some names, as from another step's state or a saved dict."""
        for name, value in values.items():
            self[name] = value

    def __repr__(self) -> str:
        lines = [f"  {name}: {value.spec if isinstance(value, Tensor) else value}" for name, value in self.items()]
        return "\n".join([f"State of {len(self)} names:", *lines])


def make_tensor(array: Any) -> Tensor:
    """Return a tensor on this memory."""
    return Tensor._wrap(array, TensorSpec(array.shape, as_dtype(array.dtype)))
