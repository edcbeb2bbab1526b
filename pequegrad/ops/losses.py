"""Losses, under torch's names: plain functions of ops.

Invariant: a class is picked by comparing it with a counter, not by indexing, so that every gradient is pointwise.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..dtypes import int64
from ..errors import DTypeError, IndexOutOfRange, PequegradWarning, ShapeError
from .activations import log_softmax
from .core import EAGER, as_tensor, broadcast_shapes, context, operands
from .creation import iota
from .elementwise import abs as absolute
from .elementwise import where
from .gathering import check_index
from .movement import expand, reshape
from .power import square
from .transcendental import Softplus
from .views import unsqueeze


def _reduced(loss: Any, reduction: str, who: str) -> Any:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    _check_reduction(reduction, who)
    return loss


def _check_reduction(reduction: str, who: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ShapeError(f'{who}: reduction must be "none", "mean" or "sum". Got {reduction!r}.')


def _compared(x: Any, target: Any, who: str) -> tuple[Any, Any]:
    x, target = operands(as_tensor(x), as_tensor(target), kind="float", who=who)
    if x.shape != target.shape:
        shape = broadcast_shapes(x.shape, target.shape, who=who)
        warnings.warn(
            f"{who}: target of shape {target.shape} is broadcast with input of shape {x.shape} to {shape}. "
            "That is rarely meant: make the shapes equal, for example with .reshape(input.shape).",
            PequegradWarning,
            stacklevel=3,
        )
    return x, target


def mse_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """Return the squared differences, or their mean or sum."""
    x, target = _compared(input, target, "mse_loss")
    return _reduced(square(x - target), reduction, "mse_loss")


def l1_loss(input: Any, target: Any, reduction: str = "mean") -> Any:
    """Return the absolute differences, or their mean or sum."""
    x, target = _compared(input, target, "l1_loss")
    return _reduced(absolute(x - target), reduction, "l1_loss")


def huber_loss(input: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """Return half the squares of differences below ``delta``, and ``delta * (|difference| - delta / 2)`` above."""
    if delta <= 0:
        raise ShapeError(f"huber_loss: delta must be positive. Got {delta}.")
    x, target = _compared(input, target, "huber_loss")
    size = absolute(x - target)
    return _reduced(where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)), reduction, "huber_loss")


def smooth_l1_loss(input: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """Return the Huber loss divided by ``beta``; the absolute differences where that is 0."""
    if beta < 0:
        raise ShapeError(f"smooth_l1_loss: beta must not be negative. Got {beta}.")
    x, target = _compared(input, target, "smooth_l1_loss")
    size = absolute(x - target)
    loss = size if beta == 0 else where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)
    return _reduced(loss, reduction, "smooth_l1_loss")


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """Return the cross-entropy of sigmoid(input) with targets in [0, 1], computed without overflow."""
    x, target = operands(as_tensor(input), as_tensor(target), kind="float", who="binary_cross_entropy_with_logits")
    if x.shape != target.shape:
        raise ShapeError(
            f"binary_cross_entropy_with_logits: target must have the input's shape {x.shape}. Got {target.shape}. "
            f"Try target.reshape{x.shape}."
        )
    softplus_of_minus = Softplus.call(-x)
    if pos_weight is not None:
        softplus_of_minus = (1.0 + (as_tensor(pos_weight) - 1.0) * target) * softplus_of_minus
    loss = (1.0 - target) * x + softplus_of_minus
    return _reduced(loss if weight is None else loss * weight, reduction, "binary_cross_entropy_with_logits")


# --- classes --------------------------------------------------------------------------------------------------


def cross_entropy(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Return the negative log-likelihood of ``target`` under softmax(input).

    ``input``: logits (N, C), (N, C, d1, …) or (C,). ``target``: class indices of that shape without C, or
    probabilities of the same shape. ``weight``: (C,). The mean is over the weights of the targets that are not
    ``ignore_index``. Raises ShapeError, DTypeError, and IndexOutOfRange for a target that is no class.
    """
    logits, target = as_tensor(input), as_tensor(target)
    dim = _class_dim(logits, "cross_entropy")
    if not 0 <= label_smoothing <= 1:
        raise ShapeError(f"cross_entropy: label_smoothing must lie in [0, 1]. Got {label_smoothing}.")
    log_probabilities = log_softmax(logits, dim)
    if target.dtype.is_floating_point:
        return _probability_loss(log_probabilities, target, weight, reduction, label_smoothing, dim)
    return _class_loss(
        log_probabilities, target, weight, ignore_index, reduction, label_smoothing, dim, "cross_entropy"
    )


def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """Return minus the log-probabilities ``input`` (N, C, …) at the classes ``target`` (N, …); see cross_entropy."""
    log_probabilities, target = as_tensor(input), as_tensor(target)
    dim = _class_dim(log_probabilities, "nll_loss")
    if target.dtype.is_floating_point:
        raise DTypeError(f"nll_loss: target must hold class indices. Got {target.dtype.name}. Use .to(int64).")
    return _class_loss(log_probabilities, target, weight, ignore_index, reduction, 0.0, dim, "nll_loss")


def _class_dim(logits: Any, who: str) -> int:
    if not logits.ndim or not logits.dtype.is_floating_point:
        raise ShapeError(f"{who}: input must be floating-point of shape (N, C), (N, C, …) or (C,). Got {logits.spec}.")
    return 0 if logits.ndim == 1 else 1


def _class_loss(
    log_probabilities: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float,
    dim: int, who: str,
) -> Any:  # fmt: skip
    shape = log_probabilities.shape
    classes = shape[dim]
    expected = shape[:dim] + shape[dim + 1 :]
    if target.shape != expected:
        extra = [
            d
            for d in range(target.ndim)
            if target.shape[:d] + target.shape[d + 1 :] == expected and target.shape[d] == 1
        ]
        cure = f" Try target.squeeze({extra[-1]})." if extra else ""
        raise ShapeError(f"{who}: target must have shape {expected} to match logits {shape}. Got {target.shape}.{cure}")
    if target.dtype.kind != "int":
        raise DTypeError(f"{who}: target must hold class indices or probabilities. Got {target.dtype.name}.")
    _check_reduction(reduction, who)
    checked = _checked_classes(target, classes, ignore_index, who)
    is_target = unsqueeze(checked, dim) == iota((classes, *(1,) * (len(shape) - 1 - dim)), 0, device=target.device)
    counts = target != ignore_index
    if weight is not None:
        weight = _class_weight(weight, log_probabilities, dim, who)
        log_probabilities = log_probabilities * weight
        weight_of_target = where(is_target, expand(weight, shape), 0.0).sum(dim)
    else:
        weight_of_target = counts.to(log_probabilities.dtype)
    loss = where(counts, -where(is_target, log_probabilities, 0.0).sum(dim), 0.0)
    if label_smoothing:
        spread = where(counts, -log_probabilities.sum(dim), 0.0)
        loss = (1.0 - label_smoothing) * loss + (label_smoothing / classes) * spread
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / where(counts, weight_of_target, 0.0).sum()


def _probability_loss(
    log_probabilities: Any, target: Any, weight: Any, reduction: str, label_smoothing: float, dim: int
) -> Any:
    shape = log_probabilities.shape
    if target.shape != shape:
        raise ShapeError(
            f"cross_entropy: target must have shape {shape}, that of the logits, to hold probabilities. "
            f"Got {target.shape}."
        )
    _check_reduction(reduction, "cross_entropy")
    if label_smoothing:
        target = target * (1.0 - label_smoothing) + label_smoothing / shape[dim]
    if weight is not None:
        log_probabilities = log_probabilities * _class_weight(weight, log_probabilities, dim, "cross_entropy")
    loss = -(log_probabilities * target).sum(dim)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total if reduction == "sum" else total / max(loss.spec.size, 1) if loss.spec.size else total / 0.0


def _class_weight(weight: Any, logits: Any, dim: int, who: str) -> Any:
    weight = as_tensor(weight)
    classes = logits.shape[dim]
    if weight.shape != (classes,):
        raise ShapeError(f"{who}: weight must have shape ({classes},), one number a class. Got {weight.shape}.")
    return reshape(weight.to(logits.dtype), (classes, *(1,) * (logits.ndim - 1 - dim)))


def _checked_classes(target: Any, classes: int, ignore_index: int, who: str) -> Any:
    """Return the target as int64. IndexOutOfRange for one that is no class: here, or when the traced step runs."""
    if context.interpreter is not EAGER:
        return check_index(target, classes, ignore_index).to(int64)
    array = target.array
    is_wrong = ((array < 0) | (array >= classes)) & (array != ignore_index)
    if is_wrong.any():
        wrong = int(array[is_wrong].reshape(-1)[0])
        raise IndexOutOfRange(
            f"{who}: target {wrong} is no class: expected 0 <= target < {classes} (or ignore_index {ignore_index})."
        )
    return target.to(int64)
