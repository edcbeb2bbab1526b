"""Which functions of the user's ran while tracing, and what is built into them: code, defaults, the class they hang on.

Invariant: as with all that is watched, neither noting nor checking runs the user's code.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

from ..locations import USER_FILES
from .fingerprint import Same, TooLarge, fingerprint, is_module
from .graph import Location
from .reads import FROZEN_ITERATOR, TOO_MUCH, holds_iterator

_ABSENT = object()
_IMMUTABLE = frozenset({bool, int, float, complex, str, bytes, type(None)})


class Callees:
    """The user's functions that one trace called: ``note`` each frame, ``finish`` once, then ``failure`` is a guard."""

    def __init__(self) -> None:
        self._codes: dict[CodeType, Location] = {}
        self._called: dict[FunctionType, CodeType] = {}
        self._searched: set[CodeType] = set()
        self._kinds: set[tuple[CodeType, int]] = set()
        self._members: list[tuple[Callable[[], Any], str, Callable[[], Any], Location]] = []
        self._functions: list[tuple[Callable[[], Any], CodeType, Any, list[Any], Location]] = []
        self._keywords: list[tuple[Callable[[], Any], dict[str, Any], Location]] = []

    def note(self, frame: FrameType, function: FunctionType | None) -> None:
        """Remember the function of a frame that begins, and where its class, if it is a method, keeps it.

        ``function``: what the frame is a call of, or None where that is not known.
        """
        code = frame.f_code
        location = self._codes.setdefault(code, Location(code.co_filename, code.co_firstlineno, code.co_name))
        if function is None:
            self._searched.add(code)
        else:
            self._called[function] = code
        if not code.co_argcount:
            return
        first = frame.f_locals.get(code.co_varnames[0])
        kind = first if isinstance(first, type) else type(first)
        if (code, id(kind)) in self._kinds:
            return
        self._kinds.add((code, id(kind)))
        for base, name, member in _places_of(code, kind):
            # Reached through a base by super(), it hangs on that base.
            owner = kind if _member(kind, name) is member else base
            self._members.append((Same(owner).reference, name, Same(member).reference, location))

    def finish(self) -> str | None:
        """Read what is built into the functions that were called; return why that is impossible, or None.

        A frame does not tell which function it is a call of: where nothing else does, all functions of its code are read.
        """
        self._kinds.clear()
        called, self._called = self._called, {}
        # Each search looks at all objects that there are, which takes milliseconds.
        for found in gc.get_referrers(*self._searched) if self._searched else ():
            if isinstance(found, FunctionType) and found.__code__ in self._searched:
                called[found] = found.__code__
        for function, code in called.items():
            location, reference = self._codes[code], Same(function).reference
            defaults = function.__defaults__ or ()
            if holds_iterator([*defaults, *(function.__kwdefaults__ or {}).values()]):
                return f"{location}: a default value of {function.__name__} is an iterator: {FROZEN_ITERATOR}"
            try:
                contents = [fingerprint(value) for value in defaults]
                if function.__kwdefaults__:
                    keywords = {name: fingerprint(value) for name, value in function.__kwdefaults__.items()}
                    self._keywords.append((reference, keywords, location))
            except TooLarge as error:
                return f"{location}: a default value of {function.__name__} is {error}: {TOO_MUCH}"
            # A tuple of immutable values needs no second look while it is the same one.
            is_closed = all(type(value) in _IMMUTABLE for value in defaults)
            kept = function.__defaults__ if is_closed else _ABSENT
            self._functions.append((reference, code, kept, contents, location))
        return None

    def description(self) -> dict[str, Any] | None:
        """Return what `failure` compares, as `binding/guards.h` takes it, or None where it compares more than identities."""
        if self._keywords or any(kept is _ABSENT for _, _, kept, _, _ in self._functions):
            return None
        members = [(kind, name, member) for kind, name, member, _ in self._members]
        functions = [(function, code, kept) for function, code, kept, _, _ in self._functions]
        references = [part for kind, _, member in members for part in (kind, member)] + [f for f, _, _ in functions]
        if not all(isinstance(reference, weakref.ref) for reference in references):
            return None
        return {"members": members, "functions": functions}

    def failure(self) -> str | None:
        """Return which function is not what it was, or None."""
        for kind_of, name, member_of, location in self._members:
            kind = kind_of()
            if kind is not None and _member(kind, name) is not member_of():
                return f"{kind.__name__}.{name} ({location}) was replaced"
        for function_of, code, defaults, contents, location in self._functions:
            function = function_of()
            if function is None:
                continue
            if function.__code__ is not code:
                return f"{function.__name__} ({location}) was replaced"
            now = function.__defaults__
            if now is not defaults and [fingerprint(value) for value in now or ()] != contents:
                return f"{function.__name__} ({location}): its default values changed"
        for function_of, keywords, location in self._keywords:
            function = function_of()
            if function is None:
                continue
            if {name: fingerprint(value) for name, value in (function.__kwdefaults__ or {}).items()} != keywords:
                return f"{function.__name__} ({location}): its default values changed"
        return None


def forward_of(frame: FrameType) -> FunctionType | None:
    """Return the function that a frame is a call of, if a module's own ``__call__`` calls the module's ``forward`` there."""
    code, caller = frame.f_code, frame.f_back
    if caller is None or not code.co_argcount or USER_FILES[caller.f_code.co_filename]:
        return None
    module = frame.f_locals.get(code.co_varnames[0])
    if not is_module(module) or "forward" in vars(module):
        return None
    call, forward = _member(type(module), "__call__"), _member(type(module), "forward")
    is_call = isinstance(call, FunctionType) and call.__code__ is caller.f_code
    return forward if is_call and isinstance(forward, FunctionType) and forward.__code__ is code else None


def _member(kind: type, name: str) -> Any:
    for base in kind.__mro__:
        members = base.__dict__
        if name in members:
            return members[name]
    return _ABSENT


def _places_of(code: CodeType, kind: type) -> Iterator[tuple[type, str, Any]]:
    """Yield (class, name, member) for each member of ``kind`` and its bases that runs ``code``, under any name."""
    for base in kind.__mro__:
        for name, member in list(vars(base).items()):
            if _code_of(member) is code:
                yield base, name, member


def _code_of(member: Any) -> Any:
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, classmethod | staticmethod):
        member = member.__func__
    elif isinstance(member, functools.cached_property | functools.partialmethod):
        member = member.func
    return member.__code__ if isinstance(member, FunctionType) else None
