"""All parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...errors import ShapeError
from ...ops.core import grad_mode
from ...ops.joining import cat


def parameters_to_vector(parameters: Iterable[Any]) -> Any:
    """Return the elements of all parameters, one after another, 1-d."""
    return cat([parameter.reshape(-1) for parameter in parameters])


def vector_to_parameters(vec: Any, parameters: Iterable[Any]) -> None:
    """Copy the elements of ``vec`` into the parameters, in place; ShapeError if their number differs."""
    tensors = list(parameters)
    total = sum(tensor.numel() for tensor in tensors)
    if vec.shape != (total,):
        raise ShapeError(f"vector_to_parameters: expected a vector of {total} elements. Got shape {vec.shape}.")
    start = 0
    with grad_mode(False):
        for tensor in tensors:
            tensor.assign(vec[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()
