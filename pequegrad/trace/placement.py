"""Where a step lives: on the device of the tensors that it captured, or, without any, of its arguments.

Invariant: a step has one home; of other devices it takes arguments, and single numbers and counters of state.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import arrays
from ..errors import DeviceError
from ..tensor import Tensor
from .signature import argument_name
from .state import FromTensor, Trace

SMALL = 16
"""Bytes of a captured tensor that may lie elsewhere, for it costs next to nothing to copy: a step count, a random state."""


def home_of(trace: Trace, tensors: Sequence[Tensor], names: Sequence[str]) -> str:
    """Return the device that a step of ``trace`` lives on, for the tensors of the call and their paths.

    Raises DeviceError where captured tensors lie on different devices, or, without captured ones, arguments.
    """
    if not arrays.device_types:
        return arrays.CPU
    captured = [(b.source.tensor, b.name) for b in trace.inputs if isinstance(b.source, FromTensor)]
    large = [(tensor, name) for tensor, name in captured if tensor.spec.nbytes > SMALL]
    given = [(tensor, argument_name(path)) for tensor, path in zip(tensors, names)]
    for found in (large, captured, given):
        if found:
            return _common(found, trace.graph.name, is_captured=found is not given, is_strict=found is not captured)
    return arrays.CPU


def _common(found: list[tuple[Tensor, str]], step: str, *, is_captured: bool, is_strict: bool) -> str:
    devices = [arrays.device_of(tensor._array) for tensor, _ in found]
    chosen = next((device for device in devices if device != arrays.CPU), arrays.CPU)
    other = next((i for i, device in enumerate(devices) if device != chosen), None)
    if other is not None and is_strict:
        first = devices.index(chosen)
        what = "captures" if is_captured else "is given"
        raise DeviceError(
            f"{step} {what} tensors on different devices: {found[first][1]} lies on {chosen!r}, {found[other][1]} on "
            f"{devices[other]!r}. Move one with .to(), or the whole module with .cuda() or .cpu()."
        )
    return chosen
