"""The readable, canonical text of a plan: what a cache key is made of, and what people are shown.

Invariant: equal texts render to equal sources; no path but a source file's last part appears.
"""

from __future__ import annotations

import re
from typing import Any

from ..dtypes import DType
from ..ops.core import Op
from ..records import Record, fields
from ..trace.graph import format_param
from .plan import Kernel, StepPlan


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


def likeness(kernel: Kernel) -> tuple[str, tuple[int, ...]]:
    """Return the text of a kernel without name and origin, in which its accesses name buffers by the order in which they
    come, and those buffers: kernels of one text differ in nothing else."""
    numbers: dict[str, int] = {}
    text = _BUFFER.sub(
        lambda found: f"Access({numbers.setdefault(found[1], len(numbers))}", "\n".join(_field_lines(kernel))
    )
    return f"{kernel.family}{text}", tuple(map(int, numbers))


_BUFFER = re.compile(r"Access\(buffer=(\d+)")


def _kernel_lines(kernel: Kernel) -> list[str]:
    return [f"    {kernel.family} {kernel.name}  # {kernel.origin}", *_field_lines(kernel)]


def _field_lines(kernel: Kernel) -> list[str]:
    lines: list[str] = []
    for name, value in fields(kernel).items():
        if name in ("name", "origin"):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Record):
            lines.append(f"      {name}:")
            lines.extend([f"        {_text(part)}" for part in value])
        else:
            lines.append(f"      {name}={_text(value)}")
    return lines


def _text(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return repr(value)
    if kind is tuple:
        return "[" + ",".join([_text(part) for part in value]) + "]"
    if kind is DType:
        return value.name
    if isinstance(value, Record):
        return f"{kind.__name__}({' '.join([f'{name}={_text(part)}' for name, part in fields(value).items()])})"
    if isinstance(value, type) and issubclass(value, Op):
        return value.name
    return format_param(value)
