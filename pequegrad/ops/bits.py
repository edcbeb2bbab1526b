"""Operations on the bits of integers; bools count as one bit.

Invariant: the result has the operands' dtype and no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import bool_, int64
from ..errors import DTypeError
from .comparison import LogicalNot, truth_table
from .core import Expression, Sample, TensorSpec, as_tensor, bind, operands
from .elementwise import Elementwise


class BitOperation(Elementwise):
    """Family: pointwise on the bits of integers (or on bools)."""

    vjp = None

    @classmethod
    def infer(cls, *specs: TensorSpec, **params: Any) -> TensorSpec:
        if specs[0].dtype.is_floating_point:
            dtype = specs[0].dtype.name
            raise DTypeError(f"{cls.name}: expected integers or bools. Got {dtype}. Use .to(int64) first.")
        return super().infer(*specs, **params)


def _bits(torch_form: Any, *, has_bool: bool = True) -> list[Sample]:
    """Return samples of an operation on bits."""
    x, y = np.array([[12], [-7]], np.int32), np.array([10, 3, 0], np.int32)
    unsigned = np.array([200, 15], np.uint8), np.array([3, 2], np.uint8)
    samples = [Sample((x, y), (), torch_form), Sample(unsigned, (), torch_form)]
    return [*samples, *truth_table(torch_form)] if has_bool else samples


class BitwiseAnd(BitOperation):
    """Bits that both have."""

    name = "bitwise_and"
    lowering = Expression("{0} & {1}")
    commutative = True
    methods = ("bitwise_and",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x & other``, of integers or bools. Raises DTypeError for floats."""
        return bind(BitwiseAnd, *operands(x, other, who="bitwise_and"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x & y

    @staticmethod
    def samples() -> list[Sample]:
        return _bits(lambda torch, a, b: a & b)


bitwise_and = BitwiseAnd.call


class BitwiseOr(BitOperation):
    """Bits that one or both have."""

    name = "bitwise_or"
    lowering = Expression("{0} | {1}")
    commutative = True
    methods = ("bitwise_or",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x | other``, of integers or bools. Raises DTypeError for floats."""
        return bind(BitwiseOr, *operands(x, other, who="bitwise_or"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x | y

    @staticmethod
    def samples() -> list[Sample]:
        return _bits(lambda torch, a, b: a | b)


bitwise_or = BitwiseOr.call


class BitwiseXor(BitOperation):
    """Bits that one has, not both."""

    name = "bitwise_xor"
    lowering = Expression("{0} ^ {1}")
    commutative = True
    methods = ("bitwise_xor",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x ^ other``, of integers or bools. Raises DTypeError for floats."""
        return bind(BitwiseXor, *operands(x, other, who="bitwise_xor"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x ^ y

    @staticmethod
    def samples() -> list[Sample]:
        return _bits(lambda torch, a, b: a ^ b)


bitwise_xor = BitwiseXor.call


class BitwiseNot(BitOperation):
    """All bits turned."""

    name = "bitwise_not"
    lowering = Expression("pg::bitwise_not({0})")
    methods = ("bitwise_not",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``~x``; of bools, the logical not. Raises DTypeError for floats."""
        x = as_tensor(x)
        return bind(LogicalNot if x.dtype is bool_ else BitwiseNot, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return ~x

    @staticmethod
    def samples() -> list[Sample]:
        return [
            Sample((x,), (), lambda torch, t: ~t)
            for x in (np.array([0, -5, 9], np.int32), np.array([0, 200], np.uint8))
        ]


bitwise_not = BitwiseNot.call


class LeftShift(BitOperation):
    """Bits moved up, zeros in their place."""

    name = "bitwise_left_shift"
    lowering = Expression("pg::shift_left({0}, {1})")
    methods = ("bitwise_left_shift",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x << other``, of integers. Raises DTypeError for floats."""
        x, other = operands(x, other, who="bitwise_left_shift")
        if x.dtype is bool_:
            x, other = x.to(int64), other.to(int64)
        return bind(LeftShift, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.left_shift(x, y)

    @staticmethod
    def samples() -> list[Sample]:
        return _bits(lambda torch, a, b: a << b, has_bool=False)


bitwise_left_shift = LeftShift.call


class RightShift(BitOperation):
    """Bits moved down, the sign in their place."""

    name = "bitwise_right_shift"
    lowering = Expression("pg::shift_right({0}, {1})")
    methods = ("bitwise_right_shift",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x >> other``, of integers. Raises DTypeError for floats."""
        x, other = operands(x, other, who="bitwise_right_shift")
        if x.dtype is bool_:
            x, other = x.to(int64), other.to(int64)
        return bind(RightShift, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return xp.right_shift(x, y)

    @staticmethod
    def samples() -> list[Sample]:
        return _bits(lambda torch, a, b: a >> b, has_bool=False)


bitwise_right_shift = RightShift.call
