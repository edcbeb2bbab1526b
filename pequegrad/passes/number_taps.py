"""Positions of greatest elements that nobody reads but other window ops become numbers of taps: one byte each, not eight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Value
from .base import Rewriter, readers_of

POOL = REGISTRY["max_pool2d"]
READERS = (REGISTRY["window_take"], REGISTRY["window_put"])
MOST_TAPS = 256
"""Numbers that a byte holds."""


def number_taps(graph: Graph) -> Graph:
    """Return the graph with tap numbers in place of positions in the plane, where only ops of the same windows read them."""
    if not any(node.op is POOL for node in graph.nodes):
        return graph
    readers = readers_of(graph)
    kept = {output.value for output in graph.outputs}
    numbered: set[Value] = set()
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op is POOL:
            values, positions = node.outputs
            if positions not in kept and _can_be_numbered(node, readers.get(positions, ())):
                numbered.add(positions)
                spec: Any = POOL.infer(node.inputs[0].spec, **dict(node.params), taps=True)
                taps = Value(spec[1])
                rewriter.replace(positions, taps)
                node = _with_taps(node, (values, taps))
        elif node.op in READERS and node.inputs[1] in numbered:
            node = _with_taps(node, node.outputs)
        rewriter.keep(node)
    return rewriter.finish()


def _with_taps(node: Node, outputs: tuple[Value, ...]) -> Node:
    params = tuple(sorted((*node.params, ("taps", True))))
    return Node(node.op, node.inputs, params, outputs, node.location, node.is_backward)


def _can_be_numbered(pool: Node, readers: Sequence[Node]) -> bool:
    params = dict(pool.params)
    kernel, image = params["kernel"], pool.inputs[0].shape[2:]
    if params.get("taps") or kernel[0] * kernel[1] > MOST_TAPS:
        return False
    for node in readers:
        if node.op not in READERS or node.inputs[0] in pool.outputs[1:]:
            return False
        found = dict(node.params)
        size = found.pop("size", node.inputs[0].shape[2:])
        if found != params or tuple(size) != tuple(image):
            return False
    return True
