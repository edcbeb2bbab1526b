"""Powers and roots.

Invariant: square and pow keep integers; roots and reciprocals make them float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import bool_, int64
from ..errors import DTypeError
from .core import Expression, Sample, as_tensor, bind, operands
from .elementwise import Elementwise, where, widened
from .transcendental import float_operand, log, sampled


class Square(Elementwise):
    """x * x."""

    name = "square"
    lowering = Expression("pg::square({0})")
    methods = ("square",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return x * x; integers stay integers, bools become int64."""
        x = as_tensor(x)
        return bind(Square, x.to(int64) if x.dtype is bool_ else x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return x * x

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * (saved.input() * 2),)

    @staticmethod
    def samples() -> list[Sample]:
        whole = Sample((np.array([-3, 4], np.int32),), (), lambda torch, t: t.square())
        return [*sampled(lambda torch, t: t.square()), whole]


square = Square.call


class Sqrt(Elementwise):
    """Square root."""

    name = "sqrt"
    lowering = Expression("pg::sqrt({0})")
    methods = ("sqrt",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the square root."""
        return bind(Sqrt, float_operand(x, "sqrt"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.sqrt(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g / (saved.output() * 2),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.sqrt())


sqrt = Sqrt.call


class Rsqrt(Elementwise):
    """Reciprocal of the square root."""

    name = "rsqrt"
    lowering = Expression("pg::rsqrt({0})")
    methods = ("rsqrt",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return 1 / sqrt(x)."""
        return bind(Rsqrt, float_operand(x, "rsqrt"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return (1 / xp.sqrt(widened(x))).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * -0.5 * _cube(saved.output()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.rsqrt())


rsqrt = Rsqrt.call


class Reciprocal(Elementwise):
    """1 / x."""

    name = "reciprocal"
    lowering = Expression("pg::reciprocal({0})")
    methods = ("reciprocal",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return 1 / x."""
        return bind(Reciprocal, float_operand(x, "reciprocal"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return 1 / x

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (-g * square(saved.output()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.reciprocal())


reciprocal = Reciprocal.call


class Pow(Elementwise):
    """x to the power of y."""

    name = "pow"
    lowering = Expression("pg::pow({0}, {1})")
    methods = ("pow",)

    @staticmethod
    def call(x: Any, exponent: Any) -> Any:
        """Return ``x ** exponent``. Raises DTypeError for an integer tensor to a negative Python integer."""
        if not isinstance(exponent, bool) and isinstance(exponent, int | float):
            x = as_tensor(x)
            simpler = _SIMPLER_POWERS.get(exponent)
            if simpler is not None and (
                x.dtype.is_floating_point or (exponent in (2, 3) and isinstance(exponent, int))
            ):
                return simpler(x)
        x, power = operands(x, exponent, who="pow")
        if x.dtype is bool_:
            raise DTypeError("pow: bool tensors have no pow. Got bool and bool. Use .to(int64) first.")
        if isinstance(exponent, int) and exponent < 0 and not x.dtype.is_floating_point:
            raise DTypeError(
                f"pow: integers to negative integer powers are not allowed. Got {x.dtype.name} ** {exponent}. Use a "
                "float exponent."
            )
        return bind(Pow, x, power)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        if x.dtype.kind != "i":
            return xp.power(widened(x), widened(y)).astype(x.dtype, copy=False)
        # NumPy refuses negative integer exponents; the true value rounds to 0 but for a base of 1 or -1.
        unit = xp.where(xp.abs(x) == 1, xp.where(y % 2 == 0, 1, x), 0).astype(x.dtype)
        return xp.where(y < 0, unit, xp.power(x, xp.maximum(y, 0)))

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        x, y = saved.input(0), saved.input(1)
        by_base = by_exponent = None
        if saved.needs(0):
            by_base = where(y == 0, 0.0, g * (y * bind(Pow, *operands(x, y - 1))))
        if saved.needs(1):
            # d/dy 0**y is 0 for y >= 0, not 0 * log(0).
            by_exponent = g * where((x == 0).logical_and(y >= 0), 0.0, saved.output() * log(x))
        return by_base, by_exponent

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.array([[0.5], [2], [1]], np.float32), np.array([-1.5, 0, 1, 2.5], np.float32)
        edges = (
            np.array([0, 0, 0, -1, -1, 2, 0, np.inf, np.nan, 1], np.float32),
            np.array([0, 2, -1, 2, 0.5, 0, 1, 2, 0, np.nan], np.float32),
        )
        whole = np.array([2, -3, 1, -1, -1, 0], np.int64), np.array([10, 3, -2, -3, -2, 0], np.int64)
        return [
            Sample((x, y), (), lambda torch, a, b: a**b, (0, 1)),
            Sample(edges, (), lambda torch, a, b: a**b, (0, 1)),
            Sample(whole, (), lambda torch, a, b: a**b),
        ]


pow = Pow.call


def _cube(x: Any) -> Any:
    return x * x * x


# Powers that need no logarithm: torch's own exceptions.
_SIMPLER_POWERS: dict[float, Callable[[Any], Any]] = {
    2: square,
    3: _cube,
    0.5: sqrt,
    -0.5: rsqrt,
    -1.0: reciprocal,
}
