"""Plain functions of ops, and the table of Tensor's operators and in-place methods.

Invariant: nothing here has a gradient or a kernel of its own; fusion makes them fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import elementwise

METHODS: dict[str, Callable[..., Any]] = {}
"""Functions of this module that are Tensor methods too."""

OPERATORS: dict[str, tuple[Callable[..., Any], bool]] = {
    "add": (elementwise.add, True),
    "mul": (elementwise.mul, True),
}
"""Python's operators: name without underscores → (function, whether there is a reflected form)."""

IN_PLACE: dict[str, Callable[..., Any]] = {
    "__iadd__": elementwise.add,
    "__imul__": elementwise.mul,
    "add_": elementwise.add,
    "mul_": elementwise.mul,
}
"""In-place methods: name → the out-of-place function whose result is assigned."""
