"""What of a call selects the compiled step: shapes and dtypes of its tensors, and everything else by value.

Invariant: two calls of equal key run the same step; the key holds no tensor, so that it keeps no memory alive.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import pytree
from ..dtypes import DType
from ..ops.core import as_tensor, context
from ..tensor import Tensor

_BY_VALUE = (str, bytes, int, bool, type(None), DType, enum.Enum, type, slice, range)


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


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call: ``tensors`` are the distinct tensors, ``places`` says for each leaf which of them
    it is (-1: the leaf itself, a static value)."""

    key: tuple[Any, ...]
    structure: Any
    leaves: list[Any]
    tensors: list[Tensor]
    places: tuple[int, ...]

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


_PLAIN: dict[int, Any] = {n: pytree.flatten((tuple(range(n)), {}))[1] for n in range(9)}


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return the Call of (args, kwargs). Arrays become tensors on the same memory."""
    leaves, structure = pytree.flatten((args, kwargs))
    tensors: list[Tensor] = []
    places: list[int] = []
    key: list[Any] = [structure, context.is_grad_enabled]
    known: dict[int, int] = {}
    for leaf in leaves:
        place = known.get(id(leaf), -1)
        if place >= 0:
            key.append(place)
        elif isinstance(leaf, Tensor | np.ndarray | np.generic):
            tensor = leaf if isinstance(leaf, Tensor) else as_tensor(leaf)
            place = known[id(leaf)] = len(tensors)
            tensors.append(tensor)
            key.append((tensor.spec.shape, tensor.spec.dtype, tensor.requires_grad))
        else:
            key.append(static_key(leaf))
        places.append(place)
    return Call(tuple(key), structure, leaves, tensors, tuple(places))


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
    return Identity(value)


def explain_difference(old: Call, new: Call) -> str:
    """Return which part of the signature differs, for people: ``x: shape (128, 784) → (96, 784)``."""
    if old.structure != new.structure:
        return "the nesting or the names of the arguments"
    parts = []
    if old.key[1] != new.key[1]:
        parts.append(f"gradient mode {'on' if old.key[1] else 'off'} → {'on' if new.key[1] else 'off'}")
    for path, before, after, leaf_before, leaf_after in zip(
        pytree.leaf_paths(old.structure), old.key[2:], new.key[2:], old.leaves, new.leaves
    ):
        if before == after:
            continue
        name = argument_name(path)
        if _is_tensor_key(before) and _is_tensor_key(after):
            for what, a, b in zip(("shape", "dtype", "requires_grad"), before, after):
                if a != b:
                    parts.append(f"{name}: {what} {getattr(a, 'name', a)} → {getattr(b, 'name', b)}")
        else:
            parts.append(f"{name}: {_shorten(leaf_before)} → {_shorten(leaf_after)}")
    return "; ".join(parts) or "nothing in the arguments"


def argument_name(path: str, label: Callable[[str], str] | None = None) -> str:
    """Return a leaf's path in ((args), {kwargs}) as people write it: ``[0][1]`` is argument 1."""
    if path.startswith("[1]["):
        inner = path[3:]
        name, _, rest = inner[1:].partition("]")
        return name.strip("'\"") + rest
    number, _, rest = path[4:].partition("]")
    return f"argument {number}{rest}"


def _is_tensor_key(key: Any) -> bool:
    return isinstance(key, tuple) and len(key) == 3


def _shorten(value: Any) -> str:
    text = str(value.spec) if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
