"""Native calls: what the binding needs to know of a call's surroundings and arguments, and when it is to be told anew.

Invariant: whatever is not as it was described, a native call leaves to Python, having changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import pytree
from .config import config
from .ops.core import EAGER, TensorSpec, context
from .storage import Storage
from .tensor import Tensor

Native = tuple[Callable[..., Any], Any]
"""A native call, and the description that must outlive it. It takes a tuple and a dict; NotImplemented: Python is to do it."""

CALLS_BEFORE_A_BLOCK_PAYS = 8
"""A description takes 70 to 90 us, two to three times Python's part of a call: a block of settings may be over before that pays."""

_COMPARED = (int, float, str, bytes)
"""Exact types of values that are compared natively, without the user's code."""
_KEYS = (*_COMPARED, bool)

LeafForm = tuple[str, Any]
"""("tensor", place), ("again", place) of one that came before, ("equal", value), or ("same", value) for that very object."""


class NoForm(Exception):
    """Arguments that native code does not take apart."""


class Described:
    """The native call of one step, described for the settings as they are."""

    __slots__ = ("_calls_since", "_described_for", "_native", "_settings")

    def __init__(self) -> None:
        self._native: Native | None = None
        self._described_for: tuple[int, ...] | None = None  # the moment of the settings that it is for
        self._settings: tuple[int, ...] | None = None  # that of the latest call that Python did
        self._calls_since = 0  # how many it did since that began

    def now(self, describe: Callable[[], Native | None]) -> Native | None:
        """Return what does all of a call natively, or None where Python must take part. For after each call that it did."""
        moment = config.moment()
        if self._described_for != moment:
            self._calls_since = self._calls_since + 1 if self._settings == moment else 1
            self._settings = moment
            if config.blocks and self._calls_since < CALLS_BEFORE_A_BLOCK_PAYS:
                return None
            self._described_for = moment
            self._native = describe()
        return self._native


def surroundings() -> dict[str, Any]:
    """Return the part of a description that is the same for all steps: classes, and settings as they are."""
    return {
        "tensor": Tensor,
        "storage": Storage,
        "spec": TensorSpec,
        "number": np.generic,
        "context": context,
        "eager": EAGER,
        "config": config,
        "generation": config.generation,
        "blocks": config.blocks,
        "open_blocks": tuple(config.blocks),
    }


def forms(structure: Any, leaves: Iterable[LeafForm]) -> dict[str, Any]:
    """Return the part of a description that says what arguments must be, all the way down, as `binding/arguments.h` takes
    it: a LeafForm, or ("sequence" or "mapping", type, keys, items). ``structure``: that of ((args), {kwargs}). Raises NoForm."""
    _, _, _, (positional, named) = _form(structure, iter(leaves))
    return {"positional": positional, "named": named}


def _form(structure: Any, leaves: Iterator[LeafForm]) -> tuple[Any, ...]:
    if structure is pytree.LEAF:
        return next(leaves)
    kind, keys = structure.kind, structure.keys
    if kind is dict:
        if any(type(key) not in _KEYS for key in keys):
            raise NoForm
        word = "mapping"
    elif kind is list or (issubclass(kind, tuple) and kind.__iter__ is tuple.__iter__):
        word, keys = "sequence", ()
    else:
        raise NoForm
    return (word, kind, keys, [_form(child, leaves) for child in structure.children])


def plain_form(value: Any) -> LeafForm | None:
    """Return the form of a value that is compared by type and value, or None for any other."""
    if type(value) in _COMPARED:
        return ("equal", value)
    return ("same", value) if value is None or type(value) is bool else None
