"""Computes equal applications once."""

from __future__ import annotations

from typing import Any

from ..trace.graph import Graph, Node, Value, format_param
from .base import Rewriter


def merge_common_subexpressions(graph: Graph) -> Graph:
    """Return the graph with one node for each (op, operands, parameters), commutative operands in any order."""
    rewriter = Rewriter(graph)
    numbers: dict[Value, int] = {}
    known: dict[Any, Node] = {}
    for node in graph.nodes:
        operands = [numbers.setdefault(rewriter.value(value), len(numbers)) for value in node.inputs]
        if node.op.commutative:
            operands.sort()
        # By text: 0.0 and -0.0 are equal in Python, and so are 1 and True.
        params = tuple([(key, format_param(value)) for key, value in node.params])
        key = (node.op, tuple(operands), params)
        earlier = known.get(key) if node.op.pure else None
        if earlier is None:
            known[key] = node
            rewriter.keep(node)
            continue
        for old, new in zip(node.outputs, earlier.outputs, strict=True):
            rewriter.replace(old, new)
    return rewriter.finish()
