"""A saved step, loaded: what runs it and goes on training, without tracing, rendering or compiling.

Invariant: nothing of a folder runs before all of it was checked; a call either does what the step did where it was saved,
or raises before it has changed anything.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, pytree, serialization
from ..build import loader
from ..build.loader import StepModule
from ..calling import Described, Native
from ..config import config
from ..dtypes import DType, as_dtype
from ..errors import ArtifactError, AutogradError, CacheError, DataError, DeviceError, PequegradWarning, SignatureError
from ..forking import ForkSafeLock
from ..ops.core import EAGER, TensorSpec, grad_mode, use_interpreter
from ..tensor import FUSED_GRADIENT, Tensor
from . import files, machine, values
from .calls import check_failure, check_views, describe_call, result_leaf
from .manifest import STATE_ROLES, FileRecord, Leaf, Manifest, TensorRecord, parse
from .state import State, make_tensor

_modules: dict[str, StepModule] = {}
_modules_lock = ForkSafeLock()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of a saved step, checked in itself; no other file is read, and nothing is run.

    Raises ArtifactError for a folder that is none, is damaged, or is of a newer format.
    """
    folder = Path(path).expanduser()
    files.check_folder(folder)
    return parse(files.read_manifest(folder), str(folder / files.MANIFEST))


def read_contents(path: str | os.PathLike[str], manifest: Manifest) -> dict[str, bytes]:
    """Return the files of a saved step by name, with sizes and sums as the manifest has them. Raises ArtifactError."""
    folder = Path(path).expanduser()
    records = (manifest.module, manifest.state, manifest.source)
    return {record.name: files.read_file(folder, record.name, record.bytes, record.sha256) for record in records}


def load_step(path: str | os.PathLike[str]) -> LoadedStep:
    """Return the step that ``step.compile(…).save(path)`` wrote, to be called as the function was, and to go on from there.

    No tracing, rendering or compiling happens, and no compiler is needed. Before anything of the folder runs, all of its
    files are checked against their sums, and the module against this Python, processor and device: ArtifactError, with
    both sides named, where something is missing, altered, foreign, or for another machine. Sums find damage, not malice:
    the module is machine code, so load what you would also run as a program.
    """
    folder = Path(path).expanduser().absolute()
    manifest = read_manifest(folder)
    machine.check(manifest, str(folder))
    contents = read_contents(folder, manifest)
    state = _read_state(contents[manifest.state.name], manifest, folder)
    check_views(manifest, folder)
    return LoadedStep(manifest, contents, state, _module(folder, manifest), _home(manifest))


def _home(manifest: Manifest) -> str:
    """Return where the state is to lie: with the step, as far as arrays can be made there."""
    if arrays.kind_of(manifest.requires.device) != machine.CUDA:
        return arrays.CPU
    try:
        return arrays.checked_device(machine.CUDA)
    except DeviceError as error:
        warnings.warn(
            f"{manifest.name}: its state lies on the CPU, and is copied to the GPU and back at each call: {error}",
            PequegradWarning,
            stacklevel=3,
        )
        return arrays.CPU


def _module(folder: Path, manifest: Manifest) -> StepModule:
    """Return the module of a checked file; equal ones share one, as they share the threads."""
    digest = manifest.module.sha256
    with _modules_lock.now:
        module = _modules.get(digest)
        if module is None:
            try:
                module = loader.load(str(folder / manifest.module.name), digest)
            except CacheError as error:
                raise ArtifactError(
                    f"{folder / manifest.module.name} does not load here: {error.__cause__}. Its C or C++ library may be newer "
                    "than this machine's: save the step on a machine like this one."
                ) from error
            _modules[digest] = module
        slots = [(slot.bytes, slot.is_written) for slot in manifest.slots]
        try:
            module.configure(slots, manifest.arena_bytes)
        except ValueError as error:
            raise ArtifactError(f"{folder}: the manifest does not fit the module: {error}.") from error
    return module


def _read_state(content: bytes, manifest: Manifest, folder: Path) -> dict[str, np.ndarray]:
    where = folder / manifest.state.name
    try:
        found = serialization.from_bytes(content, where)
    except DataError as error:
        raise ArtifactError(str(error)) from error
    wanted = {slot.name: slot for slot in manifest.slots if slot.role not in ("argument", "result")}
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        raise ArtifactError(f"{where} does not hold the state that the manifest names.")
    state = {}
    for name, slot in wanted.items():
        tensor = found[name]
        if not isinstance(tensor, Tensor) or (tensor.shape, tensor.dtype.name) != (slot.shape, slot.dtype):
            raise ArtifactError(f"{where}: expected {name} as {slot.dtype}{list(slot.shape)}. Got {tensor!r:.200}.")
        state[name] = tensor.array
    return state


class LoadedStep:
    """A training or inference step that was saved, ready to call. Made by `load_step`.

    ``state``: parameters, buffers, optimizer state, learning rates and random state by name, to read and to change.
    ``gradients``: where the step keeps gradients, those of its last call by the name of their tensor.
    ``manifest``: what the folder says of itself. ``name``: the function's name.

    What Python values decided while the step was traced is built in (``manifest.frozen`` says what): ``model.eval()`` or
    another ``dropout.p`` need a step of their own. Numbers of the optimizer's groups, such as ``lr``, are state.
    """

    def __init__(
        self,
        manifest: Manifest,
        contents: dict[str, bytes],
        state: dict[str, np.ndarray],
        module: StepModule,
        home: str = arrays.CPU,
    ) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.gradients: dict[str, Tensor] = {}
        self._contents = contents
        self._module = module
        self._lock = threading.RLock()
        self._tensors: dict[str, Tensor] = {}
        numbers: dict[str, np.ndarray] = {}
        self._template: list[Any] = []
        self._arguments: list[tuple[int, int]] = []
        self._written_arguments: list[tuple[int, int]] = []
        for number, slot in enumerate(manifest.slots):
            if slot.role == "result":
                break
            if slot.role == "argument":
                self._template.append(None)
                (self._written_arguments if slot.is_written else self._arguments).append((number, slot.argument))
                continue
            array: Any = state[slot.name]
            if slot.role == "scalar":
                numbers[slot.name] = array
            elif slot.dtype != "bfloat16":  # which CuPy does not have
                array = arrays.moved(array, home)
            if slot.role in STATE_ROLES and slot.role != "scalar":
                self._tensors[slot.name] = make_tensor(array)
            self._template.append(arrays.Held(array) if arrays.is_device_array(array) else array)
        self._written = [
            self._tensors[slot.name] for slot in manifest.slots if slot.is_written and slot.name in self._tensors
        ]
        self._owners = {id(tensor.array) for tensor in self._written}
        self.state = State(self._tensors, numbers)
        self._results = [(slot.shape, as_dtype(slot.dtype)) for slot in manifest.result_slots]
        self._words = [i for i, slot in enumerate(manifest.slots) if slot.dtype == "bfloat16"]
        self._records = [(record, as_dtype(record.dtype)) for record in manifest.tensors]
        self._result_structure = values.decode_structure(manifest.results.structure)
        self._seen_structure: Any = None
        self._home = home
        self._addressable = arrays.addressable_types(manifest.requires.device)
        self._native: Native | None = None
        self._described = Described()
        self._workers = manifest.workers if manifest.requires.device == "cpu" else 1

    def __repr__(self) -> str:
        return f"<LoadedStep {self.manifest.signature()} for {self.manifest.requires.target}>"

    # --- calling ------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once and return what the function returned. Arguments: Tensors or arrays of the same nesting, shapes and
        dtypes, and the same Python values, as when it was saved.

        Raises SignatureError for other arguments, IndexOutOfRange for a bad index among them.
        """
        native = self._native
        if native is not None:
            result = native[0](args, kwargs)
            if result is not NotImplemented:
                return result
        result = self._run(self._read_arguments(args, kwargs))
        self._native = self._described.now(self._describe)
        return result

    def _describe(self) -> Native | None:
        manifest, workers = self.manifest, self._workers_now()
        description = describe_call(manifest, self._seen_structure, self._template, self._written, self._tensors)
        if description is None:
            return None
        description["acquire"], description["release"] = self._lock.acquire, self._lock.release
        description["check"] = functools.partial(check_failure, manifest)
        description["has_threads"] = self._workers > 1
        return self._module.make_call(description, workers), description

    def _workers_now(self) -> int:
        return min(self._workers, config.workers()) if self._workers > 1 else 1

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        with self._lock:
            slots = self._template.copy()
            for slot, index in self._arguments:
                slots[slot] = self._brought(tensors[index].array, index)
            back = self._place_written(slots, tensors)
            results = [self._empty(shape, dtype) for shape, dtype in self._results]
            slots += results
            for number in self._words:  # NumPy exports no buffer of bfloat16
                slots[number] = slots[number].view("uint16")
            check_failure(self.manifest, self._module.try_run(slots, self._workers_now()))
            for array, staged in back:
                arrays.copy_into(array, staged)
            for tensor in self._written:
                tensor.storage.version += 1
            for _, index in self._written_arguments:
                tensors[index].storage.version += 1
            made = [
                Tensor._wrap(array, TensorSpec(shape, dtype)) for array, (shape, dtype) in zip(results, self._results)
            ]
            manifest = self.manifest
            leaves = [result_leaf(leaf, made, tensors, self._tensors, manifest) for leaf in manifest.results.leaves]
            self._set_gradients(made, tensors)
        return pytree.unflatten(self._result_structure, leaves)

    def _empty(self, shape: tuple[int, ...], dtype: DType) -> Any:
        if self._home == arrays.CPU or dtype.name == "bfloat16":
            return np.empty(shape, dtype.numpy)
        return arrays.cupy().empty(shape, dtype.numpy)

    def _read_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the distinct tensors of a call. Raises SignatureError unless it is like the one that was saved."""
        leaves, structure = pytree.flatten((args, kwargs))
        if structure != self._seen_structure:
            if values.encode_structure(structure) != self.manifest.arguments.structure:
                raise SignatureError(
                    f"the arguments nest otherwise, or have other names: expected {self.manifest.signature()}. Got "
                    f"{_show_call(self.name, args, kwargs)}."
                )
            self._seen_structure = structure
        tensors: list[Any] = [None] * len(self._records)
        given: list[Any] = [None] * len(self._records)
        for leaf, wanted in zip(leaves, self.manifest.arguments.leaves):
            if wanted.kind == "value":
                self._check_value(leaf, wanted)
            elif tensors[wanted.index] is None:
                given[wanted.index] = leaf
                tensors[wanted.index] = self._read_tensor(leaf, wanted.index)
            elif given[wanted.index] is not leaf:
                name = self._records[wanted.index][0].name
                raise SignatureError(
                    f"{self.name} was saved for a call in which {name} is passed twice. Got two tensors."
                )
        return tensors

    def _check_value(self, leaf: Any, wanted: Leaf) -> None:
        try:
            found = values.encode(leaf)
        except TypeError:
            found = NotImplemented
        if found != wanted.value:
            raise SignatureError(
                f"{self.name} was saved for the value {values.show(wanted.value)}, which is built in. Got {leaf!r:.80}. Save a "
                "step for that value too."
            )

    def _read_tensor(self, leaf: Any, index: int) -> Tensor:
        record, dtype = self._records[index]
        if arrays.has_device_memory(leaf) and not isinstance(leaf, Tensor):
            leaf = make_tensor(arrays.as_device_array(leaf))
        if not isinstance(leaf, Tensor | np.ndarray | np.generic):
            raise SignatureError(f"{record.name} of {self.name} is {record}. Got {type(leaf).__name__}: {leaf!r:.80}.")
        if not isinstance(leaf, Tensor):
            array = np.asarray(leaf)
            if array.dtype != dtype.numpy or array.shape != record.shape:
                self._refuse(record, f"{array.dtype}[{','.join(map(str, array.shape))}]")
            leaf = make_tensor(array)
        elif leaf.spec.dtype is not dtype or leaf.spec.shape != record.shape:
            self._refuse(record, str(leaf.spec))
        if leaf.requires_grad is not record.requires_grad:
            self._refuse(record, f"requires_grad={leaf.requires_grad}", f"requires_grad={record.requires_grad}")
        if record.gradient != "any" and (leaf._grad is None) is not (record.gradient == "absent"):
            self._refuse(
                record, "one with a .grad" if leaf._grad is not None else "one without", f".grad {record.gradient}"
            )
        return leaf

    def _refuse(self, record: TensorRecord, found: str, wanted: str = "") -> None:
        raise SignatureError(
            f"{record.name} of {self.name}: expected {wanted or record}. Got {found}. A saved step takes the shapes and dtypes "
            "that it was built for; save another one for these."
        )

    def _brought(self, array: Any, index: int) -> Any:
        """Return an argument's array as the step can use it: contiguous, aligned, and where the step can address it."""
        if id(array if array.base is None else array.base) in self._owners:
            self._refuse_shared(index)
        if not isinstance(array, self._addressable):
            array = arrays.to_host(array)
        if arrays.is_ready(array):
            return array
        copy = arrays.new_like(array, is_on_host=False)
        arrays.copy_into(copy, array)
        return copy

    def _refuse_shared(self, index: int) -> None:
        raise SignatureError(
            f"{self._records[index][0].name} of {self.name} shares memory with what the step changes. Pass a .clone()."
        )

    def _place_written(self, slots: list[Any], tensors: Sequence[Tensor]) -> list[tuple[Any, Any]]:
        """Fill the slots of arguments that the step writes to; return what is to be copied back, and from where."""
        back = []
        for slot, index in self._written_arguments:
            array = tensors[index].array
            if not arrays.is_writeable(array):
                raise AutogradError(f"{self._records[index][0].name} is written to by {self.name}, but is read-only.")
            others = [arrays.unheld(other) for other in slots if other is not None]
            others += [tensor.array for i, tensor in enumerate(tensors) if i != index]
            if any(arrays.may_overlap(array, other) for other in others):
                self._refuse_shared(index)
            slots[slot] = self._brought(array, index)
            if slots[slot] is not array:
                back.append((array, slots[slot]))
        return back

    def _set_gradients(self, made: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        for action in self.manifest.gradients:
            gradient: Any = made[action.result] if action.kind == "store" else None
            if action.argument >= 0:
                owner: Any = tensors[action.argument]
                owner._grad = FUSED_GRADIENT if action.kind == "fused" else gradient
            elif gradient is not None:
                self.gradients[action.name] = gradient

    # --- keeping ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of parameters and buffers by name, as the model's own ``state_dict`` names them.

        So ``model.load_state_dict(step.state_dict())`` takes them back into the program. Of several models, names begin with
        the model's. Buffers that the step does not use are not there.
        """
        roles = {slot.name: slot.role for slot in self.manifest.slots}
        names = [name for name in self._tensors if roles[name] in ("parameter", "buffer")]
        with use_interpreter(EAGER), grad_mode(False), self._lock:
            return {name.removeprefix("model."): self._tensors[name].clone() for name in names}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write this step, with its state as it is now, into a new folder that `load_step` takes.

        ``overwrite``: replace an artifact that is there. Raises ArtifactError where it cannot be written.
        """
        with self._lock:
            pairs = [
                (slot.name, array) for slot, array in zip(self.manifest.slots, self._template) if array is not None
            ]
            state = serialization.to_bytes({name: arrays.to_host(arrays.unheld(array)) for name, array in pairs})
        record = FileRecord(self.manifest.state.name, len(state), files.sum_of(state))
        manifest = dataclasses.replace(self.manifest, state=record).to_json()
        contents = {**self._contents, record.name: state, files.MANIFEST: manifest, files.SUM: files.sum_file(manifest)}
        files.write_folder(Path(path), contents, overwrite=overwrite)


def _show_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    leaves, structure = pytree.flatten((args, kwargs))
    texts = iter([str(leaf.spec) if isinstance(leaf, Tensor) else _show_leaf(leaf) for leaf in leaves])
    positional, named = values.encode_structure(structure)["children"]
    parts = [values.show_structure(child, texts) for child in positional["children"]]
    parts += [f"{key}={values.show_structure(child, texts)}" for key, child in zip(kwargs, named["children"])]
    return f"{name}({', '.join(parts)})"


def _show_leaf(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return f"{leaf!r:.60}"
