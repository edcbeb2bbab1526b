"""What user code reads from outside while it is traced, and whether it draws random numbers: seen line by line.

Invariant: a value that code which is neither ours nor a library's reaches from a global, a free variable or an
attribute ends up as a guard, unless it was made inside the trace; the watching itself runs no user code.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import functools
import gc
import operator
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from ..config import is_environment
from ..locations import USER_FILES, location_at, user_location
from ..tensor import Tensor
from .bytecode import GLOBAL, LOCAL, Chain, Line, lines_of
from .callees import Callees, forward_of
from .fingerprint import TooLarge, holding, is_module
from .graph import Location
from .random_sources import (
    comparable,
    full_global_states,
    full_state,
    global_state,
    is_random_source,
    is_system_random,
    keeps_a_normal,
    put_back,
    put_back_global_states,
    quick_global_state,
    random_state,
)
from .reads import (
    FROZEN_ITERATOR,
    GONE,
    MISSING,
    NAMES,
    TOO_MUCH,
    CellReader,
    GlobalReader,
    ObjectReader,
    Read,
    holds_iterator,
    static_attribute,
    static_item,
)
from .tracer import Tracer

_NOW = ("now", "utcnow", "today")
_CLOCK = (
    "this line reads a clock or the system's random bytes, which would be frozen in the compiled step. Pass the value "
    "as an argument, or read it outside the compiled function."
)
_ATTRGETTER = (
    "this line reads attributes through operator.attrgetter, where a compiled step cannot see which, so that a change "
    "of them would not take effect. Write them out, as in object.name."
)
_ITERATOR = f"this line uses an iterator from outside: {FROZEN_ITERATOR}"
_NO_LINE = Line((), (), False)
_CLOCKS = frozenset(
    {time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.perf_counter, time.perf_counter_ns}
    | {time.process_time, time.process_time_ns, time.localtime, time.gmtime, os.urandom}
)


class Watch:
    """Sees one traced call. Use ``watching`` once, then ask."""

    def __init__(self, function: Callable[..., Any], tracer: Tracer, *, is_guarding: bool = True) -> None:
        """``is_guarding``: whether what was read is asked for afterwards, and not alone what was drawn."""
        self._tracer = tracer
        self._is_guarding = is_guarding
        self._function = getattr(function, "__wrapped__", function)
        self._called = getattr(function, "__func__", function)
        self._reads: dict[Any, Read | None] = {}
        self._written: set[tuple[int, Any]] = set()
        self._stores: dict[Any, tuple[Any, Any, str, Location]] = {}
        self._callees = Callees()
        self._kept: list[Any] = []
        self._generators: dict[int, tuple[Any, str, Location]] = {}
        self._module_lines: dict[tuple[str, str], Location] = {}
        self._previous: dict[int, int] = {}
        self._functions: dict[CodeType, list[Any]] = {}
        self._problem: str | None = None
        self._drawn: Location | None = None
        self._last: Location | None = None
        self._saved_states = full_global_states()
        self._first_state = comparable(self._saved_states)
        self._read_state = global_state if keeps_a_normal(self._saved_states) else quick_global_state
        self._random_state = self._read_state()
        self._saved_generators: dict[int, tuple[Any, Any]] = {}

    # --- watching -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what user code does in this thread inside the block."""
        if isinstance(self._function, functools.partial):
            function, line = self._function, user_location()
            self._add(lambda: function, (), function, "the function", line, (id(function), ()))
        holding.made = []
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)
            self._check_random()
            if self._drawn is None and global_state() != self._first_state:
                self._drawn = self._last
            if self._is_guarding:
                problem = self._callees.finish()
                self._problem = self._problem or problem
                self._keep_stores()
            # Kept only so that no id was used twice; among them are tensors of the trace.
            self._kept.clear()
            self._functions.clear()

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not USER_FILES[code.co_filename]:
            return None
        if code.co_filename == "<string>" and code.co_name.startswith("__"):
            return None  # the methods that dataclasses write themselves
        function = forward_of(frame)
        if self._last is None:  # the compiled function itself, whose arguments come from outside
            if isinstance(self._called, types.FunctionType) and self._called.__code__ is code:
                function = self._called
            self._last = Location(code.co_filename, frame.f_lineno, code.co_name)
            for name, value in frame.f_locals.items():
                if is_random_source(value):
                    self._add(None, (), value, name, self._last, None)
        if self._is_guarding:
            self._callees.note(frame, function)
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event in ("line", "return"):
            self._check_random()
            code = frame.f_code
            self._last = location_at(code.co_filename, frame.f_lineno, code.co_name)
            lines = lines_of(code)
            previous = self._previous.get(id(frame))
            if previous is not None:  # a loop variable or a second statement got its value on that line
                self._look(frame, previous, lines.get(previous, _NO_LINE), is_after=True)
            if event == "line":
                self._look(frame, frame.f_lineno, lines.get(frame.f_lineno, _NO_LINE), is_after=False)
                self._previous[id(frame)] = frame.f_lineno
            else:
                self._previous.pop(id(frame), None)
        return self._on_event

    def _look(self, frame: FrameType, number: int, line: Line, *, is_after: bool) -> None:
        if not line.reads and not line.stores:
            return
        values = frame.f_locals
        for chain in line.reads:
            local = values
            if is_after and chain.kind != LOCAL:
                continue
            if chain.kind == LOCAL:
                local, chain = _rebased(local, chain)
                if not chain.steps and is_module(local.get(chain.name)):
                    self._tracer.module_called(local[chain.name])
            for root, start, label in self._roots(frame, local, chain):
                self._follow(frame, number, chain, root, start, label, line.is_reflective)
        if is_after:
            return
        for chain in line.stores:
            for root, start, label in self._roots(frame, values, chain, wants_value=bool(chain.steps)):
                value, last = start, label
                for is_attribute, key in chain.steps[:-1]:
                    value = static_attribute(value, key) if is_attribute else static_item(value, key)
                if chain.steps:
                    last = (id(value), chain.steps[-1][1])
                    self._kept.append(value)
                    if not is_module(value):
                        root = ObjectReader(value)
                if (last, ()) not in self._reads:
                    self._written.add(last)
                if value is not MISSING and not (chain.steps and is_module(value)):
                    place = Location(frame.f_code.co_filename, number, frame.f_code.co_name)
                    self._stores.setdefault(last, (root, chain.steps[-1:], str(chain), place))

    def _roots(
        self, frame: FrameType, local: dict[str, Any], chain: Chain, wants_value: bool = True
    ) -> list[tuple[Callable[[], Any], Any, Any]]:
        """Return (how to reach it later, its value now, its identity) for the start of a chain."""
        name = chain.name
        if chain.kind == GLOBAL:
            names = frame.f_globals
            if name not in names:
                if hasattr(builtins, name) or not name.isidentifier():
                    return []
                return [(GlobalReader(names, name), MISSING, (id(names), name))]
            return [(GlobalReader(names, name), names[name], (id(names), name))]
        if name not in local or name == "__class__":
            return []
        value = local[name]
        if chain.kind == LOCAL:
            return [(ObjectReader(value), value, (id(value), None))] if chain.steps or not wants_value else []
        roots: list[tuple[Callable[[], Any], Any, Any]] = []
        if not self._is_guarding:
            # Nobody asks later: it is enough to look at what it is now, and the search for functions takes 5 ms.
            return [(ObjectReader(value), value, (id(frame), name))]
        for function in self._closures(frame, local):
            cell = function.__closure__[frame.f_code.co_freevars.index(name)]
            roots.append((CellReader(function, frame.f_code.co_freevars.index(name)), value, (id(cell), name)))
            self._kept.append(cell)
        return roots

    def _closures(self, frame: FrameType, local: dict[str, Any]) -> list[Any]:
        """Return the functions that this frame may be a call of, where it does not show which."""
        code = frame.f_code
        forward = forward_of(frame)
        known = self._functions.get(code) if forward is None else [forward]
        if known is None:
            candidates = [self._function, getattr(self._function, "__func__", None)]
            known = [f for f in candidates if getattr(f, "__code__", None) is code]
            known = known or [f for f in gc.get_referrers(code) if isinstance(f, types.FunctionType)]
            self._functions[code] = known
        return [f for f in known if f.__closure__ and _fits(f, code, local)]

    def _follow(
        self, frame: FrameType, number: int, chain: Chain, root: Any, value: Any, label: Any, is_reflective: bool
    ) -> None:
        if label in self._written and label not in self._reads:
            return
        location = location_at(frame.f_code.co_filename, number, frame.f_code.co_name)
        done = 0
        owner, last = value, label
        for is_attribute, key in chain.steps:
            if isinstance(value, Tensor):
                break
            if _is_library(value):
                found = static_attribute(value, key) if is_attribute else None
                self._refuse_opaque(found, location)
                if not (is_environment(found) or found is datetime.datetime or found is datetime.date):
                    break
            if (value is datetime.datetime or value is datetime.date) and key in _NOW:
                self._refuse(location, _CLOCK)
            if is_module(value):
                self._tracer.module_called(value)
                self._module_lines.setdefault((type(value).__name__, str(key)), location)
            following = static_attribute(value, key) if is_attribute else static_item(value, key)
            if (id(value), key) in self._written:
                return
            if following is MISSING:
                if is_attribute and not is_module(value) and not isinstance(value, type | types.ModuleType):
                    self._add_missing(root, chain, done + 1, location, label)
                break
            owner, value, last = value, following, (id(value), key)
            done += 1
        self._kept.append(owner)
        if is_reflective:
            self._read_all_attributes(root, chain.steps[:done], value, str(chain), location, label)
        self._refuse_opaque(value, location)
        if is_module(value):
            self._tracer.module_called(value)
        is_held = is_module(owner) and done and static_attribute(type(owner), chain.steps[done - 1][1]) is MISSING
        if done == 0 and chain.kind == LOCAL:
            return  # made in the trace, or an argument
        if holds_iterator(value):
            self._refuse(location, _ITERATOR)
        if _is_library(value) or is_held:
            return  # nobody rebinds it; or it is in a module, whose snapshot holds it
        steps = chain.steps[:done]
        self._add(root, steps, value, str(Chain(chain.kind, chain.name, steps)), location, (label, steps))
        self._reads.setdefault((last, ()), None)

    def _read_all_attributes(
        self, root: Any, steps: Any, value: Any, text: str, location: Location, label: Any
    ) -> None:
        state = getattr(value, "__dict__", None)
        if isinstance(value, type | types.ModuleType | types.FunctionType | Tensor) or not isinstance(state, dict):
            return
        if is_module(value):
            self._tracer.module_called(value)
            return
        names = (*steps, (True, NAMES))
        self._add(root, names, sorted(state), f"the attributes of {text}", location, (label, names))
        for name, item in list(state.items()):
            path = (*steps, (True, name))
            self._add(root, path, item, f"{text}.{name}", location, (label, path))

    def _add_missing(self, root: Any, chain: Chain, length: int, location: Location, label: Any) -> None:
        """Guard that an attribute stays absent, or a method of the class: setting it on the object would hide that."""
        steps = chain.steps[:length]
        self._add(root, steps, MISSING, str(Chain(chain.kind, chain.name, steps)), location, (label, steps))

    def _refuse_opaque(self, value: Any, location: Location) -> None:
        """Refuse what reads something outside where nobody can watch it."""
        is_clock = isinstance(value, types.BuiltinFunctionType) and value in _CLOCKS
        if is_clock or is_system_random(value):
            self._refuse(location, _CLOCK)
        elif isinstance(value, operator.attrgetter):
            self._refuse(location, _ATTRGETTER)

    def _refuse(self, location: Location, why: str) -> None:
        self._problem = self._problem or f"{location}: {why}"

    def _keep_stores(self) -> None:
        """What the step leaves in the user's objects is right for later calls only while it still stands there."""
        for key, (root, steps, text, location) in self._stores.items():
            read = Read(root, steps, None, text, location)
            value = read.value()
            if value is not GONE and value is not MISSING and not isinstance(value, Tensor):
                self._add(root, steps, value, text, location, (key, "stored"))
        self._stores.clear()

    def _add(self, root: Any, steps: Any, value: Any, text: str, location: Location, key: Any) -> None:
        if is_random_source(value):
            if id(value) not in self._generators:
                self._generators[id(value)] = (value, random_state(value), location)
                self._saved_generators[id(value)] = (value, full_state(value))
            return
        if key in self._reads:
            return
        try:
            self._reads[key] = Read(root, steps, value, text, location) if self._is_guarding else None
        except TooLarge as error:
            self._reads[key] = None
            self._problem = self._problem or (f"{location}: {text} is {error}: {TOO_MUCH}")

    # --- random numbers -------------------------------------------------------------------------------------

    def _check_random(self) -> None:
        if self._drawn is not None:
            return
        now = self._read_state()
        is_drawn = now != self._random_state
        self._random_state = now
        is_drawn = is_drawn or any(random_state(source) != state for source, state, _ in self._generators.values())
        if is_drawn:
            self._drawn = self._last

    def restore_random(self) -> None:
        """Give Python's and NumPy's generators the state they had before."""
        put_back_global_states(self._saved_states)
        for source, state in self._saved_generators.values():
            put_back(source, state)

    # --- answers --------------------------------------------------------------------------------------------

    @property
    def drawn(self) -> Location | None:
        """The line that drew random numbers from Python's or NumPy's generators, if any did."""
        return self._drawn

    def problem(self) -> str | None:
        """Return why what was read makes the step impossible to repeat, or None."""
        if self._problem is not None:
            return self._problem
        for read in self._reads.values():
            failure = read.failure() if read is not None else None
            if failure is not None and read is not None:
                failure = failure.replace(f" ({read.location})", "")
                return (
                    f"{read.location}: {failure} while the step was traced: the change would happen once instead of at "
                    "each call, and the value be frozen. Keep it in a tensor and update that in place, pass it as an "
                    "argument, or change it outside the compiled function."
                )
        return None

    def line_of(self, failure: str) -> Location | None:
        """Return the line that read the attribute which a message such as ``Net.count changed`` begins with."""
        name = failure.split(" ")[0].rstrip(":")
        kind, _, attribute = name.partition(".")
        return self._module_lines.get((kind, attribute))

    def guards(self) -> list[Callable[[], str | None]]:
        """Return one check per value that was read."""
        return [read.failure for read in self._reads.values() if read is not None] + [self._callees.failure]


def _rebased(local: dict[str, Any], chain: Chain) -> tuple[dict[str, Any], Chain]:
    """Return a chain from a local container as one from the object in it: containers are compared elsewhere."""
    value, steps = local.get(chain.name, MISSING), chain.steps
    while steps and not steps[0][0] and isinstance(value, list | tuple | dict):
        value, steps = static_item(value, steps[0][1]), steps[1:]
    if len(steps) == len(chain.steps):
        return local, chain
    name = str(Chain(LOCAL, chain.name, chain.steps[: len(chain.steps) - len(steps)]))
    return ({} if value is MISSING else {name: value}), Chain(LOCAL, name, steps)


def _fits(function: Any, code: CodeType, local: dict[str, Any]) -> bool:
    for name, cell in zip(code.co_freevars, function.__closure__):
        try:
            if name in local and cell.cell_contents is not local[name]:
                return False
        except ValueError:  # an empty cell
            return False
    return True


def _is_library(value: Any) -> bool:
    """Whether a value is a module of ours or of a library, or a built-in function or type: nobody rebinds those."""
    if isinstance(value, types.ModuleType):
        file = getattr(value, "__file__", None)
        return (file is None and value.__name__ != "__main__") or (file is not None and not USER_FILES[file])
    return isinstance(value, types.BuiltinFunctionType) or (
        isinstance(value, type) and getattr(builtins, value.__name__, None) is value
    )
