"""C text of literals and of an op's one-line expression.

Invariant: every literal that reaches a source goes through `literal`; NaN, infinities and the smallest integer have
no plain spelling in C++.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import DType, bfloat16, float16, float32
from ..errors import CompilerBug
from .plan import Compute

POSITIONS = ("index", "first", "coordinate")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def literal(value: Any, dtype: DType) -> str:
    """Return a number as a C++ literal of ``dtype``'s arithmetic type (bool for bool, float for the half types)."""
    if dtype.kind == "bool":
        return "true" if value else "false"
    if dtype.kind == "int":
        if dtype.name == "int64":
            return "(-9223372036854775807L - 1)" if int(value) == -(2**63) else f"{int(value)}L"
        if dtype.name == "int32":
            return "(-2147483647 - 1)" if int(value) == -(2**31) else str(int(value))
        return f"pg::{dtype.c_name}({int(value)})"
    is_double = dtype.name == "float64"
    number = float(value)
    suffix = "" if is_double else "f"
    if math.isnan(number):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
    text = repr(number) if is_double else _shortest_float32(number)
    return text + suffix


def _shortest_float32(number: float) -> str:
    with np.errstate(over="ignore"):
        rounded = np.float32(number)
    if np.isinf(rounded):
        raise CompilerBug(f"literal {number!r} does not fit into float32")
    text = np.format_float_scientific(rounded, trim="0") if rounded and not 1e-4 <= abs(rounded) < 1e7 else None
    return text or np.format_float_positional(rounded, trim="0")


def scalar_type(dtype: DType) -> str:
    """Return the C++ type in which one element of ``dtype`` is computed: bool, or float for the half types."""
    if dtype.kind == "bool":
        return "bool"
    return f"pg::{computed_as(dtype)}"


def vector_type(dtype: DType) -> str:
    """Return the C++ type in which a vector of ``dtype`` is computed."""
    return f"pg::vec<pg::{computed_as(dtype)}>"


def computed_as(dtype: DType) -> str:
    """Return the name of the type that templates of the runtime compute ``dtype`` in."""
    return float32.c_name if is_half(dtype) else dtype.c_name


def is_half(dtype: DType) -> bool:
    """Whether ``dtype`` is stored in 16 bits and computed in float32."""
    return dtype in (float16, bfloat16)


def rounded(text: str, dtype: DType) -> str:
    """Return an expression whose value has the precision of ``dtype``: each op on half types rounds once."""
    return f"pg::cast<pg::{dtype.c_name}>({text})" if is_half(dtype) else text


def is_literal(compute: Compute) -> bool:
    """Whether a statement is a constant: an op without inputs whose parameter ``value`` is its result."""
    return compute.op.is_constant and not compute.arguments and any(key == "value" for key, _ in compute.params)


def render_expression(compute: Compute, arguments: list[str], position: Callable[[str], str]) -> str:
    """Return the C text of a statement's right-hand side.

    ``arguments``: the names of its operands. ``position``: the text for a placeholder about the element's place:
    "index" (its linear index), "first" (that of the first lane, a scalar), "coordinate" (index / inner % extent).
    """
    if is_literal(compute):
        return literal(dict(compute.params)["value"], compute.dtype)
    params = dict(compute.params)

    def fill(match: re.Match[str]) -> str:
        key = match.group(1)
        if key.isdigit():
            return arguments[int(key)]
        if key == "T":
            return f"pg::{computed_as(compute.dtype)}"
        if key[0] == "T" and key[1:].isdigit():
            return f"pg::{computed_as(compute.argument_dtypes[int(key[1:])])}"
        if key in POSITIONS:
            return position(key)
        if key not in params:
            raise CompilerBug(
                f"op {compute.op.name}: its expression {compute.expression!r} names {{{key}}}, which it has not"
            )
        return _parameter(params[key], compute.dtype)

    text = _PLACEHOLDER.sub(fill, compute.expression)
    if not text:
        raise CompilerBug(f"op {compute.op.name} reached a pointwise kernel without an expression")
    return text


def _parameter(value: Any, dtype: DType) -> str:
    if isinstance(value, DType):
        return f"pg::{computed_as(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if dtype.kind != "float" else literal(value, dtype)
    if isinstance(value, float):
        return literal(value, dtype)
    raise CompilerBug(f"parameter {value!r} has no C literal")
