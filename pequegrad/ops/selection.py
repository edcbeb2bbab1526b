"""Choices between elements: the larger, the smaller, one kept within bounds.

Invariant: NaN in an operand that is compared is NaN in the result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import DType, bool_
from .core import Expression, Sample, as_tensor, bind, operands
from .elementwise import Elementwise, refuse_bool, where


class Maximum(Elementwise):
    """The larger of two; NaN wins; at a tie the gradient is shared."""

    name = "maximum"
    lowering = Expression("pg::maximum({0}, {1})")
    commutative = True
    methods = ("maximum",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the elementwise maximum."""
        return bind(Maximum, *operands(x, other, who="maximum"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.maximum(x, y)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return _shared_at_ties(saved, g, saved.input(0), saved.input(1))

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.array([1, 2, np.nan, 1, np.inf, -1], np.float32), np.array([1, np.nan, 1, 0, np.inf, 3], np.float32)
        return [
            Sample((x, y), (), lambda torch, a, b: torch.maximum(a, b), (0, 1)),
            Sample(
                (np.array([[1], [5]], np.int32), np.array([3, 7], np.int32)),
                (),
                lambda torch, a, b: torch.maximum(a, b),
            ),
        ]


maximum = Maximum.call


class Minimum(Elementwise):
    """The smaller of two; NaN wins; at a tie the gradient is shared."""

    name = "minimum"
    lowering = Expression("pg::minimum({0}, {1})")
    commutative = True
    methods = ("minimum",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the elementwise minimum."""
        return bind(Minimum, *operands(x, other, who="minimum"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.minimum(x, y)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return _shared_at_ties(saved, g, saved.input(1), saved.input(0))

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.array([1, 2, np.nan, 1, np.inf, -1], np.float32), np.array([1, np.nan, 1, 0, np.inf, 3], np.float32)
        return [
            Sample((x, y), (), lambda torch, a, b: torch.minimum(a, b), (0, 1)),
            Sample(
                (np.array([[1], [5]], np.int32), np.array([3, 7], np.int32)),
                (),
                lambda torch, a, b: torch.minimum(a, b),
            ),
        ]


minimum = Minimum.call


def _shared_at_ties(saved: Any, g: Any, high: Any, low: Any) -> tuple[Any, Any]:
    """Return g where each input wins, half of it at ties; ``high < low`` means that the second input won."""
    shared = where(saved.input(0) == saved.input(1), g * 0.5, g)
    first = where(high < low, 0.0, shared) if saved.needs(0) else None
    second = where(high > low, 0.0, shared) if saved.needs(1) else None
    return first, second


class Clamp(Elementwise):
    """x kept between a lower and an upper bound; at a bound the gradient passes to x."""

    name = "clamp"
    lowering = Expression("pg::minimum(pg::maximum({0}, {1}), {2})")
    methods = ("clamp", "clip")

    @staticmethod
    def call(x: Any, min: Any = None, max: Any = None) -> Any:
        """Return ``x`` between ``min`` and ``max``: numbers, tensors, or None. Where they cross, ``max`` wins."""
        if min is None and max is None:
            raise ValueError("clamp: expected min, max or both. Got neither.")
        given = operands(*(value for value in (x, min, max) if value is not None), who="clamp")
        dtype = given[0].dtype
        low, high = _bounds(dtype)
        low = as_tensor(low, dtype) if min is None else given[1]
        high = as_tensor(high, dtype) if max is None else given[-1]
        return bind(Clamp, given[0], low, high)

    @staticmethod
    def numpy(xp: Any, x: Any, low: Any, high: Any) -> Any:
        return xp.minimum(xp.maximum(x, low), high)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        x, low, high = (saved.input(i) for i in range(3))
        by_x = by_low = by_high = None
        if saved.needs(0):
            by_x = where((x >= low).logical_and(x <= high), g, 0.0)
        if saved.needs(1):
            by_low = where((x < low).logical_and(low < high), g, 0.0)
        if saved.needs(2):
            by_high = where((x > high).logical_or(high < low), g, 0.0)
        return by_x, by_low, by_high

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([0, 1, -1, 2, np.nan, 0.5, np.inf, -np.inf], np.float32)
        crossed = (
            np.array([0.5, 3, 1, 1], np.float32),
            np.array([2, 2, 1, 2], np.float32),
            np.array([1, 1, 1, 3], np.float32),
        )
        bounds = np.array(0, np.float32), np.array(1, np.float32)
        return [
            Sample((x, *bounds), (), lambda torch, a, b, c: a.clamp(b, c), (0,)),
            Sample(crossed, (), lambda torch, a, b, c: a.clamp(b, c), (0, 1, 2)),
        ]


clamp = clip = Clamp.call


def _bounds(dtype: DType) -> tuple[Any, Any]:
    if dtype.is_floating_point:
        return -math.inf, math.inf
    if dtype is bool_:
        return False, True
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


class Relu(Elementwise):
    """max(x, 0), with gradient 0 at 0; NaN stays."""

    name = "relu"
    lowering = Expression("pg::maximum({0}, {T}(0))")
    methods = ("relu",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``x`` where it is positive (or NaN), else 0."""
        x = as_tensor(x)
        refuse_bool("relu", ".to(float32) first", x)
        return bind(Relu, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.maximum(x, x.dtype.type(0))

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (where(saved.output() <= 0, 0.0, g),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([-1, -0.0, 0, 2, np.nan, np.inf, -np.inf], np.float32)
        return [
            Sample((x,), (), lambda torch, t: t.relu(), (0,)),
            Sample((np.array([-1, 2], np.int32),), (), lambda torch, t: t.relu()),
        ]


relu = Relu.call
