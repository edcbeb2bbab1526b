"""Tensors to a file and back, in the safetensors format: never pickle, so loading runs no code.

Invariant: a file appears under its name only when it is complete. A flat dict of tensors is a plain safetensors file,
readable by other frameworks; how anything deeper nests stands in the file's metadata.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .dtypes import as_dtype
from .errors import DataError, DTypeError
from .tensor import Tensor

STRUCTURE = "pequegrad"
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {short: as_dtype(name) for name, short in _NAMES.items()}


def save(value: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors, arrays, numbers, strings and None in any nesting of dict, list and tuple to ``path``.

    The file is written beside and renamed, so that it is either the old one or the new one, whole.
    Raises DTypeError for anything else, DataError where it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(value, (), arrays)
    is_flat = isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(part, Tensor | np.ndarray) for key, part in value.items()
    )
    content = _pack(arrays, None if is_flat else {STRUCTURE: json.dumps(structure)})
    _write_whole(Path(path), content)


def load(path: str | os.PathLike[str]) -> Any:
    """Return what `save` wrote, arrays as Tensors without gradient history; of another's file, a dict of Tensors.

    Raises DataError for a file that is missing, truncated or not in the safetensors format.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"load: cannot read {path}: {error.strerror or error}.") from error
    try:
        tensors, metadata = _unpack(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"load: {path} is not a whole safetensors file: {error}. It is truncated, or was written by something else."
        ) from error
    structure = metadata.get(STRUCTURE)
    if structure is None:
        return tensors
    try:
        return _decode(json.loads(structure), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"load: {path}: its tensors and the structure in its metadata do not agree: {error!r}."
        ) from error


def _encode(value: Any, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """Return ``value`` as JSON in which a tensor is the name under which it went into ``arrays``."""
    if isinstance(value, Tensor | np.ndarray):
        name = ".".join(path) or "value"
        while name in arrays:
            name += "'"
        arrays[name] = value.array if isinstance(value, Tensor) else Tensor(value).array
        return {"tensor": name}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise DTypeError(
                    f"save: a dict's keys must be strings or ints. Got {key!r} in {'.'.join(path) or 'value'}."
                )
        return {"dict": [[key, _encode(part, (*path, str(key)), arrays)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(part, (*path, str(i)), arrays) for i, part in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DTypeError(
        f"save: {'.'.join(path) or 'value'} must be a tensor, array, number, string, None, dict, list or tuple. "
        f"Got {type(value).__name__}. Save a module's or an optimizer's state_dict()."
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(part, tensors) for key, part in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown container {kind!r}")
    parts = [_decode(part, tensors) for part in content]
    return parts if kind == "list" else tuple(parts)


# --- the format: 8 bytes of length, a header in JSON, then the tensors' bytes one after another ----------------------


def _pack(arrays: dict[str, np.ndarray], metadata: dict[str, str] | None) -> bytes:
    """Return the file's bytes. Wide elements go first, so that each tensor lies aligned."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    ordered = sorted(arrays.items(), key=lambda entry: -entry[1].itemsize)
    offset = 0
    for name, array in ordered:
        end = offset + array.nbytes
        dtype = _NAMES[as_dtype(array.dtype).name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(_little_endian(array).tobytes() for _, array in ordered)])


def _unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and the metadata; raise ValueError, KeyError or TypeError for anything else."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"its header is said to have {length} bytes, and the file has {len(content)}")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors, covered, data = {}, 0, memoryview(content)[8 + length :]
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name} has dtype {entry['dtype']}, and pequegrad has {', '.join(_DTYPES)}")
        if start != covered or end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"the bytes {start} to {end} of {len(data)} cannot be those of {name}, {dtype.name}{shape}"
            )
        array = np.frombuffer(data[start:end], dtype.numpy).reshape(shape)
        tensors[name] = Tensor(_little_endian(array))
        covered = end
    if covered != len(data):
        raise ValueError(f"{len(data) - covered} bytes belong to no tensor")
    return {name: tensors[name] for name in header}, metadata


def _little_endian(array: np.ndarray) -> np.ndarray:
    """Return ``array`` with its bytes in the format's order, or from it: least significant first."""
    return array.byteswap() if sys.byteorder == "big" else array


def _write_whole(path: Path, content: bytes) -> None:
    try:
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                beside.chmod(path.stat().st_mode & 0o777)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except OSError as error:
        raise DataError(f"save: cannot write {path}: {error.strerror or error}.") from error
