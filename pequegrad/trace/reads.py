"""One value that user code reads from outside, and how to look at it again later.

Invariant: looking runs no user code: no property, no ``__getattr__``, no comparison that a user's class defines.
"""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Callable, Iterator
from typing import Any

from .fingerprint import Same, describe, fingerprint, is_module
from .graph import Location
from .identities import MISSING, MODULE_TABLES, identities, is_plain, member_of, native_step, referred

GONE = object()
NAMES = object()
"""In the place of an attribute: the names of all attributes."""
TOO_MUCH = (
    "too much to compare at each call of a compiled function. Pass it as an argument, or make it a tensor before "
    "(pequegrad.from_numpy), which is read anew at each call."
)
FROZEN_ITERATOR = (
    "what it gives would be frozen in the compiled step. Take the next item outside and pass it as an argument."
)


class GlobalReader:
    """Reads a name of a module."""

    __slots__ = ("_name", "_names")

    def __init__(self, names: dict[str, Any], name: str) -> None:
        self._names = names
        self._name = name

    def __call__(self) -> Any:
        return self._names.get(self._name, MISSING)

    @property
    def place(self) -> tuple[Any, Any]:
        """(dict, key): where native code looks."""
        return self._names, self._name


class CellReader:
    """Reads a free variable of a function, while that lives."""

    __slots__ = ("_function", "_index")

    def __init__(self, function: Any, index: int) -> None:
        self._function = Same(function)
        self._index = index

    def __call__(self) -> Any:
        owner = self._function.get()
        try:
            return GONE if owner is None else owner.__closure__[self._index].cell_contents
        except ValueError:
            return MISSING

    @property
    def place(self) -> tuple[Any, Any] | None:
        """(cell, None): where native code looks. A function's cells are the same as long as it lives."""
        owner = self._function.get()
        return None if owner is None else (owner.__closure__[self._index], None)


class ObjectReader:
    """Reads an object itself, while it lives."""

    __slots__ = ("_object",)

    def __init__(self, value: Any) -> None:
        self._object = Same(value)

    def __call__(self) -> Any:
        value = self._object.get()
        return GONE if value is None else value

    @property
    def place(self) -> tuple[Any, Any] | None:
        """(the object or a weak reference to it, None): where native code looks."""
        found = referred(self._object.reference)
        return None if found is None else (found, None)


Reader = GlobalReader | CellReader | ObjectReader


class Read:
    """One value that was read: where it is reached from, what it was, and the line that read it first."""

    __slots__ = ("_expected", "_fast", "_root", "_shortcut", "_shown", "_steps", "location", "text")

    def __init__(self, root: Reader, steps: Any, value: Any, text: str, location: Location) -> None:
        self._root = root
        self._steps = steps
        self._expected = MISSING if value is MISSING else fingerprint(value)
        # Where identity says enough, comparing it spares the fingerprint.
        self._fast = self._expected.get if isinstance(self._expected, Same) else None
        if value is MISSING or isinstance(value, int | float | str):
            self._fast = _always(value)
        self._shortcut = self._find_shortcut() if self._fast is not None else None
        self._shown = "missing" if value is MISSING else describe(value)
        self.text = text
        self.location = location

    def native(self) -> tuple[Any, ...] | None:
        """Return (place of the root, steps, identities of what must be there), as `binding/guards.h` takes it; None where that
        does not say all."""
        place, value = self._root.place, self._root()
        steps: list[tuple[Any, ...]] = []
        for is_attribute, key in self._steps:
            ways = None if value is GONE or value is MISSING else native_step(value, is_attribute, key)
            if ways is None:
                return None
            steps += ways
            value = static_attribute(value, key) if is_attribute else static_item(value, key)
        if place is None or value is GONE:
            return None
        expected = identities(value)
        now = MISSING if value is MISSING else fingerprint(value)
        return None if expected is None or now != self._expected else (place, tuple(steps), expected)

    def value(self) -> Any:
        """Return what it is now: MISSING if the way to it ends early, GONE if its root does not live any more."""
        return self._follow(self._steps)

    def _follow(self, steps: Any) -> Any:
        value = self._root()
        for is_attribute, key in steps:
            if value is GONE or value is MISSING:
                return value
            if is_attribute and key is NAMES:
                return sorted(getattr(value, "__dict__", ()))
            value = static_attribute(value, key) if is_attribute else static_item(value, key)
        return value

    def _find_shortcut(self) -> Any:
        """Return (steps to the owner, attribute, its class, what that class has under the name) for an attribute of
        an ordinary object: while the latter two stand, its ``__dict__`` alone decides."""
        if not self._steps or not self._steps[-1][0]:
            return None
        *steps, (_, name) = self._steps
        owner = self._follow(steps)
        kind = type(owner)
        if type(kind) is not type or kind.__getattribute__ is not object.__getattribute__ or name is NAMES:
            return None
        if is_module(owner) or not isinstance(getattr(owner, "__dict__", None), dict):
            return None
        member = member_of(kind, name)
        if member is MISSING or isinstance(member, bool | int | float | str | None):
            found = _always(member)
        elif isinstance(member, types.FunctionType):
            found = Same(member).reference
        else:
            return None
        return tuple(steps), name, Same(kind).reference, found

    def failure(self) -> str | None:
        """Return what changed, for people, or None."""
        if self._shortcut is not None and self._fast is not None:
            steps, name, kind_of, member_now = self._shortcut
            owner = self._follow(steps)
            kind = type(owner)
            if kind is kind_of() and getattr(kind, name, MISSING) is member_now():
                value = owner.__dict__.get(name, MISSING)
                if value is self._fast() and value is not None:
                    return None
        value = self.value()
        if self._fast is not None and value is self._fast() and value is not None:
            return None
        if value is GONE:  # it was made in the trace, or nobody can read it any more
            return None
        now = MISSING if value is MISSING else fingerprint(value)
        if now == self._expected:
            return None
        return f"{self.text} ({self.location}): {self._shown} → {'missing' if value is MISSING else describe(value)}"


def _always(value: Any) -> Callable[[], Any]:
    """Return what gives a value, as a weak reference gives its object."""
    return lambda: value


def static_attribute(value: Any, name: Any) -> Any:
    """Return ``value.name`` where that runs no code (no property, no ``__getattr__``), else MISSING."""
    if isinstance(value, types.ModuleType):
        return vars(value).get(name, MISSING)
    if isinstance(value, type):
        found = member_of(value, name)
        if isinstance(found, staticmethod):
            return found.__func__
        return found if is_plain(found) else MISSING
    if is_module(value):
        state = vars(value)
        for table in MODULE_TABLES:
            if name in state[table]:
                return state[table][name]
    found = member_of(type(value), name)
    if isinstance(found, types.MemberDescriptorType):
        try:
            return found.__get__(value)
        except AttributeError:
            return MISSING
    if hasattr(type(found), "__set__"):
        return MISSING
    is_usual = not isinstance(type(value).__getattribute__, types.FunctionType)
    state = getattr(value, "__dict__", None) if is_usual else None
    if isinstance(state, dict) and name in state:
        return state[name]
    if isinstance(found, staticmethod):
        return found.__func__
    return MISSING if hasattr(type(found), "__get__") else found


def static_item(value: Any, key: Any) -> Any:
    """Return ``value[key]`` of a plain container, else MISSING."""
    if type(value) in (dict, list, tuple):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            return value[key]
    return MISSING


def holds_iterator(value: Any) -> bool:
    """Whether a value is an iterator, files excepted, or a container of iterators."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(item, Iterator) and not isinstance(item, io.IOBase) for item in items)
