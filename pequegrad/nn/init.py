"""Initial values of parameters, under torch.nn.init's names: each function fills its tensor in place and returns it.

Invariant: numbers come from the default generator (or the one given), so that `manual_seed` decides them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ops.core import grad_mode
from ..ops.creation import eye
from ..ops.elementwise import where
from ..ops.random import Generator, normal_values, uniform_values

_GAINS = {
    "linear": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0), "selu": 0.75,
}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor that keeps the variance through a nonlinearity; ``param``: leaky_relu's slope (0.01)."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"calculate_gain: expected one of {', '.join([*_GAINS, 'leaky_relu'])}. Got {nonlinearity!r}.")
    return _GAINS[nonlinearity]


def _filled(tensor: Any, values: Any) -> Any:
    with grad_mode(False):
        return tensor.assign(values)


def fan_in_and_fan_out(tensor: Any) -> tuple[int, int]:
    """Return how many inputs reach one output, and how many outputs one input reaches, for a weight (out, in, …)."""
    if tensor.ndim < 2:
        raise ShapeError(
            f"fan in and fan out need a weight of at least 2 dimensions (out, in, …). Got shape {tensor.shape}."
        )
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def uniform_(tensor: Any, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill with uniform numbers on [a, b)."""
    return _filled(tensor, uniform_values(tensor, a, b, generator=generator))


def normal_(tensor: Any, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill with normal numbers."""
    return _filled(tensor, normal_values(tensor, mean, std, generator=generator))


def trunc_normal_(
    tensor: Any,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Any:
    """Fill with normal numbers, those outside [a, b] drawn again.

    Raises ValueError where fewer than one in a thousand would lie inside.
    """
    below, above = (0.5 * math.erfc((mean - edge) / (std * math.sqrt(2))) for edge in (a, b))
    if above - below < 1e-3:
        raise ValueError(f"trunc_normal_: hardly any number of mean {mean} and std {std} lies in [{a}, {b}].")
    with grad_mode(False):
        values = normal_values(tensor, mean, std, generator=generator)
        while bool((outside := (values < a) | (values > b)).any()):
            values = where(outside, normal_values(tensor, mean, std, generator=generator), values)
    return _filled(tensor, values)


def constant_(tensor: Any, val: float) -> Any:
    """Fill with one number."""
    return _filled(tensor, val)


def ones_(tensor: Any) -> Any:
    """Fill with ones."""
    return constant_(tensor, 1)


def zeros_(tensor: Any) -> Any:
    """Fill with zeros."""
    return constant_(tensor, 0)


def eye_(tensor: Any) -> Any:
    """Fill a matrix with the identity."""
    if tensor.ndim != 2:
        raise ShapeError(f"eye_: expected a matrix. Got shape {tensor.shape}.")
    return _filled(tensor, eye(*tensor.shape, dtype=tensor.dtype))


def xavier_uniform_(tensor: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill uniformly on ±gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fan_in_and_fan_out(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Any, gain: float = 1.0, generator: Generator | None = None) -> Any:
    """Fill with normal numbers of std gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fan_in_and_fan_out(tensor))), generator)


def _kaiming_std(tensor: Any, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'mode must be "fan_in" or "fan_out". Got {mode!r}.')
    fan = fan_in_and_fan_out(tensor)[mode == "fan_out"]
    # A weight without elements has nothing to scale.
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(
    tensor: Any,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Fill uniformly on ±gain * sqrt(3 / fan) (He et al. 2015); ``a``: the slope of leaky_relu."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Any,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Any:
    """Fill with normal numbers of std gain / sqrt(fan) (He et al. 2015); ``a``: the slope of leaky_relu."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Any, gain: float = 1, generator: Generator | None = None) -> Any:
    """Fill so that the weight as a matrix has orthonormal rows, or columns if fewer, times gain (Saxe et al. 2013)."""
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_: expected at least 2 dimensions. Got shape {tensor.shape}.")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    drawn = normal_values(tensor, generator=generator).detach().__array__().reshape(rows, columns).astype(np.float64)
    q, r = np.linalg.qr(drawn.T if rows < columns else drawn)
    q = q * np.sign(np.diagonal(r))
    values = (q.T if rows < columns else q).reshape(tensor.shape) * gain
    return _filled(tensor, values.astype(tensor.dtype.numpy))
