"""Tensors to a file and back, in the safetensors format: never pickle, so loading runs no code.

Invariant: a file appears under its name only when it is complete. A flat dict of tensors is a plain safetensors file,
readable by other frameworks; order and nesting stand in its metadata.
"""

from __future__ import annotations

import contextlib
import json
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
    _write_whole(Path(path), to_bytes(value))


def to_bytes(value: Any) -> bytes:
    """Return what `save` would write. Raises DTypeError as it does."""
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(value, (), arrays)
    from safetensors.numpy import save as pack  # only where a file is written: it would slow the package's import

    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return pack(whole, {STRUCTURE: json.dumps(structure)})


def load(path: str | os.PathLike[str]) -> Any:
    """Return what `save` wrote, arrays as Tensors without gradient history; of another's file, a dict of Tensors.

    Raises DataError for a file that is missing, truncated or not in the safetensors format.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"load: cannot read {path}: {error.strerror or error}.") from error
    return from_bytes(content, path)


def from_bytes(content: bytes, path: str | os.PathLike[str]) -> Any:
    """Return what `load` returns for a file of this content; ``path`` is for messages. Raises DataError."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"load: {path} is not a whole safetensors file: {error}. It is truncated, or was written by something else."
        ) from error
    tensors = {name: _tensor(name, entry, path) for name, entry in entries}
    structure = header.get("__metadata__", {}).get(STRUCTURE)
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
        arrays[name] = (value if isinstance(value, Tensor) else Tensor(value)).__array__()
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


def _tensor(name: str, entry: dict[str, Any], path: Any) -> Tensor:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise DataError(f"load: {path}: {name} has dtype {entry['dtype']}. Expected one of {', '.join(_DTYPES)}.")
    array = np.frombuffer(entry["data"], dtype.numpy).reshape(entry["shape"])
    return Tensor(array.byteswap() if sys.byteorder == "big" else array)


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
