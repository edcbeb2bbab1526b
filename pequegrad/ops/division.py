"""Division: true, floored, truncated, and the remainders.

Invariant: an integer divided by 0 is an error in eager mode; a float follows IEEE 754.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .core import Expression, Sample, TensorSpec, bind, operands
from .elementwise import Elementwise, refuse_bool, widened
from .movement import zeros_like_spec


def refuse_zero_divisor(who: str, divisor: Any) -> None:
    """Raise ZeroDivisionError where an integer array, which has no inf to answer with, contains 0."""
    if divisor.dtype.kind in "iu" and not divisor.all():
        raise ZeroDivisionError(f"{who}: integer division by zero. Mask the zeros with where(), or use floats.")


class IntegerDivision(Elementwise):
    """Family: divisions whose integer form raises at a zero, which a kernel cannot."""

    @staticmethod
    def refusal(specs: tuple[TensorSpec, ...], literals: tuple[Any, ...]) -> str | None:
        if specs[0].dtype.is_floating_point or literals[1]:
            return None
        return (
            "an integer division whose divisor may be zero must be able to raise. Divide by a constant, or use floats."
        )


class Div(Elementwise):
    """Quotient of two floating-point tensors."""

    name = "div"
    lowering = Expression("{0} / {1}")
    methods = ("div", "divide", "true_divide")

    @staticmethod
    def call(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
        """Return ``x / other``; integers become float32, unless ``rounding_mode`` is "floor" or "trunc"."""
        if rounding_mode == "floor":
            return floor_divide(x, other)
        if rounding_mode == "trunc":
            return trunc_divide(x, other)
        if rounding_mode is not None:
            raise ValueError(f"div: rounding_mode must be None, 'floor' or 'trunc'. Got {rounding_mode!r}.")
        return bind(Div, *operands(x, other, kind="float", who="div"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x / y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        y = saved.input(1)
        return g / y if saved.needs(0) else None, -g * (saved.input(0) / y / y) if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.array([0.5, -1, 3], np.float32)
        edges = np.array([1, 0, -1, np.inf, np.nan, 1], np.float32), np.array([0, 0, 0, np.inf, 1, 2], np.float32)
        return [Sample(arrays, (), lambda torch, a, b: a / b, (0, 1)) for arrays in ((x, y), edges)]


div = divide = true_divide = Div.call


class FloorDivide(IntegerDivision):
    """Quotient rounded towards minus infinity, as Python's ``//``."""

    name = "floor_divide"
    lowering = Expression("pg::floor_div({0}, {1})")
    methods = ("floor_divide",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x // other``, with gradient 0. Raises ZeroDivisionError for an integer zero."""
        x, other = operands(x, other, who="floor_divide")
        refuse_bool("floor_divide", "logical_and, or cast to an integer first", x, other)
        return bind(FloorDivide, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        refuse_zero_divisor("floor_divide", y)
        return xp.floor_divide(widened(x), widened(y)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return tuple(zeros_like_spec(saved.spec(i)) if saved.needs(i) else None for i in (0, 1))

    @staticmethod
    def samples() -> list[Sample]:
        x, y = (
            np.array([5, -5, 5, -5, np.inf, 1, -1, 0, -0.0], np.float32),
            np.array([3, 3, -3, -3, 2, 0, 0, 0, 3], np.float32),
        )
        whole = np.array([5, -5, 5, -5, 0], np.int64), np.array([3, 3, -3, -3, 2], np.int64)
        return [Sample(arrays, (), lambda torch, a, b: torch.floor_divide(a, b)) for arrays in ((x, y), whole)]


floor_divide = FloorDivide.call


class TruncDivide(IntegerDivision):
    """Quotient rounded towards 0, as in C."""

    name = "trunc_divide"
    lowering = Expression("pg::trunc_div({0}, {1})")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x / other`` rounded towards 0. Raises ZeroDivisionError for an integer zero."""
        x, other = operands(x, other, who="trunc_divide")
        refuse_bool("trunc_divide", "logical_and, or cast to an integer first", x, other)
        return bind(TruncDivide, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        refuse_zero_divisor("trunc_divide", y)
        if x.dtype.kind in "iu":
            quotient = xp.floor_divide(x, y)
            return quotient + ((quotient < 0) & (quotient * y != x)).astype(x.dtype)
        return xp.trunc(widened(x) / widened(y)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return tuple(zeros_like_spec(saved.spec(i)) if saved.needs(i) else None for i in (0, 1))

    @staticmethod
    def samples() -> list[Sample]:
        def torch_form(torch: Any, a: Any, b: Any) -> Any:
            return torch.div(a, b, rounding_mode="trunc")

        x, y = np.array([5, -5, 5, -5, np.inf, 1, 0], np.float32), np.array([3, 3, -3, -3, 2, 0, 0], np.float32)
        whole = np.array([5, -5, 5, -5, -6, 1], np.int64), np.array([3, 3, -3, -3, 3, -2], np.int64)
        return [Sample((x, y), (), torch_form, (0, 1)), Sample(whole, (), torch_form)]


trunc_divide = TruncDivide.call


class Remainder(IntegerDivision):
    """Remainder with the sign of the divisor, as Python's ``%``."""

    name = "remainder"
    lowering = Expression("pg::remainder({0}, {1})")
    methods = ("remainder",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x % other``. Raises ZeroDivisionError for an integer zero."""
        x, other = operands(x, other, who="remainder")
        refuse_bool("remainder", "logical_and, or cast to an integer first", x, other)
        return bind(Remainder, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        refuse_zero_divisor("remainder", y)
        return xp.remainder(widened(x), widened(y)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g, -g * floor_divide(saved.input(0), saved.input(1)) if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.array([5, -5, 5, -5.5, np.inf, 1, -0.0], np.float32), np.array([3, 3, -3, -2, 2, 0, 3], np.float32)
        whole = np.array([5, -5, 5, -5, 0], np.int64), np.array([3, 3, -3, -3, 2], np.int64)
        return [
            Sample((x, y), (), lambda torch, a, b: torch.remainder(a, b), (0, 1)),
            Sample(whole, (), lambda torch, a, b: torch.remainder(a, b)),
        ]


remainder = Remainder.call


class Fmod(IntegerDivision):
    """Remainder with the sign of the dividend, as C's fmod."""

    name = "fmod"
    lowering = Expression("pg::fmod({0}, {1})")
    methods = ("fmod",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x - other * trunc(x / other)``, exactly. Raises ZeroDivisionError for an integer zero."""
        x, other = operands(x, other, who="fmod")
        refuse_bool("fmod", "logical_and, or cast to an integer first", x, other)
        return bind(Fmod, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        refuse_zero_divisor("fmod", y)
        return xp.fmod(widened(x), widened(y)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g, -g * trunc_divide(saved.input(0), saved.input(1)) if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.array([5, -5, 5, -5.5, np.inf, 1, -0.0], np.float32), np.array([3, 3, -3, -2, 2, 0, 3], np.float32)
        whole = np.array([5, -5, 5, -5, 0], np.int64), np.array([3, 3, -3, -3, 2], np.int64)
        return [
            Sample((x, y), (), lambda torch, a, b: torch.fmod(a, b), (0, 1)),
            Sample(whole, (), lambda torch, a, b: torch.fmod(a, b)),
        ]


fmod = Fmod.call
