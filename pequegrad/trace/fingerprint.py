"""A value's fingerprint: equal fingerprints mean that traced code would have read the same.

Invariant: a fingerprint keeps no large object alive: plain values are compared by value, containers by contents,
everything else by identity through a weak reference.
"""

from __future__ import annotations

import enum
import functools
import random
import types
import weakref
from typing import Any

import numpy as np

from ..dtypes import DType
from ..errors import TraceError
from ..tensor import Tensor

LEAF_LIMIT = 2000
ARRAY_LIMIT = 1 << 20
"""Bytes of an array that is compared by its contents at each call; larger ones are refused."""

_PLAIN = (bool, int, str, bytes, type(None), DType)
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)


class Same:
    """Stands for one object: equal to another Same of that very object, while it lives."""

    __slots__ = ("_hash", "_ref")

    def __init__(self, value: Any) -> None:
        try:
            self._ref: Any = weakref.ref(value)
        except TypeError:
            self._ref = lambda: value
        self._hash = id(value)

    def get(self) -> Any:
        """Return the object, or None when it is gone."""
        return self._ref()

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
        if isinstance(value, list | tuple | dict | set | frozenset):
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


def is_random_source(value: Any) -> bool:
    """Whether ``value`` is a Python or NumPy random generator."""
    return isinstance(value, _RANDOM)


def random_state(value: Any) -> str:
    """Return the state of a random generator, to compare."""
    if isinstance(value, random.Random):
        return repr(hash(value.getstate()))
    if isinstance(value, np.random.RandomState):
        state: Any = value.get_state()
        return repr((state[0], hash(state[1].tobytes()), state[2:]))
    return repr(value.bit_generator.state)


def is_module(value: Any) -> bool:
    """Whether ``value`` is a neural-network module: known by its tables, since this room knows nobody in nn."""
    state = getattr(value, "__dict__", None)
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state and not isinstance(value, type)


def describe(value: Any) -> str:
    """Return a value in a few words, for messages."""
    if isinstance(value, Tensor):
        return str(value.spec)
    text = repr(value) if isinstance(value, (*_PLAIN, float, complex, list, tuple, dict, set)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "…"
