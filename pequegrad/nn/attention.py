"""Multi-head attention, with torch's parameters, arguments and meaning of masks.

Invariant: masks given here are True where attention is *forbidden* (torch's convention for the module), or numbers
to add.
"""

from __future__ import annotations

import math
from typing import Any

from ..dtypes import bool_
from ..errors import ShapeError
from ..ops.core import as_tensor
from ..ops.creation import below_diagonal, empty
from ..ops.elementwise import where
from . import functional, init
from .linear import Linear
from .module import Module
from .parameter import Parameter


class MultiheadAttention(Module):
    """Attention of ``num_heads`` heads over embeddings (Vaswani et al. 2017).

    Inputs (L, N, E), or (N, L, E) with ``batch_first``, or (L, E). Keys and values have the embedding's size.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, batch_first: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ShapeError(f"MultiheadAttention: num_heads must divide embed_dim. Got {num_heads} and {embed_dim}.")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.in_proj_weight = Parameter(empty(3 * embed_dim, embed_dim, dtype=dtype, device=device))
        self.register_parameter(
            "in_proj_bias", Parameter(empty(3 * embed_dim, dtype=dtype, device=device)) if bias else None
        )
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        init.xavier_uniform_(self.in_proj_weight)
        if bias:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Any, key: Any, value: Any, key_padding_mask: Any = None, need_weights: bool = True,
        attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Return the attended values, shaped as ``query``, and the weights (N, L, S), or None.

        Without ``average_attn_weights`` the weights are (N, heads, L, S).
        ``attn_mask`` (L, S) or (N * heads, L, S); ``key_padding_mask`` (N, S); both True where attention is forbidden.
        """
        inputs = [as_tensor(part) for part in (query, key, value)]
        is_batched = inputs[0].ndim == 3
        if any(part.ndim != inputs[0].ndim or part.shape[-1] != self.embed_dim for part in inputs) or inputs[
            0
        ].ndim not in (2, 3):
            raise ShapeError(
                f"MultiheadAttention: expected query, key and value (…, …, {self.embed_dim}). "
                f"Got {', '.join(str(part.shape) for part in inputs)}."
            )
        if not is_batched:
            inputs = [part.unsqueeze(0) for part in inputs]
        elif not self.batch_first:
            inputs = [part.transpose(0, 1) for part in inputs]
        q, k, v = (self._heads(part, i) for i, part in enumerate(inputs))
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(self.embed_dim // self.num_heads))
            weights = functional.softmax(scores if mask is None else scores + mask, -1)
            weights = functional.dropout(weights, rate, self.training)
            attended = weights @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, rate)
        N, _, L, _ = attended.shape
        result = self.out_proj(attended.transpose(1, 2).reshape(N, L, self.embed_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _heads(self, part: Any, which: int) -> Any:
        """Return the projection of (N, L, E) for queries (0), keys (1) or values (2) as (N, heads, L, E / heads)."""
        E = self.embed_dim
        rows = slice(which * E, (which + 1) * E)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        projected = functional.linear(part, self.in_proj_weight[rows], bias)
        return projected.reshape(*part.shape[:2], self.num_heads, E // self.num_heads).transpose(1, 2)

    def _mask(self, query: Any, key: Any, attn_mask: Any, key_padding_mask: Any, is_causal: bool) -> Any:
        """Return what to add to the scores (N, heads, L, S), or None."""
        (N, H, L, _), S = query.shape, key.shape[2]
        total = None
        if attn_mask is not None:
            given = _as_addend(attn_mask, query.dtype)
            total = given.reshape(N, H, L, S) if given.ndim == 3 else given
        elif is_causal:
            total = where(below_diagonal(L, S), 0.0, -math.inf).to(query.dtype)
        if key_padding_mask is not None:
            padding = _as_addend(key_padding_mask, query.dtype).reshape(-1, 1, 1, S)
            total = padding if total is None else total + padding
        return total


def _as_addend(mask: Any, dtype: Any) -> Any:
    mask = as_tensor(mask)
    return where(mask, -math.inf, 0.0).to(dtype) if mask.dtype is bool_ else mask.to(dtype)
