"""The readable, canonical text of a plan: what a cache key is made of, and what people are shown.

Invariant: equal texts render to equal sources; no path but a source file's last part appears.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..dtypes import DType
from ..ops.core import Op
from ..trace.graph import Location, format_param
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


def _kernel_lines(kernel: Kernel) -> list[str]:
    lines = [f"    {kernel.family} {kernel.name}  # {kernel.origin}"]
    for item in dataclasses.fields(kernel):
        value = getattr(kernel, item.name)
        if item.name in ("name", "origin"):
            continue
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            lines.append(f"      {item.name}:")
            lines.extend(f"        {_text(part)}" for part in value)
        else:
            lines.append(f"      {item.name}={_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, Location):
        return str(value)
    if isinstance(value, DType):
        return value.name
    if isinstance(value, type) and issubclass(value, Op):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = " ".join(f"{f.name}={_text(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    if isinstance(value, tuple):
        return "[" + ",".join(_text(part) for part in value) + "]"
    return format_param(value)
