"""What of a call selects the compiled step: shapes and dtypes of its tensors, and everything else by value.

Invariant: two calls of equal key run the same step; the key holds no tensor, so that it keeps no memory alive.
"""

from __future__ import annotations

import enum
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import arrays, pytree
from ..dtypes import DType
from ..locations import user_location
from ..ops.core import as_tensor, context
from ..records import record
from ..tensor import Tensor
from .fingerprint import OPEN_CONTAINERS, TooLarge, fingerprint

_BY_VALUE = (str, bytes, int, bool, type(None), DType, enum.Enum, type, slice, range)

_BY_CONTENTS = (list, dict, deque, bytearray, functools.partial, *OPEN_CONTAINERS)
"""Containers that pytree does not take apart."""

_LEAVES = 2
"""Where in a key the parts of tensors and other leaves begin, after the structure and the gradient mode."""


class Identity:
    """An object that stands for itself in a key: equal to nothing but the same object, which it keeps alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"{type(self.value).__name__} object"


@record
class Call:
    """The arguments of one call: ``tensors`` are the distinct tensors, ``places`` says for each leaf which of them
    it is (-1: the leaf itself, a static value)."""

    key: tuple[Any, ...]
    structure: Any
    leaves: Sequence[Any]
    tensors: list[Tensor]
    places: tuple[int, ...]

    def kinds(self) -> list[tuple[Any, ...]]:
        """Return (shape, dtype, requires_grad) of each tensor. Only where all lie on the CPU."""
        parts = self.key[_LEAVES:]
        if type(self.key[0]) is int:
            return [parts[i : i + 3] for i in range(0, len(parts), 3)]
        found: dict[int, Any] = {}
        for place, part in zip(self.places, parts, strict=True):
            if place >= 0:
                found.setdefault(place, part)
        return list(found.values())

    def rebuild(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) with ``tensors`` in the places of the call's own."""
        leaves = [leaf if place < 0 else tensors[place] for leaf, place in zip(self.leaves, self.places)]
        return pytree.unflatten(self.structure, leaves)

    def names(self) -> list[str]:
        """Return a readable name per tensor."""
        paths = pytree.leaf_paths(self.structure)
        found: dict[int, str] = {}
        for path, place in zip(paths, self.places):
            if place >= 0:
                found.setdefault(place, path)
        return [found[i] for i in range(len(self.tensors))]


_MOST_PLAIN = 8


@functools.lru_cache(maxsize=_MOST_PLAIN + 1)
def _plain(count: int) -> tuple[Any, tuple[int, ...]]:
    """Return structure and places of a call with ``count`` positional tensors: the usual case, which need not be taken apart."""
    places = tuple(range(count))
    return pytree.flatten((places, {}))[1], places


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the Call of (args, kwargs). Arrays become tensors on the same memory."""
    if not kwargs and len(args) <= _MOST_PLAIN:
        call = _read_plain(args)
        if call is not None:
            return call
    leaves, structure = pytree.flatten((args, kwargs))
    tensors: list[Tensor] = []
    places: list[int] = []
    key: list[Any] = [structure, context.is_grad_enabled]
    known: dict[int, int] = {}
    for leaf in leaves:
        place = known.get(id(leaf), -1)
        if place >= 0:
            key.append(place)
        elif isinstance(leaf, Tensor | np.ndarray | np.generic) or arrays.has_device_memory(leaf):
            tensor = leaf if isinstance(leaf, Tensor) else as_tensor(leaf)
            place = known[id(leaf)] = len(tensors)
            tensors.append(tensor)
            key.append((tensor.spec.shape, tensor.spec.dtype, tensor.requires_grad))
            if arrays.device_types and tensor.device != arrays.CPU:
                key.append(tensor.device)
        else:
            key.append(static_key(leaf))
        places.append(place)
    return Call(tuple(key), structure, leaves, tensors, tuple(places))


def _read_plain(args: tuple[Any, ...]) -> Call | None:
    """Return the Call of distinct positional tensors or arrays, or None if that is not what ``args`` is."""
    tensors = []
    parts: list[Any] = [len(args), context.is_grad_enabled]
    for leaf in args:
        if isinstance(leaf, np.ndarray):
            leaf = as_tensor(leaf)
        elif not isinstance(leaf, Tensor):
            return None
        spec = leaf.spec
        parts += (spec.shape, spec.dtype, leaf.requires_grad)
        if arrays.device_types and leaf.device != arrays.CPU:
            parts.append(leaf.device)
        tensors.append(leaf)
    if len(args) > 1 and len(set(map(id, args))) < len(args):
        return None
    structure, places = _plain(len(args))
    return Call(tuple(parts), structure, args, tensors, places)


def static_key(value: Any) -> Any:
    """Return what a Python value contributes to a key: type and value of plain ones, identity of others."""
    kind = type(value)
    if kind is float or kind is complex:
        return (kind, repr(value))  # tells 0.0 from -0.0, and makes NaN equal to itself
    if isinstance(value, _BY_VALUE) and not isinstance(value, slice | range):
        return (kind, value)
    if isinstance(value, slice | range):
        return (kind, repr(value))
    if isinstance(value, set | frozenset):
        return (kind, frozenset(static_key(item) for item in value))
    if isinstance(value, _BY_CONTENTS):
        try:
            return (kind, fingerprint(value))
        except TooLarge as error:
            raise TooLarge(
                f"{user_location()}: an argument is {error}: too much to compare at each call of a compiled function. "
                "Pass what the step needs of it, or make that a tensor before."
            ) from None
    return Identity(value)


def explain_difference(old: Call, new: Call) -> str:
    """Return which part of the signature differs, for people: ``x: shape (128, 784) → (96, 784)``."""
    if old.structure != new.structure:
        return "the nesting or the names of the arguments"
    parts = []
    if old.key[1] != new.key[1]:
        parts.append(f"gradient mode {'on' if old.key[1] else 'off'} → {'on' if new.key[1] else 'off'}")
    for path, leaf_before, leaf_after in zip(pytree.leaf_paths(old.structure), old.leaves, new.leaves):
        name = argument_name(path)
        before, after = _shown(leaf_before), _shown(leaf_after)
        if isinstance(before, tuple) and isinstance(after, tuple):
            for what, a, b in zip(("shape", "dtype", "requires_grad", "device"), before, after):
                if a != b:
                    parts.append(f"{name}: {what} {a} → {b}")
        elif before != after:
            parts.append(f"{name}: {before} → {after}")
    if not parts and old.places != new.places:
        parts.append("which arguments are one and the same tensor")
    return "; ".join(parts) or "nothing in the arguments"


def argument_name(path: str, label: Callable[[str], str] | None = None) -> str:
    """Return a leaf's path in ((args), {kwargs}) as people write it: ``[0][1]`` is argument 1."""
    if path.startswith("[1]["):
        inner = path[3:]
        name, _, rest = inner[1:].partition("]")
        return name.strip("'\"") + rest
    number, _, rest = path[4:].partition("]")
    return f"argument {number}{rest}"


@record
class Described:
    """What is kept of a tensor of a past call: enough to say how a new one differs."""

    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    device: str


def without_data(call: Call) -> Call:
    """Return a call to compare others with, which keeps no tensor alive."""
    leaves = [
        leaf if place < 0 else Described(*_shown(call.tensors[place])) for leaf, place in zip(call.leaves, call.places)
    ]
    return Call(call.key, call.structure, leaves, [], call.places)


def _shown(leaf: Any) -> Any:
    """Return (shape, dtype, requires_grad, device) of a tensor or array, and a short text of anything else."""
    if isinstance(leaf, Described):
        return leaf.shape, leaf.dtype, leaf.requires_grad, leaf.device
    if isinstance(leaf, np.ndarray | np.generic):
        leaf = as_tensor(leaf)
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype.name, leaf.requires_grad, leaf.device
    text = repr(leaf)
    return text if len(text) <= 40 else text[:37] + "…"
