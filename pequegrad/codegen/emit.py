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
from .launch import MOST_BLOCKS, is_cooperative
from .objects import parted
from .plan import Blocks, Compute, Index, Kernel, StepPlan, Walk, statements
from .rendering import Pointer
from .text import likeness
from .views import OWN_NAME

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"

# Columns of emitted text.
WIDTH = 140
ALIGNMENT = 64
# Letters of an argument's name in messages.
MOST_LETTERS = 60
# Other uses of a function that its comment lists.
MOST_USES = 3
# Kernels of a phase that its name lists.
MOST_NAMES = 3


@record
class Call:
    """One call of an emitted kernel: its arguments as C text, and where they stand among those of its phase.

    ``note`` says what it computes where another call's function serves it too, and is empty elsewhere. ``after``: thread
    blocks that the calls before it in the phase take. ``kernel``: its kernel's number in the plan. ``waits``: in a block of
    samples, whether it touches what a call since the last barrier writes, or writes what one touches."""

    function: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    note: str
    after: int
    can_fail: bool
    kernel: int
    waits: bool = False


@record
class ZeroView:
    """Memory that a chunk of blocks clears at its begin, as C text, what it is called in its phase, and its size."""

    pointer: str
    name: str
    elements: int
    bytes: int


@record
class BlocksView:
    """The grid of a phase that runs its calls block by block; ``begin``, ``bytes``: each worker's own part of the arena,
    of which there are ``workers``, or (``begin`` is 0) of a thread block's shared memory, of which it has at most
    ``most_shared``; ``shared``: texts of the bytes that its calls take there."""

    count: int
    size: int
    chunks: int
    begin: int
    bytes: int
    workers: int
    zeros: tuple[ZeroView, ...]
    shared: tuple[str, ...]
    most_shared: int


@record
class PhaseView:
    """Calls between two barriers; ``is_guarded``: a phase before it can fail.

    For targets that launch phases: ``function`` is its name, ``is_new`` where no phase before has the same text;
    ``parameters`` and ``arguments`` are what it is called with, ``blocks`` the thread blocks of its grid, ``shared`` the
    texts of the bytes of shared memory that its calls need."""

    number: int
    calls: tuple[Call, ...]
    can_fail: bool
    is_last: bool
    is_guarded: bool
    function: str
    is_new: bool
    parameters: tuple[Pointer, ...]
    arguments: tuple[str, ...]
    blocks: int
    shared: tuple[str, ...]
    note: str
    grid: BlocksView | None


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
    ``step.argument`` of each number is, for people. ``is_timed``: each worker writes the time into one more argument, int64
    (workers, ``marks``): at the start, after each call of a phase, and after its barrier."""

    name: str
    headers: tuple[str, ...]
    objects: tuple[tuple[FunctionView, ...], ...]
    arguments: tuple[str, ...]
    slots: tuple[SlotView, ...]
    phases: tuple[PhaseView, ...]
    kernel_count: int
    arena_bytes: int
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


_VIEWS = {"lanes": lane_views, "threads": thread_views}


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
    scratch = _scratch_offsets(plan, target)
    can_fail = False
    for phase in plan.phases:
        rounds: list[list[_Part]] = []
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
                rounds[at].append(_Part(known.name, body, kernel, number, is_shared, walks))
            number += 1
        for parts_of_round in rounds:
            for launched in _launches(parts_of_round, target.most_pointers):
                phases.append(_phase_view(plan, len(phases), launched, phase_functions, can_fail, phase.blocks, target))
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


@record
class _Body:
    """What a kernel, or a part of it up to a barrier, does: its text, its parameters, and what it takes of a device."""

    text: str
    pointers: tuple[Pointer, ...]
    blocks: int
    shared: str

    def moved(self, buffers: dict[int, int]) -> _Body:
        """Return the body on other buffers."""
        pointers = [
            Pointer(p.name, p.type, buffers.get(p.buffer, p.buffer), p.is_written, p.offset) for p in self.pointers
        ]
        return _Body(self.text, tuple(pointers), self.blocks, self.shared)


class _Bodies:
    """Renders the bodies of kernels: once for all that differ in nothing but their buffers and where they come from."""

    def __init__(self, dtypes: tuple[DType, ...], target: Target, codes: CodeStore | None) -> None:
        self.dtypes, self.target, self.codes = dtypes, target, codes
        self.known: dict[Any, tuple[tuple[int, ...], tuple[_Body, ...]]] = {}

    def of(self, kernel: Kernel, number: int, scratch: int, is_alone: bool) -> tuple[_Body, ...]:
        """Return the bodies of a kernel; arguments as of `lane_views.views_of`."""
        text, buffers = likeness(kernel)
        place = number if isinstance(kernel, Index) else -1  # which a report of a wrong index names
        key = text, tuple([self.dtypes[buffer] for buffer in buffers]), place, scratch, is_alone
        known = self.known.get(key)
        if known is None:
            template = _environment(self.target.template_folder, self.codes).get_template(f"{kernel.family}.j2")
            parts = _VIEWS[self.target.execution].views_of(self.dtypes, kernel, number, scratch, self.target, is_alone)
            bodies = [_Body(template.render(k=part), part.head.pointers, part.blocks, part.shared) for part in parts]
            known = self.known[key] = buffers, tuple(bodies)
        twin, bodies_of_twin = known
        if twin == buffers:
            return bodies_of_twin
        return tuple([body.moved(dict(zip(twin, buffers, strict=True))) for body in bodies_of_twin])


@record
class _Function:
    """An emitted function. ``milliseconds``: what it takes the compiler, about. ``uses``: the comments of the kernels that
    it serves, each once, in order."""

    name: str
    text: str
    pointers: tuple[Pointer, ...]
    milliseconds: int
    uses: dict[tuple[str, ...], None]


@record
class _Part:
    """A body that is called in a phase; ``is_shared``: an earlier call's function serves it too."""

    function: str
    body: _Body
    kernel: Kernel
    number: int
    is_shared: bool
    walks: tuple[Walk, ...] = ()


def _launches(parts: list[_Part], most_pointers: int) -> list[list[_Part]]:
    """Return the bodies of a round in as few launches as their parameters allow."""
    launches: list[list[_Part]] = []
    pointers = 0
    for part in parts:
        pointers += len(part.body.pointers)
        if not launches or pointers > most_pointers:
            launches.append([])
            pointers = len(part.body.pointers)
        launches[-1].append(part)
    return launches


def _phase_view(
    plan: StepPlan,
    number: int,
    parts: list[_Part],
    known: dict[Any, str],
    is_guarded: bool,
    blocks: Blocks | None,
    target: Target,
) -> PhaseView:
    calls = []
    parameters: dict[str, Pointer] = {}
    asked = 0
    waits = _waits(plan, parts) if blocks is not None else [False] * len(parts)
    for part, must_wait in zip(parts, waits, strict=True):
        walks = {walk.buffer: walk for walk in part.walks}
        texts, names = [], []
        for pointer in part.body.pointers:
            text, moved = _pointer_text(plan, pointer), _moved(walks.get(pointer.buffer))
            texts.append(text + moved)
            names.append(_parameter(plan, text, pointer, parameters) + moved)
        note = str(part.kernel.origin) if part.is_shared else ""
        can_fail = isinstance(part.kernel, Index)
        after = asked if blocks is None else 0
        calls.append(Call(part.function, tuple(texts), tuple(names), note, after, can_fail, part.number, must_wait))
        asked += part.body.blocks
    asked = blocks.chunks if blocks is not None else asked
    shared = tuple(dict.fromkeys(part.body.shared for part in parts if part.body.shared))
    grid = _blocks_view(plan, blocks, parameters, shared, target) if blocks is not None else None
    identity = (
        is_guarded,
        asked,
        shared,
        tuple((call.function, call.names, call.after) for call in calls),
        tuple((pointer.type, pointer.is_written) for pointer in parameters.values()),
        grid,
    )
    is_new = identity not in known
    if is_new:
        known[identity] = f"phase{number}"
    names_shown = [part.kernel.name for part in parts[:MOST_NAMES]]
    rest = len(parts) - len(names_shown)
    note = ", ".join(names_shown) + (f" and {rest} more" if rest else "")
    if blocks is not None:
        note = f"{blocks.count} blocks of {blocks.size} samples, in {blocks.chunks} chunks: {note}"
    return PhaseView(
        number,
        tuple(calls),
        any(isinstance(part.kernel, Index) for part in parts),
        False,
        is_guarded,
        known[identity],
        is_new,
        tuple(parameters.values()),
        tuple(parameters),
        min(max(asked, 1), MOST_BLOCKS),
        shared if grid is None else (f"{known[identity]}_shared",),
        note,
        grid,
    )


def _parameter(plan: StepPlan, text: str, pointer: Pointer, parameters: dict[str, Pointer]) -> str:
    """Return the name of the phase's parameter for a pointer, adding it at its first use; of what a block keeps to itself,
    the text."""
    if pointer.offset < 0 and plan.buffers[pointer.buffer].scope == "local":
        return text
    before = parameters.get(text)
    is_written = pointer.is_written or (before is not None and before.is_written)
    name = before.name if before is not None else f"p{len(parameters)}"
    parameters[text] = Pointer(name, pointer.type, pointer.buffer, is_written, pointer.offset)
    return name


def _waits(plan: StepPlan, parts: list[_Part]) -> list[bool]:
    """Return which of the bodies that run one after another on a block must wait for those since the last barrier."""
    found = []
    touched: list[tuple[int, int, int, bool]] = []
    for part in parts:
        places = [(*_place(plan, pointer), pointer.is_written) for pointer in part.body.pointers]
        must_wait = any(
            here == there and low < end and begin < high and (is_written or was_written)
            for here, low, high, is_written in places
            for there, begin, end, was_written in touched
        )
        found.append(must_wait)
        touched = [*(() if must_wait else touched), *places]
    return found


def _place(plan: StepPlan, pointer: Pointer) -> tuple[int, int, int]:
    """Return what a pointer reaches: a buffer's number or, of all that blocks keep to themselves, -1; first and last byte."""
    buffer = plan.buffers[pointer.buffer]
    if buffer.scope == "local":
        return -1, buffer.offset, buffer.offset + buffer.nbytes
    return pointer.buffer, 0, 1


def _blocks_view(
    plan: StepPlan, blocks: Blocks, parameters: dict[str, Pointer], shared: tuple[str, ...], target: Target
) -> BlocksView:
    begin, nbytes = _worker_memory(plan, target) if plan.local_bytes else (0, plan.shared_bytes)
    zeros = []
    for number, elements in blocks.sums:
        buffer = plan.buffers[number]
        text, moved = (
            _pointer_text(plan, Pointer("", f"pg::{buffer.dtype.c_name}", number, True)),
            _moved(Walk(number, 0, elements)),
        )
        zeros.append(ZeroView(text + moved, parameters[text].name + moved, elements, elements * buffer.dtype.itemsize))
    return BlocksView(
        blocks.count,
        blocks.size,
        blocks.chunks,
        begin,
        nbytes,
        plan.workers,
        tuple(zeros),
        shared,
        target.shared_bytes,
    )


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


def arena_bytes(plan: StepPlan, target: Target) -> int:
    """Return the bytes of arena that a rendered step needs: the plan's, its kernels' chunk sums, and the workers' own."""
    begin, nbytes = _worker_memory(plan, target)
    return begin + plan.workers * nbytes if nbytes else _shared_end(plan, target)


def _shared_end(plan: StepPlan, target: Target) -> int:
    end = plan.arena_bytes
    in_blocks = _in_blocks(plan)
    for number, offset in _scratch_offsets(plan, target).items():
        if number not in in_blocks:
            end = max(end, offset + _VIEWS[target.execution].scratch_bytes(plan.kernels[number], target, False))
    return end


def _worker_memory(plan: StepPlan, target: Target) -> tuple[int, int]:
    """Return where in the arena the workers' own parts begin, and the bytes of each, the chunk sums of a block included."""
    scratch = [
        _VIEWS[target.execution].scratch_bytes(plan.kernels[number], target, True) for number in _in_blocks(plan)
    ]
    nbytes = _aligned(plan.local_bytes) + _aligned(max(scratch, default=0))
    return _aligned(_shared_end(plan, target)), nbytes


def _in_blocks(plan: StepPlan) -> set[int]:
    """Return the numbers of the kernels that run block by block."""
    found: set[int] = set()
    number = 0
    for phase in plan.phases:
        if phase.blocks is not None:
            found.update(range(number, number + len(phase.kernels)))
        number += len(phase.kernels)
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


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


def _pointer_text(plan: StepPlan, pointer: Pointer) -> str:
    if pointer.offset >= 0:
        return f"step.at<{pointer.type}>({pointer.offset})"
    buffer = plan.buffers[pointer.buffer]
    if buffer.scope == "local":
        return f"own.at<{pointer.type}>({buffer.offset})"
    if buffer.slot < 0:
        return f"step.at<{pointer.type}>({buffer.offset})"
    return f"step.argument<{pointer.type}>({buffer.slot})"


def _moved(walk: Walk | None) -> str:
    """Return how much further the part of a block lies, as text to add to a pointer's."""
    if walk is None:
        return ""
    steps = (("block", walk.block), ("chunk", walk.chunk))
    return "".join(f" + {name} * {stride}" for name, stride in steps if stride)


def _scratch_offsets(plan: StepPlan, target: Target) -> dict[int, int]:
    """Return the byte offset of each kernel's chunk sums, by the kernel's number in the plan: in the arena or, of those
    that run block by block, in their worker's own part."""
    offsets = {}
    in_blocks = _in_blocks(plan)
    end = _aligned(plan.arena_bytes)
    for number, kernel in enumerate(plan.kernels):
        size = _VIEWS[target.execution].scratch_bytes(kernel, target, number in in_blocks)
        if size and number in in_blocks:
            offsets[number] = _aligned(plan.local_bytes)
        elif size:
            offsets[number] = end
            end += _aligned(size)
    return offsets
