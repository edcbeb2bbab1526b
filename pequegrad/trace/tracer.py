"""The interpreter that records: ops become nodes, the tensors of the outside world become inputs and updates.

Invariant: nothing outside the trace changes while it runs. Writes, gradients and versions of real tensors live in
overlay tables here, so that an error in the middle leaves every tensor as it was.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import arrays
from ..dtypes import DType, as_dtype, float64
from ..errors import AutogradError, TraceError
from ..locations import NOWHERE, is_ours, user_location
from ..ops.core import EAGER, Interpreter, Op, TensorSpec, context, grad_mode, use_interpreter
from ..ops.movement import Full
from ..records import entity
from ..storage import Storage
from ..tensor import Tensor
from .fingerprint import holding
from .graph import GraphBuilder, Location, Node, Value
from .state import FromArgument, FromConstant, FromGradient, FromScalar, FromTensor, Source
from .updates import Step, Updates

# Versions given while tracing are negative and never repeat: a real tensor that remembers one finds it stale later.
_trace_versions = itertools.count(-1, -1)
_READ_ONLY = "this tensor shares memory with a read-only array. Use .clone() before writing."


class Slot:
    """A storage of the outside world, as the trace sees it. ``place``: the line that wrote to it last."""

    __slots__ = ("current", "initial", "place", "source", "spec", "storage", "version")

    def __init__(self, storage: Storage, spec: TensorSpec, source: Source, initial: Value) -> None:
        self.storage, self.spec, self.source = storage, spec, source
        self.initial = self.current = initial
        self.version: int = storage.version
        self.place: Location | None = None


@entity
class Standin:
    """What the traced function gets in place of an argument, which may be a view of something larger."""

    index: int
    tensor: Tensor
    real: Tensor
    initial: Value


class Tracer(Interpreter):
    """Records one call of a function into ``builder``; one use each."""

    has_data = False

    def __init__(self, name: str) -> None:
        self.builder = GraphBuilder(name)
        self.sources: list[Source] = []
        self.slots: dict[int, Slot] = {}
        self.standins: list[Standin] = []
        self.places: dict[Value, Location] = {}
        self.captured: dict[int, Tensor] = {}
        self.gradients: dict[int, tuple[Tensor, Any]] = {}
        self.zeroed: set[int] = set()
        self.gradient_reads: dict[int, tuple[Tensor, bool]] = {}
        self.modules: dict[int, Any] = {}
        self.optimizers: dict[int, Any] = {}
        self.entangled: set[int] = set()
        self.scalar_reads: list[tuple[Any, Any, Any, Location]] = []
        self.numbers: dict[tuple[DType, bytes], Value] = {}
        """The constants of one number each, by dtype and bytes."""
        self._gradient_owner: dict[int, tuple[Storage, Tensor]] = {}
        self._scalars: dict[tuple[int, Any], Tensor] = {}
        self._replayed: dict[int, tuple[Tensor, int, Value]] = {}
        self._links: dict[int, tuple[Tensor, Any, int, bool]] = {}
        self._made: dict[int, weakref.ref[Storage]] = {}
        self._new_states: list[tuple[Any, Any]] = []
        self._location: Location | None = None
        self._updates = Updates(self)
        self.watcher: Any = None
        """What looks for the user's code, where it has been told that none runs."""

    # --- what enters ----------------------------------------------------------------------------------------

    def _add_input(self, spec: TensorSpec, role: str, name: str, source: Source) -> Value:
        value = self.builder.add_input(spec, role, name)
        self.sources.append(source)
        self.places[value] = user_location()
        return value

    def add_argument(self, index: int, real: Tensor, name: str) -> Tensor:
        """Return the stand-in for the ``index``-th tensor of the call."""
        value = self._add_input(real.spec, "argument", name, FromArgument(index))
        tensor = type(real).__new__(type(real))
        tensor._init(Storage(value), real.spec, value)
        tensor._requires_grad = real.requires_grad
        edge = real.edge()
        if isinstance(edge, tuple):
            tensor.link(*edge)
        self.standins.append(Standin(index, tensor, real, value))
        return tensor

    def standin_of(self, tensor: Any) -> int:
        """Return which tensor of the call this stand-in is for, or -1."""
        return next((standin.index for standin in self.standins if standin.tensor is tensor), -1)

    def _note_argument(self, tensor: Tensor) -> None:
        """Remember the arguments that the function also reaches in another way, and might differentiate by."""
        for standin in self.standins:
            if standin.real is tensor or (standin.real.storage is tensor.storage and standin.real.requires_grad):
                self.entangled.add(standin.index)

    def _capture(self, tensor: Tensor) -> Slot:
        """Return the slot of a real root tensor's storage; a new one becomes a state input."""
        storage = tensor.storage
        slot = self.slots.get(id(storage))
        if slot is None:
            if tensor.requires_grad:
                self._note_argument(tensor)
            owner = self._gradient_owner.get(id(storage))
            source: Source = FromTensor(tensor)
            name = f"state{len(self.slots)}"
            if owner is not None:
                index = self.standin_of(owner[1])
                source = FromGradient(None if index >= 0 else owner[1], index)
                name = f"gradient{len(self.slots)}"
            value = self._add_input(tensor.spec, "state", name, source)
            slot = self.slots[id(storage)] = Slot(storage, tensor.spec, source, value)
        return slot

    def constant(self, array: np.ndarray) -> Value:
        if array.ndim == 0 and array.dtype.kind in "biuf":
            dtype = as_dtype(array.dtype)
            number = dtype, array.tobytes()
            known = self.numbers.get(number)
            if known is None:
                params = {"shape": (), "value": array.item(), "dtype": dtype}
                (known,) = self._record(Full, (), params, (TensorSpec((), dtype),))
                self.numbers[number] = known
            return known
        copy = np.array(arrays.to_host(array), order="C")
        spec = TensorSpec(copy.shape, as_dtype(copy.dtype))
        return self._add_input(spec, "constant", f"constant{len(self.sources)}", FromConstant(copy))

    def scalar(self, owner: Any, key: Any, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            return value
        known = self._scalars.get((id(owner), key))
        if known is None:
            label = key if isinstance(key, str) else "_".join(map(str, key))
            name = f"{label}_{sum(1 for _, other in self._scalars if other == key)}"
            made = self._add_input(TensorSpec((), float64), "scalar", name, FromScalar(owner, key))
            known = self._scalars[id(owner), key] = Tensor._wrap(made, TensorSpec((), float64))
            self.scalar_reads.append((owner, key, value, self.location()))
        return known

    # --- ops ------------------------------------------------------------------------------------------------

    def evaluate(
        self, op: type[Op], inputs: tuple[Any, ...], params: dict[str, Any], specs: tuple[TensorSpec, ...]
    ) -> Sequence[Value]:
        return self._record(op, tuple([self.value_of(tensor) for tensor in inputs]), params, specs)

    def _record(
        self, op: type[Op], inputs: tuple[Value, ...], params: dict[str, Any], specs: tuple[TensorSpec, ...]
    ) -> tuple[Value, ...]:
        location = self.location()
        outputs = tuple([Value(spec) for spec in specs])
        is_backward = self._location is not None
        ordered = tuple(sorted(params.items())) if params else ()
        self.builder.nodes.append(Node(op, inputs, ordered, outputs, location, is_backward))
        for value in outputs:
            self.places[value] = location
        return outputs

    def repeat(self, steps: Sequence[Step], values: list[Value]) -> None:
        """Record applications to ``values``, by their numbers there, and add the results to them."""
        location = self.location()
        is_backward = self._location is not None
        for op, operands, params, specs in steps:
            outputs = tuple([Value(spec) for spec in specs])
            inputs = tuple([values[number] for number in operands])
            self.builder.nodes.append(Node(op, inputs, params, outputs, location, is_backward))
            for value in outputs:
                self.places[value] = location
            values += outputs

    def value_of(self, tensor: Tensor) -> Value:
        """Return the graph value that a tensor has now: traced, captured, or a view of either."""
        storage = tensor.storage
        if tensor._array is None:
            payload = tensor._payload
            if payload not in self.places:
                raise TraceError(f"{user_location()}: {EAGER.no_data(tensor)}")
            version = storage.version if type(storage.data) is Value else self.version(storage)
            if tensor._payload_version == version:
                return payload
        elif id(tensor) not in self.captured:
            self.captured[id(tensor)] = tensor
        view = tensor._view
        if view is None:
            return storage.data if type(storage.data) is Value else self._capture(tensor).current
        version = self.version(storage)
        known = self._replayed.get(id(tensor))
        if known is not None and known[1] == version:
            return known[2]
        (value,) = self._record(view.op, (self.value_of(view.base),), view.params, (tensor.spec,))
        self._replayed[id(tensor)] = (tensor, version, value)
        return value

    @property
    def device(self) -> str:
        """The GPU that an argument or a captured tensor lies on, else the CPU."""
        if not arrays.device_types:
            return arrays.CPU
        reals = itertools.chain((standin.real for standin in self.standins), self.captured.values())
        places = (arrays.device_of(tensor._array) for tensor in reals if tensor._array is not None)
        return next((place for place in places if place != arrays.CPU), arrays.CPU)

    def may_move(self, tensor: Tensor) -> bool:
        return id(tensor.storage) not in self.slots

    def location(self) -> Location:
        return self._location or user_location()

    def at(self, location: Any) -> _At:
        if location is None:
            raise TraceError(
                f"{user_location()}: backward reaches a tensor that was computed outside the compiled function, "
                "whose history is not part of the step. Compute it inside, or pass it through .detach()."
            )
        return _At(self, location)

    def unwatched(self, *functions: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
        return _Unwatched(self) if all(map(is_ours, functions)) else super().unwatched()

    def watched(self, function: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
        return super().watched(function) if is_ours(function) else _Watched(self)

    # --- writes ---------------------------------------------------------------------------------------------

    def version(self, storage: Storage) -> int:
        if type(storage.data) is Value:
            if id(storage) not in self._made:
                self._made[id(storage)] = weakref.ref(storage)
            return storage.version
        slot = self.slots.get(id(storage))
        return storage.version if slot is None else slot.version

    def write(self, target: Tensor, new: Tensor) -> None:
        if target._array is not None:
            self._remember_links(target)
        with grad_mode(False):
            base, put = target, new
            while base._view is not None:
                view = base._view
                put = view.op.put(view.base, put, **view.params)
                base = view.base
        value = self.value_of(put)
        storage = target.storage
        if type(storage.data) is Value:
            storage.data = value
            storage.version = next(_trace_versions)
            real = next((s.real for s in self.standins if s.tensor.storage is storage), None)
            if real is not None and not arrays.is_writeable(real.storage.data):
                raise AutogradError(_READ_ONLY)
            return
        if not arrays.is_writeable(storage.data):
            raise AutogradError(_READ_ONLY)
        self.captured.setdefault(id(base), base)
        slot = self._capture(base)
        slot.current = value
        slot.version = next(_trace_versions)
        slot.place = user_location()

    def _remember_links(self, target: Tensor) -> None:
        """Keep the real tensor's link to the tape, which ``Tensor.assign`` is about to change."""
        if id(target) not in self._links:
            self._links[id(target)] = (target, target._edge, target._edge_version, target._requires_grad)

    # --- gradients ------------------------------------------------------------------------------------------

    def get_grad(self, tensor: Tensor) -> Any:
        known = self.gradients.get(id(tensor))
        if known is not None:
            return known[1]
        owner = tensor
        if tensor._array is not None:
            self._note_argument(tensor)
        else:
            standin = next((standin for standin in self.standins if standin.tensor is tensor), None)
            if standin is None:
                return None
            owner = standin.real
        grad = owner._grad
        self.gradient_reads.setdefault(id(tensor), (tensor, grad is None))
        if isinstance(grad, Tensor) and grad._view is None and id(grad.storage) not in self.slots:
            self._gradient_owner.setdefault(id(grad.storage), (grad.storage, tensor))
        return grad

    def set_grad(self, tensor: Tensor, grad: Any) -> None:
        if tensor._array is not None and id(tensor) not in self.gradients:
            self._note_argument(tensor)
        if grad is None:
            self.zeroed.add(id(tensor))
        self.gradients[id(tensor)] = (tensor, grad)

    def gradient_source(self, grad: Tensor) -> FromGradient | None:
        """Return whose ``.grad`` a tensor of the outside world was when the step began, or None."""
        owner = self._gradient_owner.get(id(grad.storage))
        if owner is None or (owner[1]._grad is not grad and grad is not self._real(owner[1])._grad):
            return None
        index = self.standin_of(owner[1])
        return FromGradient(None if index >= 0 else owner[1], index)

    def _real(self, tensor: Tensor) -> Tensor:
        return next((standin.real for standin in self.standins if standin.tensor is tensor), tensor)

    # --- who else is there ----------------------------------------------------------------------------------

    def module_called(self, module: Any) -> None:
        self.modules.setdefault(id(module), module)

    def optimizer_stepped(self, optimizer: Any) -> None:
        if id(optimizer) in self.optimizers:
            return
        self.optimizers[id(optimizer)] = optimizer
        before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        with use_interpreter(EAGER), grad_mode(False):
            optimizer.ensure_state()
        self._new_states.append((optimizer, before))

    def updated(
        self, update: Callable[..., Any], parameter: Any, gradient: Any, state: Any, group: Any, rates: Any
    ) -> tuple[Any, dict[str, Any]]:
        return self._updates.run(update, parameter, gradient, state, group, rates)

    def no_data(self, tensor: Tensor) -> str:
        what = f"the traced tensor {tensor.spec}"
        if tensor._array is not None:
            what = f"the captured tensor {tensor.spec}"
        elif tensor._payload not in self.places:
            return f"{user_location()}: {EAGER.no_data(tensor)}"
        return (
            f"{user_location()}: this line reads the elements of {what} (.item(), .numpy(), bool(), float(), if, "
            "or a NumPy function), but a compiled step computes them only when it is called. Expected: ops alone. "
            "Use pequegrad.where(condition, a, b) instead of if, return the value and read it after the call, or pass "
            "it to the function as a Python number."
        )

    # --- the end --------------------------------------------------------------------------------------------

    def restore(self, *, is_finished: bool) -> None:
        """Undo what tracing had to do to real objects. ``is_finished``: the function returned, so new optimizer
        state stays. Raises TraceError if a real tensor got a history that ends inside the step."""
        escaped = None
        for target, edge, version, requires_grad in self._links.values():
            if target._requires_grad and isinstance(target._edge, tuple) and target._edge is not edge:
                escaped = target
            target._edge, target._edge_version, target._requires_grad = edge, version, requires_grad
        if not is_finished:
            for optimizer, before in self._new_states:
                optimizer.state.clear()
                optimizer.state.update(before)
        elif escaped is not None:
            slot = self.slots.get(id(escaped.storage))
            raise TraceError(
                f"{(slot and slot.place) or NOWHERE}: the captured tensor {escaped.spec} was changed in place by "
                "something that requires grad; its gradient history would leave the step. Write .detach()ed values, "
                "or do it under pequegrad.no_grad()."
            )

    def escaped(self) -> list[Location]:
        """Return where traced tensors were made that are still alive. Call when the results have been let go."""
        alive = [ref() for ref in self._made.values()]
        return [self.places.get(storage.data, NOWHERE) for storage in alive if storage is not None]

    def drop_tensors(self) -> None:
        """Let go of every traced tensor that the tracer itself holds."""
        self.gradients.clear()
        self.gradient_reads.clear()
        self._gradient_owner.clear()
        self._scalars.clear()
        self._replayed.clear()
        self._updates.forget()
        self.standins.clear()
        holding.release()


class _At:
    """Attributes nodes to a location inside a ``with`` block."""

    __slots__ = ("_before", "_location", "_tracer")

    def __init__(self, tracer: Tracer, location: Location) -> None:
        self._tracer, self._location = tracer, location

    def __enter__(self) -> None:
        self._before = self._tracer._location
        self._tracer._location = self._location

    def __exit__(self, *_: object) -> None:
        self._tracer._location = self._before


class _Unwatched(contextlib.AbstractContextManager[None]):
    """Stops the watch of this thread inside a ``with`` block: under it, Python takes twice the time for all code."""

    __slots__ = ("_before", "_tracer")

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        if self._before is not None:
            self._tracer.watcher = self._before
        sys.settrace(None)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


class _Watched(_Unwatched):
    """Goes on with the watch inside a ``with`` block, where it has been stopped."""

    __slots__ = ()

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._tracer.watcher)


def current_tracer() -> Tracer | None:
    """Return the tracer that this thread records with, if any."""
    interpreter = context.interpreter
    return interpreter if isinstance(interpreter, Tracer) else None
