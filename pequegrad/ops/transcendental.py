"""Elementwise functions of one floating-point number; integers become float32.

Invariant: each computes in the dtype of its operand, half precision rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .core import Expression, Sample, as_tensor, bind, operands
from .elementwise import Elementwise, widened
from .error_function import evaluate_erf

EDGES = np.array([-100, -1.25, -0.0, 0, 0.3, 1, 88, np.inf, -np.inf, np.nan], np.float32)


def float_operand(x: Any, who: str) -> Any:
    """Return ``x`` as a floating-point Tensor."""
    return operands(as_tensor(x), kind="float", who=who)[0]


def sampled(torch_form: Callable[..., Any], array: np.ndarray = EDGES) -> list[Sample]:
    """Return one differentiable sample of a function of one tensor."""
    return [Sample((array,), (), torch_form, (0,))]


class Exp(Elementwise):
    """e to the power of x."""

    name = "exp"
    lowering = Expression("pg::exp({0})")
    methods = ("exp",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return e ** x."""
        return bind(Exp, float_operand(x, "exp"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.exp(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * saved.output(),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.exp())


exp = Exp.call


class Expm1(Elementwise):
    """e to the power of x, less 1, accurate near 0."""

    name = "expm1"
    lowering = Expression("pg::expm1({0})")
    methods = ("expm1",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return exp(x) - 1, accurate near 0."""
        return bind(Expm1, float_operand(x, "expm1"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.expm1(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * (saved.output() + 1),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.expm1())


expm1 = Expm1.call


class Log(Elementwise):
    """Natural logarithm."""

    name = "log"
    lowering = Expression("pg::log({0})")
    methods = ("log",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the natural logarithm."""
        return bind(Log, float_operand(x, "log"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.log(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g / saved.input(),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.log())


log = Log.call


class Log1p(Elementwise):
    """Natural logarithm of 1 + x, accurate near 0."""

    name = "log1p"
    lowering = Expression("pg::log1p({0})")
    methods = ("log1p",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return log(1 + x), accurate near 0."""
        return bind(Log1p, float_operand(x, "log1p"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.log1p(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g / (saved.input() + 1),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.log1p())


log1p = Log1p.call


class Sin(Elementwise):
    """Sine."""

    name = "sin"
    lowering = Expression("pg::sin({0})")
    methods = ("sin",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the sine of x in radians."""
        return bind(Sin, float_operand(x, "sin"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.sin(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * cos(saved.input()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.sin())


sin = Sin.call


class Cos(Elementwise):
    """Cosine."""

    name = "cos"
    lowering = Expression("pg::cos({0})")
    methods = ("cos",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the cosine of x in radians."""
        return bind(Cos, float_operand(x, "cos"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.cos(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (-g * sin(saved.input()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.cos())


cos = Cos.call


class Tanh(Elementwise):
    """Hyperbolic tangent."""

    name = "tanh"
    lowering = Expression("pg::tanh({0})")
    methods = ("tanh",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the hyperbolic tangent."""
        return bind(Tanh, float_operand(x, "tanh"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.tanh(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * (1 - saved.output().square()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.tanh())


tanh = Tanh.call


class Sigmoid(Elementwise):
    """Logistic function, 1 / (1 + exp(-x))."""

    name = "sigmoid"
    lowering = Expression("pg::sigmoid({0})")
    methods = ("sigmoid",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return 1 / (1 + exp(-x))."""
        return bind(Sigmoid, float_operand(x, "sigmoid"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        wide = widened(x)
        falling = xp.exp(-xp.abs(wide))
        return (xp.where(wide >= 0, 1, falling) / (1 + falling)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * (1 - saved.output()) * saved.output(),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.sigmoid())


sigmoid = Sigmoid.call


class Softplus(Elementwise):
    """log(1 + exp(x)), from whichever side does not overflow."""

    name = "softplus"
    lowering = Expression("pg::softplus({0})")

    @staticmethod
    def call(x: Any) -> Any:
        """Return log(1 + exp(x))."""
        return bind(Softplus, float_operand(x, "softplus"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        wide = widened(x)
        return (xp.maximum(wide, 0) + xp.log1p(xp.exp(-xp.abs(wide)))).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * sigmoid(saved.input()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: torch.logaddexp(t, torch.zeros_like(t)))


class Erf(Elementwise):
    """Error function."""

    name = "erf"
    lowering = Expression("pg::erf({0})")
    methods = ("erf",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the error function."""
        return bind(Erf, float_operand(x, "erf"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return evaluate_erf(xp, x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * (2 / math.sqrt(math.pi)) * exp(-saved.input().square()),)

    @staticmethod
    def samples() -> list[Sample]:
        return sampled(lambda torch, t: t.erf())


erf = Erf.call
