"""One call of a function under the tracer, and what came of it as a Trace.

Invariant: when this returns or raises, no real tensor, gradient or optimizer differs from before, and no traced tensor
is alive.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from .. import pytree
from ..errors import TraceError
from ..ops.core import use_interpreter
from ..tensor import Tensor
from .fingerprint import fingerprint, holding
from .graph import Graph, Input, Output, Params
from .naming import input_names
from .state import (
    FromArgument,
    FromConstant,
    FromGradient,
    FromScalar,
    FromTensor,
    GradientAction,
    GradientGuard,
    InputBinding,
    ResultLeaf,
    Source,
    TensorGuard,
    Trace,
)
from .tracer import Tracer


def record_call(
    function: Callable[[Sequence[Tensor]], Any],
    arguments: Sequence[Tensor],
    names: Sequence[str],
    *,
    name: str,
    keep_grads: bool,
    pinned: Collection[int] = (),
    tracer: Tracer | None = None,
    is_for_comparison: bool = False,
) -> Trace:
    """Call ``function`` on stand-ins for ``arguments`` and return the trace.

    ``pinned``: numbers of arguments that enter as themselves, as captured tensors do, because their memory is also that
    of another one. ``is_for_comparison``: it is only to be compared with another trace, which is verified. Raises TraceError,
    and whatever the function raises.
    """
    tracer = Tracer(name) if tracer is None else tracer
    is_finished = False
    try:
        with use_interpreter(tracer):
            standins = [
                real if index in pinned else tracer.add_argument(index, real, label)
                for index, (real, label) in enumerate(zip(arguments, names, strict=True))
            ]
            result = function(standins)
            trace = _finish(tracer, result, keep_grads)
            if not is_for_comparison:
                trace.graph.verify()
        is_finished = True
    finally:
        if not is_finished:
            holding.made = None
        tracer.restore(is_finished=is_finished)
    del result, standins
    _check_nothing_escaped(tracer)
    return trace


def _check_nothing_escaped(tracer: Tracer) -> None:
    tracer.drop_tensors()
    if not tracer.escaped():
        return
    gc.collect()  # a tensor in a reference cycle is dead but not gone
    places = tracer.escaped()
    if places:
        raise TraceError.kept("a list, an attribute, a global … outside of it", places[0], "state.copy_(…)")


def _finish(tracer: Tracer, result: Any, keep_grads: bool) -> Trace:
    builder = tracer.builder
    leaves, structure = pytree.flatten(result)
    returned: dict[int, int] = {}
    recipes: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            recipes.append(leaf)
            continue
        root, views = _existing_root(tracer, leaf)
        if root is not None:
            recipes.append(ResultLeaf(root=root, views=views))
            continue
        if id(leaf) not in returned:
            returned[id(leaf)] = len(builder.outputs)
            builder.outputs.append(Output(tracer.value_of(leaf), "result", f"result{len(builder.outputs)}"))
        recipes.append(ResultLeaf(output=returned[id(leaf)]))
    gradients = _gradient_actions(tracer, keep_grads, returned)
    written = {slot.initial: slot.current for slot in tracer.slots.values() if slot.current is not slot.initial}
    for standin in tracer.standins:
        if standin.tensor.storage.data is not standin.initial:
            written[standin.initial] = standin.tensor.storage.data
    inputs = []
    names = input_names(builder.inputs, tracer.sources, tracer.modules.values(), tracer.optimizers.values())
    for item, name in zip(builder.inputs, names, strict=True):
        if item.value in written:
            builder.outputs.append(Output(written[item.value], "update", f"new_{name}", item.value))
        inputs.append(Input(item.value, "state" if item.value in written else item.role, name))
    graph = Graph(tuple(inputs), tuple(builder.nodes), tuple(builder.outputs), builder.name)
    bindings = tuple(
        InputBinding(item.name, item.value.spec, source, item.value in written)
        for item, source in zip(inputs, tracer.sources, strict=True)
    )
    loose = {id(slot.storage) for slot in tracer.slots.values() if isinstance(slot.source, FromGradient)}
    return Trace(
        graph=graph,
        inputs=bindings,
        result_structure=structure,
        result_leaves=tuple(recipes),
        gradients=gradients,
        tensor_guards=tuple(
            TensorGuard(tensor, tensor.storage, tensor._requires_grad)
            for tensor in tracer.captured.values()
            if id(tensor.storage) not in loose
        ),
        gradient_guards=tuple(
            GradientGuard(_owner(tracer, tensor), is_none) for tensor, is_none in tracer.gradient_reads.values()
        ),
        modules=tuple(tracer.modules.values()),
        optimizers=tuple(tracer.optimizers.values()),
    )


def _owner(tracer: Tracer, tensor: Tensor) -> FromTensor | FromArgument:
    index = tracer.standin_of(tensor)
    return FromArgument(index) if index >= 0 else FromTensor(tensor)


def _existing_root(tracer: Tracer, tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Return (where a returned tensor's memory comes from, the views on it), or (None, ()) if the step makes it."""
    views = []
    while tensor._array is None and tensor._view is not None:
        views.append((tensor._view.op, tensor._view.params))
        tensor = tensor._view.base
    if tensor._array is not None:
        return tracer.gradient_source(tensor) or FromTensor(tensor), tuple(reversed(views))
    index = tracer.standin_of(tensor)
    return (FromArgument(index), tuple(reversed(views))) if index >= 0 else (None, ())


def _gradient_actions(tracer: Tracer, keep_grads: bool, returned: dict[int, int]) -> tuple[GradientAction, ...]:
    builder = tracer.builder
    actions = []
    for tensor, grad in tracer.gradients.values():
        if tensor._array is None and tracer.standin_of(tensor) < 0:
            continue  # a leaf made inside the step: nobody outside can ask for its gradient
        owner = _owner(tracer, tensor)
        if grad is None:
            actions.append(GradientAction(owner, "none"))
        elif grad._array is not None:
            source = tracer.gradient_source(grad)
            if source is None:
                actions.append(GradientAction(owner, "bind", tensor=grad))
            elif source.owner is not tensor and (source.argument < 0 or source.argument != tracer.standin_of(tensor)):
                actions.append(GradientAction(owner, "bind", tensor=source))
        elif id(tensor) in tracer.zeroed and not keep_grads:
            actions.append(GradientAction(owner, "fused"))
        elif id(grad) in returned:  # the result and the gradient are one tensor, as they are eagerly
            actions.append(GradientAction(owner, "store", output=returned[id(grad)]))
        else:
            actions.append(GradientAction(owner, "store", output=len(builder.outputs)))
            builder.outputs.append(Output(tracer.value_of(grad), "result", f"result{len(builder.outputs)}"))
    return tuple(actions)


def find_difference(first: Trace, second: Trace) -> tuple[Any, str] | None:
    """Return (line, what differs) for the first thing in which two traces of one call differ, or None."""
    are_alike = _are_alike(first.graph, second.graph)
    for one, other in () if are_alike else zip(first.graph.nodes, second.graph.nodes):
        if one.op is not other.op:
            return other.location, f"{one.op.name} in one trace, {other.op.name} in the next"
        is_same = len(one.inputs) == len(other.inputs) and len(one.outputs) == len(other.outputs)
        is_same = is_same and [value.spec for value in one.inputs] == [value.spec for value in other.inputs]
        if not is_same or not _same_params(one.params, other.params):
            return other.location, f"{one.op.name} with {_describe(one.params)}, then with {_describe(other.params)}"
    if len(first.graph.nodes) != len(second.graph.nodes):
        longer = max(first.graph.nodes, second.graph.nodes, key=len)
        extra = longer[min(len(first.graph.nodes), len(second.graph.nodes))]
        return extra.location, f"{extra.op.name} in only one of two traces"
    for i, (mine, theirs) in enumerate(zip(first.inputs, second.inputs)):
        if _identity(mine.source) != _identity(theirs.source):
            return _first_use(second.graph, i), f"the captured value {theirs.name} is another one in each trace"
    if not are_alike:
        return None, "the order or number of values"
    if repr(first.result_structure) != repr(second.result_structure):
        return None, "the structure of what it returns"
    for mine, theirs in zip(first.result_leaves, second.result_leaves):
        if not isinstance(mine, ResultLeaf) and not _same_leaf(mine, theirs):
            return None, f"the returned Python value: {mine!r}, then {theirs!r}"
    return None


def _are_alike(first: Graph, second: Graph) -> bool:
    """Whether two graphs are the same program: the same applications, to the same values in the same places."""
    if any(len(getattr(first, part)) != len(getattr(second, part)) for part in ("inputs", "nodes", "outputs")):
        return False
    twins: dict[Any, Any] = {None: None}
    for mine, theirs in zip(first.inputs, second.inputs):
        if (mine.role, mine.name, mine.value.spec) != (theirs.role, theirs.name, theirs.value.spec):
            return False
        twins[mine.value] = theirs.value
    for one, other in zip(first.nodes, second.nodes):
        # What an op's rule gives for operands of equal specs has equal specs again.
        if one.op is not other.op or [twins[value] for value in one.inputs] != [*other.inputs]:
            return False
        if not _same_params(one.params, other.params) or len(one.outputs) != len(other.outputs):
            return False
        twins.update(zip(one.outputs, other.outputs))
    return all(
        (mine.role, mine.name) == (theirs.role, theirs.name)
        and twins[mine.value] is theirs.value
        and twins[mine.target] is theirs.target
        for mine, theirs in zip(first.outputs, second.outputs)
    )


def _same_params(mine: Params, theirs: Params) -> bool:
    """Whether parameters are the same by their text: 1, 1.0 and True are equal, and NaN is not."""
    return mine is theirs or repr(mine) == repr(theirs)


def _describe(params: Any) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in params) or "other operands"


def _identity(source: Source) -> Any:
    """Return what must agree between two traces: which tensor, which number, or which contents."""
    if isinstance(source, FromConstant):
        return (source.array.dtype.str, source.array.shape, source.array.tobytes())
    if isinstance(source, FromScalar):
        return (id(source.owner), source.key)
    if isinstance(source, FromTensor):
        return id(source.tensor.storage)
    return (id(source.owner), source.argument) if isinstance(source, FromGradient) else source.index


def _first_use(graph: Graph, index: int) -> Any:
    value = graph.inputs[index].value
    return next((node.location for node in graph.nodes if value in node.inputs), None)


def _same_leaf(mine: Any, theirs: Any) -> bool:
    if mine is theirs:
        return True
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, bool | int | float | str | bytes | complex | np.generic):
        return repr(mine) == repr(theirs)
    if isinstance(mine, np.ndarray | set | bytearray | deque):
        return fingerprint(mine) == fingerprint(theirs)
    return True  # an object of its own in each trace: what it says cannot be compared
