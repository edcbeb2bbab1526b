"""Any nesting of dict, list, tuple, namedtuple and dataclass as leaves and a structure, and back.

Invariant: structures are hashable, and equal exactly when the containers nest alike; order of keys included.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from .records import record


@record
class Structure:
    """A container: its type, the keys or field names (None for list and tuple), and its children (LEAF for a leaf)."""

    kind: type
    keys: tuple[Any, ...] | None
    children: tuple[Any, ...]
    key_types: tuple[type, ...] = ()
    """Of a dict whose keys are not all strings: 1, 1.0 and True are equal, and not the same to whoever looks at them."""


LEAF = None
"""The structure of anything that is no container."""


def flatten(value: Any) -> tuple[list[Any], Any]:
    """Return (leaves in order, structure).

    None, numbers, strings and unknown objects are leaves; so is a dataclass without any array in it (a configuration).
    """
    leaves: list[Any] = []
    return leaves, _flatten(value, leaves)


def _flatten(value: Any, leaves: list[Any]) -> Any:
    kind = type(value)
    if kind is tuple or kind is list:
        return Structure(kind, None, tuple([_flatten(item, leaves) for item in value]))
    if kind is dict or kind is OrderedDict:
        return of_mapping(kind, tuple(value), tuple([_flatten(item, leaves) for item in value.values()]))
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return Structure(kind, kind._fields, tuple([_flatten(item, leaves) for item in value]))
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        import dataclasses  # not at the top: whoever passes one has it loaded, and else it takes 1 ms

        names = tuple(field.name for field in dataclasses.fields(kind) if field.init)
        inner: list[Any] = []
        children = tuple([_flatten(getattr(value, name), inner) for name in names])
        if any(hasattr(leaf, "__array__") for leaf in inner):
            leaves += inner
            return Structure(kind, names, children)
    leaves.append(value)
    return LEAF


def of_mapping(kind: type, keys: tuple[Any, ...], children: tuple[Any, ...]) -> Structure:
    """Return the structure of a dict or an OrderedDict."""
    types = tuple([type(key) for key in keys])
    return Structure(kind, keys, children, () if types == (str,) * len(keys) else types)


def unflatten(structure: Any, leaves: Any) -> Any:
    """Return the value of a structure with these leaves, an iterable in order."""
    return _unflatten(structure, iter(leaves))


def _unflatten(structure: Any, leaves: Any) -> Any:
    if structure is LEAF:
        return next(leaves)
    children = [_unflatten(child, leaves) for child in structure.children]
    kind = structure.kind
    if structure.keys is None:
        return children if kind is list else tuple(children)
    if kind is dict or kind is OrderedDict:
        return kind(zip(structure.keys, children))
    if issubclass(kind, tuple):
        return kind(*children)
    return kind(**dict(zip(structure.keys, children)))


def map_leaves(function: Any, value: Any) -> Any:
    """Return ``value`` with each leaf replaced by ``function(leaf)``."""
    leaves, structure = flatten(value)
    return unflatten(structure, map(function, leaves))


def leaf_paths(structure: Any, prefix: str = "") -> list[str]:
    """Return, per leaf, how to reach it, such as ``[0]['x'].weight``."""
    if structure is LEAF:
        return [prefix]
    paths: list[str] = []
    keys = range(len(structure.children)) if structure.keys is None else structure.keys
    is_mapping = issubclass(structure.kind, dict)
    for key, child in zip(keys, structure.children):
        step = f"[{key!r}]" if is_mapping or structure.keys is None else f".{key}"
        paths += leaf_paths(child, prefix + step)
    return paths
