"""sum(window_put(g, positions)) over whole planes becomes sum(g): the gradient of a bias before a pooling reads no plane.

Invariant: what is summed is the same but for zeros, in another order.
"""

from __future__ import annotations

from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node
from .base import Rewriter
from .pool_before_relu import sees_image
from .remove_dead_code import remove_dead_code

SUM, PUT = REGISTRY["sum"], REGISTRY["window_put"]
PLANE = {2, 3}


def sum_before_put(graph: Graph) -> Graph:
    """Return the graph with sums over planes of put values taken of these values themselves."""
    if not any(node.op is PUT for node in graph.nodes):
        return graph
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        put = rewriter.made_by.get(rewriter.value(node.inputs[0])) if node.op is SUM else None
        if put is not None and put.op is PUT and set(dict(node.params)["dims"]) >= PLANE and _keeps_all(put):
            summed = rewriter.apply(SUM, (put.inputs[0],), node, **dict(node.params))
            rewriter.replace(node.outputs[0], summed)
        else:
            rewriter.keep(node)
    return remove_dead_code(rewriter.finish())


def _keeps_all(put: Node) -> bool:
    """Whether each value has a place: that of a window without an element of the image is put nowhere."""
    return sees_image(put.outputs[0].shape[2:], put.inputs[0].shape[2:], dict(put.params))
