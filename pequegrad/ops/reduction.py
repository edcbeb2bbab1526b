"""Ops that combine elements along dimensions.

Invariant: ``dims`` are sorted, non-negative and may be empty only for a 0-dimensional input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType, as_dtype, int64
from .core import Op, Reduction, Sample, TensorSpec, as_tensor, bind, normalize_dims
from .movement import expand, reshape
from .sharding import Sharding, shard_reduction


def reduced_shape(shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """Return ``shape`` without ``dims``, or with extent 1 there."""
    if keepdim:
        return tuple(1 if i in dims else extent for i, extent in enumerate(shape))
    return tuple(extent for i, extent in enumerate(shape) if i not in dims)


def restore_dims(reduced: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    """Return a reduced tensor with extent-1 dimensions where ``dims`` were: it broadcasts against ``shape``."""
    return reshape(reduced, reduced_shape(shape, dims, True))


class ReductionOp(Op):
    """Family: one result per group of elements."""

    reduction = True

    @staticmethod
    def infer(x: TensorSpec, *, dims: tuple[int, ...], keepdim: bool) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(reduced_shape(x.shape, dims, keepdim), x.dtype)

    @classmethod
    def shard(cls, inputs: Any, specs: Any, *, dims: Any, keepdim: bool) -> Sharding | None:  # type: ignore[override]
        return shard_reduction(inputs[0], dims, keepdim, cls.lowering.monoid)


class Sum(ReductionOp):
    """Sum of elements along dimensions."""

    name = "sum"
    lowering = Reduction("sum")
    methods = ("sum",)

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        """Return the sum over ``dim`` (None: all). Integers and bools sum to int64."""
        x = as_tensor(x)
        if dtype is not None:
            x = x.to(as_dtype(dtype))
        elif not x.dtype.is_floating_point:
            x = x.to(int64)
        return bind(Sum, x, dims=normalize_dims(dim, x.ndim, "sum"), keepdim=keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:  # type: ignore[override]
        return xp.sum(x, axis=dims, keepdims=keepdim, dtype=x.dtype)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        spec = saved.spec()
        return (expand(restore_dims(g, spec.shape, saved.params["dims"]), spec.shape),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.sum(1), (0,)),
            Sample((x,), (("dims", (0, 1, 2)), ("keepdim", True)), lambda torch, t: t.sum((0, 1, 2), True), (0,)),
        ]


sum = Sum.call


def sum_to_shape(x: Any, shape: tuple[int, ...]) -> Any:
    """Return ``x`` summed over the dimensions in which ``shape`` broadcasts to its shape."""
    lead = x.ndim - len(shape)
    dims = tuple(i for i, extent in enumerate(x.shape) if i < lead or (shape[i - lead] == 1 and extent != 1))
    return reshape(bind(Sum, x, dims=dims, keepdim=False), shape) if dims else reshape(x, shape)
