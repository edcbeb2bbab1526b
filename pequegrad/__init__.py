"""pequegrad: eager tensors, and whole training steps compiled ahead of time."""

from .config import config
from .dtypes import bfloat16, bool_, float16, float32, float64, int32, int64, uint8
from .tensor import Tensor

__all__ = [
    "Tensor", "bfloat16", "bool_", "config", "float16", "float32", "float64", "int32", "int64", "uint8",
]  # fmt: skip
