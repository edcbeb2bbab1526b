"""Reverse-mode differentiation: one sweep over the tape, written in ops, so that it runs eagerly and traces alike.

Also the switches that say whether the tape records.

Invariant: nodes are visited in the reverse of the order in which they were recorded, each once, with the complete
gradients of all its results.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from . import arrays
from .errors import AutogradError, ShapeError
from .ops.core import Saved, TapeNode, as_tensor, context, grad_mode
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
    import bisect  # not at the top: programs that only evaluate start without it; heapq takes six times as long

    pending: dict[TapeNode, list[Any]] = {}
    waiting: list[tuple[int, TapeNode]] = []
    """The nodes that are pending, in the order of recording."""
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
                bisect.insort(waiting, (node.order, node))
            present = pending[node][index]
            pending[node][index] = gradient if present is None else present + gradient
        elif inputs is None:
            present = leaves.get(id(edge))
            leaves[id(edge)] = (edge, gradient if present is None else present[1] + gradient)

    interpreter = context.interpreter
    with grad_mode(create_graph), _same_device_after():
        for output, gradient in zip(outputs, gradients, strict=True):
            arrive(output.edge(), gradient)
        visited = []
        with interpreter.unwatched():
            while waiting:
                _, node = waiting.pop()
                grads = pending.pop(node)
                visited.append(node)
                # What a gradient is padded with must lie where it lies itself.
                if arrays.device_types:
                    context.device = next(gradient.device for gradient in grads if gradient is not None)
                assert node.op.vjp is not None
                with interpreter.at(node.location), interpreter.watched(node.op.vjp):
                    for edge, spec, gradient in _through(node, grads):
                        arrive(edge, _fit(gradient, spec))
            if not (retain_graph or create_graph):
                for node in visited:
                    node.free()
        # A gradient that two leaves, the caller or a view share must not become the memory of one leaf's .grad.
        sharing = Counter(id(gradient.storage) for _, gradient in leaves.values())
        sharing.update(id(gradient.storage) for gradient in gradients)
        for leaf, gradient in leaves.values():
            leaf._accumulate(gradient, create_graph, is_shared=sharing[id(gradient.storage)] > 1)
    return [] if inputs is None else [wanted[_edge_key(tensor.edge())] for tensor in inputs]


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, ...]:
    """Return the gradients of ``outputs`` (one or several) with respect to each of ``inputs``; no ``.grad`` changes.

    ``grad_outputs``: one per output, of its shape; None stands for 1 where the output has a single element.
    ``retain_graph`` defaults to ``create_graph``. Raises AutogradError where an input does not require grad, or,
    unless ``allow_unused`` (then its gradient is None), where the outputs do not depend on it.
    """
    outputs = _as_sequence(outputs)
    inputs = _as_sequence(inputs)
    starts = [None] * len(outputs) if grad_outputs is None else _as_sequence(grad_outputs)
    if len(starts) != len(outputs):
        raise ShapeError(f"grad: expected one of grad_outputs per output, {len(outputs)}. Got {len(starts)}.")
    for i, tensor in enumerate(inputs):
        if not tensor.requires_grad:
            raise AutogradError(
                f"grad: input {i}, {tensor.spec}, does not require grad. Make it with requires_grad=True."
            )
    starts = [
        initial_gradient(output, None if start is None else as_tensor(start), "grad")
        for output, start in zip(outputs, starts, strict=True)
    ]
    keep = create_graph if retain_graph is None else retain_graph
    found = backward(outputs, starts, inputs=inputs, retain_graph=keep, create_graph=create_graph)
    for i, (tensor, gradient) in enumerate(zip(inputs, found, strict=True)):
        if gradient is None and not allow_unused:
            raise AutogradError(
                f"grad: the outputs do not depend on input {i}, {tensor.spec}. Pass allow_unused=True to get None."
            )
    return tuple(found)


class _same_device_after:
    """Leaves `context.device` as it found it."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = context.device

    def __exit__(self, *_: object) -> None:
        context.device = self._before


def _as_sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


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


# --- switches -------------------------------------------------------------------------------------------------------


class _Switch:
    """Family: sets the gradient mode of this thread inside a ``with`` block, or in a function it decorates."""

    mode: ClassVar[bool]

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        """Return the switch; or, as a decorator without parentheses, the decorated function."""
        switch = super().__new__(cls)
        switch._before = []
        return switch if function is None else switch(function)

    _before: list[bool]

    def __enter__(self) -> None:
        self._before.append(context.is_grad_enabled)
        context.is_grad_enabled = self.mode

    def __exit__(self, *_: object) -> None:
        context.is_grad_enabled = self._before.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return _in_mode(function, self.mode)


def _in_mode(function: Callable[..., Any], mode: bool) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{function.__qualname__} is suspended while others run, in their gradient mode. Use with inside it."
        )

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with grad_mode(mode):
            return function(*args, **kwargs)

    return run


class no_grad(_Switch):
    """Do not record for backward: ``with no_grad():``, ``@no_grad()`` or ``@no_grad``."""

    mode = False


class enable_grad(_Switch):
    """Record for backward, inside `no_grad` too; used as that."""

    mode = True


class set_grad_enabled:
    """Set the gradient mode from here on; as ``with set_grad_enabled(mode):``, until the end of the block."""

    def __init__(self, mode: bool) -> None:
        self._before = context.is_grad_enabled
        self.mode = bool(mode)
        context.is_grad_enabled = self.mode

    def __enter__(self) -> None:
        context.is_grad_enabled = self.mode

    def __exit__(self, *_: object) -> None:
        context.is_grad_enabled = self._before

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate ``function``; the mode outside it is again what it was."""
        context.is_grad_enabled = self._before
        return _in_mode(function, self.mode)


def is_grad_enabled() -> bool:
    """Whether this thread records for backward."""
    return context.is_grad_enabled
