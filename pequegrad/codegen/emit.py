"""From a StepPlan to source text: the only user of jinja2.

Invariant: the text depends on the plan and the target alone (no paths, dates, ids or set order).
"""

from __future__ import annotations

import functools
import hashlib
import marshal
import re
import sys
from collections.abc import Collection
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, Protocol

from ..dtypes import DType
from ..ops.core import Family
from ..records import record, replace
from ..targets import Target
from . import lane_views, thread_views
from .launch import is_cooperative
from .objects import parted
from .phase_views import Body, Part, PhaseView, launches, phase_view
from .plan import Compute, Conv2d, Index, Kernel, StepPlan, statements
from .rendering import Pointer
from .scratch import arena_bytes, queue_memory, scratch_offsets
from .text import likeness
from .views import OWN_NAME

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

# Columns of emitted text.
WIDTH = 140
# Letters of an argument's name in messages.
MOST_LETTERS = 60
# Other uses of a function that its comment lists.
MOST_USES = 3


@record
class SlotView:
    """A passed buffer: its bytes, which way it goes, and what people call it, as the text of a C string."""

    bytes: int
    is_read: bool
    is_written: bool
    is_state: bool
    name: str


@record
class FunctionView:
    """An emitted function: its text with its comment, and its parameters but for the step and the worker."""

    name: str
    pointers: tuple[Pointer, ...]
    text: str


@record
class StepView:
    """The whole file. ``objects``: its functions, by the object that they are compiled to. ``arguments``: what
    ``step.argument`` of each number is, for people. ``queues_begin``, ``queue_bytes``: where in the arena queues lie, for
    ``workers`` and no more. ``is_timed``: each worker writes the time into one more argument, int64 (workers, ``marks``): at
    the start, after each call of a phase, and after its barrier."""

    name: str
    headers: tuple[str, ...]
    objects: tuple[tuple[FunctionView, ...], ...]
    arguments: tuple[str, ...]
    slots: tuple[SlotView, ...]
    phases: tuple[PhaseView, ...]
    kernel_count: int
    arena_bytes: int
    queues_begin: int
    queue_bytes: int
    workers: int
    is_cooperative: bool
    is_timed: bool

    @property
    def functions(self) -> tuple[FunctionView, ...]:
        """The functions of all objects."""
        return tuple(function for functions in self.objects for function in functions)

    @property
    def marks(self) -> int:
        """How often a worker of a timed step looks at the clock."""
        return 1 + sum(len(phase.calls) + 1 for phase in self.phases)

    @property
    def blocks(self) -> int:
        """Thread blocks that the largest phase asks for."""
        return max((phase.blocks for phase in self.phases), default=1)

    @property
    def shared(self) -> tuple[str, ...]:
        """Texts of the bytes of shared memory that the phases need."""
        return tuple(dict.fromkeys(text for phase in self.phases for text in phase.shared))

    @property
    def can_fail(self) -> bool:
        return any(phase.can_fail for phase in self.phases)

    @property
    def has_blocks(self) -> bool:
        """Whether a phase runs block by block."""
        return any(phase.grid is not None for phase in self.phases)


_VIEWS_OF = {"lanes": lane_views.views_of, "threads": thread_views.views_of}


class CodeStore(Protocol):
    """Keeps, for later processes, the Python code that templates were compiled to: 0.07 s for those of a convnet."""

    def __hash__(self) -> int:
        """An environment of templates is kept for each store."""

    def recall(self, digest: str) -> bytes | None:
        """Return what was kept under a digest, whole, or None."""

    def keep(self, digest: str, code: bytes) -> None:
        """Keep it where that is possible."""


def render(plan: StepPlan, target: Target, *, is_timed: bool = False, codes: CodeStore | None = None) -> str:
    """Return the source of a step for a target. ``codes``: where the code of templates is kept."""
    step = view(plan, target, is_timed=is_timed, codes=codes)
    text = _environment(target.template_folder, codes).get_template("step.j2").render(step=step)
    wrapped = "\n".join(part.rstrip() for line in text.split("\n") for part in _wrapped(line))
    return re.sub(r"\n{3,}", "\n\n", wrapped).strip() + "\n"


def view(plan: StepPlan, target: Target, *, is_timed: bool = False, codes: CodeStore | None = None) -> StepView:
    """Return the record that the step's template shows."""
    bodies = _Bodies(tuple(buffer.dtype for buffer in plan.buffers), target, codes)
    functions: dict[str, _Function] = {}
    phase_functions: dict[Any, str] = {}
    phases: list[PhaseView] = []
    number = 0
    scratch = scratch_offsets(plan, target)
    can_fail = False
    for phase in plan.phases:
        rounds: list[list[Part]] = []
        for position, kernel in enumerate(phase.kernels):
            walks = phase.blocks.walks[position] if phase.blocks is not None else ()
            is_alone = phase.blocks is not None
            comment = _said_of(kernel)
            for at, body in enumerate(bodies.of(kernel, number, scratch.get(number, -1), is_alone)):
                known = functions.get(body.text)
                is_shared = known is not None
                if known is None:
                    name = _unused(_identifier(kernel.name), [function.name for function in functions.values()])
                    known = functions[body.text] = _Function(
                        name,
                        body.text.replace(OWN_NAME, name),
                        body.pointers,
                        target.milliseconds_of(kernel.family),
                        {},
                    )
                known.uses[comment] = None
                if at == len(rounds):
                    rounds.append([])
                rounds[at].append(Part(known.name, body, kernel, number, is_shared, walks))
            number += 1
        for parts_of_round in rounds:
            for launched in launches(parts_of_round, target.most_pointers):
                phases.append(phase_view(plan, len(phases), launched, phase_functions, can_fail, phase.blocks, target))
                can_fail = can_fail or phases[-1].can_fail
    if phases:
        phases[-1] = replace(phases[-1], is_last=True)
    headers = dict.fromkeys(header for kernel in plan.kernels for header in target.headers_of(kernel.family))
    if any(isinstance(s, Compute) and isinstance(s.op.lowering, Family) for k in plan.kernels for s in statements(k)):
        headers[target.random_header] = None
    return StepView(
        plan.name,
        tuple(headers),
        _objects(list(functions.values()), plan.workers),
        _arguments(plan),
        _slots(plan),
        tuple(phases),
        number,
        arena_bytes(plan, target),
        *queue_memory(plan, target),
        plan.workers,
        is_cooperative(target.launch, [phase.blocks for phase in phases], len(plan.slots)),
        is_timed,
    )


def _objects(functions: list[_Function], workers: int) -> tuple[tuple[FunctionView, ...], ...]:
    """Return the functions by the object that they are compiled to: at most as many as the step has workers."""
    numbers = parted([function.milliseconds for function in functions], workers)
    found: list[list[FunctionView]] = [[] for _ in range(max(numbers, default=0) + 1)]
    for number, function in zip(numbers, functions, strict=True):
        # One object calls what is in another.
        text = function.text if len(found) == 1 else function.text.removeprefix("static ")
        found[number].append(FunctionView(function.name, function.pointers, _comment(list(function.uses)) + text))
    return tuple(map(tuple, found))


def _said_of(kernel: Kernel) -> tuple[str, ...]:
    """Return the lines that say what a kernel computes, and where the user wrote it."""
    origin = kernel.origin
    where = ", ".join(str(location) for location in origin.locations)
    what = f"{' '.join(origin.ops)} -> {origin.result}"
    return (where, what) if where else (what,)


class _Bodies:
    """Renders the bodies of kernels: once for all that differ in nothing but their buffers and where they come from."""

    def __init__(self, dtypes: tuple[DType, ...], target: Target, codes: CodeStore | None) -> None:
        self.dtypes, self.target, self.codes = dtypes, target, codes
        self.known: dict[Any, tuple[tuple[int, ...], int, tuple[Body, ...]]] = {}

    def of(self, kernel: Kernel, number: int, scratch: int, is_alone: bool) -> tuple[Body, ...]:
        """Return the bodies of a kernel; arguments as of `lane_views.views_of`."""
        text, buffers = likeness(kernel)
        place = number if isinstance(kernel, Index) else -1  # which a report of a wrong index names
        # Of convolutions the text may name the place of chunk sums.
        own = scratch if isinstance(kernel, Conv2d) else scratch >= 0
        key = text, tuple([self.dtypes[buffer] for buffer in buffers]), place, own, is_alone
        known = self.known.get(key)
        if known is None:
            template = _environment(self.target.template_folder, self.codes).get_template(f"{kernel.family}.j2")
            parts = _VIEWS_OF[self.target.execution](self.dtypes, kernel, number, scratch, self.target, is_alone)
            bodies = [Body(template.render(k=part), part.head.pointers, part.blocks, part.shared) for part in parts]
            known = self.known[key] = buffers, scratch, tuple(bodies)
        twin, scratch_of_twin, bodies_of_twin = known
        if twin == buffers and scratch == scratch_of_twin:
            return bodies_of_twin
        return tuple([body.moved(dict(zip(twin, buffers, strict=True)), scratch) for body in bodies_of_twin])


@record
class _Function:
    """An emitted function. ``milliseconds``: what it takes the compiler, about. ``uses``: the comments of the kernels that
    it serves, each once, in order."""

    name: str
    text: str
    pointers: tuple[Pointer, ...]
    milliseconds: int
    uses: dict[tuple[str, ...], None]


def _slots(plan: StepPlan) -> tuple[SlotView, ...]:
    """Return each passed buffer; only results are never read."""
    buffers = [plan.buffers[number] for number in plan.slots]
    return tuple(
        SlotView(
            buffer.nbytes,
            buffer.scope != "result",
            buffer.is_written,
            buffer.scope == "state",
            re.sub(r"[^\w .\[\]-]", "_", buffer.name, flags=re.ASCII)[:MOST_LETTERS],
        )
        for buffer in buffers
    )


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


# How templates are read: all of it is in the digest of their code.
_SYNTAX: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "autoescape": False,
    "keep_trailing_newline": True,
}


@functools.cache
def _environment(folder: str, codes: CodeStore | None) -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES / folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        bytecode_cache=None if codes is None else _KeptCode(codes, jinja2.__version__),  # type: ignore[arg-type]
        **_SYNTAX,
    )


class _KeptCode:
    """What Jinja asks before it compiles a template, as a `jinja2.BytecodeCache`.

    Not a subclass, as type checkers want: that would import jinja2 with this module, which also makes plans and views.
    """

    def __init__(self, store: CodeStore, version: str) -> None:
        self._store = store
        self._compiler = repr((version, MAGIC_NUMBER, sys.implementation.cache_tag, _SYNTAX))

    def get_bucket(self, environment: Any, name: str, filename: str | None, source: str) -> SimpleNamespace:
        """Return the place of a template's code, empty where none was kept."""
        text = "\0".join((self._compiler, name, filename or "", source))
        digest = hashlib.sha256(text.encode()).hexdigest()[:40]
        data = self._store.recall(digest)
        code = None if data is None else marshal.loads(data)
        return SimpleNamespace(digest=digest, code=code if isinstance(code, CodeType) else None)

    def set_bucket(self, bucket: SimpleNamespace) -> None:
        """Keep the code that a template was compiled to."""
        self._store.keep(bucket.digest, marshal.dumps(bucket.code))


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W+", "_", name).strip("_")
    return cleaned if cleaned and not cleaned[0].isdigit() else f"k_{cleaned}"


def _comment(uses: list[tuple[str, ...]]) -> str:
    """Return a function's comment: the user's lines of its first use, those of others, and what it computes."""
    (*places, what), *others = uses
    also = [f"also {use[0] if use[-1] == what else ': '.join(use)}" for use in others]
    rest = [f"and {len(also) - MOST_USES} more"] if len(also) > MOST_USES else []
    return "".join(f"// {line}\n" for line in (*places, *also[:MOST_USES], *rest, what))


def _arguments(plan: StepPlan) -> tuple[str, ...]:
    lines = []
    for slot, number in enumerate(plan.slots):
        buffer = plan.buffers[number]
        extents = ",".join(map(str, buffer.shape))
        # A key of the user's dict stands in the name of what lay under it, and may print as more than one line.
        name = " ".join(buffer.name.split())
        lines.append(f"step.argument {slot}: {buffer.scope} {name}, {buffer.dtype.name}[{extents}]")
    return tuple(lines)
