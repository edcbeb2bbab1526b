"""Plain functions made of reductions: means, spreads, norms, extremes with their places.

Invariant: half precision is widened to float32 for the whole formula and rounded once.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

from ..dtypes import as_dtype, float32, int64
from ..errors import DTypeError
from ..records import RecordTuple
from .core import as_tensor, normalize_dim
from .creation import iota
from .elementwise import where
from .power import sqrt
from .reduction import amax, amin, argmax, argmin, reduced_shape, reduction_dims, restore_dims, squared_deviations, sum
from .selection import maximum, minimum
from .transcendental import exp, log


class ValuesIndices(RecordTuple):
    """What a search along a dimension finds: the elements, and where they stood."""

    __slots__ = ()
    values: Any
    indices: Any


class MinMax(RecordTuple):
    """The smallest and the largest element."""

    __slots__ = ()
    min: Any
    max: Any


def _float_input(x: Any, who: str) -> Any:
    x = as_tensor(x)
    if not x.dtype.is_floating_point:
        raise DTypeError(f"{who}: expected a floating-point tensor. Got {x.dtype.name}. Use .float(), or pass dtype=.")
    return x


def _widened(x: Any) -> Any:
    return x.to(float32) if x.dtype.itemsize == 2 else x


def mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Return the mean over ``dim`` (None: all); NaN of nothing. Raises DTypeError for integers without ``dtype``."""
    x = _float_input(x if dtype is None else as_tensor(x).to(as_dtype(dtype)), "mean")
    count = math.prod(x.shape[d] for d in reduction_dims(dim, x.ndim, "mean"))
    return (sum(_widened(x), dim, keepdim) / count).to(x.dtype)


def var(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Return the variance over ``dim``: squared distances from the mean, divided by count - ``correction`` (1).

    ``unbiased=False`` means ``correction=0``; also as ``var(x, False)``.
    """
    return _var_mean(x, dim, unbiased, keepdim, correction, "var")[0].to(as_tensor(x).dtype)


def std(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Return the standard deviation over ``dim``; arguments as for `var`. Its gradient at 0 is 0."""
    variance, _ = _var_mean(x, dim, unbiased, keepdim, correction, "std")
    return _root(variance).to(as_tensor(x).dtype)


def var_mean(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, Any]:
    """Return (variance, mean) over ``dim``; arguments as for `var`."""
    variance, center = _var_mean(x, dim, unbiased, keepdim, correction, "var_mean")
    dtype = as_tensor(x).dtype
    return variance.to(dtype), center.to(dtype)


def std_mean(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, Any]:
    """Return (standard deviation, mean) over ``dim``; arguments as for `var`."""
    variance, center = _var_mean(x, dim, unbiased, keepdim, correction, "std_mean")
    dtype = as_tensor(x).dtype
    return _root(variance).to(dtype), center.to(dtype)


def _var_mean(
    x: Any, dim: Any, unbiased: bool | None, keepdim: bool, correction: float | None, who: str
) -> tuple[Any, Any]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    x = _widened(_float_input(x, who))
    dims = reduction_dims(dim, x.ndim, who)
    count = math.prod(x.shape[d] for d in dims)
    center = sum(x, dims, True) / count
    # A divisor of 0 gives the NaN of 0 / 0, as in torch.
    variance = squared_deviations(x, center, dims, keepdim) / builtins.max(count - correction, 0)
    kept = center if keepdim else center.reshape(variance.shape)
    return variance, kept


def _root(square: Any) -> Any:
    """Return the square root with gradient 0 at 0, the subgradient that torch takes for norms and deviations."""
    is_zero = square == 0
    return where(is_zero, 0.0, sqrt(where(is_zero, 1.0, square)))


def norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Return the vector p-norm over ``dim`` (None: of the flattened tensor); ``p``: a number, inf, -inf or "fro"."""
    x = _float_input(x if dtype is None else as_tensor(x).to(as_dtype(dtype)), "norm")
    wide = _widened(x)
    if p in (None, 2, "fro"):
        result = _root(sum(wide.square(), dim, keepdim))
    elif p == 1:
        result = sum(wide.abs(), dim, keepdim)
    elif p == 0:
        result = sum((wide != 0).to(wide.dtype), dim, keepdim)
    elif p == math.inf:
        result = amax(wide.abs(), dim, keepdim)
    elif p == -math.inf:
        result = amin(wide.abs(), dim, keepdim)
    elif isinstance(p, int | float):
        powers = sum(wide.abs() ** p, dim, keepdim)
        is_zero = powers == 0
        result = where(is_zero, 0.0, where(is_zero, 1.0, powers) ** (1 / p))
    else:
        raise DTypeError(f'norm: p must be a number, inf, -inf or "fro". Got {p!r}.')
    return result.to(x.dtype)


def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    """Return log(sum(exp(x))) over ``dim``, shifted by the largest element so that nothing overflows."""
    x = as_tensor(x)
    x = x if x.dtype.is_floating_point else x.to(float32)
    wide = _widened(x)
    dims = reduction_dims(dim, x.ndim, "logsumexp")
    if x.spec.size == 0:
        return log(sum(exp(wide), dims, keepdim)).to(x.dtype)
    highest = amax(wide.detach(), dims, True)
    shift = where(highest.isfinite(), highest, 0.0)
    result = log(sum(exp(wide - shift), dims, True)) + shift
    return (result if keepdim else result.reshape(reduced_shape(x.shape, dims, False))).to(x.dtype)


def max(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Return the largest element; with an int ``dim``, `ValuesIndices`; with a Tensor, `maximum` of the two.

    Without ``dim`` ties share the gradient; with it the gradient goes to the element at the index, the first of ties.
    """
    if dim is None:
        return amax(x, None, keepdim)
    if not isinstance(dim, int):
        return maximum(x, dim)
    return _extreme(argmax, x, dim, keepdim)


def min(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Return the smallest element; as `max`."""
    if dim is None:
        return amin(x, None, keepdim)
    if not isinstance(dim, int):
        return minimum(x, dim)
    return _extreme(argmin, x, dim, keepdim)


def _extreme(search: Any, x: Any, dim: int, keepdim: bool) -> ValuesIndices:
    x = as_tensor(x)
    dim = normalize_dim(dim, x.ndim, "max" if search is argmax else "min")
    if not x.ndim:
        return ValuesIndices(x.clone(), search(x))
    indices = search(x, dim, keepdim)
    # All but the chosen element count 0 in a sum: forward and gradient are elementwise, with no gather or scatter.
    is_chosen = iota(x.shape, dim, device=x.device) == restore_dims(indices, x.shape, (dim,))
    values = sum(where(is_chosen, x, 0), dim, keepdim).to(x.dtype)
    return ValuesIndices(values, indices)


def aminmax(x: Any, *, dim: int | None = None, keepdim: bool = False) -> MinMax:
    """Return the smallest and the largest element."""
    return MinMax(amin(x, dim, keepdim), amax(x, dim, keepdim))


def count_nonzero(x: Any, dim: Any = None) -> Any:
    """Return how many elements are not 0, as int64."""
    return sum((as_tensor(x) != 0).to(int64), dim)
