"""Elementwise ops: one result per element, operands broadcast.

Invariant: operands of one application have one dtype (`operands` promotes), unless the class says otherwise.
Gradients at ties, at 0 and at infinity are torch's. Here are the family and its plainest members; beside it
division.py, selection.py, transcendental.py and comparison.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType, bool_, float32, int32, uint8
from ..errors import DTypeError
from .core import Expression, Op, Sample, TensorSpec, as_tensor, bind, broadcast_shapes, operands
from .movement import zeros_like_spec
from .sharding import Sharding, shard_pointwise


class Elementwise(Op):
    """Family: pointwise, broadcasting, result in the operands' dtype."""

    elementwise = True

    @classmethod
    def infer(cls, *specs: TensorSpec, **params: Any) -> TensorSpec:
        first = specs[0]
        shape = broadcast_shapes(*[spec.shape for spec in specs], who=cls.name)
        return first if shape == first.shape else TensorSpec(shape, first.dtype)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        ndims = tuple(spec.ndim for spec in specs)
        return shard_pointwise(inputs, ndims, max(ndims, default=0))


def widened(array: Any) -> Any:
    """Return a half-precision array as float32, others as they are: a formula of several steps rounds once."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def refuse_bool(who: str, cure: str, *tensors: Any) -> None:
    """Raise DTypeError if a tensor is of bools, which torch does not let into this arithmetic."""
    if all(tensor.dtype is bool_ for tensor in tensors):
        raise DTypeError(f"{who}: bool tensors have no {who}. Got bool. Use {cure}.")


class Add(Elementwise):
    """Sum of two tensors."""

    name = "add"
    lowering = Expression("{0} + {1}")
    commutative = True
    methods = ("add",)

    @staticmethod
    def call(x: Any, other: Any, *, alpha: Any = 1) -> Any:
        """Return ``x + alpha * other``; bools are or-ed, as in torch."""
        return bind(Add, *operands(x, other if alpha == 1 else mul(other, alpha), who="add"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x + y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g, g

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.array([0.5, -1, 3], np.float32)
        return [Sample((x, y), (), lambda torch, a, b: a + b, (0, 1))]


add = Add.call


class Sub(Elementwise):
    """Difference of two tensors."""

    name = "sub"
    lowering = Expression("{0} - {1}")
    methods = ("sub", "subtract")

    @staticmethod
    def call(x: Any, other: Any, *, alpha: Any = 1) -> Any:
        """Return ``x - alpha * other``. Raises DTypeError for bools."""
        x, other = operands(x, other if alpha == 1 else mul(other, alpha), who="sub")
        refuse_bool("sub", "logical_xor, or cast to an integer first", x, other)
        return bind(Sub, x, other)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x - y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g if saved.needs(0) else None, -g if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.array([[0.5], [-1]], np.float32)
        return [
            Sample((x, y), (), lambda torch, a, b: a - b, (0, 1)),
            Sample((np.array([3, 9], np.uint8), np.array([5, 1], np.uint8)), (), lambda torch, a, b: a - b),
        ]


sub = subtract = Sub.call


class Mul(Elementwise):
    """Product of two tensors."""

    name = "mul"
    lowering = Expression("{0} * {1}")
    commutative = True
    methods = ("mul", "multiply")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x * other``; bools are and-ed, as in torch."""
        return bind(Mul, *operands(x, other, who="mul"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        return x * y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g * saved.input(1) if saved.needs(0) else None, g * saved.input(0) if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.array([[0.5], [-1]], np.float32)
        return [Sample((x, y), (), lambda torch, a, b: a * b, (0, 1))]


mul = multiply = Mul.call


class Neg(Elementwise):
    """The number with the other sign."""

    name = "neg"
    lowering = Expression("-{0}")
    methods = ("neg", "negative")

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``-x``. Raises DTypeError for bools."""
        x = as_tensor(x)
        refuse_bool("neg", "logical_not", x)
        return bind(Neg, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return -x

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (-g,)

    @staticmethod
    def samples() -> list[Sample]:
        arrays = np.array([-2, 0, 1.5, np.inf], np.float32), np.array([-2, 0, 3], np.int64)
        return [Sample((x,), (), lambda torch, t: -t, (0,) if x.dtype.kind == "f" else ()) for x in arrays]


neg = negative = Neg.call


class Abs(Elementwise):
    """Absolute value; its gradient at 0 is 0."""

    name = "abs"
    lowering = Expression("pg::abs({0})")
    methods = ("abs", "absolute")

    @staticmethod
    def call(x: Any) -> Any:
        """Return ``|x|``."""
        x = as_tensor(x)
        refuse_bool("abs", ".to(int64) first", x)
        return bind(Abs, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return xp.abs(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * sign(saved.input()),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([-2, -0.0, 0, 1.5, np.inf, -np.inf, np.nan], np.float32)
        return [
            Sample((x,), (), lambda torch, t: t.abs(), (0,)),
            Sample((np.array([-3, 0, 3], np.int32),), (), lambda torch, t: t.abs()),
        ]


abs = absolute = Abs.call


class Sign(Elementwise):
    """-1, 0 or 1; 0 for NaN, as in torch."""

    name = "sign"
    lowering = Expression("pg::cast<{T}>(pg::gt({0}, {T}(0))) - pg::cast<{T}>(pg::lt({0}, {T}(0)))")
    methods = ("sign",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return the sign of ``x``; a bool is its own sign."""
        x = as_tensor(x)
        return x.clone() if x.dtype is bool_ else bind(Sign, x)

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:
        return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (zeros_like_spec(saved.spec()),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([-2, -0.0, 0, 1.5, np.inf, -np.inf, np.nan], np.float32)
        return [
            Sample((x,), (), lambda torch, t: t.sign(), (0,)),
            Sample((np.array([0, 200], np.uint8),), (), lambda torch, t: t.sign()),
        ]


sign = Sign.call


class Where(Elementwise):
    """A choice per element; the condition is bool, the other two of one dtype."""

    name = "where"
    lowering = Expression("pg::select({0}, {1}, {2})")

    @staticmethod
    def call(condition: Any, input: Any, other: Any) -> Any:
        """Return ``input`` where ``condition`` (bool) holds, else ``other``; both may be numbers."""
        condition = as_tensor(condition)
        if condition.dtype is uint8:
            condition = condition.to(bool_)
        if condition.dtype is not bool_:
            raise DTypeError(f"where: the condition must be bool. Got {condition.dtype.name}. Use condition != 0.")
        return bind(Where, condition, *operands(input, other, who="where"))

    @classmethod
    def infer(cls, condition: TensorSpec, x: TensorSpec, y: TensorSpec) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(broadcast_shapes(condition.shape, x.shape, y.shape, who="where"), x.dtype)

    @staticmethod
    def numpy(xp: Any, condition: Any, x: Any, y: Any) -> Any:
        return xp.where(condition, x, y)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        condition = saved.input(0)
        return (
            None,
            where(condition, g, 0.0) if saved.needs(1) else None,
            where(condition, 0.0, g) if saved.needs(2) else None,
        )

    @staticmethod
    def samples() -> list[Sample]:
        condition = np.array([[True], [False]])
        x, y = np.array([1, np.nan, 3], np.float32), np.array([[4, 5, 6], [np.inf, 8, np.nan]], np.float32)
        return [Sample((condition, x, y), (), lambda torch, c, a, b: torch.where(c, a, b), (1, 2))]


where = Where.call


class Cast(Elementwise):
    """The same values in another dtype: floats truncate to integers, anything but zero is True."""

    name = "cast"
    lowering = Expression("pg::cast<{T}>({0})")

    @staticmethod
    def call(x: Any, dtype: Any) -> Any:
        """Return ``x`` in ``dtype``."""
        return as_tensor(x).to(dtype)

    @staticmethod
    def infer(x: TensorSpec, *, dtype: DType) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(x.shape, dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dtype: DType) -> Any:
        if dtype is bool_:
            return x != 0
        if dtype is uint8 and x.dtype.kind not in "biu":
            x = x.astype(np.int64)  # as torch: modulo 256, where NumPy leaves it to the machine
        return x.astype(dtype.numpy)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g,) if saved.spec().dtype.is_floating_point else (None,)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([-1.5, 0, 0.25, 2.75], np.float32)
        return [
            Sample((x,), (("dtype", bool_),), lambda torch, t: t.bool()),
            Sample((x,), (("dtype", int32),), lambda torch, t: t.int()),
            Sample((np.array([-1, 300, 2.5], np.float32),), (("dtype", uint8),), lambda torch, t: t.to(torch.uint8)),
            Sample((x.astype(np.float64),), (("dtype", float32),), lambda torch, t: t.float(), (0,)),
        ]


cast = Cast.call
