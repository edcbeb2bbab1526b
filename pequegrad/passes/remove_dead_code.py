"""Drops nodes that nothing reads."""

from __future__ import annotations

from ..trace.graph import Graph


def remove_dead_code(graph: Graph) -> Graph:
    """Return the graph without pure nodes whose results reach no output. Inputs stay: they are the call's."""
    needed = {output.value for output in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if not node.op.pure or not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    if len(kept) == len(graph.nodes):
        return graph
    return Graph(graph.inputs, tuple(reversed(kept)), graph.outputs, graph.name)
