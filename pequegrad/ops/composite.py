"""The table of Tensor's operators, methods and in-place methods; here all ops that have some are imported.

Invariant: nothing here has a gradient or a kernel of its own; fusion makes plain functions fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from . import (  # noqa: F401 (some for the methods alone that their ops name)
    activations,
    bits,
    comparison,
    contraction,
    creation,
    division,
    elementwise,
    gathering,
    indexing,
    joining,
    power,
    random,
    reduction,
    rounding,
    scan,
    selection,
    slicing,
    statistics,
    transcendental,
    views,
)
from .core import REGISTRY, as_tensor, context, is_tensor


def lerp(x: Any, end: Any, weight: Any) -> Any:
    """Return ``x + weight * (end - x)``."""
    return as_tensor(x) + weight * (as_tensor(end) - x)


def addcmul(x: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """Return ``x + value * tensor1 * tensor2``."""
    product = as_tensor(tensor1) * tensor2
    return as_tensor(x) + (product if isinstance(value, int) and value == 1 else product * value)


def addcdiv(x: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    """Return ``x + value * tensor1 / tensor2``."""
    return as_tensor(x) + value * as_tensor(tensor1) / tensor2


def positive(x: Any) -> Any:
    """Return ``x`` itself."""
    return x


def _by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


METHODS: dict[str, Callable[..., Any]] = {
    **_by_name(
        views.view, views.view_as, views.reshape_as, views.transpose, views.t, views.movedim, views.unsqueeze,
        views.squeeze, views.flatten, views.ravel, views.unflatten, views.broadcast_to, views.expand_as,
        slicing.narrow, slicing.select, slicing.flip,
        joining.split, joining.chunk, joining.unbind, joining.roll, joining.repeat, joining.tile,
        joining.repeat_interleave,
        creation.tril, creation.triu, creation.diag, creation.new_zeros, creation.new_ones, creation.new_full,
        contraction.mm, contraction.mv, contraction.bmm, contraction.dot, contraction.outer, contraction.addmm,
        gathering.index_select, gathering.take, gathering.take_along_dim, gathering.index_add,
        gathering.index_copy, gathering.index_fill, gathering.argsort, gathering.topk,
        indexing.index_put, indexing.nonzero, indexing.masked_select, indexing.masked_fill,
        statistics.mean, statistics.var, statistics.std, statistics.var_mean, statistics.std_mean, statistics.norm,
        statistics.logsumexp, statistics.max, statistics.min, statistics.aminmax, statistics.count_nonzero,
        activations.softmax, activations.log_softmax, random.bernoulli, lerp, addcmul, addcdiv, positive,
    ),
    "fmod": division.fmod,
    "swapaxes": views.transpose,
    "swapdims": views.transpose,
    "moveaxis": views.movedim,
    "gather": gathering.gather,
    "scatter": gathering.scatter,
    "scatter_add": gathering.scatter_add,
    "sort": gathering.sort,
}  # fmt: skip
"""Functions that are Tensor methods too, beside the methods that ops name."""

_METHOD_FUNCTIONS = {name: op.call for op in REGISTRY.values() for name in op.methods} | METHODS


def _equality(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compare with tensors, arrays and numbers; leave the rest to Python, for which ``tensor == None`` is False."""

    def compare(x: Any, other: Any) -> Any:
        if not is_tensor(other) and not isinstance(other, bool | int | float | np.ndarray | np.generic):
            return NotImplemented
        return function(x, other)

    return compare


OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "add": (elementwise.add, True),
    "sub": (elementwise.sub, True),
    "mul": (elementwise.mul, True),
    "truediv": (division.div, True),
    "floordiv": (division.floor_divide, True),
    "mod": (division.remainder, True),
    "pow": (power.pow, True),
    "matmul": (contraction.matmul, True),
    "and": (bits.bitwise_and, True),
    "or": (bits.bitwise_or, True),
    "xor": (bits.bitwise_xor, True),
    "lshift": (bits.bitwise_left_shift, True),
    "rshift": (bits.bitwise_right_shift, True),
    "lt": (comparison.lt, False),
    "le": (comparison.le, False),
    "gt": (comparison.gt, False),
    "ge": (comparison.ge, False),
    "eq": (_equality(comparison.eq), False),
    "ne": (_equality(comparison.ne), False),
    "neg": (elementwise.neg, False),
    "pos": (positive, False),
    "abs": (elementwise.abs, False),
    "invert": (bits.bitwise_not, False),
}
"""Python's operators: name without underscores → (function, whether there is a reflected form)."""

# Methods of which torch has a form with a trailing underscore.
_IN_PLACE_NAMES = (
    "add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow neg negative "
    "abs absolute sign exp expm1 log log1p sqrt rsqrt square reciprocal sin cos tanh sigmoid erf floor "
    "ceil trunc round clamp clip relu eq ne lt le gt ge logical_and logical_or logical_xor logical_not "
    "bitwise_and bitwise_or bitwise_xor bitwise_not lerp addcmul addcdiv addmm tril triu cumsum "
    "masked_fill index_add index_copy index_fill index_put scatter scatter_add"
)

_FILLS: dict[str, Callable[..., Any]] = {
    "uniform_": random.uniform_values,
    "normal_": random.normal_values,
    "random_": random.integer_values,
    "bernoulli_": random.bernoulli_values,
}


_KINDS = ("bool", "int", "float")
"""Of dtypes: each holds what those before it hold."""


def _in_place(name: str, function: Callable[..., Any], who: str) -> Callable[..., Any]:
    """Return the method that gives a tensor what ``function`` makes of its old elements, if that fits into it."""

    def method(x: Any, *arguments: Any, **options: Any) -> Any:
        # The gradient may need the old elements, which are about to be overwritten.
        source = x.clone() if context.is_grad_enabled and x.requires_grad else x
        result = function(source, *arguments, **options)
        if result.shape != x.shape:
            raise ShapeError(f"{who}: a result of shape {result.shape} does not fit into a tensor of shape {x.shape}.")
        if _KINDS.index(result.dtype.kind) > _KINDS.index(x.dtype.kind):
            raise DTypeError(
                f"{who}: a result of dtype {result.dtype.name} cannot be written to a tensor of {x.dtype.name}. "
                f"Use the form that returns a new tensor, or .to({result.dtype.name}) first."
            )
        return x.assign(result)

    method.__name__ = name
    method.__doc__ = f"In place: {function.__doc__}"
    return method


IN_PLACE: dict[str, Callable[..., Any]] = {
    **{f"{name}_": _in_place(f"{name}_", _METHOD_FUNCTIONS[name], f"{name}_") for name in _IN_PLACE_NAMES.split()},
    **{
        f"__i{name}__": _in_place(f"__i{name}__", function, f"{name}=")
        for name, (function, is_binary) in OPERATORS.items()
        if is_binary and name != "matmul"
    },
    **{name: _in_place(name, function, name) for name, function in _FILLS.items()},
}
"""The in-place methods."""
