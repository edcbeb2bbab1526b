"""What the native side needs to check and run a call by itself: the trace's bindings and guards, as plain data.

Invariant: a description says at least as much as the guards do; what has no native form is among its ``checks``, Python
functions that return None while all is well. A step that needs Python between a call and its return has no description.
"""

from __future__ import annotations

from typing import Any

from .. import arrays, pytree
from ..config import config
from ..ops.core import EAGER, TensorSpec, context
from ..storage import Storage
from ..tensor import Tensor
from .capture import Captured
from .identities import MISSING
from .signature import Call
from .state import FreshLeaf, FromArgument, FromGradient, ResultLeaf
from .step import BoundStep

_FIRST_TENSOR = 2
"""Where the parts of tensors begin in the key of a plain call: (number, gradient mode, shape, dtype, gradient …)."""


def describe_call(call: Call, captured: Captured, step: BoundStep) -> dict[str, Any] | None:
    """Return the description of a step's calls, or None where Python must take part in each."""
    if (
        not _is_plain(call)
        or not step.is_quick
        or any(isinstance(leaf, FreshLeaf) for leaf in captured.trace.result_leaves)
    ):
        return None
    parts = call.key[_FIRST_TENSOR:]
    if len(parts) != 3 * call.key[0]:  # a device is named
        return None
    roots = [leaf.root for leaf in captured.trace.result_leaves if isinstance(leaf, ResultLeaf)]
    if any(isinstance(root, FromArgument | FromGradient) for root in roots):
        return None
    kinds = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    arguments = [(shape, dtype, needs, dtype.numpy) for shape, dtype, needs in kinds]
    if any(dtype.numpy.kind not in "biuf" for _, dtype, _ in kinds):
        return None
    return {
        "tensor": Tensor,
        "storage": Storage,
        "spec": TensorSpec,
        "context": context,
        "eager": EAGER,
        "is_grad_enabled": call.key[1],
        "config": config,
        "generation": config.generation,
        "blocks": config.blocks,
        "open_blocks": tuple(config.blocks),
        "missing": MISSING,
        "arguments": arguments,
        **captured.guards.description(),
        **step.description(),
    }


def _is_plain(call: Call) -> bool:
    """Whether a call has distinct tensors, by position, and nothing else."""
    args, kwargs = pytree.unflatten(call.structure, call.places)
    return not kwargs and args == tuple(range(len(args))) == call.places and arrays.device_types == ()
