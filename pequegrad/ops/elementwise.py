"""Elementwise ops: one result per element, operands broadcast.

Invariant: operands of one application have one dtype (`operands` promotes), unless the class says otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType, bool_, float32
from .core import Expression, Op, Sample, TensorSpec, as_tensor, bind, broadcast_shapes, operands
from .sharding import Sharding, shard_pointwise


class Elementwise(Op):
    """Family: pointwise, broadcasting, result in the operands' dtype."""

    elementwise = True

    @classmethod
    def infer(cls, *specs: TensorSpec, **params: Any) -> TensorSpec:
        return TensorSpec(broadcast_shapes(*(spec.shape for spec in specs), who=cls.name), specs[0].dtype)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        ndims = tuple(spec.ndim for spec in specs)
        return shard_pointwise(inputs, ndims, max(ndims, default=0))


class Add(Elementwise):
    """Sum of two tensors."""

    name = "add"
    lowering = Expression("{0} + {1}")
    commutative = True
    methods = ("add",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x + other``; bools are or-ed, as in torch."""
        return bind(Add, *operands(x, other, who="add"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:  # type: ignore[override]
        return x + y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g, g

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.float32([0.5, -1, 3])
        return [Sample((x, y), (), lambda torch, a, b: a + b, (0, 1))]


add = Add.call


class Mul(Elementwise):
    """Product of two tensors."""

    name = "mul"
    lowering = Expression("{0} * {1}")
    commutative = True
    methods = ("mul", "multiply")

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return ``x * other``."""
        return bind(Mul, *operands(x, other, who="mul"))

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:  # type: ignore[override]
        return x * y

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return g * saved.input(1) if saved.needs(0) else None, g * saved.input(0) if saved.needs(1) else None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3), np.float32([[0.5], [-1]])
        return [Sample((x, y), (), lambda torch, a, b: a * b, (0, 1))]


mul = Mul.call


class Exp(Elementwise):
    """e to the power of x."""

    name = "exp"
    lowering = Expression("pg::exp({0})")
    methods = ("exp",)

    @staticmethod
    def call(x: Any) -> Any:
        """Return e ** x; integers become float32."""
        return bind(Exp, *operands(x, kind="float", who="exp"))

    @staticmethod
    def numpy(xp: Any, x: Any) -> Any:  # type: ignore[override]
        return xp.exp(x)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g * saved.output(),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.float32([-100, -1, -0.0, 0, 1, 88, np.inf, -np.inf, np.nan])
        return [Sample((x,), (), lambda torch, t: t.exp(), (0,))]


exp = Exp.call


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
    def numpy(xp: Any, x: Any, *, dtype: DType) -> Any:  # type: ignore[override]
        return x.astype(dtype.numpy)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (g,) if saved.spec().dtype.is_floating_point else (None,)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.float32([-1.5, 0, 0.25, 2.75])
        return [
            Sample((x,), (("dtype", bool_),), lambda torch, t: t.bool()),
            Sample((x.astype(np.float64),), (("dtype", float32),), lambda torch, t: t.float(), (0,)),
        ]


cast = Cast.call
