"""Plain functions of ops, and the table of Tensor's operators and in-place methods.

Invariant: nothing here has a gradient or a kernel of its own; fusion makes them fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import contraction, creation, elementwise, gathering, indexing, joining, slicing, views


def _by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


METHODS: dict[str, Callable[..., Any]] = {
    **_by_name(
        views.view, views.view_as, views.reshape_as, views.transpose, views.t, views.movedim, views.unsqueeze,
        views.squeeze, views.flatten, views.ravel, views.unflatten, views.broadcast_to, views.expand_as,
        slicing.narrow, slicing.select, slicing.flip,
        joining.split, joining.chunk, joining.unbind, joining.roll, joining.repeat, joining.tile,
        joining.repeat_interleave,
        creation.tril, creation.triu, creation.diagonal, creation.diag, creation.new_zeros, creation.new_ones,
        creation.new_full,
        contraction.mm, contraction.mv, contraction.bmm, contraction.dot, contraction.outer, contraction.addmm,
        gathering.index_select, gathering.take, gathering.take_along_dim, gathering.index_add, gathering.index_copy,
        gathering.index_fill, gathering.argsort, gathering.topk,
        indexing.index_put, indexing.nonzero, indexing.masked_select, indexing.masked_fill,
    ),
    "swapaxes": views.transpose,
    "swapdims": views.transpose,
    "moveaxis": views.movedim,
    "gather": gathering.gather,
    "scatter": gathering.scatter,
    "scatter_add": gathering.scatter_add,
    "sort": gathering.sort,
}  # fmt: skip
"""Functions that are Tensor methods too."""

OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "add": (elementwise.add, True),
    "mul": (elementwise.mul, True),
    "matmul": (contraction.matmul, True),
}
"""Python's operators: name without underscores → (function, whether there is a reflected form)."""

IN_PLACE: dict[str, Callable[..., Any]] = {
    "__iadd__": elementwise.add,
    "__imul__": elementwise.mul,
    "add_": elementwise.add,
    "mul_": elementwise.mul,
}
"""In-place methods: name → the out-of-place function whose result is assigned."""
