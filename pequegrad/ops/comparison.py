"""Comparisons and logic.

Invariant: the result is bool and has no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import bool_
from .core import Expression, Sample, TensorSpec, as_tensor, bind, broadcast_shapes, operands
from .elementwise import Elementwise


class Predicate(Elementwise):
    """Family: pointwise, broadcasting, result bool."""

    vjp = None

    @classmethod
    def infer(cls, *specs: TensorSpec, **params: Any) -> TensorSpec:
        return TensorSpec(broadcast_shapes(*(spec.shape for spec in specs), who=cls.name), bool_)


def _pairs(torch_form: Any) -> list[Sample]:
    """Return samples of a comparison: NaN, infinities, ties, integers that broadcast."""
    x, y = np.array([1, 2, 3, np.nan, np.inf, -0.0], np.float32), np.array([1, 3, 2, np.nan, -np.inf, 0], np.float32)
    whole = np.array([[1], [2]], np.int64), np.array([1, 2, 3], np.int64)
    return [Sample((x, y), (), torch_form), Sample(whole, (), torch_form)]


def truth_table(torch_form: Any) -> list[Sample]:
    """Return the truth table."""
    return [Sample((np.array([[True], [False]]), np.array([True, False])), (), torch_form)]


def as_bool(x: Any) -> Any:
    """Return ``x != 0`` as bools."""
    x = as_tensor(x)
    return x if x.dtype is bool_ else x.to(bool_)


class Equal(Predicate):
    """Whether the first equals the second."""

    name = "eq"
    lowering = Expression("pg::eq({0}, {1})")
    commutative = True
    methods = ("eq",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x == other``."""
        return bind(Equal, *operands(x, other, who="eq"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x == y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a == b)


eq = Equal.call


class NotEqual(Predicate):
    """Whether the first differs from the second."""

    name = "ne"
    lowering = Expression("pg::ne({0}, {1})")
    commutative = True
    methods = ("ne", "not_equal")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x != other``."""
        return bind(NotEqual, *operands(x, other, who="ne"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x != y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a != b)


ne = not_equal = NotEqual.call


class Less(Predicate):
    """Whether the first is less than the second."""

    name = "lt"
    lowering = Expression("pg::lt({0}, {1})")
    methods = ("lt", "less")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x < other``."""
        return bind(Less, *operands(x, other, who="lt"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x < y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a < b)


lt = less = Less.call


class LessEqual(Predicate):
    """Whether the first is at most the second."""

    name = "le"
    lowering = Expression("pg::le({0}, {1})")
    methods = ("le", "less_equal")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x <= other``."""
        return bind(LessEqual, *operands(x, other, who="le"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x <= y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a <= b)


le = less_equal = LessEqual.call


class Greater(Predicate):
    """Whether the first is greater than the second."""

    name = "gt"
    lowering = Expression("pg::gt({0}, {1})")
    methods = ("gt", "greater")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x > other``."""
        return bind(Greater, *operands(x, other, who="gt"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x > y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a > b)


gt = greater = Greater.call


class GreaterEqual(Predicate):
    """Whether the first is at least the second."""

    name = "ge"
    lowering = Expression("pg::ge({0}, {1})")
    methods = ("ge", "greater_equal")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return where ``x >= other``."""
        return bind(GreaterEqual, *operands(x, other, who="ge"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x >= y

    @staticmethod
    def samples() -> list[Sample]:
        return _pairs(lambda torch, a, b: a >= b)


ge = greater_equal = GreaterEqual.call


class LogicalAnd(Predicate):
    """Both."""

    name = "logical_and"
    lowering = Expression("pg::logical_and({0}, {1})")
    commutative = True
    methods = ("logical_and",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the bools of ``x`` and ``other`` combined; numbers other than 0 count as True."""
        return bind(LogicalAnd, as_bool(x), as_bool(other))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.logical_and(x, y)

    @staticmethod
    def samples() -> list[Sample]:
        return truth_table(lambda torch, a, b: torch.logical_and(a, b))


logical_and = LogicalAnd.call


class LogicalOr(Predicate):
    """One or both."""

    name = "logical_or"
    lowering = Expression("pg::logical_or({0}, {1})")
    commutative = True
    methods = ("logical_or",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the bools of ``x`` and ``other`` combined; numbers other than 0 count as True."""
        return bind(LogicalOr, as_bool(x), as_bool(other))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.logical_or(x, y)

    @staticmethod
    def samples() -> list[Sample]:
        return truth_table(lambda torch, a, b: torch.logical_or(a, b))


logical_or = LogicalOr.call


class LogicalXor(Predicate):
    """One, not both."""

    name = "logical_xor"
    lowering = Expression("pg::logical_xor({0}, {1})")
    commutative = True
    methods = ("logical_xor",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the bools of ``x`` and ``other`` combined; numbers other than 0 count as True."""
        return bind(LogicalXor, as_bool(x), as_bool(other))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.logical_xor(x, y)

    @staticmethod
    def samples() -> list[Sample]:
        return truth_table(lambda torch, a, b: torch.logical_xor(a, b))


logical_xor = LogicalXor.call


class LogicalNot(Predicate):
    """True for False."""

    name = "logical_not"
    lowering = Expression("pg::logical_not({0})")
    methods = ("logical_not",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return where ``x`` is False or 0."""
        return bind(LogicalNot, as_bool(x))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return ~x

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((np.array([True, False]),), (), lambda torch, t: torch.logical_not(t))]


logical_not = LogicalNot.call


class IsNan(Predicate):
    """Whether an element is NaN."""

    name = "isnan"
    lowering = Expression("pg::isnan({0})")
    methods = ("isnan",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return where ``x`` is NaN."""
        return bind(IsNan, as_tensor(x))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.isnan(x)

    @staticmethod
    def samples() -> list[Sample]:
        arrays = np.array([0, -1, np.nan, np.inf, -np.inf], np.float32), np.array([0, 3], np.int64)
        return [Sample((x,), (), lambda torch, t: torch.isnan(t)) for x in arrays]


isnan = IsNan.call


class IsInf(Predicate):
    """Whether an element is infinite."""

    name = "isinf"
    lowering = Expression("pg::isinf({0})")
    methods = ("isinf",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return where ``x`` is infinite."""
        return bind(IsInf, as_tensor(x))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.isinf(x)

    @staticmethod
    def samples() -> list[Sample]:
        arrays = np.array([0, -1, np.nan, np.inf, -np.inf], np.float32), np.array([0, 3], np.int64)
        return [Sample((x,), (), lambda torch, t: torch.isinf(t)) for x in arrays]


isinf = IsInf.call


class IsFinite(Predicate):
    """Whether an element is neither infinite nor NaN."""

    name = "isfinite"
    lowering = Expression("pg::isfinite({0})")
    methods = ("isfinite",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return where ``x`` is finite."""
        return bind(IsFinite, as_tensor(x))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.isfinite(x)

    @staticmethod
    def samples() -> list[Sample]:
        arrays = np.array([0, -1, np.nan, np.inf, -np.inf], np.float32), np.array([0, 3], np.int64)
        return [Sample((x,), (), lambda torch, t: torch.isfinite(t)) for x in arrays]


isfinite = IsFinite.call


def isclose(x: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    """Return where ``|x - other| <= atol + rtol * |other|``; infinities are close to themselves."""
    x, other = operands(x, other, kind="float", who="isclose")
    near = ((x - other).abs() <= other.abs() * rtol + atol).logical_and(other.isfinite()).logical_or(x == other)
    return near.logical_or(x.isnan().logical_and(other.isnan())) if equal_nan else near


def allclose(x: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Return whether `isclose` holds everywhere, as a Python bool."""
    return bool(isclose(x, other, rtol, atol, equal_nan).all())


def equal(x: Any, other: Any) -> bool:
    """Return whether two tensors have the same shape and elements, as a Python bool."""
    x, other = as_tensor(x), as_tensor(other)
    return x.shape == other.shape and bool((x == other).all())
