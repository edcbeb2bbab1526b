"""Clip gradients by norm or value.

Invariant: no element is read by Python (unless asked to raise on a non-finite norm), so that clipping compiles with
the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ...errors import AutogradError
from ...ops.core import grad_mode
from ...ops.joining import stack
from ...ops.movement import full
from ...ops.selection import clamp
from ...tensor import Tensor


def _gradients(parameters: Any) -> list[Any]:
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = [tensor.grad for tensor in tensors]
    return [gradient for gradient in gradients if gradient is not None]


def _norm(values: Any, norm_type: float) -> Any:
    if norm_type == math.inf:
        return values.abs().amax()
    if norm_type == 2:
        return (values * values).sum().sqrt()
    return values.abs().pow(norm_type).sum().pow(1.0 / norm_type)


def get_total_norm(tensors: Iterable[Any], norm_type: float = 2.0) -> Any:
    """Return the p-norm of all elements of all tensors, 0-d."""
    norms = [_norm(tensor, float(norm_type)) for tensor in tensors]
    return _norm(stack(norms), float(norm_type)) if norms else full((), 0.0)


def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Any:
    """Scale all gradients in place so that their joint norm is at most ``max_norm``; return the norm before, 0-d.

    ``error_if_nonfinite`` raises AutogradError for a norm that is NaN or infinite; eagerly only.
    """
    gradients = _gradients(parameters)
    with grad_mode(False):
        total = get_total_norm(gradients, norm_type)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise AutogradError(
                f"clip_grad_norm_: the norm of the gradients is {total.item()}. Look for the first NaN or infinity "
                "in the model, or pass error_if_nonfinite=False."
            )
        # 1e-6 keeps a norm of zero from dividing, as in torch.
        factor = clamp(max_norm / (total + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.assign(gradient * factor.to(gradient.dtype))
    return total


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Bound each element of all gradients to ±clip_value, in place."""
    with grad_mode(False):
        for gradient in _gradients(parameters):
            gradient.assign(clamp(gradient, min=-clip_value, max=clip_value))
