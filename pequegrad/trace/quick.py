"""What the native side needs to check and run a call by itself: the trace's bindings and guards, as plain data.

Invariant: a description says at least as much as the guards do; what has no native form is among its ``checks``, Python
functions that return None while all is well. A step that needs Python between a call and its return has no description.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import arrays, pytree
from ..config import config
from ..dtypes import DType
from ..ops.core import EAGER, TensorSpec, context
from ..storage import Storage
from ..tensor import Tensor
from .capture import Captured
from .identities import MISSING
from .signature import Call, Identity, static_key
from .state import FreshLeaf, FromArgument, FromGradient, ResultLeaf
from .step import BoundStep

_COMPARED = (int, float, str, bytes)
"""Exact types of values that are compared natively, without the user's code; keys of dicts among them."""

_UNCHANGING = (*_COMPARED, complex, type(None), DType, enum.Enum, type)
"""Values that are what they were if they are the same objects."""


class _NoForm(Exception):
    """Arguments that native code does not take apart."""


def describe_call(call: Call, captured: Captured, step: BoundStep) -> dict[str, Any] | None:
    """Return the description of a step's calls, or None where Python must take part in each."""
    leaves = captured.trace.result_leaves
    roots = [leaf.root for leaf in leaves if isinstance(leaf, ResultLeaf)]
    if (
        not step.is_quick
        or arrays.device_types
        or any(isinstance(leaf, FreshLeaf) for leaf in leaves)
        or any(isinstance(root, FromArgument | FromGradient) for root in roots)
    ):
        return None
    kinds = call.kinds()
    if any(dtype.numpy.kind not in "biuf" for _, dtype, _ in kinds):
        return None
    try:
        _, _, _, (positional, named) = _form(call.structure, zip(call.leaves, call.places), set())
    except _NoForm:
        return None
    return {
        "tensor": Tensor,
        "storage": Storage,
        "spec": TensorSpec,
        "number": np.generic,
        "context": context,
        "eager": EAGER,
        "is_grad_enabled": call.key[1],
        "config": config,
        "generation": config.generation,
        "blocks": config.blocks,
        "open_blocks": tuple(config.blocks),
        "missing": MISSING,
        "positional": positional,
        "named": named,
        "arguments": [(shape, dtype, needs, dtype.numpy) for shape, dtype, needs in kinds],
        **captured.guards.description(),
        **step.description(),
    }


def _form(structure: Any, leaves: Iterator[tuple[Any, int]], seen: set[int]) -> tuple[Any, ...]:
    """Return what arguments must be, as `binding/arguments.h` takes it: ("tensor", place), ("again", place), ("same" or
    "equal", value), ("sequence" or "mapping", type, keys, items)."""
    if structure is pytree.LEAF:
        leaf, place = next(leaves)
        if place < 0:
            return _value_form(leaf)
        word = "again" if place in seen else "tensor"
        seen.add(place)
        return (word, place)
    kind, keys = structure.kind, structure.keys
    if kind is dict:
        if any(type(key) not in (*_COMPARED, bool) for key in keys):
            raise _NoForm
        word = "mapping"
    elif kind is list or (issubclass(kind, tuple) and kind.__iter__ is tuple.__iter__):
        word, keys = "sequence", ()
    else:
        raise _NoForm
    return (word, kind, keys, [_form(child, leaves, seen) for child in structure.children])


def _value_form(value: Any) -> tuple[str, Any]:
    if type(value) in _COMPARED:
        return ("equal", value)
    stands_for_itself = isinstance(static_key(value), Identity) and not hasattr(type(value), "__dataclass_fields__")
    if stands_for_itself or isinstance(value, _UNCHANGING):
        return ("same", value)
    raise _NoForm
