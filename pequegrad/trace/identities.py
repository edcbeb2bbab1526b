"""What natively shows that a value which user code read is what it was: the same objects, at the same places.

Invariant: it says at least as much as the fingerprint. Where equal objects took the place of the same ones, Python decides;
where identity cannot say enough (an array, a property), there is None.
"""

from __future__ import annotations

import types
import weakref
from typing import Any

from .fingerprint import Same, fingerprint, is_immutable, is_module

MODULE_TABLES = ("_parameters", "_buffers", "_modules")
MISSING = object()
"""In the place of what a name or a key should lead to."""


def identities(value: Any) -> tuple[Any, ...] | None:
    """Return ``(None, object or a weak reference to it)``, or of a container ``(type, keys, what its items are)``."""
    return (None, MISSING) if value is MISSING else _Reader().read(value)


class _Reader:
    """Reads one value recursively; a container inside itself has no native form."""

    def __init__(self) -> None:
        self._inside: set[int] = set()

    def read(self, value: Any) -> tuple[Any, ...] | None:
        kind = type(value)
        if is_immutable(value):
            return None, value
        if issubclass(kind, list | tuple) and kind.__iter__ in (list.__iter__, tuple.__iter__):
            items = self._read_all(value, value)
            return None if items is None else (kind, (), items)
        if issubclass(kind, dict) and (kind.__iter__, kind.items) == (dict.__iter__, dict.items):
            keys, items = self._read_all(value, value), self._read_all(value, value.values())
            return None if keys is None or items is None else (kind, keys, items)
        if kind in (set, frozenset):
            keys = self._read_all(value, value)
            return None if keys is None else (kind, keys, ())
        mark = fingerprint(value)
        return (None, referred(mark.reference)) if isinstance(mark, Same) else None

    def _read_all(self, container: Any, values: Any) -> tuple[Any, ...] | None:
        if id(container) in self._inside:
            return None
        self._inside.add(id(container))
        found = tuple([self.read(value) for value in values])
        self._inside.discard(id(container))
        return None if None in found else found


def referred(reference: Any) -> Any:
    """Return a weak reference as it is, and of a strong one what it refers to; None where that is gone."""
    return reference if isinstance(reference, weakref.ref) else reference()


def dict_step(owner: Any) -> tuple[Any, ...]:
    """Return the step from an object to its ``__dict__``."""
    return "dict", weakref.ref(type(owner))


def native_step(owner: Any, is_attribute: bool, key: Any) -> tuple[tuple[Any, ...], ...] | None:
    """Return how native code goes from ``owner`` to its attribute or item: the steps that `binding/guards.h` knows; None where
    Python has to."""
    kind = type(owner)
    of_kind = weakref.ref(kind)
    if not is_attribute:
        return (("item", of_kind, key),) if kind in (dict, list, tuple) and type(key) in (int, str) else None
    if not isinstance(key, str) or isinstance(kind.__getattribute__, types.FunctionType):
        return None
    if isinstance(owner, types.ModuleType):
        return dict_step(owner), ("item", weakref.ref(dict), key)
    if isinstance(owner, type):
        is_known = kind is type and is_plain(member_of(owner, key))
        return (("class", of_kind, key),) if is_known else None
    if type(kind) is not type:
        return None
    if is_module(owner):
        table = next((table for table in MODULE_TABLES if key in vars(owner)[table]), None)
        if table is not None:
            of_table = weakref.ref(type(vars(owner)[table]))
            return dict_step(owner), ("item", weakref.ref(dict), table), ("item", of_table, key)
    member = member_of(kind, key)
    if isinstance(member, types.MemberDescriptorType):
        return (("slot", of_kind, key, member),)
    if not isinstance(getattr(owner, "__dict__", None), dict):
        is_method = isinstance(member, types.MethodDescriptorType)  # of a list, a dict …
        return (("method", of_kind, key, member),) if is_method else None
    if isinstance(member, types.FunctionType):
        return (("attribute", of_kind, key, weakref.ref(member), False),)
    if member is MISSING or is_immutable(member):
        return (("attribute", of_kind, key, member, member is not MISSING),)
    return None


def is_plain(member: Any) -> bool:
    """Whether reading a member from its class gives it as it is."""
    return isinstance(member, types.FunctionType) or not hasattr(type(member), "__get__")


def member_of(kind: type, name: Any) -> Any:
    """Return what a class or the first of its bases has under ``name``, or MISSING."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), MISSING)
