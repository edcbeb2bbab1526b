"""From a StepPlan to source text: the only user of jinja2.

Invariant: the text depends on the plan and the target alone (no paths, dates, ids or set order).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ops.core import Family
from ..targets import Target
from .plan import Compute, Conv2d, Index, StepPlan, statements
from .rendering import Pointer
from .views import KernelHead, view_of

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

# Columns of emitted text.
WIDTH = 140
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an emitted kernel: its arguments as C text.

    ``note`` says what it computes where another call's function serves it too, and is empty elsewhere."""

    function: str
    arguments: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class PhaseView:
    """Calls between two barriers."""

    number: int
    calls: tuple[Call, ...]
    can_fail: bool
    is_last: bool


@dataclass(frozen=True, slots=True)
class StepView:
    """The whole file. ``arguments``: what ``step.argument`` of each number is, for people."""

    name: str
    headers: tuple[str, ...]
    functions: tuple[str, ...]
    arguments: tuple[str, ...]
    phases: tuple[PhaseView, ...]
    kernel_count: int
    arena_bytes: int


# What each family needs beside phases.h.
HEADERS = {
    "map": ("gemm.h", "math.h"),
    "row": ("gemm.h", "accumulate.h"),
    "contract": ("gemm.h", "math.h", "scratch.h"),
    "conv2d": ("gemm.h", "math.h", "conv.h", "scratch.h"),
    "window": ("gemm.h", "window.h"),
    "index": ("indexing.h",),
    "scan": ("indexing.h",),
}
PHILOX = "philox.h"


def render(plan: StepPlan, target: Target) -> str:
    """Return the source of a step for a target."""
    environment = _environment(target.template_folder)
    functions: dict[str, str] = {}
    texts: list[str] = []
    phases = []
    number = 0
    partials = _partial_offsets(plan)
    for phase_number, phase in enumerate(plan.phases):
        calls = []
        for kernel in phase.kernels:
            view = view_of(plan, kernel, number, partials.get(id(kernel), -1), target.lanes)
            template = environment.get_template(f"{kernel.family}.j2")
            body = template.render(k=view)
            is_shared = body in functions
            if not is_shared:
                functions[body] = _unused(_identifier(kernel.name), functions.values())
                texts.append(_comment(view.head) + body.replace(view.head.name, functions[body]))
            calls.append(
                Call(
                    functions[body],
                    tuple(_pointer_text(plan, pointer) for pointer in view.head.pointers),
                    str(kernel.origin) if is_shared else "",
                )
            )
            number += 1
        can_fail = any(isinstance(kernel, Index) for kernel in phase.kernels)
        phases.append(PhaseView(phase_number, tuple(calls), can_fail, phase_number == len(plan.phases) - 1))
    headers = dict.fromkeys(header for kernel in plan.kernels for header in HEADERS[kernel.family])
    if any(isinstance(s, Compute) and isinstance(s.op.lowering, Family) for k in plan.kernels for s in statements(k)):
        headers[PHILOX] = None
    step = StepView(plan.name, tuple(headers), tuple(texts), _arguments(plan), tuple(phases), number, arena_bytes(plan))
    text = environment.get_template("step.j2").render(step=step)
    wrapped = "\n".join(part.rstrip() for line in text.split("\n") for part in _wrapped(line))
    return re.sub(r"\n{3,}", "\n\n", wrapped).strip() + "\n"


def _wrapped(line: str) -> list[str]:
    """Break a long line after commas; a comment, between words."""
    parts = []
    indent = " " * (len(line) - len(line.lstrip()))
    is_comment = line.lstrip().startswith("//")
    prefix = f"{indent}//   " if is_comment else f"{indent}    "
    while len(line) > WIDTH:
        at = line.rfind(" " if is_comment else ", ", len(prefix) + 1, WIDTH)
        if at < 0:
            break
        at += 1 if is_comment else 2
        parts.append(line[:at])
        line = prefix + line[at:]
    return [*parts, line]


def _unused(name: str, used: Collection[str]) -> str:
    while name in used:
        name += "_"
    return name


def arena_bytes(plan: StepPlan) -> int:
    """Return the bytes of arena that a rendered step needs: the plan's, and the chunk sums of weight gradients."""
    offsets = _partial_offsets(plan)
    end = plan.arena_bytes
    for kernel in plan.kernels:
        if id(kernel) in offsets and isinstance(kernel, Conv2d):
            end = max(end, offsets[id(kernel)] + _partial_bytes(kernel))
    return end


@functools.cache
def _environment(folder: str) -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES / folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W+", "_", name).strip("_")
    return cleaned if cleaned and not cleaned[0].isdigit() else f"k_{cleaned}"


def _comment(head: KernelHead) -> str:
    return "".join(f"// {line}\n" for line in head.comment)


def _arguments(plan: StepPlan) -> tuple[str, ...]:
    lines = []
    for slot, number in enumerate(plan.slots):
        buffer = plan.buffers[number]
        extents = ",".join(map(str, buffer.shape))
        # A key of the user's dict stands in the name of what lay under it, and may print as more than one line.
        name = " ".join(buffer.name.split())
        lines.append(f"step.argument {slot}: {buffer.scope} {name}, {buffer.dtype.name}[{extents}]")
    return tuple(lines)


def _pointer_text(plan: StepPlan, pointer: Pointer) -> str:
    buffer = plan.buffers[pointer.buffer]
    if buffer.slot >= 0:
        return f"step.argument<{pointer.type}>({buffer.slot})"
    return f"step.at<{pointer.type}>({buffer.offset})"


def _partial_bytes(kernel: Conv2d) -> int:
    """Bytes of the chunk sums of a weight gradient."""
    return kernel.shape.weight_chunks * kernel.shape.weight_elements * kernel.dtype.itemsize


def _partial_offsets(plan: StepPlan) -> dict[int, int]:
    offsets = {}
    end = -(-plan.arena_bytes // ALIGNMENT) * ALIGNMENT
    for kernel in plan.kernels:
        if isinstance(kernel, Conv2d) and kernel.kind == "grad_weight":
            offsets[id(kernel)] = end
            end += -(-_partial_bytes(kernel) // ALIGNMENT) * ALIGNMENT
    return offsets
