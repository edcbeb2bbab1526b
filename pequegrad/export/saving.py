"""From a step that was traced and built to one folder that runs it elsewhere.

Invariant: what cannot be saved truly is refused with its reason before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import serialization
from ..build import folder as cache_folder
from ..build.known import BuiltStep
from ..codegen.plan import StepPlan
from ..codegen.scratch import arena_bytes
from ..dtypes import DType
from ..errors import ArtifactError, CompilerBug, TraceError
from ..ops.core import TensorSpec
from ..pytree import leaf_paths
from ..targets import Target
from ..trace.capture import Captured
from ..trace.signature import Call, argument_name
from ..trace.state import (
    FreshLeaf,
    FromArgument,
    FromConstant,
    FromGradient,
    FromScalar,
    FromTensor,
    InputBinding,
    ResultLeaf,
    Trace,
    read_number,
)
from . import files, machine, values
from .manifest import (
    FORMAT,
    KIND,
    FileRecord,
    GradientRecord,
    Leaf,
    Manifest,
    Nesting,
    Origin,
    SlotRecord,
    TensorRecord,
    ViewRecord,
)
from .names import Named, in_order_of_use, name_inputs, named_optimizers, roots


@dataclass(frozen=True, slots=True)
class Exportable:
    """A step that was traced and built. ``call``: the arguments it was traced with, without their data."""

    name: str
    call: Call
    captured: Captured
    plan: StepPlan
    target: Target
    built: BuiltStep


def save_step(step: Exportable, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write module, state, source and manifest into a new folder; the state is what it is now.

    Raises TraceError for a step that cannot be saved, with the reason, and ArtifactError where it cannot be written.
    """
    _check_can_be_saved(step)
    trace = step.captured.trace
    named = name_inputs(trace.inputs, step.captured.guards.modules, step.captured.guards.optimizers)
    state = {name: _value(binding) for binding, (role, name) in zip(trace.inputs, named) if role != "argument"}
    module, source, record = _built_files(step)
    contents = {
        step.built.path.name: module,
        "state.safetensors": serialization.to_bytes(state),
        f"step{step.built.source_path.suffix}": source,
    }
    records = [FileRecord(name, len(content), files.sum_of(content)) for name, content in contents.items()]
    manifest = _manifest(step, named, records, record).to_json()
    contents |= {files.MANIFEST: manifest, files.SUM: files.sum_file(manifest)}
    files.write_folder(Path(path), contents, overwrite=overwrite)


def _refusal(step: Exportable, what: str, cure: str) -> TraceError:
    return TraceError(f"save: {step.name} cannot be saved as it is: {what}. {cure}")


def _check_can_be_saved(step: Exportable) -> None:
    """Raise TraceError where the program has gone on to something else, or where each call would not be like the last."""
    trace, guards = step.captured.trace, step.captured.guards
    if step.captured.pinned:
        raise _refusal(step, "an argument is also a tensor that it captured", "Pass a .clone(), and compile it again.")
    for binding in trace.inputs:
        if isinstance(binding.source, FromGradient) and binding.source.argument >= 0:
            raise _refusal(step, "it adds to the .grad of an argument", "Return the gradient instead.")
    # A .grad of an argument is looked at when the saved step is called.
    wanted = _argument_guards(trace)
    standins = [SimpleNamespace(_grad=None if wanted.get(i, True) else i) for i in range(_tensor_count(step.call))]
    failure = guards.failure(standins)
    if failure is not None:
        raise _refusal(step, f"since it was built, {failure}", "Compile it again, and save that.")
    after = {_owner_key(action.owner): action.kind for action in trace.gradients}
    if "bind" in after.values():
        raise _refusal(step, "it makes one tensor's .grad the .grad of another", "Copy it in place instead.")
    for guard in trace.gradient_guards:
        kind = after.get(_owner_key(guard.owner))
        is_argument = isinstance(guard.owner, FromArgument)
        if kind is not None and (kind == "none") is not guard.is_none and not is_argument:
            raise _refusal(
                step,
                "its first call differs from the next: it finds a .grad that is None, and leaves one"
                if guard.is_none
                else "its first call differs from the next: it finds a .grad, and leaves None",
                "Call it once, then compile and save it; or zero the gradients at its start.",
            )


def _argument_guards(trace: Trace) -> dict[int, bool]:
    """Return, by the number of the tensor of the call, whether its .grad must be None."""
    return {g.owner.index: g.is_none for g in trace.gradient_guards if isinstance(g.owner, FromArgument)}


def _owner_key(owner: FromTensor | FromArgument) -> Any:
    return owner.index if isinstance(owner, FromArgument) else ("tensor", id(owner.tensor))


def _tensor_count(call: Call) -> int:
    return max(call.places, default=-1) + 1


def _value(binding: InputBinding) -> Any:
    source = binding.source
    if isinstance(source, FromConstant):
        return source.array
    if isinstance(source, FromScalar):
        return np.array(float(read_number(source.owner, source.key)))
    if isinstance(source, FromGradient):
        return source.owner._grad
    if not isinstance(source, FromTensor):
        raise CompilerBug(f"{binding.name} is no state, but {source!r}")
    return source.tensor


def _built_files(step: Exportable) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return the module, its source, and the cache's record of the build."""
    record = cache_folder.read_record(step.built.entry.folder)
    try:
        module, source = step.built.path.read_bytes(), step.built.source_path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"save: the built module is no longer in the cache ({error.filename}: {error.strerror}). Compile it again."
        ) from error
    if files.sum_of(module) != record.get("sha256"):
        raise ArtifactError(f"save: {step.built.path} was altered since it was built. Run: pequegrad cache clear")
    return module, source, record


def _manifest(step: Exportable, named: Sequence[Named], records: list[FileRecord], record: dict[str, Any]) -> Manifest:
    key = record.get("key", {})
    module, state, source = records
    plan, trace, call = step.plan, step.captured.trace, step.call
    tensors = _tensors(call, trace)
    return Manifest(
        format=FORMAT,
        kind=KIND,
        name=step.name,
        requires=machine.requirements(
            step.target, str(key.get("python", "")), machine.toolkit_version(map(str, key.values()))
        ),
        made_by=Origin(
            pequegrad=str(key.get("pequegrad", "")),
            numpy=np.__version__,
            pybind11=str(key.get("pybind11", "")),
            compiler=" ".join(key.get("compiler", ())),
            compiler_version=str(key.get("compiler_version", "")),
            flags=tuple(map(str, (*key.get("flags", ()), *key.get("link_flags", ()), *key.get("extra_flags", ())))),
        ),
        module=module,
        state=state,
        source=source,
        arena_bytes=arena_bytes(plan, step.target) if step.target.device == "cpu" else 0,
        workers=plan.workers,
        arguments=_arguments(step),
        tensors=tuple(tensors),
        slots=tuple(_slots(step, named, tensors)),
        results=_results(step),
        gradients=tuple(_gradients(step, named)),
        kernels=tuple([_place(kernel.origin) for kernel in plan.kernels]),
        frozen=tuple(_frozen(step)),
    )


def _place(origin: Any) -> str:
    where = f"{origin.locations[0]}: " if origin.locations else ""
    return f"{where}{' '.join(origin.ops)[:200]}"


# --- the call ---------------------------------------------------------------------------------------------------


def _arguments(step: Exportable) -> Nesting:
    leaves = []
    for leaf, place in zip(step.call.leaves, step.call.places):
        leaves.append(Leaf("tensor", place) if place >= 0 else Leaf("value", value=_encoded(step, leaf, "takes")))
    return Nesting(values.encode_structure(step.call.structure), tuple(leaves))


def _encoded(step: Exportable, value: Any, what: str) -> Any:
    try:
        return values.encode(value)
    except TypeError as error:
        raise _refusal(step, f"it {what} {error}", "Pass or return tensors and plain values.") from None


def _tensors(call: Call, trace: Trace) -> list[TensorRecord]:
    gradients = _argument_guards(trace)
    names = {place: path for path, place in reversed(list(zip(_paths(call), call.places)))}
    records = []
    for index in range(_tensor_count(call)):
        described = call.leaves[call.places.index(index)]
        wanted = {None: "any", True: "absent", False: "present"}[gradients.get(index)]
        shape = tuple(map(int, described.shape))
        records.append(TensorRecord(names[index], shape, described.dtype, described.requires_grad, wanted))
    return records


def _paths(call: Call) -> list[str]:
    return [argument_name(path) for path in leaf_paths(call.structure)]


# --- the slots --------------------------------------------------------------------------------------------------


def _slots(step: Exportable, named: Sequence[Named], tensors: Sequence[TensorRecord]) -> list[SlotRecord]:
    trace, buffers = step.captured.trace, [step.plan.buffers[number] for number in step.plan.slots]
    slots = []
    for binding, (role, name) in zip(trace.inputs, named):
        argument = binding.source.index if isinstance(binding.source, FromArgument) else -1
        name = tensors[argument].name if argument >= 0 else name
        slots.append(_slot(role, name, binding.spec, binding.is_written, argument))
    results = [output for output in trace.graph.outputs if output.role == "result"]
    slots += [_slot("result", f"result{i}", output.value.spec, True) for i, output in enumerate(results)]
    for slot, buffer in zip(slots, buffers, strict=True):
        if (slot.bytes, slot.is_written) != (buffer.nbytes, buffer.is_written):
            raise CompilerBug(f"{slot} is not as the plan's {buffer}")
    return slots


def _slot(role: str, name: str, spec: TensorSpec, is_written: bool, argument: int = -1) -> SlotRecord:
    return SlotRecord(role, name, tuple(map(int, spec.shape)), spec.dtype.name, spec.nbytes, is_written, argument)


def _slot_of(step: Exportable, root: FromTensor | FromGradient) -> int:
    for number, binding in enumerate(step.captured.trace.inputs):
        source = binding.source
        if (
            isinstance(root, FromTensor)
            and isinstance(source, FromTensor)
            and source.tensor.storage is root.tensor.storage
        ):
            return number
        if isinstance(root, FromGradient) and isinstance(source, FromGradient) and source.owner is root.owner:
            return number
    raise _refusal(step, "it returns a captured tensor that it does not use", "Read that tensor outside of the step.")


# --- what comes back --------------------------------------------------------------------------------------------


def _results(step: Exportable) -> Nesting:
    trace = step.captured.trace
    structure = values.encode_structure(trace.result_structure)
    try:
        values.decode_structure(structure)
    except ValueError as error:
        raise _refusal(step, f"of what it returns, {error}", "Return a tuple, list or dict.") from None
    return Nesting(structure, tuple([_result(step, leaf) for leaf in trace.result_leaves]))


def _result(step: Exportable, leaf: Any) -> Leaf:
    if isinstance(leaf, FreshLeaf):
        raise _refusal(step, f"it returns a {type(leaf.value).__name__} of its own", "Return a tensor instead.")
    if not isinstance(leaf, ResultLeaf):
        return Leaf("value", value=_encoded(step, leaf, "returns"))
    if leaf.root is None:
        return Leaf("result", leaf.output)
    views = tuple([_view(step, op.name, params) for op, params in leaf.views])
    if isinstance(leaf.root, FromArgument):
        return Leaf("tensor", leaf.root.index, views=views)
    return Leaf("slot", _slot_of(step, leaf.root), views=views)


def _view(step: Exportable, op: str, params: dict[str, Any]) -> ViewRecord:
    return ViewRecord(op, tuple([(key, _encoded(step, value, "returns a view with")) for key, value in params.items()]))


def _gradients(step: Exportable, named: Sequence[Named]) -> list[GradientRecord]:
    names = {
        id(binding.source.tensor.storage): name
        for binding, (_, name) in zip(step.captured.trace.inputs, named)
        if isinstance(binding.source, FromTensor)
    }
    records = []
    for number, action in enumerate(step.captured.trace.gradients):
        result = action.output if action.kind == "store" else -1
        if isinstance(action.owner, FromArgument):
            records.append(GradientRecord(action.kind, action.owner.index, "", result))
        else:
            name = names.get(id(action.owner.tensor.storage), f"tensor{number}")
            records.append(GradientRecord(action.kind, -1, name, result))
    return records


def _frozen(step: Exportable) -> list[str]:
    """Return what is built into the step and no longer looked at, a line each."""
    guards = step.captured.guards
    lines = []
    for place, root in roots(in_order_of_use(guards.modules, step.captured.trace.inputs)).items():
        for name, module in root.named_modules():
            fields = {key: value for key, value in vars(module).items() if not key.startswith("_") and _is_plain(value)}
            text = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            lines.append(f"{place}{'.' if name else ''}{name}: {type(module).__name__} {text}".rstrip())
    for place, optimizer in named_optimizers(guards.optimizers).items():
        for i, group in enumerate(optimizer.param_groups):
            fields = {key: value for key, value in optimizer.static_fields(group).items() if _is_plain(value)}
            text = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            lines.append(f"{place}.param_groups.{i}: {type(optimizer).__name__} {text}".rstrip())
    return [*lines, *guards.lines()]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= 8 and all(map(_is_plain, value))
    return (
        value is None or isinstance(value, bool | int | float | DType) or (isinstance(value, str) and len(value) < 80)
    )
