"""The readable, canonical text of a plan: what a cache key is made of, and what people are shown.

Invariant: equal texts render to equal sources; no path but a source file's last part appears.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ..ops.core import Op
from ..records import Record, fields
from ..trace.graph import format_param
from .plan import Access, Compute, Kernel, Load, StepPlan


def format_plan(plan: StepPlan) -> str:
    """Return the text of a plan: buffers, then phases with their kernels, one record a line."""
    own = f"+{plan.local_bytes} a worker" if plan.local_bytes else ""
    own += f"+{plan.shared_bytes} shared" if plan.shared_bytes else ""
    lines = [f"plan {plan.name} workers={plan.workers} arena={plan.arena_bytes}{own} slots={list(plan.slots)}"]
    for number, buffer in enumerate(plan.buffers):
        lines.append(f"  buffer {number} {_text(buffer)}")
    for number, phase in enumerate(plan.phases):
        lines.append(f"  phase {number}{''.join(f' {_text(axis)}' for axis in phase.grid)}")
        if phase.blocks is not None:
            lines.append(f"    {_text(phase.blocks)}")
        for kernel in phase.kernels:
            lines.extend(_kernel_lines(kernel))
    return "\n".join(lines) + "\n"


def likeness(kernel: Kernel) -> tuple[Hashable, tuple[int, ...]]:
    """Return what kernels share only if they differ in nothing but name, origin and buffers, and the buffers, in the order
    in which its accesses first name them."""
    numbers: dict[int, int] = {}

    def alike(value: Any) -> Any:
        kind = type(value)
        if kind is Access:
            return numbers.setdefault(value.buffer, len(numbers)), value.strides, value.offset
        if kind is Load:
            return value.dst, value.dtype, alike(value.access)
        if kind is Compute:
            # By text: 0.0 and -0.0 are equal in Python, and so are 1 and True.
            params = repr(value.params) if value.params else ""
            index = None if value.index is None else (value.index.strides, value.index.offset)
            return value.dst, value.dtype, value.op, value.arguments, value.argument_dtypes, params, index
        if kind is tuple:
            return tuple([alike(part) for part in value])
        if isinstance(value, Record):
            return kind, *map(alike, value.values())
        return repr(value) if kind is float else value

    parts = [alike(value) for name, value in fields(kernel).items() if name not in ("name", "origin")]
    return (type(kernel), *parts), tuple(numbers)


def _kernel_lines(kernel: Kernel) -> list[str]:
    return [f"    {kernel.family} {kernel.name}  # {kernel.origin}", *_field_lines(kernel)]


def _field_lines(kernel: Kernel) -> list[str]:
    lines: list[str] = []
    for name, value in fields(kernel).items():
        if name in ("name", "origin"):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Record):
            lines.append(f"      {name}:")
            lines += [f"        {_WRITERS[type(part)](part)}" for part in value]
        else:
            lines.append(f"      {name}={_text(value)}")
    return lines


def _text(value: Any) -> str:
    return _WRITERS[type(value)](value)


def _tuple_text(value: tuple[Any, ...]) -> str:
    return "[" + ",".join([_WRITERS[type(part)](part) for part in value]) + "]"


class _Writers(dict[type, Callable[[Any], str]]):
    """By class, what writes the text of a value."""

    def __missing__(self, kind: type) -> Callable[[Any], str]:
        if issubclass(kind, Record):
            found = _record_writer(kind)
        else:
            found = _op_name if issubclass(kind, type) else format_param
        self[kind] = found
        return found


def _op_name(value: type[Op]) -> str:
    return value.name


def _record_writer(kind: type[Record]) -> Callable[[Any], str]:
    """Return what writes records of a class: its name, and the fields with theirs."""
    names: tuple[str, ...] = kind.__slots__
    labels = [f" {name}=" for name in names]
    head, first = kind.__name__, len(" ")

    def write(value: Any) -> str:
        parts = [label + _WRITERS[type(part)](part) for label, part in zip(labels, value.values(), strict=True)]
        return f"{head}({''.join(parts)[first:]})"

    return write


_WRITERS = _Writers({int: repr, tuple: _tuple_text})
