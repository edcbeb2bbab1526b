"""A trace bound to something that runs it: gathers arrays, runs, and puts every effect where the trace says.

Invariant: the lists that a call walks are made once, here; a call leaves results in new arrays, updates in the memory
of the real tensors, and raises every written storage's version by one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .. import arrays, pytree
from ..config import config
from ..errors import AutogradError, DeviceError, TraceError
from ..ops.core import EAGER, TensorSpec, bind, grad_mode, use_interpreter
from ..tensor import FUSED_GRADIENT, Tensor
from .graph import Graph
from .interpreter import run_graph
from .nans import run_checked
from .placement import SMALL
from .state import (
    FreshLeaf,
    FromArgument,
    FromConstant,
    FromGradient,
    FromScalar,
    FromTensor,
    GradientAction,
    InputBinding,
    ResultLeaf,
    Trace,
    read_number,
)

_STATE_IS_COPIED = (
    "its state lies on the CPU and is copied to the GPU and back at each call; .cuda() of the module keeps it there"
)
_ARGUMENTS_ARE_COPIED = "arguments that lie on the CPU are copied to the GPU at each call; .cuda() of them saves that"

Execute = Callable[[list[Any]], None]
"""Runs a step on its slots: one array per graph input, then one per result, updates in place."""


@runtime_checkable
class Quick(Protocol):
    """An Execute that can do all of a call."""

    def make_call(self, description: dict[str, Any]) -> Callable[..., Any]:
        """Return the native call of a description; see `BoundStep.quick_call`."""


@runtime_checkable
class Repeatable(Protocol):
    """An Execute that can run many steps in one call."""

    def run_many(self, slots: list[Any], order: np.ndarray, batched: list[int], stacked: list[int]) -> None:
        """Run a step per row of ``order``: the slots ``batched`` are datasets, of which a step takes the rows that its
        row of ``order`` names; the slots ``stacked`` take the results of all steps."""


def interpret(graph: Graph) -> Execute:
    """Return the executor that runs ``graph`` node by node in NumPy."""
    count = len(graph.inputs)
    position = {item.value: i for i, item in enumerate(graph.inputs)}

    def execute(slots: list[Any]) -> None:
        outputs = run_graph(graph, slots[:count])
        # An output may be an input, or a view of one, that another output overwrites.
        outputs = [np.array(array) for array in outputs]
        result = count
        for output, array in zip(graph.outputs, outputs, strict=True):
            if output.target is None:
                slots[result][...] = array
                result += 1
            else:
                slots[position[output.target]][...] = array

    return execute


class BoundStep:
    """A compiled step, ready to call with the distinct tensors of a call.

    ``device``: what the step was compiled for; ``home``: where its state lies and its results go. What ``device`` cannot
    address is copied, both ways; ``say`` is told, where the copies cost something.
    """

    def __init__(
        self,
        trace: Trace,
        execute: Execute,
        pinned: Mapping[int, Tensor] | None = None,
        *,
        device: str = arrays.CPU,
        home: str = arrays.CPU,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.trace = trace
        self._execute = execute
        self._device = device
        self._home = home
        self._say = say
        self._is_on_host = device == home == arrays.CPU
        self._addressable = arrays.addressable_types(device)
        self._lock = threading.RLock()
        self._arguments: list[tuple[int, int]] = []
        self._written_arguments: list[tuple[int, int]] = []
        self._gradients: list[tuple[int, InputBinding]] = []
        self._scalars: list[tuple[int, Any, Any]] = []
        self._staged: list[tuple[int, Any, bool]] = []
        self._written: list[Any] = []
        self._template: list[Any] = []
        self._pinned = dict(pinned or {})
        self._numbers = np.zeros(sum(isinstance(b.source, FromScalar) for b in trace.inputs), np.float64)
        for slot, binding in enumerate(trace.inputs):
            self._template.append(self._bind_input(slot, binding))
        self._results: list[tuple[tuple[int, ...], np.dtype, TensorSpec]] = []
        for output in trace.graph.outputs:
            if output.role == "result":
                spec = output.value.spec
                self._results.append((spec.shape, spec.dtype.numpy, spec))
        is_made_there = self._home != arrays.CPU and self._device == arrays.kind_of(self._home)
        self._empty: Callable[..., Any] = arrays.cupy().empty if is_made_there else np.empty
        self._moves_results = self._home != arrays.CPU and not is_made_there
        self._written_set = set(self._written)
        self._owners = {id(arrays.owner_of(storage.data)) for storage in self._written}
        self._check_states()
        self._actions = _prepare(trace.gradients)
        self._moves_gradients = any(isinstance(action[3], FromGradient) for action in self._actions)
        leaves = trace.result_leaves
        is_leaf = trace.result_structure is pytree.LEAF
        self._is_single = is_leaf and isinstance(leaves[0], ResultLeaf) and leaves[0].root is None
        self._overlap_seen: tuple[Any, Any] = (None, None)

    def _bind_input(self, slot: int, binding: InputBinding) -> Any:
        source = binding.source
        if isinstance(source, FromArgument):
            (self._written_arguments if binding.is_written else self._arguments).append((slot, source.index))
            return None
        if isinstance(source, FromGradient):
            self._gradients.append((slot, binding))
            return None
        if isinstance(source, FromScalar):
            index = len(self._scalars)
            self._scalars.append((index, source.owner, source.key))
            return self._numbers[index : index + 1].reshape(())
        if isinstance(source, FromConstant):
            return self._constant(source.array)
        storage = source.tensor.storage
        if binding.is_written:
            self._written.append(storage)
        array = storage.data
        is_addressable = isinstance(array, self._addressable)
        if not is_addressable or not arrays.is_ready(array):
            self._staged.append((slot, array, binding.is_written))
            array = arrays.new_like(array, is_on_host=not is_addressable)
        elif type(array) is np.ndarray and self._device == "cuda" and binding.spec.nbytes > SMALL:
            self._tell(_STATE_IS_COPIED)
        return arrays.Held(array) if arrays.is_device_array(array) else array

    def _constant(self, array: np.ndarray) -> Any:
        if self._home == arrays.CPU or self._device != arrays.kind_of(self._home):
            return array
        return arrays.Held(arrays.moved(array, self._home))

    def _tell(self, what: str) -> None:
        if self._say is not None:
            self._say(what)

    def _check_states(self) -> None:
        """Raise TraceError where two captured tensors that pequegrad does not know to be one share written memory."""
        found = [(b.source.tensor.storage.data, b) for b in self.trace.inputs if isinstance(b.source, FromTensor)]
        for device in dict.fromkeys(arrays.device_of(array) for array, _ in found):
            self._check_states_on([(a, b) for a, b in found if a.size and arrays.device_of(a) == device])

    @staticmethod
    def _check_states_on(found: list[tuple[Any, InputBinding]]) -> None:
        bounds = sorted(((*_byte_bounds(array), array, b) for array, b in found), key=lambda item: item[:2])
        reach: Any = None
        for low, high, array, b in bounds:
            is_near = reach is not None and low < reach[0] and (b.is_written or reach[2].is_written)
            if is_near and arrays.may_overlap(array, reach[1]):
                raise TraceError(
                    f"two captured tensors, {reach[2].spec} and {b.spec}, lie in the same NumPy memory, and the step "
                    "writes to it. Make one a view of the other in pequegrad (slice the tensor), or .clone() one."
                )
            if reach is None or high > reach[0]:
                reach = (high, array, b)

    def admits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the arguments' memory overlaps with what the step writes exactly as it did while tracing."""
        written = self._written_set
        if not self._pinned and not self._written_arguments:
            return not any(tensor.storage in written for tensor in tensors)
        storages = [tensor.storage for tensor in tensors]
        for index, tensor in enumerate(tensors):
            if index in self._pinned:
                if self._pinned[index] is not tensor:
                    return False
            elif tensor.storage in written:
                return False
        return all(storages.count(storages[index]) == 1 for _, index in self._written_arguments)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Run once and return what the function returned."""
        with self._lock:
            slots = self._template.copy()
            for slot, index in self._arguments:
                array: Any = tensors[index]._array
                if id(array if array.base is None else array.base) in self._owners and index not in self._pinned:
                    self._refuse_overlap(index, tensors[index])
                if not self._is_on_host or type(array) is not np.ndarray:
                    slots[slot] = self._brought(index, array)
                elif array.flags.c_contiguous:
                    slots[slot] = array
                else:
                    slots[slot] = np.ascontiguousarray(array).reshape(array.shape)
            staged = self._stage(slots, tensors)
            self._read_scalars()
            results = [self._empty(shape, dtype) for shape, dtype, _ in self._results]
            slots += results
            if config.debug_nans:
                run_checked(self.trace.graph, self._execute, slots)
            else:
                self._execute(slots)
            for array, buffer in staged:
                arrays.copy_into(array, buffer)
            if self._moves_results:
                results = [arrays.moved(array, self._home) for array in results]
            self._raise_versions(tensors)
            made = [Tensor._wrap(array, spec) for array, (_, _, spec) in zip(results, self._results)]
            result = made[0] if self._is_single else self._rebuild(made, tensors)
            self._set_gradients(made, tensors)
        return result

    def copied_inputs(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Return a private copy, on the host, of each input that a call with ``tensors`` would have."""
        with self._lock:
            slots = self._template.copy()
            for slot, index in self._arguments:
                slots[slot] = self._brought(index, tensors[index]._array)
            self._stage(slots, tensors)
            self._read_scalars()
            return [arrays.host_copy(arrays.unheld(slot)) for slot in slots]

    @property
    def is_quick(self) -> bool:
        """Whether native code can do all of a call: everything lies on the host, and only new arrays come out."""
        return (
            self._is_on_host
            and isinstance(self._execute, Quick)
            and not (
                self._written_arguments or self._gradients or self._staged or self._pinned or self._moves_gradients
            )
            and all(type(owner) is dict for _, owner, _ in self._scalars)
            and all(dtype.kind in "biuf" for _, dtype, _ in self._results)
        )

    def description(self) -> dict[str, Any]:
        """Return what a call reads and writes, as `binding/call.h` takes it. Only where `is_quick`."""
        return {
            "acquire": self._lock.acquire,
            "release": self._lock.release,
            "numbers": self._numbers,
            "slots": self._template,
            "places": self._arguments,
            "scalars": [(owner, *(key if isinstance(key, tuple) else (key, -1))) for _, owner, key in self._scalars],
            "results": self._results,
            "written": self._written,
            "owners": list(self._owners),
            "actions": self._actions,
            "finish": None if self._is_single else lambda made: self._rebuild(made, ()),
        }

    def quick_call(self, description: dict[str, Any]) -> Callable[..., Any]:
        """Return the native function that takes a call's arguments as a tuple and a dict; it returns NotImplemented, having
        changed nothing, where the call is not as described. ``description`` must outlive it."""
        execute = self._execute
        assert isinstance(execute, Quick)
        return execute.make_call(description)

    @property
    def can_repeat(self) -> bool:
        """Whether `run_many` does what calls with new batches would do: results are new arrays, and nothing of an
        argument outlives its call."""
        leaves = [leaf for leaf in self.trace.result_leaves if isinstance(leaf, ResultLeaf | FreshLeaf)]
        return (
            isinstance(self._execute, Repeatable)
            and not config.debug_nans
            and not self._written_arguments
            and not self._pinned
            and all(isinstance(leaf, ResultLeaf) and leaf.root is None for leaf in leaves)
            and all(binding.source.argument < 0 for _, binding in self._gradients)
            and all(index < 0 for _, index, _, _ in self._actions)
        )

    def run_many(self, tensors: Sequence[Tensor], order: np.ndarray) -> list[Any]:
        """Run a step for each row of ``order``, int64 (steps, rows), on those rows of ``tensors``; return, for each
        output of the graph, an array of all steps' results. Only where `can_repeat`."""
        execute = self._execute
        assert isinstance(execute, Repeatable)
        with self._lock:
            slots = self._template.copy()
            for slot, index in self._arguments:
                slots[slot] = self._brought(index, tensors[index]._array)
            staged = self._stage(slots, tensors)
            self._read_scalars()
            first = len(slots)
            results = [self._empty((len(order), *shape), dtype) for shape, dtype, _ in self._results]
            slots += results
            execute.run_many(slots, order, [slot for slot, _ in self._arguments], list(range(first, len(slots))))
            for array, buffer in staged:
                arrays.copy_into(array, buffer)
            if self._moves_results:
                results = [arrays.moved(array, self._home) for array in results]
            self._raise_versions(tensors)
            last = [Tensor._wrap(array[-1].copy(), spec) for array, (_, _, spec) in zip(results, self._results)]
            self._set_gradients(last, tensors)
        return results

    def _read_scalars(self) -> None:
        for index, owner, key in self._scalars:
            self._numbers[index] = float(owner[key] if type(key) is str else read_number(owner, key))

    def _raise_versions(self, tensors: Sequence[Tensor]) -> None:
        for storage in self._written:
            storage.version += 1
        for _, index in self._written_arguments:
            tensors[index].storage.version += 1
        for _, binding in self._gradients:
            if binding.is_written:
                self._gradient_of(binding.source, tensors).storage.version += 1

    def _brought(self, index: int, array: Any) -> Any:
        """Return an argument's array as the step can use it: contiguous, aligned, and where the step can address it."""
        if isinstance(array, self._addressable):
            if index >= 0 and type(array) is np.ndarray and self._device == "cuda" and array.nbytes > SMALL:
                self._tell(_ARGUMENTS_ARE_COPIED)
        elif self._device == arrays.CPU:
            raise DeviceError(
                f"{self.trace.graph.name}: tensor {index} of the call lies on {arrays.device_of(array)!r}, but the compiled "
                "step lives on the CPU, where its state is. Pass it with .cpu(), or move the module with .cuda()."
            )
        else:
            array = arrays.to_host(array)
        if arrays.is_ready(array):
            return array
        copy = arrays.new_like(array, is_on_host=False)
        arrays.copy_into(copy, array)
        return copy

    def _stage(self, slots: list[Any], tensors: Sequence[Tensor]) -> list[tuple[Any, Any]]:
        """Fill the slots whose memory is only known now or is not the step's to use; return (array, its new contents)."""
        back: list[tuple[Any, Any]] = []
        array: Any
        for slot, array, is_written in self._staged:
            buffer = arrays.unheld(slots[slot])
            arrays.copy_into(buffer, array)
            if is_written:
                back.append((array, buffer))
        if not self._written_arguments and not self._gradients:
            return back
        moving: list[tuple[int, Any, bool]] = []
        for slot, index in self._written_arguments:
            array = tensors[index]._array
            if not arrays.is_writeable(array):
                raise AutogradError(
                    f"tensor {index} of the call is written to by the step, but its memory is read-only. "
                    "Pass a .clone()."
                )
            moving.append((slot, array, True))
        for slot, binding in self._gradients:
            gradient = self._gradient_of(binding.source, tensors)
            if not isinstance(gradient, Tensor) or gradient.spec != binding.spec:
                raise AutogradError(f"the step accumulates into a .grad, expected {binding.spec}. Got {gradient!r}.")
            moving.append((slot, gradient._array, binding.is_written))
        self._check_moving(moving, slots, tensors)
        for slot, array, is_written in moving:
            slots[slot] = self._brought(-1, array) if arrays.device_types else np.asarray(array, order="C")
            if is_written and slots[slot] is not array:
                back.append((array, slots[slot]))
        return back

    def _check_moving(self, moving: list[Any], slots: list[Any], tensors: Sequence[Tensor]) -> None:
        """Raise TraceError where memory that is only known at the call is written and overlaps with something else."""
        if not any(is_written for _, _, is_written in moving):
            return
        key = tuple([id(array) for _, array, _ in moving])
        others = [arrays.unheld(array) for array in slots if array is not None]
        seen = (key, tuple([id(array) for array in others]))
        if self._overlap_seen[0] == seen:
            return
        for i, (_, array, is_written) in enumerate(moving):
            for other in [*others, *(item[1] for item in moving[i + 1 :])]:
                if is_written and arrays.may_overlap(array, other):
                    raise TraceError(
                        f"the step writes to a tensor {array.shape} of the call (or a .grad) that shares memory with "
                        "another tensor it uses. Pass a .clone() of one of them."
                    )
        # The arrays are kept with their ids, so that no other array can take an id over.
        self._overlap_seen = (seen, ([array for _, array, _ in moving], others))

    def _refuse_overlap(self, index: int, tensor: Tensor) -> None:
        for storage in self._written:
            if arrays.may_overlap(tensor._array, storage.data):
                raise TraceError(
                    f"tensor {index} of the call, {tensor.spec}, shares NumPy memory with a tensor that the step "
                    "changes. Pass a copy of it."
                )

    @staticmethod
    def _gradient_of(source: Any, tensors: Sequence[Tensor]) -> Any:
        return (source.owner if source.argument < 0 else tensors[source.argument])._grad

    def _set_gradients(self, made: list[Tensor], tensors: Sequence[Tensor]) -> None:
        actions = self._actions
        if self._moves_gradients:  # all are read before any is replaced
            actions = [
                (o, i, n, self._gradient_of(t, tensors) if isinstance(t, FromGradient) else t) for o, i, n, t in actions
            ]
        for owner, index, output, tensor in actions:
            target = owner if index < 0 else tensors[index]
            target._grad = made[output] if output >= 0 else tensor

    def _rebuild(self, made: list[Tensor], tensors: Sequence[Tensor]) -> Any:
        leaves = [self._leaf(leaf, made, tensors) for leaf in self.trace.result_leaves]
        return pytree.unflatten(self.trace.result_structure, leaves)

    @staticmethod
    def _leaf(leaf: Any, made: list[Tensor], tensors: Sequence[Tensor]) -> Any:
        if isinstance(leaf, FreshLeaf):
            return copy.deepcopy(leaf.value)
        if not isinstance(leaf, ResultLeaf):
            return leaf
        if leaf.root is None:
            return made[leaf.output]
        if isinstance(leaf.root, FromGradient):
            tensor = BoundStep._gradient_of(leaf.root, tensors)
        else:
            tensor = tensors[leaf.root.index] if isinstance(leaf.root, FromArgument) else leaf.root.tensor
        if leaf.views:
            with use_interpreter(EAGER), grad_mode(False):
                for op, params in leaf.views:
                    tensor = bind(op, tensor, **params)
        return tensor


def _prepare(actions: Sequence[GradientAction]) -> list[tuple[Any, int, int, Any]]:
    values = {"none": None, "fused": FUSED_GRADIENT}
    return [
        (
            action.owner.tensor if isinstance(action.owner, FromTensor) else None,
            action.owner.index if isinstance(action.owner, FromArgument) else -1,
            action.output if action.kind == "store" else -1,
            action.tensor if action.kind == "bind" else values.get(action.kind),
        )
        for action in actions
    ]


def _byte_bounds(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and of the one after its last."""
    low = high = arrays.address_of(array)
    for extent, stride in zip(array.shape, array.strides):
        if stride < 0:
            low += (extent - 1) * stride
        else:
            high += (extent - 1) * stride
    return low, high + array.itemsize
