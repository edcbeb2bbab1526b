"""Activation functions and softmax: plain functions of elementwise ops and reductions.

Invariant: no branch that is not taken may overflow: its gradient would be 0 * inf.
"""

from __future__ import annotations

import math
from typing import Any

from ..dtypes import as_dtype, float32
from ..errors import ShapeError
from .core import as_tensor, normalize_dim, operands
from .elementwise import where
from .transcendental import Softplus, erf, exp, expm1, log, sigmoid, tanh


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """Return ``x`` where it is positive, else ``negative_slope * x``."""
    x = as_tensor(x)
    return where(x > 0, x, x * negative_slope)


def relu6(x: Any) -> Any:
    """Return ``x`` limited to [0, 6]; its gradient is zero at both ends, as in torch."""
    x = as_tensor(x)
    return where(x <= 0, 0, where(x >= 6, 6, x))


def elu(x: Any, alpha: float = 1.0) -> Any:
    """Return ``x`` where it is positive, else ``alpha * (exp(x) - 1)`` (Clevert et al. 2015)."""
    (x,) = operands(x, kind="float", who="elu")
    return where(x > 0, x, alpha * expm1(where(x > 0, 0.0, x)))


def gelu(x: Any, approximate: str = "none") -> Any:
    """Return x * Phi(x) with the normal distribution Phi, or its approximation by tanh (Hendrycks and Gimpel 2016)."""
    (x,) = operands(x, kind="float", who="gelu")
    if approximate == "none":
        return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))
    if approximate != "tanh":
        raise ShapeError(f'gelu: approximate must be "none" or "tanh". Got {approximate!r}.')
    return 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: Any) -> Any:
    """Return x * sigmoid(x)."""
    (x,) = operands(x, kind="float", who="silu")
    return x * sigmoid(x)


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Return log(1 + exp(beta * x)) / beta, and ``x`` itself where beta * x is above ``threshold``."""
    (x,) = operands(x, kind="float", who="softplus")
    scaled = x if beta == 1 else x * beta
    curved = Softplus.call(scaled)
    return where(scaled > threshold, x, curved if beta == 1 else curved / beta)


def logsigmoid(x: Any) -> Any:
    """Return log(sigmoid(x)), without overflow."""
    (x,) = operands(x, kind="float", who="logsigmoid")
    return -Softplus.call(-x)


def _rows(x: Any, dim: int | None, dtype: Any, who: str) -> tuple[Any, int]:
    x = as_tensor(x)
    if dim is None:
        raise ShapeError(f"{who}: dim must be given. Try dim=-1.")
    if dtype is not None:
        x = x.to(as_dtype(dtype))
    elif not x.dtype.is_floating_point:
        x = x.to(float32)
    return x, normalize_dim(dim, x.ndim, who)


def softmax(x: Any, dim: int | None = None, dtype: Any = None) -> Any:
    """Return exp(x) normalised to sum to 1 along ``dim``."""
    x, dim = _rows(x, dim, dtype, "softmax")
    powers = _shifted_exp(x, dim)[1]
    return powers / powers.sum(dim, keepdim=True) if x.ndim else powers / powers


def log_softmax(x: Any, dim: int | None = None, dtype: Any = None) -> Any:
    """Return the logarithm of softmax along ``dim``, without underflow."""
    x, dim = _rows(x, dim, dtype, "log_softmax")
    shifted, powers = _shifted_exp(x, dim)
    return shifted - log(powers.sum(dim, keepdim=True) if x.ndim else powers)


def _shifted_exp(x: Any, dim: int) -> tuple[Any, Any]:
    """Return ``x`` minus its greatest element along ``dim``, and e to the power of that."""
    if not x.spec.size:
        return x, exp(x)
    # Softmax does not depend on the shift, so no gradient flows through it.
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted, exp(shifted)
