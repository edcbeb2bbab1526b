"""A value's fingerprint: equal fingerprints mean that traced code would have read the same.

Invariant: a fingerprint keeps no large object alive: plain values are compared by value, containers by contents,
everything else by identity through a weak reference.
"""

from __future__ import annotations

import collections
import enum
import functools
import reprlib
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import environment, is_environment
from ..dtypes import DType
from ..errors import TraceError
from ..tensor import Tensor

LEAF_LIMIT = 2000
ARRAY_LIMIT = 1 << 20
"""Bytes of an array that is compared by its contents at each call; larger ones are refused."""

_PLAIN = (bool, int, str, bytes, type(None), DType)
# Objects of the standard library whose methods are not the user's code, so that what they read is not watched.
OPEN_CONTAINERS = (types.SimpleNamespace, collections.UserDict, collections.UserList, collections.ChainMap)


class _Strong:
    """In the place of a weak reference, for objects that allow none (``__slots__``, tuples)."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value


class Holding(threading.local):
    """The strong references that were made in this thread since a trace began; None outside of one."""

    made: list[weakref.ref[_Strong]] | None = None

    def release(self) -> None:
        """Drop those to objects that nobody else refers to: they were made in the trace and died with it."""
        is_any = True
        while is_any:
            is_any = False
            holders: dict[int, list[_Strong]] = {}
            for reference in self.made or ():
                holder = reference()
                if holder is not None and holder.value is not None:
                    holders.setdefault(id(holder.value), []).append(holder)
            holder = None
            for group in holders.values():
                # One reference of each holder, and one as the argument of the count.
                if sys.getrefcount(group[0].value) <= len(group) + 1:
                    is_any = True
                    for holder in group:
                        holder.value = None
        self.made = None


holding = Holding()


class Same:
    """Stands for one object: equal to another Same of that very object, while it lives."""

    __slots__ = ("_hash", "_ref")

    def __init__(self, value: Any) -> None:
        try:
            self._ref: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._ref = _Strong(value)
            if holding.made is not None:
                holding.made.append(weakref.ref(self._ref))
        self._hash = id(value)

    def get(self) -> Any:
        """Return the object, or None when it is gone."""
        return self._ref()

    @property
    def reference(self) -> Callable[[], Any]:
        """``get``, as fast as can be."""
        return self._ref

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        mine = self._ref()
        return mine is not None and mine is other._ref()

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        value = self._ref()
        return f"{type(value).__name__} object" if value is not None else "an object that is gone"


class TooLarge(TraceError):
    """A value with too much in it to compare at each call."""


def fingerprint(value: Any) -> Any:
    """Return the fingerprint of ``value``; compare with ``==``. Raises TooLarge."""
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return value if kind is not bool else (bool, value)
    return _Reader().read(value)


_PLAIN_TYPES = frozenset(_PLAIN)
_IMMUTABLE_TYPES = _PLAIN_TYPES | {float, complex, range}


def is_immutable(value: Any) -> bool:
    """Whether a value's fingerprint stays as it is while the value is the same object, whatever anybody does."""
    return type(value) in _IMMUTABLE_TYPES or isinstance(value, np.number | np.bool_)


class _Reader:
    """Reads one value recursively, within LEAF_LIMIT; a container inside itself counts once."""

    def __init__(self) -> None:
        self.count = 0
        self.inside: set[int] = set()

    def read(self, value: Any) -> Any:
        self.count += 1
        if self.count > LEAF_LIMIT:
            raise TooLarge(f"a container of more than {LEAF_LIMIT} values")
        kind = type(value)
        if kind in _PLAIN_TYPES:
            return value if kind is not bool else (bool, value)
        if kind is float or kind is complex or kind is slice or kind is range:
            return (kind, repr(value))
        if kind is np.ndarray:
            return _read_array(value)
        if isinstance(value, np.generic | enum.Enum):
            return (kind, repr(value))
        if isinstance(value, bytearray):
            return (kind, bytes(value))
        if isinstance(value, OPEN_CONTAINERS):
            return (Same(value), self._read_container(vars(value)))
        if is_environment(value):
            return ("environment", frozenset(environment().items()))
        if isinstance(value, list | tuple | dict | set | frozenset | collections.deque):
            return self._read_container(value)
        if isinstance(value, functools.partial):
            return (kind, self.read(value.func), self.read(value.args), self.read(value.keywords))
        if isinstance(value, types.MethodType):
            return (kind, Same(value.__func__), Same(value.__self__))
        return Same(value)

    def _read_container(self, value: Any) -> Any:
        if id(value) in self.inside:
            return "…"
        self.inside.add(id(value))
        try:
            if isinstance(value, dict):
                return (type(value), tuple([(self.read(key), self.read(item)) for key, item in value.items()]))
            if isinstance(value, set | frozenset):
                return (type(value), frozenset([self.read(item) for item in value]))
            return (type(value), tuple([self.read(item) for item in value]))
        finally:
            self.inside.discard(id(value))


def _read_array(array: np.ndarray) -> Any:
    if array.dtype.hasobject:
        return Same(array)
    if array.nbytes > ARRAY_LIMIT:
        raise TooLarge(f"an array of {array.nbytes / 2**20:.0f} MiB")
    return (array.dtype.str, array.shape, array.tobytes())


def is_module(value: Any) -> bool:
    """Whether ``value`` is a neural-network module: known by its tables, since this room knows nobody in nn."""
    state = getattr(value, "__dict__", None)
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state and not isinstance(value, type)


def describe(value: Any) -> str:
    """Return a value in a few words, for messages."""
    text = _IN_A_FEW_WORDS.repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _InAFewWords(reprlib.Repr):
    """Shows the first items of containers, and objects by their type: a tensor's elements are none of a trace's business."""

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            return str(x.spec)
        if isinstance(x, (*_PLAIN, float, complex)):
            return repr(x)
        return super().repr1(x, level) if type(x) in (list, tuple, dict, set) else type(x).__name__


_IN_A_FEW_WORDS = _InAFewWords()
