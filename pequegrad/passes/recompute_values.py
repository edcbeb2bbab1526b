"""Values of the forward pass computed again where the backward pass asks for them, so that nobody keeps them meanwhile.

Invariant: every value of the result has an equal one in the graph before: the same op, on the same operands or on their
equals. A draw has its numbers from its operands and parameters, so its second computation draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ops.core import Family, Reduction
from ..trace.graph import Graph, Node, Value

SHRINKS = 8
"""A result that has so many times fewer bytes than an operand is kept: statistics of rows, logits."""


def recompute_values(graph: Graph, segments: int) -> Graph:
    """Return the graph with gradients reading values computed again instead of those of the forward pass.

    The forward pass falls into ``segments`` of about equal bytes, cut where few bytes cross; what crosses is kept, and so is
    the last segment. With 1, all that takes more than pointwise arithmetic is kept, and the rest computed again.
    """
    return _Recomputation(graph, segments).run()


class _Recomputation:
    """The state of one run of the pass."""

    def __init__(self, graph: Graph, segments: int) -> None:
        self.graph = graph
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.makers = {value: node for node in graph.nodes for value in node.outputs}
        self.roots = _roots(graph)
        self.forward = self._forward_nodes()
        self.kept = {self.roots[output.value] for output in graph.outputs}
        self.kept.update(value for node in self.forward if self._shrinks(node) for value in node.outputs)
        if segments == 1:
            self.kept.update(value for node in self.forward if _is_dear(node) for value in node.outputs)
        else:
            self._keep_crossing(segments)

    def _forward_nodes(self) -> list[Node]:
        """Return, in order, what gradients depend on and no gradient sweep recorded."""
        needed: set[Value] = set()
        found = []
        for node in reversed(self.graph.nodes):
            if node.is_backward:
                needed.update(node.inputs)
            elif any(value in needed for value in node.outputs):
                needed.update(node.inputs)
                found.append(node)
        return found[::-1]

    def _shrinks(self, node: Node) -> bool:
        largest = max((value.spec.nbytes for value in node.inputs if value in self.makers), default=0)
        return not node.op.view and SHRINKS * sum(value.spec.nbytes for value in node.outputs) <= largest

    # --- where to cut ---------------------------------------------------------------------------------------------

    def _keep_crossing(self, segments: int) -> None:
        crossing = self._crossing_bytes()
        saved = self._saved_bytes()
        total = saved[-1] if saved else 0
        begin = 0
        for number in range(1, segments):
            low, high = ((number + shift) * total / segments for shift in (-0.5, 0.5))
            places = [i for i in range(begin, len(self.forward) - 1) if low <= saved[i] < high]
            if not places:
                continue
            middle = number * total / segments
            cut = min(places, key=lambda i: (crossing[i], abs(saved[i] - middle)))
            self._keep_across(cut)
            begin = cut + 1
        self.kept.update(value for node in self.forward[begin:] for value in node.outputs)

    def _last_uses(self) -> dict[Value, int]:
        """Return, for each value's root, the last forward node that reads it."""
        return {self.roots[value]: i for i, node in enumerate(self.forward) for value in node.inputs}

    def _crossing_bytes(self) -> list[int]:
        """Return, for the place after each forward node, the bytes of earlier values that later forward nodes read."""
        change = [0] * (len(self.forward) + 1)
        last = self._last_uses()
        for i, node in enumerate(self.forward):
            for value in node.outputs:
                if self.roots[value] is value and last.get(value, i) > i and value not in self.kept:
                    change[i] += value.spec.nbytes
                    change[last[value]] -= value.spec.nbytes
        return _running(change)

    def _saved_bytes(self) -> list[int]:
        """Return, for each forward node, the bytes made up to there that gradients read."""
        read = {self.roots[value] for node in self.graph.nodes if node.is_backward for value in node.inputs}
        return _running(sum(v.spec.nbytes for v in node.outputs if v in read) for node in self.forward)

    def _keep_across(self, cut: int) -> None:
        last = self._last_uses()
        for node in self.forward[: cut + 1]:
            self.kept.update(value for value in node.outputs if last.get(value, -1) > cut)

    # --- the new graph --------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        """Rebuild the graph, each value computed again just before the first gradient that reads it."""
        again: dict[Value, Value] = {}
        nodes: list[Node] = []
        may_repeat = {node for node in self.forward if node.op.pure and not node.op.is_constant}
        for node in self.graph.nodes:
            if node.is_backward:
                for repeated in self._missing(node.inputs, again, may_repeat):
                    inputs = tuple(again[value] for value in repeated.inputs)
                    if inputs == repeated.inputs and repeated.op.view:
                        again.update(zip(repeated.outputs, repeated.outputs, strict=True))
                        continue
                    outputs = tuple(Value(value.spec) for value in repeated.outputs)
                    again.update(zip(repeated.outputs, outputs, strict=True))
                    again.update((value, value) for value in repeated.outputs if value in self.kept)
                    made = Node(repeated.op, inputs, repeated.params, outputs, repeated.location, is_recomputed=True)
                    nodes.append(made)
                node = node.reading(tuple(again[value] for value in node.inputs))
            nodes.append(node)
        return Graph(self.graph.inputs, tuple(nodes), self.graph.outputs, self.graph.name)

    def _missing(self, values: Iterable[Value], again: dict[Value, Value], may_repeat: set[Node]) -> list[Node]:
        """Return, in order, the nodes to repeat for ``values``; those that need none stand for themselves."""
        found: set[Node] = set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if value in again:
                continue
            node = self.makers.get(value)
            if node is None or self.roots[value] in self.kept or node not in may_repeat:
                again[value] = value
            elif node not in found:
                found.add(node)
                waiting.extend(node.inputs)
        return sorted(found, key=self.position.__getitem__)


def _roots(graph: Graph) -> dict[Value, Value]:
    """Return, for each value, the one whose memory it shows: itself where it is no view."""
    roots = {item.value: item.value for item in graph.inputs}
    for node in graph.nodes:
        for value in node.outputs:
            roots[value] = roots[node.inputs[0]] if node.op.view else value
    return roots


def _is_dear(node: Node) -> bool:
    """Whether a node does more than pointwise arithmetic, and makes not just much out of little, as draws do."""
    read = sum(value.spec.nbytes for value in node.inputs)
    grows = SHRINKS * read <= sum(value.spec.nbytes for value in node.outputs)
    return isinstance(node.op.lowering, Family | Reduction) and not grows


def _running(numbers: Iterable[int]) -> list[int]:
    total, found = 0, []
    for number in numbers:
        total += number
        found.append(total)
    return found
