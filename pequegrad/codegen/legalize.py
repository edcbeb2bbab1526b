"""Rewrites a graph into what kernels can do: no empty values but literals, long reductions in two steps, plain indices.

Invariant: results keep their meaning; a sum may be taken in another order, the same for any number of workers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import bool_
from ..ops.core import Family, Op, Reduction
from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Output, Value
from . import schedule


class _Rewriter:
    """A graph in the making; `apply` adds an op by its name."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.found: dict[Value, Value] = {}
        self.node: Node | None = None

    def value(self, value: Value) -> Value:
        return self.found.get(value, value)

    def apply(self, op: type[Op], *inputs: Value, **params: Any) -> Value:
        assert self.node is not None
        spec = op.infer(*(value.spec for value in inputs), **params)
        output = Value(spec)  # type: ignore[arg-type]
        ordered = tuple(sorted(params.items()))
        node = self.node
        self.nodes.append(Node(op, inputs, ordered, (output,), node.location, node.is_backward, node.is_recomputed))
        return output

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        return x if x.shape == shape else self.apply(REGISTRY["reshape"], x, shape=shape)

    def full(self, like: Value, value: Any) -> Value:
        return self.apply(REGISTRY["full"], shape=like.shape, value=value, dtype=like.dtype)


def legalize(graph: Graph) -> Graph:
    """Return an equal graph that every branch of lower.py can take."""
    rewriter = _Rewriter()
    shapes = [item.value.spec.shape for item in graph.inputs]
    shapes += [value.spec.shape for node in graph.nodes for value in node.outputs]
    has_empty = any(0 in shape for shape in shapes)
    for node in graph.nodes:
        rewriter.node = node
        inputs = tuple([rewriter.found.get(value, value) for value in node.inputs])
        may_change = has_empty or isinstance(node.op.lowering, Reduction | Family)
        new = _legal_form(rewriter, node, inputs) if may_change else None
        if new is None:
            rewriter.nodes.append(node.reading(inputs))
        else:
            rewriter.found.update(zip(node.outputs, new, strict=True))
    outputs = tuple(Output(rewriter.value(o.value), o.role, o.name, o.target) for o in graph.outputs)
    return Graph(graph.inputs, tuple(rewriter.nodes), outputs, graph.name).verify(graph)


def _legal_form(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    if node.op.is_constant:
        return None
    if all(0 in value.shape for value in node.outputs):
        return tuple(r.full(value, 0) for value in node.outputs)
    if inputs and len(node.outputs) == 1 and all(0 in value.shape for value in inputs):
        # Sums and products over nothing: one number everywhere, whatever the op.
        empty = [np.zeros(value.shape, value.dtype.numpy) for value in inputs]
        result = np.asarray(node.op.numpy(np, *empty, **dict(node.params)), node.outputs[0].dtype.numpy)
        if (result == result.flat[0]).all():
            return (r.full(node.outputs[0], result.flat[0].item()),)
    if isinstance(node.op.lowering, Reduction):
        return _reduction(r, node, inputs[0])
    if isinstance(node.op.lowering, Family):
        form = _FORMS.get(node.op.lowering.name)
        return form(r, node, inputs) if form else None
    return None


def _reduction(r: _Rewriter, node: Node, x: Value) -> tuple[Value, ...] | None:
    params = dict(node.params)
    (result,) = node.outputs
    monoid = node.op.lowering.monoid
    dims = params["dims"]
    inner = tuple(x.shape[dim] for dim in dims)
    if math.prod(inner) == 1:
        if monoid in ("argmax", "argmin"):
            return (r.full(result, 0),)
        if x.dtype is not result.dtype:
            if result.dtype is not bool_:
                return None
            x = r.apply(REGISTRY["cast"], x, dtype=bool_)
        return (r.reshape(x, result.shape),)
    cut = schedule.chunks(x.spec.size // math.prod(inner), inner) if monoid not in ("argmax", "argmin") else None
    if cut is None or tuple(dims) != tuple(range(dims[0], dims[0] + len(dims))):
        return _apart(r, node, x, inner)
    first = dims[0]
    folded = r.reshape(x, (*x.shape[:first], *cut, *x.shape[first + len(dims) :]))
    shares = r.apply(node.op, folded, dims=(first + 1,), keepdim=False)
    return (r.reshape(r.apply(node.op, shares, dims=(first,), keepdim=False), result.shape),)


def _apart(r: _Rewriter, node: Node, x: Value, inner: tuple[int, ...]) -> tuple[Value, ...] | None:
    """Cut a long reduction over dimensions that do not lie side by side: the last run of them first."""
    params = dict(node.params)
    dims = params["dims"]
    outer = x.spec.size // math.prod(inner)
    monoid = node.op.lowering.monoid
    if monoid in ("argmax", "argmin") or outer >= schedule.FEW_ROWS or math.prod(inner) <= schedule.CHUNK_LIMIT:
        return None
    runs = [i for i in range(1, len(dims)) if dims[i] != dims[i - 1] + 1]
    if not runs:
        return None
    last = dims[runs[-1] :]
    # One row for each index of the earlier dimensions: those rows are shared, and then combined.
    shares = r.apply(node.op, x, dims=last, keepdim=True)
    return (r.reshape(r.apply(node.op, shares, dims=dims[: runs[-1]], keepdim=False), node.outputs[0].shape),)


def _box(r: _Rewriter, x: Value, sizes: tuple[int, ...]) -> Value:
    if x.shape == sizes:
        return x
    return r.apply(REGISTRY["slice"], x, starts=(0,) * len(sizes), sizes=sizes, steps=(1,) * len(sizes))


def _gather(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """An index smaller than its table: take the part of the table that it can reach."""
    params = dict(node.params)
    table, index = inputs
    dim = params["dim"]
    if not params["aligned"]:
        return None
    part = _box(r, table, (*index.shape[:dim], table.shape[dim], *index.shape[dim + 1 :]))
    return None if part is table else (r.apply(node.op, part, index, **params),)


def _scatter_add(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """An index smaller than the result: scatter into the part that it can reach, zeros around it."""
    params = dict(node.params)
    source, index = inputs
    dim, shape = params["dim"], params["shape"]
    if not params["aligned"]:
        return None
    reach = (*index.shape[:dim], shape[dim], *index.shape[dim + 1 :])
    if reach == shape:
        return None
    part = r.apply(node.op, source, index, **{**params, "shape": reach})
    hi = tuple(n - m for n, m in zip(shape, reach, strict=True))
    return (r.apply(REGISTRY["pad"], part, lo=(0,) * len(hi), hi=hi, value=source.dtype.numpy.type(0).item()),)


def _scatter(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """An index smaller than the result: scatter into the part that it can reach, and put that back."""
    params = dict(node.params)
    base, source, index = inputs
    dim = params["dim"]
    if not params["aligned"]:
        return None
    part = _box(r, base, (*index.shape[:dim], base.shape[dim], *index.shape[dim + 1 :]))
    if part is base:
        return None
    part = r.apply(node.op, part, source, index, **params)
    rank = len(base.shape)
    return (r.apply(REGISTRY["slice_update"], base, part, starts=(0,) * rank, sizes=part.shape, steps=(1,) * rank),)


def _slice_update(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """An update of nothing: what it would update."""
    base, new = inputs
    return None if new.spec.size else (base,)


def _scan(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """A running sum from the back: of the reversed values, reversed."""
    params = dict(node.params)
    (x,) = inputs
    dim = params["dim"]
    if not params.get("reverse"):
        return None

    def reversed_along(value: Value) -> Value:
        starts = tuple(n - 1 if d == dim else 0 for d, n in enumerate(value.shape))
        steps = tuple(-1 if d == dim else 1 for d in range(len(value.shape)))
        return r.apply(REGISTRY["slice"], value, starts=starts, sizes=value.shape, steps=steps)

    return (reversed_along(r.apply(node.op, reversed_along(x), **{**params, "reverse": False})),)


def _squared_deviations(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    """A sum of squares of differences."""
    squares = r.apply(REGISTRY["square"], r.apply(REGISTRY["sub"], *inputs))
    summed = Node(REGISTRY["sum"], (squares,), node.params, node.outputs)
    return _legal_form(r, summed, (squares,)) or (r.apply(summed.op, squares, **dict(node.params)),)


def _sort(r: _Rewriter, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """A single number is in order."""
    (x,) = inputs
    return None if x.shape else (x, r.full(node.outputs[1], 0))


_FORMS = {
    "gather": _gather,
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "scan": _scan,
    "slice_update": _slice_update,
    "sort": _sort,
    "squared_deviations": _squared_deviations,
}
