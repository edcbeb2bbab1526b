"""What layers compute, under torch's names: linear maps, normalisation, embedding, attention. Plain functions of ops.

Invariant: weights and statistics come as arguments; only batch_norm changes one, its running statistics, in place.
"""

from __future__ import annotations

import math
from typing import Any

from ..dtypes import bool_, float32
from ..errors import DTypeError, ShapeError
from .activations import softmax
from .attention import Attention, fits_kernels
from .contraction import matmul
from .core import as_tensor, bind, grad_mode, normalize_dim
from .creation import below_diagonal
from .elementwise import where
from .gathering import Gather, as_index
from .movement import reshape
from .power import rsqrt, square
from .random import dropout
from .reduction import squared_deviations
from .selection import clamp
from .views import transpose, unsqueeze


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Return ``x`` (…, in) times the transpose of ``weight`` (out, in), plus ``bias`` (out,)."""
    x, weight = as_tensor(x), as_tensor(weight)
    if weight.ndim not in (1, 2) or not x.ndim or x.shape[-1] != weight.shape[-1]:
        raise ShapeError(
            f"linear: weight {weight.shape} needs an input whose last extent is "
            f"{weight.shape[-1] if weight.ndim else '?'}. "
            f"Got {x.shape}. Try .flatten(1) on the input."
        )
    if x.dtype is not weight.dtype:
        raise DTypeError(
            f"linear: input and weight need one dtype. Got {x.dtype.name} and {weight.dtype.name}. Use .to(dtype)."
        )
    result = matmul(x, transpose(weight, 0, 1) if weight.ndim == 2 else weight)
    return result if bias is None else result + bias


def normalized(x: Any, dims: tuple[int, ...], eps: float) -> tuple[Any, Any, Any]:
    """Return ``x`` shifted and scaled to mean 0 and variance 1 over ``dims``, with that mean and (biased) variance."""
    mean = x.mean(dims, keepdim=True)
    variance = squared_deviations(x, mean, dims, keepdim=True) / math.prod(x.shape[dim] for dim in dims)
    return (x - mean) * rsqrt(variance + eps), mean, variance


def layer_norm(x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """Return ``x`` normalised over its last dimensions, times ``weight`` plus ``bias`` (Ba et al. 2016)."""
    x = as_tensor(x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(f"layer_norm: the input's last extents must be normalized_shape {shape}. Got {x.shape}.")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and tuple(value.shape) != shape:
            raise ShapeError(f"layer_norm: {name} must have normalized_shape {shape}. Got {tuple(value.shape)}.")
    wide = x.to(float32) if x.dtype.itemsize == 2 else x
    result = normalized(wide, tuple(range(x.ndim - len(shape), x.ndim)), eps)[0]
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias).to(x.dtype)


def batch_norm(
    x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: Any = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """Return ``x`` (N, C, …) normalised per channel, times ``weight`` plus ``bias`` (Ioffe and Szegedy 2015).

    In training by the batch's own mean and variance, which also move the running ones, in place, by ``momentum`` (the
    variance unbiased there); else by the running ones.
    """
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: expected (N, C) or (N, C, …). Got shape {x.shape}.")
    channels = x.shape[1]
    named = (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias))
    for name, value in named:
        if value is not None and tuple(value.shape) != (channels,):
            raise ShapeError(
                f"batch_norm: {name} must have shape ({channels},) to match input {x.shape}. Got {tuple(value.shape)}."
            )

    def per_channel(value: Any) -> Any:
        return reshape(value, (channels, *(1,) * (x.ndim - 2)))

    wide = x.to(float32) if x.dtype.itemsize == 2 else x
    if training:
        count = x.spec.size // max(channels, 1)
        if count <= 1:
            raise ShapeError(f"batch_norm: training needs more than one value per channel. Got shape {x.shape}.")
        result, mean, variance = normalized(wide, (0, *range(2, x.ndim)), eps)
        with grad_mode(False):
            if running_mean is not None:
                _move(running_mean, reshape(mean, (channels,)), momentum)
            if running_var is not None:
                _move(running_var, reshape(variance, (channels,)) * (count / (count - 1)), momentum)
    elif running_mean is None or running_var is None:
        raise ShapeError("batch_norm: running_mean and running_var are needed when not training.")
    else:
        result = (wide - per_channel(running_mean)) * rsqrt(per_channel(running_var) + eps)
    result = result if weight is None else result * per_channel(weight)
    return (result if bias is None else result + per_channel(bias)).to(x.dtype)


def _move(running: Any, observed: Any, momentum: Any) -> None:
    running.assign(running * (1 - momentum) + observed.detach() * momentum)


def normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """Return ``x`` divided by its p-norm along ``dim``, or by ``eps`` where that is smaller."""
    x = as_tensor(x)
    if p == 2:
        norm = square(x).sum(dim, keepdim=True).sqrt()
    else:
        norm = x.abs().pow(p).sum(dim, keepdim=True).pow(1 / p)
    return x / clamp(norm, min=eps)


def embedding(index: Any, weight: Any, padding_idx: int | None = None) -> Any:
    """Return the rows of ``weight`` (entries, features) at ``index``; the row ``padding_idx`` gets no gradient.

    IndexOutOfRange names an index that is no row.
    """
    index, weight = as_index(index, "embedding"), as_tensor(weight)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must have shape (entries, features). Got {weight.shape}.")
    rows = bind(Gather, weight, index, dim=0, aligned=False)
    if padding_idx is None:
        return rows
    entry = normalize_dim(padding_idx, weight.shape[0], "embedding: padding_idx")
    return where(unsqueeze(index == entry, -1), rows.detach(), rows)


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: bool = False,
    scale: float | None = None,
) -> Any:  # fmt: skip
    """Return softmax(query keyᵀ * scale + mask) value (Vaswani et al. 2017).

    ``query`` (…, L, E), ``key`` (…, S, E), ``value`` (…, S, F). ``attn_mask`` broadcasts to (…, L, S): bool, True where
    attention is allowed, or numbers to add. ``is_causal``: row i attends to columns up to i. ``scale``: E ** -0.5
    by default.
    """
    query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
    if (
        min(query.ndim, key.ndim, value.ndim) < 2
        or query.shape[-1] != key.shape[-1]
        or key.shape[-2] != value.shape[-2]
    ):
        raise ShapeError(
            "scaled_dot_product_attention: expected query (…, L, E), key (…, S, E) and value (…, S, F). "
            f"Got {query.shape}, {key.shape} and {value.shape}."
        )
    if attn_mask is not None and is_causal:
        raise ShapeError("scaled_dot_product_attention: give attn_mask or is_causal, not both.")
    is_plain = attn_mask is None and isinstance(dropout_p, int | float) and not dropout_p
    if is_plain and fits_kernels(query.spec, value.spec):
        return Attention.call(query, key, value, scale, is_causal)[0]
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = matmul(query * factor, transpose(key, -2, -1))
    if is_causal:
        scores = where(below_diagonal(query.shape[-2], key.shape[-2], device=query.device), scores, -math.inf)
    elif attn_mask is not None:
        mask = as_tensor(attn_mask)
        if mask.dtype is not bool_:
            scores = scores + mask
        else:
            # A row that may attend to nothing gives zeros, as in torch, and not 0 / 0.
            is_open = mask.any(-1, keepdim=True)
            scores = where(mask, scores, where(is_open, -math.inf, 0.0))
            return matmul(dropout(where(is_open, softmax(scores, -1), 0.0), dropout_p), value)
    return matmul(dropout(softmax(scores, -1), dropout_p), value)
