"""What a finished trace says beside its graph: where each input comes from, and where each output goes.

Invariant: nothing here belongs to a trace's inside; every tensor is a real one, and every Value is the graph's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.core import Op, TensorSpec
from ..records import entity, record
from .graph import Graph


@entity
class FromArgument:
    """The ``index``-th tensor of the call."""

    index: int


@entity
class FromTensor:
    """A tensor that the function captured: a parameter, a buffer, optimizer state. Always a root, never a view."""

    tensor: Any


@entity
class FromGradient:
    """The ``.grad`` of a captured tensor, or (``argument`` ≥ 0) of an argument, whichever tensor it is at the call."""

    owner: Any
    argument: int = -1


@entity
class FromScalar:
    """``owner[key]``, a Python number, read again at each call."""

    owner: Any
    key: Any


def read_number(owner: Any, key: Any) -> Any:
    """Return ``owner[key]``; a tuple (name, index) stands for ``owner[name][index]``."""
    return owner[key[0]][key[1]] if isinstance(key, tuple) else owner[key]


@entity
class FromConstant:
    """An array that entered while tracing; a private copy."""

    array: np.ndarray


Source = FromArgument | FromTensor | FromGradient | FromScalar | FromConstant


@record
class InputBinding:
    """Where a graph input comes from, and whether the step writes to it."""

    name: str
    spec: TensorSpec
    source: Source
    is_written: bool


@record
class ResultLeaf:
    """A tensor that the function returned: a new array, or (``root`` given) a tensor that existed before, read
    through a chain of views. ``root`` is a FromTensor, FromArgument or FromGradient; ``views`` are (op, params), innermost first."""

    output: int = -1
    root: FromTensor | FromArgument | FromGradient | None = None
    views: tuple[tuple[type[Op], dict[str, Any]], ...] = ()


@record
class FreshLeaf:
    """A Python container or array that the function makes anew: each call returns a copy of its own."""

    value: Any


@record
class GradientAction:
    """What happens to a ``.grad`` after each call. ``kind``: "none", "fused", "store" (the result ``output``) or
    "bind" (the existing tensor ``tensor``, or as a FromGradient the one that is some ``.grad`` at the call)."""

    owner: FromTensor | FromArgument
    kind: str
    output: int = -1
    tensor: Any = None


@record
class TensorGuard:
    """A captured tensor must still have this storage and this ``requires_grad``."""

    tensor: Any
    storage: Any
    requires_grad: bool


@record
class GradientGuard:
    """The ``.grad`` of this tensor (or argument) was None, or was a tensor, when the step first looked."""

    owner: FromTensor | FromArgument
    is_none: bool


@record
class Trace:
    """One traced call of a function."""

    graph: Graph
    inputs: tuple[InputBinding, ...]
    result_structure: Any
    result_leaves: tuple[Any, ...]
    """Per leaf of the returned value: a ResultLeaf, or the Python value itself."""
    gradients: tuple[GradientAction, ...]
    tensor_guards: tuple[TensorGuard, ...]
    gradient_guards: tuple[GradientGuard, ...]
    modules: tuple[Any, ...]
    optimizers: tuple[Any, ...]

    def kept(self, leaves: tuple[Any, ...]) -> Trace:
        """Return this trace with these leaves as the result's, and without the modules and optimizers, which guards watch."""
        return Trace(
            self.graph,
            self.inputs,
            self.result_structure,
            leaves,
            self.gradients,
            self.tensor_guards,
            self.gradient_guards,
            (),
            (),
        )
