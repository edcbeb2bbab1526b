"""An optimizer's updates, recorded for one parameter and repeated for those like it, of other shapes too.

Invariant: a repeated update records the nodes, and asks for the inputs, that a call would have, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..locations import is_ours
from ..ops.core import Op, TensorSpec
from ..records import entity
from ..tensor import Tensor
from .graph import GraphBuilder, Params, Value

Step = tuple[type[Op], tuple[int, ...], Params, tuple[TensorSpec, ...]]
"""One application: its operands are numbers of values known so far, to which its results are added."""

_PACKAGE = __name__.partition(".")[0]
_PARAMETERS = "the parameter's"
"""In the place of a shape."""


class Recorder(Protocol):
    """What is asked of the tracer."""

    builder: GraphBuilder
    slots: dict[int, Any]
    numbers: dict[Any, Value]

    def value_of(self, tensor: Tensor) -> Value:
        """Return the value that a tensor has now, which makes it an input where it comes from outside."""

    def repeat(self, steps: Sequence[Step], values: list[Value]) -> None:
        """Record applications to ``values`` and add the results to them."""


@entity
class _Recipe:
    """The applications of an update. Values are numbered: its own tensors, what is the same for all, results in order.

    ``read``: own tensors that are read, in the order of their first use. ``shared``: None for what is not read. ``results``:
    the numbers of the new parameter and of the entries of the state, named ``changed``, that change. ``shape``: the
    parameter's. ``is_for_any_shape``: its ops are elementwise, so that what has this shape has another parameter's there.
    """

    read: tuple[int, ...]
    shared: tuple[Value | Tensor | None, ...]
    steps: tuple[Step, ...]
    changed: tuple[str, ...]
    results: tuple[int, ...]
    shape: tuple[int, ...]
    is_for_any_shape: bool

    def steps_for(self, shape: tuple[int, ...]) -> Sequence[Step]:
        """Return the applications for a parameter of ``shape``."""
        if shape == self.shape:
            return self.steps
        return [
            (op, operands, params, tuple([TensorSpec(shape, s.dtype) if s.shape == self.shape else s for s in specs]))
            for op, operands, params, specs in self.steps
        ]


class Updates:
    """The recipes of one trace."""

    def __init__(self, tracer: Recorder) -> None:
        self._tracer = tracer
        self._recipes: dict[Any, _Recipe | None] = {}
        self._kept: list[Any] = []
        """What keys know by its id."""

    def run(
        self, update: Any, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Any, rates: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what ``update`` returns, and record what it records."""
        own = [parameter, gradient, *state.values()]
        if not _are_apart(own):
            return update(parameter, gradient, state, group, rates)
        shape = parameter.shape
        places = [_PARAMETERS if shape and tensor.shape == shape else tensor.shape for tensor in own]
        kinds = [(type(tensor), tensor.dtype, place) for tensor, place in zip(own, places)]
        general = (update, id(group), id(rates), *state, *kinds)
        key = (*general, shape)
        recipe = self._recipes.get(general) or self._recipes.get(key)
        if recipe is not None:
            return self._repeat(recipe, own)
        start = len(self._tracer.builder.nodes)
        new, changed = update(parameter, gradient, state, group, rates)
        if key not in self._recipes:
            self._kept += [group, rates]
            is_known = is_ours(update) and all(_is_ours(tensor) for tensor in own) and type(rates) is dict
            recipe = self._recipe(start, own, rates, new, changed) if is_known else None
            is_general = recipe is not None and recipe.is_for_any_shape and {*places} <= {_PARAMETERS, ()}
            self._recipes[general if is_general else key] = recipe
        return new, changed

    def forget(self) -> None:
        """Let go of all tensors."""
        self._recipes.clear()
        self._kept.clear()

    def _repeat(self, recipe: _Recipe, own: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value_of = self._tracer.value_of
        values: list[Any] = [None] * len(own)
        for number in recipe.read:
            values[number] = value_of(own[number])
        values += [value_of(part) if isinstance(part, Tensor) else part for part in recipe.shared]
        self._tracer.repeat(recipe.steps_for(own[0].shape), values)
        new, *changed = [
            own[number] if number < len(own) else Tensor._wrap(values[number], values[number].spec)
            for number in recipe.results
        ]
        return new, dict(zip(recipe.changed, changed))

    def _recipe(
        self, start: int, own: list[Tensor], rates: dict[str, Any], new: Tensor, changed: dict[str, Tensor]
    ) -> _Recipe | None:
        """Return what was recorded since node ``start``; None where it hangs on what another call may not find the same."""
        everyones = _tensors_in(rates)
        results = [new, *changed.values()]
        if any(tensor._view is not None for tensor in (*everyones, *results)):
            return None
        numbers_of_constants = self._tracer.numbers.values()
        shared: list[Any] = [*everyones, *numbers_of_constants]
        numbers: dict[Any, int] = {}
        for number, part in enumerate((*own, *shared)):
            numbers.setdefault(self._current(part), number)
        numbers.pop(None, None)
        constants = set(numbers_of_constants)
        used: dict[int, None] = {}
        steps: list[Step] = []
        count = len(own) + len(shared)
        is_elementwise = True
        for node in self._tracer.builder.nodes[start:]:
            if not constants.isdisjoint(node.outputs):
                continue  # the first use of a number in the trace records it
            if not all(value in numbers for value in node.inputs):
                return None
            is_elementwise = is_elementwise and node.op.elementwise and len(node.inputs) > 0
            operands = tuple([numbers[value] for value in node.inputs])
            used.update(dict.fromkeys(operands))
            steps.append((node.op, operands, node.params, tuple([value.spec for value in node.outputs])))
            for value in node.outputs:
                numbers[value] = count
                count += 1
        places = {id(tensor): number for number, tensor in enumerate(own)}
        found = [places.get(id(tensor), numbers.get(tensor._payload, -1)) for tensor in results]
        if any(number < 0 or len(own) <= number < len(own) + len(shared) for number in found):
            return None
        read = tuple([number for number in used if number < len(own)])
        kept = tuple([part if len(own) + i in used else None for i, part in enumerate(shared)])
        is_for_any_shape = is_elementwise and all(part is None or not part.spec.shape for part in kept)
        return _Recipe(
            read, kept, tuple(steps), tuple(changed), tuple(found), own[0].shape, is_for_any_shape=is_for_any_shape
        )

    def _current(self, part: Value | Tensor) -> Value | None:
        """Return the value that a tensor has, None where nobody has asked for it yet."""
        if isinstance(part, Value):
            return part
        data = part.storage.data
        if isinstance(data, Value):
            return data
        slot = self._tracer.slots.get(id(part.storage))
        return None if slot is None else slot.current


def _are_apart(tensors: list[Any]) -> bool:
    """Whether these are tensors, each of memory of its own, none a view of another's."""
    if not all(isinstance(tensor, Tensor) and tensor._view is None for tensor in tensors):
        return False
    return len({id(tensor.storage) for tensor in tensors}) == len(tensors)


def _is_ours(tensor: Tensor) -> bool:
    return type(tensor).__module__.partition(".")[0] == _PACKAGE


def _tensors_in(rates: dict[str, Any]) -> list[Tensor]:
    parts = [part for value in rates.values() for part in (value if isinstance(value, tuple | list) else (value,))]
    return [part for part in parts if isinstance(part, Tensor)]
