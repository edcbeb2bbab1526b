"""Attention as one op, so that no matrix of scores needs memory: its gradient finds the weights again from each row's
log-sum-exp ("FlashAttention", Dao et al. 2022).

Invariant: half-precision operands are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import DType, float32
from ..errors import DTypeError, ShapeError
from .contraction import matmul
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind, broadcast_shapes, context
from .creation import below_diagonal
from .elementwise import where
from .movement import expand
from .sharding import Mapped, Sharding, shard_aligned
from .transcendental import exp
from .views import transpose, unsqueeze

MOST_FEATURES_BYTES = 512
"""Features of a query or a value, in bytes as computed, that kernels can hold: 128 of float32."""


def fits_kernels(query: TensorSpec, value: TensorSpec) -> bool:
    """Whether kernels can take queries and values of so many features, and there is something to attend to."""
    features = max(query.shape[-1], value.shape[-1])
    is_empty = not (query.size and value.size)
    return (
        query.dtype.is_floating_point and not is_empty and features * wide(query.dtype).itemsize <= MOST_FEATURES_BYTES
    )


def _refusal(specs: tuple[TensorSpec, ...]) -> str | None:
    query, _, value = specs[:3]
    features = query.shape[-1], value.shape[-1]
    if not min(features) or max(features) * wide(query.dtype).itemsize > MOST_FEATURES_BYTES:
        return f"kernels take from 1 to {MOST_FEATURES_BYTES // wide(query.dtype).itemsize} features. Got {features}"
    return None


def wide(dtype: DType) -> DType:
    """Return the dtype in which operands of ``dtype`` are computed."""
    return float32 if dtype.itemsize == 2 else dtype


def _scores(xp: Any, q: Any, k: Any, scale: float, is_causal: bool) -> Any:
    """Return scaled products (…, L, S) in the wide dtype, -inf where a query may not look."""
    dtype = xp.float32 if q.dtype.itemsize == 2 else q.dtype
    scores = xp.matmul(q.astype(dtype), xp.swapaxes(k.astype(dtype), -1, -2)) * dtype_number(dtype, scale)
    if is_causal:
        scores = xp.where(xp.tri(*scores.shape[-2:], dtype=bool), scores, dtype_number(dtype, -math.inf))
    return scores


def dtype_number(dtype: Any, number: float) -> Any:
    """Return ``number`` as a scalar that does not widen arrays of ``dtype``."""
    return np.dtype(dtype).type(number)


class Attention(Op):
    """softmax(query keyᵀ · scale) value for each matrix of a batch, and the logarithm of each row's sum of exponentials.

    Causal: row i looks at columns up to i. As in softmax, a row gives NaN of which a score is NaN or +inf, or all are -inf.
    """

    name = "attention"
    lowering = Family("attention")

    @staticmethod
    def call(query: Any, key: Any, value: Any, scale: float | None = None, is_causal: bool = False) -> tuple[Any, Any]:
        """Return the attended values (…, L, F) and the log-sum-exps (…, L), these in float32 for half-precision operands.

        ``query`` (…, L, E), ``key`` (…, S, E), ``value`` (…, S, F), of one floating-point dtype; the leading dimensions
        broadcast. ``scale``: E ** -0.5 by default. Raises ShapeError and DTypeError for operands that do not fit.
        """
        query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
        if min(query.ndim, key.ndim, value.ndim) < 2:
            raise ShapeError(
                "attention: expected query (…, L, E), key (…, S, E) and value (…, S, F). "
                f"Got {query.shape}, {key.shape} and {value.shape}."
            )
        batch = broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2], who="attention")
        operands = (expand(part, (*batch, *part.shape[-2:])) for part in (query, key, value))
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        return bind(Attention, *operands, scale=factor, is_causal=bool(is_causal))

    @staticmethod
    def infer(q: TensorSpec, k: TensorSpec, v: TensorSpec, *, scale: float, is_causal: bool) -> Any:  # type: ignore[override]
        if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
            raise ShapeError(
                "attention: expected query (…, L, E), key (…, S, E) and value (…, S, F). "
                f"Got {q.shape}, {k.shape} and {v.shape}."
            )
        if not k.shape[-2]:
            raise ShapeError(f"attention: expected at least one key. Got key {k.shape}.")
        if not (q.dtype is k.dtype is v.dtype) or not q.dtype.is_floating_point:
            raise DTypeError(
                "attention: query, key and value need one floating-point dtype. "
                f"Got {q.dtype.name}, {k.dtype.name} and {v.dtype.name}. Use .to(dtype)."
            )
        return TensorSpec((*q.shape[:-1], v.shape[-1]), q.dtype), TensorSpec(q.shape[:-1], wide(q.dtype))

    @staticmethod
    def numpy(xp: Any, q: Any, k: Any, v: Any, *, scale: float, is_causal: bool) -> Any:
        weights = _scores(xp, q, k, scale, is_causal)
        highest = weights.max(-1, keepdims=True)
        weights = xp.exp(weights - xp.where(highest == -math.inf, dtype_number(weights.dtype, 0), highest))
        total = weights.sum(-1, keepdims=True)
        out = xp.matmul(weights / total, v.astype(weights.dtype))
        return out.astype(q.dtype), (highest + xp.log(total))[..., 0]

    @staticmethod
    def vjp(saved: Any, g: Any, g_sums: Any) -> Any:
        q, k, v, out, sums = *(saved.input(i) for i in range(3)), saved.output(0), saved.output(1)
        dtype = sums.dtype
        # How much each row's gradient of weights is too large for the weights to keep their sum.
        excess = (g.to(dtype) * out.to(dtype)).sum(-1) - g_sums
        if not context.is_grad_enabled:
            return bind(AttentionGrad, q, k, v, sums, g, excess, **saved.params)
        # To be differentiated again: the same in ops that all have gradients.
        q, k, v, g = (part.to(dtype) for part in (q, k, v, g))
        scale = saved.params["scale"]
        scores = matmul(q, transpose(k, -2, -1)) * scale - unsqueeze(sums, -1)
        if saved.params["is_causal"]:
            scores = where(below_diagonal(q.shape[-2], k.shape[-2], device=q.device), scores, -math.inf)
        weights = exp(scores)
        g_scores = weights * (matmul(g, transpose(v, -2, -1)) - unsqueeze(excess, -1)) * scale
        g_k, g_v = matmul(transpose(g_scores, -2, -1), q), matmul(transpose(weights, -2, -1), g)
        return matmul(g_scores, k), g_k, g_v

    @staticmethod
    def refusal(specs: Any, literals: Any) -> str | None:
        return _refusal(specs)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return _shard_matrices(inputs, specs)

    @staticmethod
    def samples() -> list[Sample]:
        q, k, v = _sample_operands()

        def reference(torch: Any, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
            scores = q @ k.mT * 0.4
            if is_causal:
                scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
            return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)

        def causal(torch: Any, q: Any, k: Any, v: Any) -> Any:
            return reference(torch, q, k, v, is_causal=True)

        return [
            Sample((q, k, v), (("scale", 0.4), ("is_causal", False)), reference, (0, 1, 2)),
            Sample((q[0], k[0], v[0]), (("scale", 0.4), ("is_causal", True)), causal, (0, 1, 2)),
        ]


class AttentionGrad(Op):
    """Gradients of attention with respect to query, key and value.

    ``sums`` are the rows' log-sum-exps; ``excess`` (…, L) is what is taken from each row's gradient of weights: the
    product of the result and its gradient, summed, less the gradient of ``sums``. Where it is to be differentiated
    again, attention's gradient is written in other ops, so that this one needs no gradient of its own.
    """

    name = "attention_grad"
    lowering = Family("attention")

    @staticmethod
    def call(q: Any, k: Any, v: Any, sums: Any, g: Any, excess: Any, scale: float, is_causal: bool = False) -> Any:
        """Return the gradients (…, L, E), (…, S, E) and (…, S, F), for the gradient ``g`` (…, L, F) of the result."""
        operands = (as_tensor(part) for part in (q, k, v, sums, g, excess))
        return bind(AttentionGrad, *operands, scale=float(scale), is_causal=bool(is_causal))

    @staticmethod
    def infer(  # type: ignore[override]
        q: TensorSpec, k: TensorSpec, v: TensorSpec, sums: TensorSpec, g: TensorSpec, excess: TensorSpec, *,
        scale: float, is_causal: bool,
    ) -> Any:  # fmt: skip
        result, rows = Attention.infer(q, k, v, scale=scale, is_causal=is_causal)
        if g != result or sums != rows or excess != rows:
            raise ShapeError(f"attention_grad: expected {rows}, {result} and {rows} for {q}, {k} and {v}. "
                             f"Got {sums}, {g} and {excess}.")  # fmt: skip
        return q, k, v

    @staticmethod
    def numpy(xp: Any, q: Any, k: Any, v: Any, sums: Any, g: Any, excess: Any, *, scale: float, is_causal: bool) -> Any:
        weights = xp.exp(_scores(xp, q, k, scale, is_causal) - sums[..., None])
        dtype = weights.dtype
        g_wide = g.astype(dtype)
        g_scores = xp.matmul(g_wide, xp.swapaxes(v.astype(dtype), -1, -2)) - excess[..., None]
        g_scores *= weights
        g_scores *= dtype_number(dtype, scale)
        g_q = xp.matmul(g_scores, k.astype(dtype))
        g_k = xp.matmul(xp.swapaxes(g_scores, -1, -2), q.astype(dtype))
        g_v = xp.matmul(xp.swapaxes(weights, -1, -2), g_wide)
        return g_q.astype(q.dtype), g_k.astype(q.dtype), g_v.astype(q.dtype)

    @staticmethod
    def refusal(specs: Any, literals: Any) -> str | None:
        return _refusal(specs)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return _shard_matrices(inputs, specs)

    @staticmethod
    def samples() -> list[Sample]:
        q, k, v = _sample_operands()
        samples = []
        for is_causal in (False, True):
            out, sums = Attention.numpy(np, q, k, v, scale=0.4, is_causal=is_causal)
            g = np.cos(np.arange(out.size, dtype=np.float32)).reshape(out.shape)

            def reference(torch: Any, *operands: Any, causal: bool = is_causal) -> Any:
                q, k, v = (part.detach().requires_grad_() for part in operands[:3])
                with torch.enable_grad():
                    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.4)
                    return torch.autograd.grad(out, (q, k, v), operands[4])

            samples.append(
                Sample((q, k, v, sums, g, (out * g).sum(-1)), (("scale", 0.4), ("is_causal", is_causal)), reference)
            )
        return samples


def _shard_matrices(inputs: Any, specs: Any) -> Sharding | None:
    """Rule of ops that treat every matrix of their operands' common batch alike."""
    sharding = shard_aligned(inputs)
    if not isinstance(sharding, Mapped):
        return sharding
    is_whole = sharding.dim < specs[0].ndim - 2 and all(part == sharding for part in inputs)
    return sharding if is_whole else None


def _sample_operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def values(*shape: int) -> np.ndarray:
        return np.sin(np.arange(math.prod(shape), dtype=np.float32) * shape[-1]).reshape(shape)

    return values(2, 3, 4), values(2, 5, 4), values(2, 5, 6)
