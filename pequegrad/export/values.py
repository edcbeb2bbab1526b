"""Python values and nestings of containers as JSON, and back: plain data alone, so that reading runs no code.

Invariant: two values have equal JSON exactly when they are of one type and equal (NaN is equal to itself, 0.0 differs
from -0.0).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ..dtypes import DType, as_dtype
from ..pytree import LEAF, Structure, of_mapping

_CONTAINERS: dict[str, type] = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": OrderedDict}
_DEEPEST = 100  # of nested containers: far more than anyone writes, far less than Python's stack


def encode(value: Any) -> Any:
    """Return a value as JSON: None, bool, int, float, complex, str, bytes, dtypes, slices, ranges, and tuples of them.

    Raises TypeError for anything else.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return {"int": str(value)}  # of any size
    if kind is float:
        return {"float": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is DType:
        return {"dtype": value.name}
    if kind is tuple:
        return {"tuple": [encode(part) for part in value]}
    if kind is slice or kind is range:
        return {kind.__name__: [encode(value.start), encode(value.stop), encode(value.step)]}
    raise TypeError(f"a {kind.__name__} is no plain value: expected None, bool, int, float, complex, str, bytes, dtype, "
                    "slice, range, or a tuple of them")  # fmt: skip


def decode(value: Any) -> Any:
    """Return the value that `encode` took. Raises ValueError for JSON that it does not write."""
    if value is None or isinstance(value, bool | str):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{value!r:.80} is not how a value is written")
    ((kind, content),) = value.items()
    try:
        if kind == "int":
            return int(content)
        if kind == "float":
            return float.fromhex(content)
        if kind == "complex":
            return complex(float.fromhex(content[0]), float.fromhex(content[1]))
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "dtype":
            return as_dtype(content)
        if kind == "tuple":
            return tuple([decode(part) for part in content])
        if kind in ("slice", "range"):
            start, stop, step = map(decode, content)
            return (slice if kind == "slice" else range)(start, stop, step)
    except (TypeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"{value!r:.80} is not how a value is written: {error}") from error
    raise ValueError(f"{kind!r:.80} is no kind of value")


def show(value: Any) -> str:
    """Return an encoded value for people."""
    text = repr(decode(value))
    return text if len(text) <= 60 else text[:59] + "…"


def encode_structure(structure: Any) -> Any:
    """Return a pytree's structure as JSON. A namedtuple or dataclass is its class's name and its fields."""
    if structure is LEAF:
        return None
    children = [encode_structure(child) for child in structure.children]
    name = next((name for name, kind in _CONTAINERS.items() if kind is structure.kind), None)
    if structure.keys is None:
        return {"kind": name, "children": children}
    keys = [encode(key) for key in structure.keys]
    return {"kind": name or f"class {structure.kind.__qualname__}", "keys": keys, "children": children}


def decode_structure(value: Any, depth: int = 0) -> Any:
    """Return the pytree structure that `encode_structure` took. Raises ValueError for classes, which are not imported,
    and for JSON that it does not write."""
    if value is None:
        return LEAF
    if depth > _DEEPEST or not isinstance(value, dict) or not isinstance(value.get("children"), list):
        raise ValueError("it is not how a nesting is written")
    kind = _CONTAINERS.get(value.get("kind", ""))
    if kind is None:
        raise ValueError(f"{value.get('kind')!r:.80} is no container that can be made here")
    children = tuple([decode_structure(child, depth + 1) for child in value["children"]])
    if kind is tuple or kind is list:
        return Structure(kind, None, children)
    keys = value.get("keys")
    if not isinstance(keys, list) or len(keys) != len(children):
        raise ValueError("a dict has not as many keys as values")
    return of_mapping(kind, tuple([decode(key) for key in keys]), children)


def count_leaves(value: Any) -> int:
    """Return the number of leaves of an encoded structure."""
    return 1 if value is None else sum(map(count_leaves, value["children"]))


def show_structure(value: Any, leaves: Any) -> str:
    """Return an encoded structure for people, with the texts of ``leaves``, an iterator, in their places."""
    if value is None:
        return str(next(leaves))
    children = [show_structure(child, leaves) for child in value["children"]]
    kind = value["kind"]
    if "keys" not in value:
        comma = "," if kind == "tuple" and len(children) == 1 else ""
        return f"({', '.join(children)}{comma})" if kind == "tuple" else f"[{', '.join(children)}]"
    keys = [show(key) for key in value["keys"]]
    if kind.startswith("class "):
        inner = ", ".join(f"{key[1:-1]}={child}" for key, child in zip(keys, children))
        return f"{kind.removeprefix('class ')}({inner})"
    return "{" + ", ".join(f"{key}: {child}" for key, child in zip(keys, children)) + "}"
