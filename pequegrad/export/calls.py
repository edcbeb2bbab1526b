"""A call of a loaded step: what `binding/call.h` needs to check and run it without Python, as plain data, and what it returns.

Invariant: a description says all that the manifest asks of a call; a step that needs Python between a call and its return
has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import arrays, pytree
from ..build.loader import StepFailure
from ..calling import LeafForm, NoForm, forms, plain_form, surroundings
from ..dtypes import as_dtype
from ..errors import ArtifactError
from ..ops.core import EAGER, REGISTRY, TensorSpec, bind, grad_mode, use_interpreter
from ..tensor import FUSED_GRADIENT, Tensor
from . import values
from .manifest import Leaf, Manifest

_NUMBERS = "biuf"
"""Kinds of dtypes that NumPy knows itself."""


def describe_call(
    manifest: Manifest,
    structure: Any,
    slots: Sequence[Any],
    written: Sequence[Tensor],
    state: Mapping[str, Tensor],
) -> dict[str, Any] | None:
    """Return the description of a step's calls, but for its lock and its threads; None where Python must take part in each.

    ``structure``: that of the arguments. ``slots``: an array for each of the manifest's before the results, None for those
    that a call brings. ``written``: what of the ``state`` the step changes.
    """
    records = [(record, as_dtype(record.dtype)) for record in manifest.tensors]
    results = [TensorSpec(slot.shape, as_dtype(slot.dtype)) for slot in manifest.result_slots]
    dtypes = [*(dtype for _, dtype in records), *(spec.dtype for spec in results)]
    if (
        arrays.device_types
        or manifest.requires.device != arrays.CPU
        or any(dtype.numpy.kind not in _NUMBERS for dtype in dtypes)
        or any(slot.dtype == "bfloat16" or (slot.argument >= 0 and slot.is_written) for slot in manifest.slots)
        or any(leaf.kind == "tensor" for leaf in manifest.results.leaves)
        or any(action.argument < 0 and action.kind == "store" for action in manifest.gradients)
    ):
        return None
    try:
        form = forms(structure, _leaf_forms(manifest.arguments.leaves, len(records)))
    except NoForm:
        return None
    return {
        **surroundings(),
        **form,
        **_NO_GUARDS,
        "is_grad_enabled": None,
        "arguments": [(record.shape, dtype, record.requires_grad, dtype.numpy) for record, dtype in records],
        "gradients": [
            (None, index, record.gradient == "absent")
            for index, (record, _) in enumerate(records)
            if record.gradient != "any"
        ],
        "numbers": np.zeros(0),
        "slots": list(slots),
        "places": [(i, slot.argument) for i, slot in enumerate(manifest.slots) if slot.argument >= 0],
        "scalars": [],
        "results": [(spec.shape, spec.dtype.numpy, spec) for spec in results],
        "written": [tensor.storage for tensor in written],
        "owners": [id(found) for tensor in written for found in (tensor.array, arrays.owner_of(tensor.array))],
        "actions": [
            (
                None,
                action.argument,
                action.result if action.kind == "store" else -1,
                FUSED_GRADIENT if action.kind == "fused" else None,
            )
            for action in manifest.gradients
            if action.argument >= 0
        ],
        "finish": _finish(manifest, state),
    }


_NO_GUARDS: dict[str, Any] = {
    **dict.fromkeys(("reads", "members", "functions", "optimizers", "checks", "tensors"), ()),
    **dict.fromkeys(("guards", "changes", "missing")),
}
"""Of user code, which a loaded step has none of."""


def _leaf_forms(leaves: Sequence[Leaf], tensors: int) -> Iterator[LeafForm]:
    if len({leaf.index for leaf in leaves if leaf.kind == "tensor"}) != tensors:  # one that no leaf is
        raise NoForm
    seen = 0
    for leaf in leaves:
        if leaf.kind == "value":
            form = plain_form(values.decode(leaf.value))
            if form is None:
                raise NoForm
            yield form
        else:
            if leaf.index > seen:  # not in the order in which they come
                raise NoForm
            yield ("again" if leaf.index < seen else "tensor", leaf.index)
            seen = max(seen, leaf.index + 1)


def _finish(manifest: Manifest, state: Mapping[str, Tensor]) -> Any:
    """Return what makes a call's result of the list of new tensors, or None where that is the only one of them."""
    structure, leaves = values.decode_structure(manifest.results.structure), manifest.results.leaves
    if structure is pytree.LEAF and (leaves[0].kind, leaves[0].index, leaves[0].views) == ("result", 0, ()):
        return None
    return lambda made: pytree.unflatten(structure, [result_leaf(leaf, made, (), state, manifest) for leaf in leaves])


def result_leaf(
    leaf: Leaf, made: Sequence[Tensor], tensors: Sequence[Tensor], state: Mapping[str, Tensor], manifest: Manifest
) -> Any:
    """Return one leaf of what a call returns: of its new tensors, its arguments' or the state, or a value."""
    if leaf.kind == "result":
        return made[leaf.index]
    if leaf.kind == "value":
        return values.decode(leaf.value)
    tensor = tensors[leaf.index] if leaf.kind == "tensor" else state[manifest.slots[leaf.index].name]
    with use_interpreter(EAGER), grad_mode(False):
        for view in leaf.views:
            params = {key: values.decode(value) for key, value in view.params}
            tensor = bind(REGISTRY[view.op], tensor, **params)
    return tensor


def check_views(manifest: Manifest, folder: Path) -> None:
    """Raise ArtifactError unless all views between state and results are known."""
    for leaf in manifest.results.leaves:
        for view in leaf.views:
            if view.op not in REGISTRY or not REGISTRY[view.op].view:
                raise ArtifactError(f"{folder}: {view.op!r:.80} is no view that this version knows.")


def check_failure(manifest: Manifest, failure: tuple[int, int, int, int, str] | None) -> None:
    """Raise what a failure of the step's native code means, with the user's line where it is known."""
    if failure is None:
        return
    found, kernels = StepFailure(*failure), manifest.kernels
    is_known = found.is_index and 0 <= found.kernel < len(kernels)
    raise found.error(f"{kernels[found.kernel]}: " if is_known else f"{manifest.name}: ")
