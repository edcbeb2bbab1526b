"""Computes at compile time what depends on constants alone.

Invariant: only values with the same number everywhere are folded, so no array enters the program.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.core import Expression
from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Value
from .base import Rewriter


def fold_constants(graph: Graph) -> Graph:
    """Return the graph with pointwise ops, views and copies of constants replaced by constants."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        number = _folded(rewriter, node)
        if number is None:
            rewriter.keep(node)
            continue
        spec = node.outputs[0].spec
        new = rewriter.apply(REGISTRY["full"], (), node, shape=spec.shape, value=number, dtype=spec.dtype)
        rewriter.replace(node.outputs[0], new)
    return rewriter.finish()


def constant_of(rewriter: Rewriter, value: Value) -> Any:
    """Return the Python number that ``value`` has everywhere, or None."""
    return number_of(rewriter.made_by.get(rewriter.value(value)))


def number_of(node: Node | None) -> Any:
    """Return the Python number that all elements of what ``node`` makes are, or None."""
    return dict(node.params).get("value") if node is not None and node.op.is_constant else None


def _folded(rewriter: Rewriter, node: Node) -> Any:
    if not node.inputs or len(node.outputs) != 1 or not node.op.pure:
        return None
    numbers = []
    for value in node.inputs:
        number = constant_of(rewriter, value)
        if number is None:
            return None
        numbers.append(number)
    if node.op.view or _is_copy(node):
        return numbers[0]
    if not (node.op.elementwise and isinstance(node.op.lowering, Expression)):
        return None
    arrays = [np.asarray(number, value.dtype.numpy) for number, value in zip(numbers, node.inputs, strict=True)]
    with np.errstate(all="ignore"):
        result = node.op.numpy(np, *arrays, **dict(node.params))
    return np.asarray(result, node.outputs[0].dtype.numpy).item()


def _is_copy(node: Node) -> bool:
    return node.op is REGISTRY["copy"]
