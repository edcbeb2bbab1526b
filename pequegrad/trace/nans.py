"""A compiled step under ``config.debug_nans``: NaN in what it would leave behind is an error, and leaves nothing behind.

Invariant: where this raises, every slot that the step updates holds what it held before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import arrays
from ..errors import NotANumberError
from ..ops.core import refuse_nans
from ..tensor import Tensor
from .graph import Graph
from .interpreter import values_of

_UNCHANGED = " The step has changed nothing."


def run_checked(graph: Graph, execute: Callable[[list[Any]], None], slots: list[Any]) -> None:
    """Run a step of ``graph`` on its slots: one array per input, then one per result, updates in place.

    Raises NotANumberError if a result or an update has NaN: with the line of the first op that gave it, which is found by
    running the graph once more in NumPy. NaN that reaches neither (a branch that is masked out) is no error.
    """
    count = len(graph.inputs)
    position = {item.value: i for i, item in enumerate(graph.inputs)}
    held = [arrays.unheld(slot) for slot in slots]
    places, result = [], count
    for output in graph.outputs:
        places.append(result if output.target is None else position[output.target])
        result += output.target is None
    updated = {place: np.array(arrays.to_host(held[place])) for place in places if place < count}
    execute(list(slots))
    guilty = [place for place in places if _has_nan(arrays.to_host(held[place]))]
    if not guilty:
        return
    for place, before in updated.items():
        arrays.copy_into(held[place], before)
    _name_origin(graph, [arrays.to_host(array) for array in held[:count]])
    names = [f"result {place - count}" if place >= count else graph.inputs[place].name for place in guilty]
    raise NotANumberError(
        f"{graph.name}: NaN in {', '.join(names)} of the compiled step, and none where the same is run in NumPy: a sum in "
        f"another order, or a fault of a kernel. config.debug_nans is on.{_UNCHANGED}"
    )


def _name_origin(graph: Graph, inputs: list[Any]) -> None:
    """Raise for the first node whose NaN comes to an output, if there is one."""
    found = values_of(graph, inputs)
    reaching = {output.value for output in graph.outputs if _has_nan(found[output.value])}
    origin = None
    for node in reversed(graph.nodes):
        if not reaching.isdisjoint(node.outputs):
            reaching.update(value for value in node.inputs if _has_nan(found[value]))
            origin = node
    if origin is None:
        return
    try:
        given = tuple(Tensor._wrap(np.asarray(found[value]), value.spec) for value in origin.inputs)
        refuse_nans(origin.op, given, [found[value] for value in origin.outputs])
    except NotANumberError as error:
        named = NotANumberError(f"{graph.name}: {error.args[0]}{_UNCHANGED}")
        named.location = origin.location
        raise named from None


def _has_nan(array: Any) -> bool:
    return np.asarray(array).dtype.kind not in "biu" and bool(np.isnan(array).any())
