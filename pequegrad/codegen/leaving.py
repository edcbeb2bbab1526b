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


def leaving_values(graph: Graph) -> frozenset[Value]:
    """Return the values whose every use waits for a sum, and which are made of what is written for another reader.

    Only those that have as many bytes as that operand: a mask is less to write than what it is made of is to read again.
    """
    levels: dict[Value, int] = {}
    users: dict[Value, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        level = max([levels.get(value, 0) for value in node.inputs], default=0) + _is_sweep(node.op)
        for value in node.outputs:
            levels[value] = level
        for value in node.inputs:
            users[value].append(node)
    results = {output.value for output in graph.outputs}
    outside: set[Value] = set()
    written: set[Value] = set()
    for node in reversed(graph.nodes):
        for value in node.outputs:
            reading = users[value]
            waiting = [_is_sweep(user.op) or levels[user.outputs[0]] > levels[value] for user in reading]
            # What is made of the graph's inputs alone is as near as they are, wherever it is read.
            if levels[value] and (value in results or any(waiting)):
                written.add(value)
            if value in results or not reading or any(isinstance(user.op.lowering, Family) for user in reading):
                continue
            if all(waits or user.outputs[0] in outside for user, waits in zip(reading, waiting, strict=True)):
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
            is_beside = any(operand in alone for operand in node.inputs)
            alike = any(operand in written and operand.spec.nbytes == value.spec.nbytes for operand in node.inputs)
            if value in outside and schedule.is_cheap(node.op) and alike and not is_beside:
                found.add(value)
            elif is_beside and value not in written:
                alone.add(value)
    return frozenset(found)


def _is_sweep(op: type[Op]) -> bool:
    """Whether a result's element needs more than the operands' elements at its own place."""
    return not isinstance(op.lowering, _AT_ITS_PLACE)


_AT_ITS_PLACE = (Expression, View)
