"""Rounding to whole numbers.

Invariant: the gradient is 0 everywhere, as torch defines it; integers stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .core import Expression, Sample, as_tensor, bind
from .elementwise import Elementwise
from .movement import zeros_like_spec
from .transcendental import sampled

HALVES = np.array([-2.5, -1.5, -0.5, -0.2, 0, 0.5, 1.5, 2.5, 2.7, np.inf, np.nan], np.float32)


class Rounding(Elementwise):
    """Family: to a whole number; gradient 0; integers stay as they are."""

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (zeros_like_spec(saved.spec()),)


def _rounded(op: type[Rounding], x: Any) -> Any:
    x = as_tensor(x)
    return bind(op, x) if x.dtype.is_floating_point else x.clone()


class Floor(Rounding):
    """Largest whole number not above x."""

    name = "floor"
    lowering = Expression("pg::floor({0})")
    methods = ("floor",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the largest whole number not above ``x``."""
        return _rounded(Floor, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.floor(x)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.floor(), HALVES)


floor = Floor.call


class Ceil(Rounding):
    """Smallest whole number not below x."""

    name = "ceil"
    lowering = Expression("pg::ceil({0})")
    methods = ("ceil",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the smallest whole number not below ``x``."""
        return _rounded(Ceil, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.ceil(x)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.ceil(), HALVES)


ceil = Ceil.call


class Trunc(Rounding):
    """x without its fraction."""

    name = "trunc"
    lowering = Expression("pg::trunc({0})")
    methods = ("trunc",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``x`` without its fraction."""
        return _rounded(Trunc, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.trunc(x)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.trunc(), HALVES)


trunc = Trunc.call


class Round(Rounding):
    """The nearest whole number; halves go to the even one."""

    name = "round"
    lowering = Expression("pg::round({0})")
    methods = ("round",)

    @staticmethod
    def call(x: Any, *, decimals: int = 0) -> Any:
        """Return ``x`` rounded to ``decimals`` places, halves to even."""
        if decimals == 0:
            return _rounded(Round, x)
        scale = 10.0 ** abs(decimals)
        return _rounded(Round, x * scale) / scale if decimals > 0 else _rounded(Round, x / scale) * scale

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.rint(x)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.round(), HALVES)


round = Round.call
