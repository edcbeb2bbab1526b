"""max_pool2d(relu(x)) becomes relu(max_pool2d(x)), so that relu, its mask and its gradient are of as few as there are windows.

Invariant: values and gradients are equal to what they were. The greatest element of a window that holds a positive one or a NaN
is where it was before; in other windows it may be elsewhere, but there the mask lets no gradient through. Of a window without
a positive element the result is a zero as before, whose sign alone may be that of another zero of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Value
from .base import Rewriter, readers_of
from .fold_constants import number_of

RELU, POOL, PUT = REGISTRY["relu"], REGISTRY["max_pool2d"], REGISTRY["window_put"]
LESS_EQUAL, WHERE = REGISTRY["le"], REGISTRY["where"]


@dataclass(frozen=True, slots=True)
class _Gradient:
    """``where(mask, 0, put)``, which is to be ``put`` of a smaller ``where``."""

    mask: Node
    put: Node
    where: Node


def pool_before_relu(graph: Graph) -> Graph:
    """Return the graph with each relu that only one max-pooling and gradients through both read behind that pooling."""
    if not any(node.op is POOL for node in graph.nodes):
        return graph
    found = _Search(graph)
    pools: dict[Node, Node] = {}
    gradients: dict[Node, tuple[_Gradient, Node]] = {}
    gone: set[Node] = set()
    for relu in graph.nodes:
        match = found.match(relu) if relu.op is RELU else None
        if match is not None:
            pool, passed = match
            pools[pool] = relu
            gone |= {relu} | {node for each in passed for node in (each.mask, each.where)}
            gradients |= {each.put: (each, pool) for each in passed}
    if not pools:
        return graph
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node in pools:
            _pool_first(rewriter, node, pools[node])
        elif node in gradients:
            _mask_first(rewriter, *gradients[node])
        elif node not in gone:
            rewriter.keep(node)
    return rewriter.finish()


def _pool_first(rewriter: Rewriter, pool: Node, relu: Node) -> None:
    values = Value(pool.outputs[0].spec)
    outputs = (values, *pool.outputs[1:])
    x = rewriter.value(relu.inputs[0])
    rewriter.keep(Node(POOL, (x,), pool.params, outputs, pool.location, pool.is_backward, pool.is_recomputed))
    rewriter.replace(pool.outputs[0], rewriter.apply(RELU, (values,), relu))


def _mask_first(rewriter: Rewriter, gradient: _Gradient, pool: Node) -> None:
    g, positions = [rewriter.value(value) for value in gradient.put.inputs]
    zero = rewriter.apply(REGISTRY["full"], (), gradient.where, shape=(), value=0.0, dtype=g.dtype)
    mask = rewriter.apply(LESS_EQUAL, (rewriter.value(pool.outputs[0]), zero), gradient.mask)
    passed = rewriter.apply(WHERE, (mask, zero, g), gradient.where)
    params = dict(gradient.put.params)
    rewriter.replace(gradient.where.outputs[0], rewriter.apply(PUT, (passed, positions), gradient.put, **params))


class _Search:
    """Who reads what in a graph, and which relu can go behind its pooling."""

    def __init__(self, graph: Graph) -> None:
        self.kept = {output.value for output in graph.outputs}
        self.readers = readers_of(graph)
        self.made_by = {value: node for node in graph.nodes for value in node.outputs}

    def match(self, relu: Node) -> tuple[Node, list[_Gradient]] | None:
        """Return the pooling of a relu's values and the gradients that pass both, where nobody else reads the values."""
        readers = self.readers.get(relu.outputs[0], [])
        pools = [node for node in readers if node.op is POOL]
        if len(pools) != 1:
            return None
        (pool,) = pools
        # relu would make 0 of the -inf of a window without an element of the image.
        if not sees_image(pool.inputs[0].shape[2:], pool.outputs[0].shape[2:], dict(pool.params)):
            return None
        masks = [node for node in readers if node is not pool]
        gradients: list[_Gradient] = []
        for mask in masks:
            for where in self.readers.get(mask.outputs[0], []):
                put = self.made_by.get(where.inputs[-1])
                if put is None or not self._is_gradient(gradient := _Gradient(mask, put, where), pool):
                    return None
                gradients.append(gradient)
        puts = [gradient.put for gradient in gradients]
        inner = (relu.outputs[0], pool.outputs[1], *(node.outputs[0] for node in (*masks, *puts)))
        is_known = self.readers.get(pool.outputs[1], []) == puts and self.kept.isdisjoint(inner)
        return (pool, gradients) if is_known else None

    def _is_gradient(self, gradient: _Gradient, pool: Node) -> bool:
        """Whether ``gradient`` is where(le(y, 0), 0, window_put(g, positions)) of the pool's own windows of y."""
        mask, put, where = gradient.mask, gradient.put, gradient.where
        return (
            (mask.op, put.op, where.op) == (LESS_EQUAL, PUT, WHERE)
            and self._is_zero(mask.inputs[1])
            and where.inputs[0] is mask.outputs[0]
            and self._is_zero(where.inputs[1])
            and self.readers[put.outputs[0]] == [where]
            and dict(put.params) == {**dict(pool.params), "size": pool.inputs[0].shape[2:]}
            and put.outputs[0].spec == where.outputs[0].spec
        )

    def _is_zero(self, value: Value) -> bool:
        return value.shape == () and repr(number_of(self.made_by.get(value))) in ("0", "0.0")


def sees_image(image: tuple[int, ...], windows: tuple[int, ...], params: dict[str, Any]) -> bool:
    """Whether each of so many windows, down and across, holds an element of an image of so many rows and columns."""
    axes = zip(
        image, windows, params["kernel"], params["stride"], params["dilation"], params["padding"][::2], strict=True
    )
    return all(
        any(0 <= i * stride + k * dilation - low < extent for k in range(taps))
        for extent, count, taps, stride, dilation, low in axes
        for i in range(count)
    )
