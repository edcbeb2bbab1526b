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
    """Return the values whose every use waits for a sum, and of which one operand is written for another reader.

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
            if value in results or any(waiting):
                written.add(value)
            if value in results or not reading or any(isinstance(user.op.lowering, Family) for user in reading):
                continue
            if all(waits or user.outputs[0] in outside for user, waits in zip(reading, waiting, strict=True)):
                outside.add(value)
    return frozenset(
        node.outputs[0]
        for node in graph.nodes
        if node.outputs[0] in outside
        and isinstance(node.op.lowering, Expression)
        and schedule.is_cheap(node.op)
        and any(value in written and value.spec.nbytes == node.outputs[0].spec.nbytes for value in node.inputs)
    )


def _is_sweep(op: type[Op]) -> bool:
    """Whether a result's element needs more than the operands' elements at its own place."""
    return not isinstance(op.lowering, _AT_ITS_PLACE)


_AT_ITS_PLACE = (Expression, View)
