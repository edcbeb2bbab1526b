"""The manifest: all that a saved step says about itself, as frozen records, to JSON and back.

Invariant: what `parse` returns has the types that the records state and numbers that agree with each other; nothing in
it is code, a path outside of the folder, or a class to import.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ..dtypes import DTYPES
from ..errors import ArtifactError
from . import values

FORMAT = 1
KIND = "pequegrad step"
STATE_ROLES = ("parameter", "buffer", "optimizer", "random", "gradient", "tensor", "scalar")
"""Roles of slots that a caller may read and change by name."""
_ROLES = (*STATE_ROLES, "constant", "argument", "result")
_GRADIENTS = ("none", "fused", "store")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_SUM = re.compile(r"[0-9a-f]{64}")
_ITEM_BYTES = {dtype.name: 2 if dtype.name == "bfloat16" else dtype.itemsize for dtype in DTYPES}
_MOST_BYTES = 2**48  # more than a processor can address
_MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Requirements:
    """What runs the module: ``python`` is the ending of its file's name, ``features`` are a processor's.

    ``architecture`` and ``toolkit`` (CUDA's version), where ``device`` is a GPU; else "".
    """

    target: str
    device: str
    python: str
    machine: str
    instruction_set: str
    features: tuple[str, ...]
    architecture: str
    toolkit: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What made the module; for people and bug reports."""

    pequegrad: str
    numpy: str
    pybind11: str
    compiler: str
    compiler_version: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of the folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the call. ``gradient``: whether its .grad must be there ("present"), not ("absent"), or may ("any")."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    gradient: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """One array that the module is handed, in order. ``argument``: which tensor of the call it is, or -1."""

    role: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    is_written: bool
    argument: int = -1


@dataclass(frozen=True, slots=True)
class ViewRecord:
    """One view on the way from a slot to what the step returns: an op's name and its encoded parameters."""

    op: str
    params: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of the arguments or results. ``kind``: "tensor" (of the call, number ``index``), "result" (a new array,
    number ``index``), "slot" (that slot's own memory), "value" (the encoded ``value``)."""

    kind: str
    index: int = -1
    value: Any = None
    views: tuple[ViewRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Nesting:
    """Leaves in an encoded structure of containers."""

    structure: Any
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class GradientRecord:
    """What becomes of the .grad of the tensor of the call ``argument``, or of the state ``name``, after a call: "none",
    "fused", or "store" (the result ``result``)."""

    kind: str
    argument: int
    name: str
    result: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A saved step. ``frozen``: what was built in, one line of text each. ``kernels``: where in the user's program each
    kernel comes from."""

    format: int
    kind: str
    name: str
    requires: Requirements
    made_by: Origin
    module: FileRecord
    state: FileRecord
    source: FileRecord
    arena_bytes: int
    workers: int
    arguments: Nesting
    tensors: tuple[TensorRecord, ...]
    slots: tuple[SlotRecord, ...]
    results: Nesting
    gradients: tuple[GradientRecord, ...]
    kernels: tuple[str, ...]
    frozen: tuple[str, ...]

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False).encode() + b"\n"

    @property
    def result_slots(self) -> tuple[SlotRecord, ...]:
        """The slots that each call fills anew."""
        return tuple([slot for slot in self.slots if slot.role == "result"])

    def signature(self) -> str:
        """Return how the step is called, for people."""
        texts = iter([self._argument(leaf) for leaf in self.arguments.leaves])
        positional, named = self.arguments.structure["children"]
        parts = [values.show_structure(child, texts) for child in positional["children"]]
        keys = [values.show(key)[1:-1] for key in named["keys"]]
        parts += [f"{key}={values.show_structure(child, texts)}" for key, child in zip(keys, named["children"])]
        return f"{self.name}({', '.join(parts)})"

    def _argument(self, leaf: Leaf) -> str:
        return values.show(leaf.value) if leaf.kind == "value" else str(self.tensors[leaf.index])


def parse(content: bytes, where: str) -> Manifest:
    """Return the manifest of a file's content. Raises ArtifactError, with ``where``, for what is not one that this version
    reads."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is no JSON: {error}.") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ArtifactError(f"{where} is not the manifest of a {KIND}.")
    version = data.get("format")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{where} has no format number. Got {version!r:.80}.")
    if version > FORMAT:
        raise ArtifactError(
            f"{where} has format {version}, and this version of pequegrad reads formats up to {FORMAT}. Upgrade pequegrad, or "
            "save the step with this version."
        )
    try:
        manifest = _read(Manifest, data, "manifest")
        _check(manifest)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} does not hold together: {error}.") from error
    return manifest


def _read(kind: Any, value: Any, place: str) -> Any:
    """Return JSON as a value of a record's field type; raise ValueError with the place of what differs."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise ValueError(f"{place} must have {', '.join(names)}")
        hints = get_type_hints(kind)
        make: Any = kind
        return make(**{name: _read(hints[name], value[name], f"{place}.{name}") for name in names})
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, list) or (parts[-1] is not ... and len(value) != len(parts)):
            raise ValueError(f"{place} must be a list")
        kinds: Sequence[Any] = [parts[0]] * len(value) if parts[-1] is ... else parts
        return tuple([_read(part, item, f"{place}[{i}]") for i, (part, item) in enumerate(zip(kinds, value))])
    if type(value) is not kind:
        raise ValueError(f"{place} must be of type {kind.__name__}. Got {value!r:.80}")
    return value


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(what)


def _check(manifest: Manifest) -> None:
    """Raise ValueError where names, sizes and numbers do not agree with each other."""
    for file in (manifest.module, manifest.state, manifest.source):
        _require(_FILE_NAME.fullmatch(file.name) is not None, f"{file.name!r:.80} is no name of a file in the folder")
        _require(0 <= file.bytes <= _MOST_BYTES, f"{file.name} cannot have {file.bytes} bytes")
        _require(_SUM.fullmatch(file.sha256) is not None, f"{file.name} has no sha256")
    names = [file.name for file in (manifest.module, manifest.state, manifest.source)]
    _require(len(set(names)) == 3, "two files have one name")
    _require(0 <= manifest.arena_bytes <= _MOST_BYTES, f"an arena of {manifest.arena_bytes} bytes")
    _require(1 <= manifest.workers <= 2**16, f"{manifest.workers} workers")
    for tensor in manifest.tensors:
        _check_shape(tensor.name, tensor.shape, tensor.dtype)
        _require(
            tensor.gradient in ("any", "absent", "present"), f"{tensor.name} has a gradient {tensor.gradient!r:.80}"
        )
    _check_slots(manifest)
    results = len(manifest.result_slots)
    _check_nesting(manifest.arguments, {"tensor": len(manifest.tensors)}, "arguments")
    limits = {"tensor": len(manifest.tensors), "result": results, "slot": len(manifest.slots) - results}
    _check_nesting(manifest.results, limits, "results")
    structure = manifest.arguments.structure
    is_call = isinstance(structure, dict) and structure.get("kind") == "tuple" and len(structure["children"]) == 2
    _require(is_call, "arguments are no (positional, named)")
    kinds = [child and child["kind"] for child in structure["children"]]
    _require(kinds == ["tuple", "dict"], "arguments are no (positional, named)")
    values.decode_structure(manifest.results.structure)
    state = {slot.name for slot in manifest.slots if slot.role in STATE_ROLES}
    for action in manifest.gradients:
        _require(action.kind in _GRADIENTS, f"a gradient of kind {action.kind!r:.80}")
        _require(-1 <= action.argument < len(manifest.tensors), f"a gradient of tensor {action.argument} of the call")
        _require(action.kind != "store" or 0 <= action.result < results, f"a gradient in result {action.result}")
        _require(action.argument >= 0 or action.name != "" or action.name in state, "a gradient of nothing")


def _check_shape(name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of an array."""
    _require(dtype in _ITEM_BYTES, f"{name!r:.80} has dtype {dtype!r:.80}")
    is_right = len(shape) <= _MOST_DIMENSIONS and all(0 <= extent <= _MOST_BYTES for extent in shape)
    _require(is_right, f"{name!r:.80} has shape {shape!r:.200}")
    size = math.prod(shape) * _ITEM_BYTES[dtype]
    _require(size <= _MOST_BYTES, f"{name!r:.80} would have {size} bytes")
    return size


def _check_slots(manifest: Manifest) -> None:
    names: set[str] = set()
    is_result = [slot.role == "result" for slot in manifest.slots]
    _require(is_result == sorted(is_result), "a result lies before an input")
    for slot in manifest.slots:
        _require(slot.role in _ROLES, f"a slot of role {slot.role!r:.80}")
        size = _check_shape(slot.name, slot.shape, slot.dtype)
        _require(slot.bytes == size, f"{slot.name!r:.80} has {slot.bytes} bytes, and its shape makes {size}")
        if slot.role == "argument":
            _require(
                0 <= slot.argument < len(manifest.tensors), f"{slot.name!r:.80} is tensor {slot.argument} of the call"
            )
            tensor = manifest.tensors[slot.argument]
            _require(
                (tensor.shape, tensor.dtype) == (slot.shape, slot.dtype), f"{slot.name!r:.80} is not as its argument"
            )
        else:
            _require(slot.argument == -1, f"{slot.name!r:.80} is no argument")
            _require(slot.name not in names, f"two slots are named {slot.name!r:.80}")
            names.add(slot.name)
        if slot.role == "scalar":
            _require(
                (slot.shape, slot.dtype, slot.is_written) == ((), "float64", False), f"{slot.name!r:.80} is no number"
            )


def _check_nesting(nesting: Nesting, limits: dict[str, int], what: str) -> None:
    _check_structure(nesting.structure, what)
    count = values.count_leaves(nesting.structure)
    _require(count == len(nesting.leaves), f"{what} have {len(nesting.leaves)} leaves, and their nesting {count}")
    for leaf in nesting.leaves:
        if leaf.kind == "value":
            values.decode(leaf.value)
        else:
            limit = limits.get(leaf.kind, 0)
            _require(0 <= leaf.index < limit, f"{what} name the {leaf.kind!r:.80} {leaf.index}, of {limit}")


def _check_structure(value: Any, what: str) -> None:
    if value is None:
        return
    is_right = (
        isinstance(value, dict) and isinstance(value.get("kind"), str) and isinstance(value.get("children"), list)
    )
    _require(is_right, f"{what} have no nesting")
    keys = value.get("keys")
    if value["kind"] not in ("tuple", "list"):
        _require(isinstance(keys, list) and len(keys) == len(value["children"]), f"{what} have a dict without keys")
        for key in value["keys"]:
            values.decode(key)
    for child in value["children"]:
        _check_structure(child, what)
