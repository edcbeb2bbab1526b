"""Reverse-mode differentiation: one sweep over the tape, written in ops, so that it runs eagerly and traces alike.

Invariant: nodes are visited in the reverse of the order in which they were recorded, each once, with the complete
gradients of all its results.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from .errors import AutogradError, ShapeError
from .ops.core import Saved, TapeNode, context, grad_mode
from .ops.movement import zeros_like_spec
from .ops.reduction import sum_to_shape


def backward(
    outputs: Sequence[Any],
    gradients: Sequence[Any],
    *,
    inputs: Sequence[Any] | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list[Any]:
    """Send ``gradients`` back from ``outputs``.

    With ``inputs`` None, leaves accumulate into ``.grad`` and the result is empty; else the gradient of each
    input is returned (None where the outputs do not depend on it) and no ``.grad`` is touched.
    Saved tensors are freed unless ``retain_graph`` or ``create_graph``.
    """
    pending: dict[TapeNode, list[Any]] = {}
    heap: list[tuple[int, TapeNode]] = []
    leaves: dict[int, tuple[Any, Any]] = {}
    wanted = {} if inputs is None else {_edge_key(tensor.edge()): None for tensor in inputs}

    def arrive(edge: Any, gradient: Any) -> None:
        key = _edge_key(edge)
        if key in wanted:
            wanted[key] = gradient if wanted[key] is None else wanted[key] + gradient
        if isinstance(edge, tuple):
            node, index = edge
            if node not in pending:
                pending[node] = [None] * len(node.output_specs)
                heapq.heappush(heap, (-node.order, node))
            present = pending[node][index]
            pending[node][index] = gradient if present is None else present + gradient
        elif inputs is None:
            present = leaves.get(id(edge))
            leaves[id(edge)] = (edge, gradient if present is None else present[1] + gradient)

    with grad_mode(create_graph):
        for output, gradient in zip(outputs, gradients, strict=True):
            arrive(output.edge(), gradient)
        visited = []
        while heap:
            _, node = heapq.heappop(heap)
            grads = pending.pop(node)
            visited.append(node)
            with context.interpreter.at(node.location):
                for edge, spec, gradient in _through(node, grads):
                    arrive(edge, _fit(gradient, spec))
        if not (retain_graph or create_graph):
            for node in visited:
                node.free()
        for leaf, gradient in leaves.values():
            leaf._accumulate(gradient, create_graph)
    return [] if inputs is None else [wanted[_edge_key(tensor.edge())] for tensor in inputs]


def _edge_key(edge: Any) -> tuple[int, int]:
    return (id(edge[0]), edge[1]) if isinstance(edge, tuple) else (id(edge), -1)


def _through(node: TapeNode, grads: list[Any]) -> Any:
    filled = [
        zeros_like_spec(spec) if gradient is None and spec.dtype.is_floating_point else gradient
        for gradient, spec in zip(grads, node.output_specs, strict=True)
    ]
    assert node.op.vjp is not None
    results = node.op.vjp(Saved(node), *filled)
    if len(results) != len(node.edges):
        raise AutogradError(f"vjp of {node.op.name} gave {len(results)} gradients for {len(node.edges)} inputs")
    for edge, spec, gradient in zip(node.edges, node.input_specs, results, strict=True):
        if edge is not None and gradient is not None:
            yield edge, spec, gradient


def _fit(gradient: Any, spec: Any) -> Any:
    """Undo broadcasting, and return to the input's dtype: here and nowhere else."""
    if gradient.shape != spec.shape:
        gradient = sum_to_shape(gradient, spec.shape)
    return gradient if gradient.dtype is spec.dtype else gradient.to(spec.dtype)


def initial_gradient(output: Any, gradient: Any, who: str) -> Any:
    """Return the gradient that a sweep starts with at ``output``: the given one, checked, or a scalar one."""
    if not output.requires_grad:
        raise AutogradError(
            f"{who}: {output.spec} does not require grad and has no gradient history. Make an input with "
            "requires_grad=True, and do not compute under no_grad."
        )
    if gradient is None:
        if output.spec.size != 1:
            raise AutogradError(
                f"{who}: gradient can be implied only for a scalar. Got shape {output.shape}. "
                "Reduce first, for example .sum() or .mean(), or pass gradient=."
            )
        return output.ones_like_spec()
    if tuple(gradient.shape) != output.shape:
        raise ShapeError(f"{who}: gradient must have the output's shape {output.shape}. Got {tuple(gradient.shape)}.")
    return gradient if gradient.dtype is output.dtype else gradient.to(output.dtype)
