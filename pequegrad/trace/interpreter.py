"""A Graph run in NumPy, node by node: what a graph means, and the oracle of every test.

Invariant: inputs are never written; updates are returned like results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .graph import Graph, Value


def run_graph(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any]) -> list[np.ndarray]:
    """Return one array per output of ``graph``, for arrays in the order of its inputs, or by their names."""
    arrays = values_of(graph, inputs)
    return [arrays[output.value] for output in graph.outputs]


def values_of(graph: Graph, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[Value, Any]:
    """Return the array of each value of ``graph``, for inputs as `run_graph` takes them."""
    ordered = [inputs[item.name] for item in graph.inputs] if isinstance(inputs, Mapping) else inputs
    arrays: dict[Value, Any] = {item.value: array for item, array in zip(graph.inputs, ordered, strict=True)}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            result = node.op.numpy(np, *(arrays[value] for value in node.inputs), **dict(node.params))
            results = result if isinstance(result, tuple) else (result,)
            for value, array in zip(node.outputs, results, strict=True):
                arrays[value] = np.asarray(array, value.dtype.numpy)
    return arrays
