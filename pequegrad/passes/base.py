"""What a pass is, the order in which they run, and the runner that checks and times each.

Invariant: a pass is a pure function from Graph to Graph; inputs and outputs keep their number, order, names and specs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..ops.core import Op
from ..trace.graph import Graph, Node, Output, Value


@dataclass(frozen=True, slots=True)
class Pass:
    """A rewriting with a name, and the reason for its place in the pipeline."""

    name: str
    run: Callable[[Graph], Graph]
    reason: str


def readers_of(graph: Graph) -> dict[Value, list[Node]]:
    """Return the nodes that read each value, in their order, once for each operand that it is; none for what nobody reads."""
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node)
    return readers


Observer = Callable[[str, Graph, float], None]
"""Called after each pass with its name, its result and the seconds that it took."""


def run_passes(graph: Graph, pipeline: tuple[Pass, ...], observer: Observer | None = None) -> Graph:
    """Return ``graph`` after all passes, each result verified (CompilerBug)."""
    for step in pipeline:
        start = time.perf_counter()
        graph = step.run(graph).verify(graph)
        if observer is not None:
            observer(step.name, graph, time.perf_counter() - start)
    return graph


@dataclass(slots=True)
class Rewriter:
    """A graph rebuilt node by node; values that were replaced are looked up where they are used."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    made_by: dict[Value, Node] = field(default_factory=dict)
    _replaced: dict[Value, Value] = field(default_factory=dict)

    def value(self, value: Value) -> Value:
        """Return what stands for ``value`` now."""
        return self._replaced.get(value, value)

    def replace(self, old: Value, new: Value) -> None:
        """Let ``new`` stand for ``old`` in all later uses."""
        self._replaced[old] = self.value(new)

    def keep(self, node: Node) -> None:
        """Add a node with its operands looked up."""
        replaced = self._replaced
        self._add(node.reading(tuple([replaced.get(value, value) for value in node.inputs])))

    def apply(self, op: type[Op], inputs: tuple[Value, ...], like: Node, **params: object) -> Value:
        """Add an application that stands at the place of ``like``; return its only result."""
        spec = op.infer(*(value.spec for value in inputs), **params)
        output = Value(spec)  # type: ignore[arg-type]
        ordered = tuple(sorted(params.items()))
        self._add(Node(op, inputs, ordered, (output,), like.location, like.is_backward, like.is_recomputed))
        return output

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        for value in node.outputs:
            self.made_by[value] = node

    def finish(self) -> Graph:
        """Return the new graph; the old one where nothing is new in it."""
        if not self._replaced and tuple(self.nodes) == self.graph.nodes:
            return self.graph
        outputs = tuple(Output(self.value(o.value), o.role, o.name, o.target) for o in self.graph.outputs)
        return Graph(self.graph.inputs, tuple(self.nodes), outputs, self.graph.name)
