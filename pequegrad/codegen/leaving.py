"""Pointwise values that a product or convolution had better leave to those who read them.

What a sum reads elsewhere has to be written. Where such a value is made of another that is written anyway, its readers make
it while they sweep: a value less goes to memory and comes back.

Invariant: what is named here is no result of the graph, and no product, convolution or other family reads it.
"""

from __future__ import annotations

from collections import defaultdict

from ..ops.core import Expression, Family, Op, View
from ..trace.graph import Graph, Node, Value
from . import schedule

_User = tuple[Node, bool, int]
"""An application that reads a value, whether it is a sweep, and its level."""


def leaving_values(graph: Graph) -> frozenset[Value]:
    """Return the values whose every use waits for a sum, and which are made of what is written for another reader.

    Only those that have as many bytes as that operand: a mask is less to write than what it is made of is to read again.
    """
    levels: dict[Value, int] = {}
    users: dict[Value, list[_User]] = defaultdict(list)
    for node in graph.nodes:
        is_sweep = _is_sweep(node.op)
        level = max([levels.get(value, 0) for value in node.inputs], default=0) + is_sweep
        for value in node.outputs:
            levels[value] = level
        user = node, is_sweep, level
        for value in node.inputs:
            users[value].append(user)
    results = {output.value for output in graph.outputs}
    outside: set[Value] = set()
    written: set[Value] = set()
    for node in reversed(graph.nodes):
        for value in node.outputs:
            level, is_result = levels[value], value in results
            is_written, is_outside = is_result, not is_result and value in users
            for reader, is_sweep, later in users.get(value, ()):
                if is_sweep or later > level:
                    is_written = True
                    is_outside = is_outside and not (is_sweep and isinstance(reader.op.lowering, Family))
                elif reader.outputs[0] not in outside:
                    is_outside = False
            # What is made of the graph's inputs alone is as near as they are, wherever it is read.
            if level and is_written:
                written.add(value)
            if is_outside:
                outside.add(value)
    return _made_of_written(graph, outside, written)


def _made_of_written(graph: Graph, outside: set[Value], written: set[Value]) -> frozenset[Value]:
    """Return those of ``outside`` that a cheap application makes of written values, and of no result of a product or
    convolution that would be written for them alone."""
    alone: set[Value] = set()
    found: set[Value] = set()
    for node in graph.nodes:
        if isinstance(node.op.lowering, Family):
            alone.update(value for value in node.outputs if value not in written)
        elif isinstance(node.op.lowering, Expression):
            (value,) = node.outputs
            if not alone.isdisjoint(node.inputs):
                if value not in written:
                    alone.add(value)
            elif value in outside and schedule.is_cheap(node.op):
                nbytes = value.spec.nbytes
                if any(operand in written and operand.spec.nbytes == nbytes for operand in node.inputs):
                    found.add(value)
    return frozenset(found)


def _is_sweep(op: type[Op]) -> bool:
    """Whether a result's element needs more than the operands' elements at its own place."""
    return not isinstance(op.lowering, _AT_ITS_PLACE)


_AT_ITS_PLACE = (Expression, View)
