"""What the native side needs to check and run a call of a traced function by itself: the trace's bindings and guards, as
plain data.

Invariant: a description says at least as much as the guards do; what has no native form is among its ``checks``, Python
functions that return None while all is well. A step that needs Python between a call and its return has no description.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

from .. import arrays
from ..calling import LeafForm, NoForm, forms, plain_form, surroundings
from ..dtypes import DType
from .capture import Captured
from .identities import MISSING
from .signature import Call, Identity, static_key
from .state import FreshLeaf, FromArgument, FromGradient, ResultLeaf
from .step import BoundStep

_UNCHANGING = (int, float, str, bytes, complex, DType, enum.Enum, type)
"""Values that are what they were if they are the same objects."""


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
        form = forms(call.structure, _leaf_forms(call))
    except NoForm:
        return None
    return {
        **surroundings(),
        **form,
        "is_grad_enabled": call.key[1],
        "missing": MISSING,
        "arguments": [(shape, dtype, needs, dtype.numpy) for shape, dtype, needs in kinds],
        **captured.guards.description(),
        **step.description(),
    }


def _leaf_forms(call: Call) -> Iterator[LeafForm]:
    seen = 0
    for leaf, place in zip(call.leaves, call.places):
        if place < 0:
            yield plain_form(leaf) or ("same", _standing_for_itself(leaf))
        else:
            yield ("again" if place < seen else "tensor", place)
            seen = max(seen, place + 1)


def _standing_for_itself(value: Any) -> Any:
    """Return a value that is what it was for as long as it is the same object. Raises NoForm for any other."""
    is_by_identity = isinstance(static_key(value), Identity) and not hasattr(type(value), "__dataclass_fields__")
    if is_by_identity or isinstance(value, _UNCHANGING):
        return value
    raise NoForm
