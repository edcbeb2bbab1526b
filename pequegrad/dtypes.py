"""The element types, and how they promote: torch's lattice, without torch.

Invariant: a DType is one of the eight module-level instances, compared by identity.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .errors import DTypeError
from .records import Frozen


class DType(Frozen):
    """An element type. ``kind`` is 'bool', 'int' or 'float'; ``rank`` orders the lattice inside and across kinds."""

    name: str
    kind: str
    rank: int
    c_name: str

    def __init__(self, name: str, kind: str, rank: int, c_name: str) -> None:
        self.set_fields(name=name, kind=kind, rank=rank, c_name=c_name)

    @cached_property
    def numpy(self) -> np.dtype:
        """The NumPy dtype of the same name. Found at first use: bfloat16's comes with a library that loads slowly."""
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.name)

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize

    @property
    def is_floating_point(self) -> bool:
        return self.kind == "float"

    def __repr__(self) -> str:
        return f"pequegrad.{self.name}"

    def __reduce__(self) -> str:
        return self.name if self.name != "bool" else "bool_"


bool_ = DType("bool", "bool", 0, "b8")
uint8 = DType("uint8", "int", 1, "u8")
int32 = DType("int32", "int", 2, "i32")
int64 = DType("int64", "int", 3, "i64")
float16 = DType("float16", "float", 4, "f16")
bfloat16 = DType("bfloat16", "float", 5, "bf16")
float32 = DType("float32", "float", 6, "f32")
float64 = DType("float64", "float", 7, "f64")

DTYPES = (bool_, uint8, int32, int64, float16, bfloat16, float32, float64)
_KIND_RANK = {"bool": 0, "int": 1, "float": 2}
_BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES if dtype is not bfloat16}
_BY_NAME = {dtype.name: dtype for dtype in DTYPES} | {
    "float": float32,
    "double": float64,
    "long": int64,
    "half": float16,
}
_PYTHON = {bool: bool_, int: int64, float: float32}


def as_dtype(value: Any) -> DType:
    """Return the DType named by a DType, a NumPy dtype, a Python type or a name such as ``"float32"``.

    Raises DTypeError for anything that pequegrad does not have.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    if isinstance(value, type) and value in _PYTHON:
        return _PYTHON[value]
    try:
        given = np.dtype(value)
        found = _BY_NUMPY.get(given) or (bfloat16 if given == bfloat16.numpy else None)
    except TypeError:
        found = None
    if found is None:
        names = ", ".join(dtype.name for dtype in DTYPES)
        raise DTypeError(f"dtype {value!r} is not one of {names}. Convert the data first, for example to float32.")
    return found


def promote(first: DType, second: DType) -> DType:
    """Return the dtype of a result made of two dtypes of equal standing, as ``torch.promote_types`` does."""
    if first is second:
        return first
    if first.kind == second.kind == "float" and {first, second} == {float16, bfloat16}:
        return float32
    return first if first.rank > second.rank else second


def result_type(operands: list[tuple[DType, int | None]]) -> DType:
    """Return the dtype that operands compute in, as ``torch.result_type`` does.

    Each operand is (dtype, ndim), with ndim None for a Python scalar. Tensors with dimensions decide;
    tensors without dimensions count only if they are of a higher kind; Python scalars likewise, last.
    """
    levels: list[DType | None] = [None, None, None]
    for dtype, ndim in operands:
        standing = 2 if ndim is None else int(ndim == 0)
        known = levels[standing]
        levels[standing] = dtype if known is None else promote(known, dtype)
    result: DType | None = None
    for level in levels:
        if level is not None and (result is None or _KIND_RANK[level.kind] > _KIND_RANK[result.kind]):
            result = level
    if result is None:
        raise DTypeError("result_type needs at least one operand. Got none.")
    return result
