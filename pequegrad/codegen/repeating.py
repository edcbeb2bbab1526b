"""Cheap values of the forward pass that gradients make again from others, instead of all of them going to memory.

A chain such as x, 0.5 x, a x, a x² leaves a product's tile as one value, not as four, and the gradient's kernel loads one.

Invariant: the graph's results keep their bits: what is made again is the same application to the same operands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..ops.core import Expression, Family, Reduction
from ..trace.graph import Graph, Node, Value
from . import schedule

STATISTICS = 8
"""What has so many times fewer bytes than a value that is made with it is kept for that: means and the like, of rows."""


def repeat_cheap_values(graph: Graph, most: int = schedule.MOST_RECOMPUTED) -> Graph:
    """Return the graph in which late readers have cheap early values made again, by chains of ``most`` applications.

    A value is early if it is of the forward pass, or made of such values alone. One that is in memory for a sum or product,
    such as what a norm is of, is kept in place of what is made of it. A value that nobody reads late is kept for its sake if
    it is dear and two or more others can then be made again. What ``memory="small"`` has arranged stays.
    """
    if any(node.is_recomputed for node in graph.nodes):
        return graph
    early, late = _parted(graph)
    constants = [node for node in late if node.op.is_constant]
    makers = {value: node for node in (*early, *constants) for value in node.outputs}
    pointwise, elsewhere = _read_late(late, makers)
    elsewhere.update(output.value for output in graph.outputs)
    # Those that others need in memory are kept anyway, and so are there to be made from.
    wanted = [value for value in makers if value in pointwise and value not in elsewhere]
    written = _written(early, makers)
    chains, lacking = _chains(wanted, makers, elsewhere, written, most)
    asked = Counter(missing.pop() for missing in lacking if len(missing) == 1)
    dear = {
        value
        for value, times in asked.items()
        if times > 1 and value in makers and isinstance(makers[value].op.lowering, Expression)
    }
    if dear:
        chains, _ = _chains(wanted, makers, elsewhere | dear, written, most)
    return _rebuilt(graph, frozenset(late), chains) if chains else graph


def _written(early: Iterable[Node], makers: dict[Value, Node]) -> set[Value]:
    """Return the early values that are in memory anyway: what products and other families read, and what sums read of them."""
    beside: set[Value] = set()
    found: set[Value] = set()
    for node in early:
        if isinstance(node.op.lowering, Family):
            found.update(value for value in node.inputs if value in makers)
            beside.update(node.outputs)
        elif isinstance(node.op.lowering, Reduction):
            found.update(value for value in node.inputs if value in beside)
        elif isinstance(node.op.lowering, Expression) and any(value in beside for value in node.inputs):
            beside.update(node.outputs)
    return found


def _chains(
    wanted: Iterable[Value], makers: dict[Value, Node], anyway: set[Value], written: set[Value], most: int
) -> tuple[dict[Value, list[Node]], list[set[Value]]]:
    """Return how each of the wanted values is made again, if it can, and for those that cannot what they lack."""
    kept = set(anyway)
    chains: dict[Value, list[Node]] = {}
    lacking: list[set[Value]] = []
    for value in wanted:
        if value in kept:
            continue
        chain, missing = _chain(value, makers, kept) if _is_cheap(makers[value]) else ([], set())
        # One other value, of not more bytes, is kept instead, and perhaps statistics of rows.
        large = [operand for operand in missing if STATISTICS * operand.spec.nbytes > value.spec.nbytes]
        is_exchanged = len(large) == 1 and large[0] in written and value not in written
        is_exchanged = is_exchanged and large[0].spec.nbytes <= value.spec.nbytes
        if chain and (not missing or is_exchanged) and len(chain) <= most:
            chains[value] = chain
            kept.update(missing)
        else:
            kept.add(value)
            lacking.append(missing)
    return chains, lacking


def _parted(graph: Graph) -> tuple[list[Node], list[Node]]:
    """Return the applications that make early values, and the others."""
    early: list[Node] = []
    late: list[Node] = []
    late_values: set[Value] = set()
    made_early: set[Value] = set()
    for node in graph.nodes:
        is_alone = not node.is_backward or (_is_cheap(node) and not made_early.isdisjoint(node.inputs))
        is_early = is_alone and late_values.isdisjoint(node.inputs)
        (early if is_early else late).append(node)
        if not node.op.is_constant:
            (made_early if is_early else late_values).update(node.outputs)
    return early, late


def _is_cheap(node: Node) -> bool:
    return (
        node.op.pure
        and not node.op.is_constant
        and isinstance(node.op.lowering, Expression)
        and schedule.is_cheap(node.op)
        and node.outputs[0].spec.size > schedule.FEW_ROWS
    )


def _read_late(late: Iterable[Node], makers: dict[Value, Node]) -> tuple[set[Value], set[Value]]:
    """Return the early values that late arithmetic reads, and those that others read late, who need them in memory."""
    pointwise: set[Value] = set()
    elsewhere: set[Value] = set()
    for node in late:
        for value in node.inputs:
            if value in makers:
                if isinstance(node.op.lowering, Expression) and node.outputs[0].shape == value.shape:
                    pointwise.add(value)
                else:
                    elsewhere.add(value)
    return pointwise, elsewhere


def _chain(value: Value, makers: dict[Value, Node], kept: set[Value]) -> tuple[list[Node], set[Value]]:
    """Return the applications, in order, that make ``value`` of kept ones, and the values that are missing for it."""
    found: dict[Node, None] = {}
    missing: set[Value] = set()
    spec, nbytes = value.spec, value.spec.nbytes

    def visit(node: Node) -> None:
        for operand in node.inputs:
            maker = makers.get(operand)
            if operand.spec != spec and operand.spec.nbytes > nbytes:
                missing.add(operand)
            elif maker is not None and maker.op.is_constant:
                found[maker] = None
            elif operand not in kept and maker not in found:
                if maker is not None and _is_cheap(maker) and len(found) < 2 * schedule.MOST_RECOMPUTED:
                    visit(maker)
                else:
                    missing.add(operand)
        found[node] = None

    visit(makers[value])
    return [node for node in found if not node.op.is_constant], missing


def _rebuilt(graph: Graph, late: frozenset[Node], chains: dict[Value, list[Node]]) -> Graph:
    """Return the graph with its chains repeated before their first late readers, without what nobody reads any more."""
    again: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node in late:
            for value in node.inputs:
                for repeated in chains.get(value, ()):
                    if repeated.outputs[0] not in again:
                        again[repeated.outputs[0]] = made = Value(repeated.outputs[0].spec)
                        inputs = tuple(again.get(operand, operand) for operand in repeated.inputs)
                        nodes.append(
                            Node(
                                repeated.op, inputs, repeated.params, (made,), repeated.location,
                                repeated.is_backward, is_recomputed=True,
                            )
                        )  # fmt: skip
            node = node.reading(tuple(again[v] if v in chains else v for v in node.inputs))
        nodes.append(node)
    needed = {output.value for output in graph.outputs}
    living = []
    for node in reversed(nodes):
        if not node.op.pure or not needed.isdisjoint(node.outputs):
            living.append(node)
            needed.update(node.inputs)
    return Graph(graph.inputs, tuple(reversed(living)), graph.outputs, graph.name)
