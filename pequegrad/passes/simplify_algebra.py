"""Drops applications that change nothing: x * 1, x - 0, a cast to the same dtype, copies, views that lead back.

Invariant: results are the same bit for bit; nothing is reassociated, and what NaN or -0.0 would tell apart stays.
"""

from __future__ import annotations

from typing import Any

from ..ops.core import Expression, View
from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Value
from .base import Rewriter
from .fold_constants import constant_of
from .probe_identities import given_back, undoes


def simplify_algebra(graph: Graph) -> Graph:
    """Return the graph without applications that give back an operand, and with views of views made one."""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        same = _equal_value(rewriter, node)
        if same is None:
            rewriter.keep(node)
        else:
            rewriter.replace(node.outputs[0], same)
    return rewriter.finish()


def _equal_value(rewriter: Rewriter, node: Node) -> Value | None:
    if node.op.is_constant or not node.inputs or len(node.outputs) != 1:
        return None
    if isinstance(node.op.lowering, View):
        return _seen_value(rewriter, node)
    if node.op.elementwise and isinstance(node.op.lowering, Expression):
        return _pointwise_value(rewriter, node)
    return None


def _pointwise_value(rewriter: Rewriter, node: Node) -> Value | None:
    numbers = tuple([None if (c := constant_of(rewriter, value)) is None else repr(c) for value in node.inputs])
    (result,) = node.outputs
    dtypes = tuple([value.spec.dtype for value in node.inputs])
    if result.dtype not in dtypes:
        found = -1
    else:
        found = given_back(node.op, node.params, numbers, dtypes, result.dtype)  # type: ignore[arg-type]
    if found >= 0:
        x = rewriter.value(node.inputs[found])
        return x if x.shape == result.shape else rewriter.apply(REGISTRY["expand"], (x,), node, shape=result.shape)
    if len(node.inputs) != 1:
        return None
    inner = rewriter.made_by.get(rewriter.value(node.inputs[0]))
    if (
        inner is None
        or len(inner.inputs) != 1
        or not inner.op.elementwise
        or not isinstance(inner.op.lowering, Expression)
    ):
        return None
    (x,) = inner.inputs
    dtypes = (x.dtype, inner.outputs[0].dtype)
    if x.spec != result.spec:
        return None
    return x if undoes(inner.op, inner.params, node.op, node.params, dtypes) else None  # type: ignore[arg-type]


def _seen_value(rewriter: Rewriter, node: Node) -> Value | None:
    """A view or copy that shows all of a value, in its order, is that value; a view of a view may be one view."""
    (result,) = node.outputs
    x = rewriter.value(node.inputs[0])
    if x.shape == result.shape and _access(node, x.shape) == _identity(result.shape):
        return x
    inner = rewriter.made_by.get(x)
    if inner is None or not isinstance(inner.op.lowering, View) or inner.op.is_constant:
        return None
    base = inner.inputs[0]
    first = _access(inner, base.shape)
    if first is None:
        return None
    both = _normal(node.op.access(*first, **dict(node.params)))
    if both is None:
        return None
    if both == _identity(result.shape) and base.spec.size == result.spec.size:
        return (
            base
            if base.shape == result.shape
            else rewriter.apply(REGISTRY["reshape"], (base,), node, shape=result.shape)
        )
    # Such as an expansion of an expansion: the outer one can be applied to the base itself.
    if node.op is inner.op and _can_apply(node, base) and _access(node, base.shape) == both:
        return rewriter.apply(node.op, (base,), node, **dict(node.params))
    return None


def _can_apply(node: Node, base: Value) -> bool:
    shape = dict(node.params).get("shape")
    if shape is None or len(shape) < len(base.shape):
        return False
    tail = shape[len(shape) - len(base.shape) :]
    return all(e in (1, n) for e, n in zip(base.shape, tail, strict=True))


def _access(node: Node, shape: tuple[int, ...]) -> Any:
    return _normal(node.op.access(*_identity(shape), **dict(node.params)))


def _normal(seen: Any) -> Any:
    """Return (shape, strides, offset) with stride 0 where the extent is 1, which walks nowhere."""
    if seen is None:
        return None
    shape, strides, offset = seen
    return tuple(shape), tuple(0 if e == 1 else s for e, s in zip(shape, strides, strict=True)), offset


def _identity(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(0 if extent == 1 else step)
        step *= extent
    return shape, tuple(reversed(strides)), 0
