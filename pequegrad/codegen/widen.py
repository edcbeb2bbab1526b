"""Half-precision operands of kernels that add up many terms, widened to float32 first and rounded once, at the end.

Invariant: that is what those ops do in NumPy too; families that only move elements keep 16 bits.
"""

from __future__ import annotations

from typing import Any

from ..dtypes import bfloat16, float16, float32
from ..ops.core import Family, TensorSpec
from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Output, Value

HALVES = (float16, bfloat16)
MOVES = ("gather", "scatter", "concat", "pad", "slice_update", "sort", "random")


def widen_halves(graph: Graph) -> Graph:
    """Return an equal graph in which no kernel family computes in 16 bits."""
    if not any(_is_narrow(node) for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    found: dict[Value, Value] = {}

    def cast(node: Node, value: Value, dtype: Any) -> Value:
        if value.dtype is dtype:
            return value
        wide = Value(TensorSpec(value.shape, dtype))
        params = (("dtype", dtype),)
        nodes.append(
            Node(REGISTRY["cast"], (value,), params, (wide,), node.location, node.is_backward, node.is_recomputed)
        )
        return wide

    for node in graph.nodes:
        inputs = tuple(found.get(value, value) for value in node.inputs)
        if not _is_narrow(node):
            nodes.append(node.reading(inputs))
            continue
        wide = tuple(cast(node, value, float32) if value.dtype in HALVES else value for value in inputs)
        outputs = tuple(
            Value(TensorSpec(value.shape, float32)) if value.dtype in HALVES else value for value in node.outputs
        )
        nodes.append(node.reading(wide, outputs))
        for value, new in zip(node.outputs, outputs, strict=True):
            found[value] = cast(node, new, value.dtype)
    results = tuple(Output(found.get(o.value, o.value), o.role, o.name, o.target) for o in graph.outputs)
    return Graph(graph.inputs, tuple(nodes), results, graph.name).verify(graph)


def _is_narrow(node: Node) -> bool:
    lowering = node.op.lowering
    return (
        isinstance(lowering, Family)
        and lowering.name not in MOVES
        and any(value.dtype in HALVES for value in (*node.inputs, *node.outputs))
    )
