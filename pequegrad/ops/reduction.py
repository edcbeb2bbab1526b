"""Ops that combine elements along dimensions.

Invariant: ``dims`` are sorted, non-negative and empty only for a 0-dimensional input. Half precision accumulates in
float32 and rounds once, at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import as_dtype, bool_, int64, uint8
from ..errors import DTypeError, ShapeError
from .core import Family, Op, Reduction, Sample, TensorSpec, as_tensor, bind, normalize_dims
from .elementwise import where, widened
from .movement import expand, reshape
from .sharding import REPLICATED, Mapped, Sharding, shard_reduction


def reduced_shape(shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    """Return ``shape`` without ``dims``, or with extent 1 there."""
    if keepdim:
        return tuple(1 if i in dims else extent for i, extent in enumerate(shape))
    return tuple(extent for i, extent in enumerate(shape) if i not in dims)


def restore_dims(reduced: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    """Return a reduced tensor with extent-1 dimensions where ``dims`` were: it broadcasts against ``shape``."""
    return reshape(reduced, reduced_shape(shape, dims, True))


def reduction_dims(dim: Any, ndim: int, who: str) -> tuple[int, ...]:
    """Return the dimensions that ``dim`` names; None and an empty sequence mean all of them, as in torch."""
    return normalize_dims(None if isinstance(dim, tuple | list) and not dim else dim, ndim, who)


def summable(x: Any, dtype: Any) -> Any:
    """Return ``x`` in the dtype that its sum has: ``dtype`` if given, int64 for integers and bools."""
    x = as_tensor(x)
    if dtype is not None:
        return x.to(as_dtype(dtype))
    return x if x.dtype.is_floating_point else x.to(int64)


def refuse_empty(x: Any, dims: tuple[int, ...], who: str) -> None:
    """Raise ShapeError where a group has no element, so no extreme either."""
    if 0 in [x.shape[dim] for dim in dims]:
        raise ShapeError(f"{who}: the reduced dimensions must not be empty. Got shape {x.shape}, dims {dims}.")


class ReductionOp(Op):
    """Family: one result per group of elements."""

    reduction = True

    @staticmethod
    def infer(x: TensorSpec, *, dims: tuple[int, ...], keepdim: bool) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(reduced_shape(x.shape, dims, keepdim), x.dtype)

    @classmethod
    def shard(cls, inputs: Any, specs: Any, *, dims: Any, keepdim: bool) -> Sharding | None:  # type: ignore[override]
        return shard_reduction(inputs[0], dims, keepdim, cls.lowering.monoid)


class Truth(ReductionOp):
    """Family: reductions of bools."""

    @staticmethod
    def infer(x: TensorSpec, *, dims: tuple[int, ...], keepdim: bool) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(reduced_shape(x.shape, dims, keepdim), bool_)


class IndexReduction(ReductionOp):
    """Family: reductions to an index; no monoid combines the indices of blocks, which each count from 0."""

    @staticmethod
    def infer(x: TensorSpec, *, dims: tuple[int, ...], keepdim: bool) -> TensorSpec:  # type: ignore[override]
        return TensorSpec(reduced_shape(x.shape, dims, keepdim), int64)

    @classmethod
    def shard(cls, inputs: Any, specs: Any, *, dims: Any, keepdim: bool) -> Sharding | None:  # type: ignore[override]
        return shard_reduction(inputs[0], dims, keepdim, None)


def _accumulator(x: Any) -> Any:
    """Return the NumPy dtype that sums and products of ``x`` accumulate in."""
    return np.float32 if x.dtype.itemsize == 2 else x.dtype


def _truth(op: type[Truth], x: Any, dim: Any, keepdim: bool) -> Any:
    x = as_tensor(x)
    truth = x if x.dtype is bool_ else x.to(bool_)
    result = bind(op, truth, dims=reduction_dims(dim, x.ndim, op.name), keepdim=keepdim)
    return result.to(uint8) if x.dtype is uint8 else result


def _index(op: type[IndexReduction], x: Any, dim: int | None, keepdim: bool) -> Any:
    x = as_tensor(x)
    if isinstance(dim, tuple | list):
        raise DTypeError(f"{op.name}: dim must be one int or None. Got {dim}. Flatten the dimensions first.")
    dims = normalize_dims(dim, x.ndim, op.name)
    refuse_empty(x, dims, op.name)
    return bind(op, x.to(uint8) if x.dtype is bool_ else x, dims=dims, keepdim=keepdim)


def _searched(xp: Any, search: Any, x: Any, dims: tuple[int, ...], keepdim: bool) -> Any:
    kept = tuple(dim for dim in range(x.ndim) if dim not in dims)
    rows = (
        widened(x)
        .transpose(kept + dims)
        .reshape(*(x.shape[dim] for dim in kept), math.prod(x.shape[dim] for dim in dims))
    )
    return search(rows, axis=-1).reshape(reduced_shape(x.shape, dims, keepdim))


class Sum(ReductionOp):
    """Sum of elements along dimensions."""

    name = "sum"
    lowering = Reduction("sum")
    methods = ("sum",)

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        """Return the sum over ``dim`` (None: all). Integers and bools sum to int64."""
        x = summable(x, dtype)
        return bind(Sum, x, dims=reduction_dims(dim, x.ndim, "sum"), keepdim=keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.sum(x, axis=dims, keepdims=keepdim, dtype=_accumulator(x)).astype(x.dtype, copy=False)

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


class SquaredDeviations(Op):
    """Sum along dimensions of squared distances from the mean, which comes beside the elements.

    What the mean's own change would add to the gradient is a sum of deviations, zero: it has none, and there is no such sum.
    """

    name = "squared_deviations"
    lowering = Family("squared_deviations")

    @staticmethod
    def call(x: Any, mean: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Return the sum over ``dim`` (None: all) of (x - mean)², where ``mean`` is that over ``dim`` with extent 1 there."""
        return bind(SquaredDeviations, x, mean, dims=reduction_dims(dim, x.ndim, "squared_deviations"), keepdim=keepdim)

    @staticmethod
    def infer(x: TensorSpec, mean: TensorSpec, *, dims: tuple[int, ...], keepdim: bool) -> TensorSpec:  # type: ignore[override]
        if mean.shape != (expected := reduced_shape(x.shape, dims, True)):
            raise ShapeError(
                f"squared_deviations: mean must have shape {expected} to match {x.shape}. Got {mean.shape}."
            )
        return TensorSpec(reduced_shape(x.shape, dims, keepdim), x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, mean: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return Sum.numpy(xp, xp.square(x - mean), dims=dims, keepdim=keepdim)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        x = saved.input()
        return restore_dims(g, x.shape, saved.params["dims"]) * 2 * (x - saved.input(1)), None

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dims: Any, keepdim: bool) -> Sharding | None:  # type: ignore[override]
        x, mean = inputs
        is_summed = isinstance(x, Mapped) and x.dim in dims
        return shard_reduction(x, dims, keepdim, "sum") if mean == (REPLICATED if is_summed else x) else None

    @staticmethod
    def samples() -> list[Sample]:
        x = np.linspace(-1, 2, 24, dtype=np.float32).reshape(2, 3, 4) ** 2

        def torch_way(torch: Any, x: Any, mean: Any) -> Any:
            return (x - x.mean((0, 2), True)).square().sum((0, 2))

        return [Sample((x, x.mean((0, 2), keepdims=True)), (("dims", (0, 2)), ("keepdim", False)), torch_way, (0,))]


squared_deviations = SquaredDeviations.call


class Prod(ReductionOp):
    """Product of elements along dimensions."""

    name = "prod"
    lowering = Reduction("prod")
    methods = ("prod",)

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        """Return the product over ``dim`` (None: all). Integers and bools multiply to int64."""
        x = summable(x, dtype)
        return bind(Prod, x, dims=reduction_dims(dim, x.ndim, "prod"), keepdim=keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.prod(x, axis=dims, keepdims=keepdim, dtype=_accumulator(x)).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        # The gradient is g times the product of all others. Zeros are counted apart from the rest, and their sum,
        # itself 0, stands for them where one more derivative is taken.
        x, dims = saved.input(), saved.params["dims"]
        is_zero = x == 0
        nonzero = where(is_zero, 1.0, x)
        zeros = Sum.call(is_zero, dims, True)
        rest = bind(Prod, nonzero, dims=dims, keepdim=True)
        zero_sum = bind(Sum, where(is_zero, x, 0.0), dims=dims, keepdim=True)
        by_zero = where(zeros == 1, rest, where(zeros == 2, rest * (zero_sum - x), 0.0))
        by_nonzero = rest / nonzero * where(zeros == 0, 1.0, where(zeros == 1, zero_sum, 0.0))
        return (restore_dims(g, x.shape, dims) * where(is_zero, by_zero, by_nonzero),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[1.5, -2, 3], [0, 2, 3], [0, 0, 3]], np.float32)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.prod(1), (0,)),
            Sample((x,), (("dims", (0,)), ("keepdim", True)), lambda torch, t: t.prod(0, True), (0,)),
        ]


prod = Prod.call


class Amax(ReductionOp):
    """Largest element along dimensions; NaN wins; ties share the gradient."""

    name = "amax"
    lowering = Reduction("max")
    methods = ("amax",)

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Return the largest over ``dim`` (None: all). Raises ShapeError for an empty group."""
        x = as_tensor(x)
        dims = reduction_dims(dim, x.ndim, "amax")
        refuse_empty(x, dims, "amax")
        return bind(Amax, x, dims=dims, keepdim=keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.max(x, axis=dims, keepdims=keepdim)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (_shared_among_ties(saved, g),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[1, 3, 3, -1], [-2, -2, -5, 0], [np.inf, 1, np.inf, -np.inf]], np.float32)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.amax(1), (0,)),
            Sample((x,), (("dims", (0, 1)), ("keepdim", True)), lambda torch, t: t.amax((0, 1), True), (0,)),
            Sample(
                (np.array([1, np.nan], np.float32),),
                (("dims", (0,)), ("keepdim", False)),
                lambda torch, t: t.amax(0),
                (0,),
            ),
        ]


amax = Amax.call


class Amin(ReductionOp):
    """Smallest element along dimensions; NaN wins; ties share the gradient."""

    name = "amin"
    lowering = Reduction("min")
    methods = ("amin",)

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Return the smallest over ``dim`` (None: all). Raises ShapeError for an empty group."""
        x = as_tensor(x)
        dims = reduction_dims(dim, x.ndim, "amin")
        refuse_empty(x, dims, "amin")
        return bind(Amin, x, dims=dims, keepdim=keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.min(x, axis=dims, keepdims=keepdim)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (_shared_among_ties(saved, g),)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[1, 3, 3, -1], [-2, -2, -5, 0], [np.inf, 1, np.inf, -np.inf]], np.float32)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.amin(1), (0,)),
            Sample((x,), (("dims", (0, 1)), ("keepdim", True)), lambda torch, t: t.amin((0, 1), True), (0,)),
            Sample(
                (np.array([1, np.nan], np.float32),),
                (("dims", (0,)), ("keepdim", False)),
                lambda torch, t: t.amin(0),
                (0,),
            ),
        ]


amin = Amin.call


def _shared_among_ties(saved: Any, g: Any) -> Any:
    """Return g divided evenly among the elements that equal the result; NaN where the result is NaN, as torch."""
    x, dims = saved.input(), saved.params["dims"]
    is_chosen = (x == restore_dims(saved.output(), x.shape, dims)).to(g.dtype)
    return restore_dims(g, x.shape, dims) * is_chosen / bind(Sum, is_chosen, dims=dims, keepdim=True)


class AnyTrue(Truth):
    """Whether one or more elements are True."""

    name = "any"
    lowering = Reduction("any")
    methods = ("any",)
    vjp = None

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Return whether one or more elements are not 0, over ``dim`` (None: all); bool, but uint8 for uint8."""
        return _truth(AnyTrue, x, dim, keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.any(x, axis=dims, keepdims=keepdim)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[True, False, True], [True, True, True], [False, False, False]])
        return [Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.any(1))]


any = AnyTrue.call


class All(Truth):
    """Whether all elements are True."""

    name = "all"
    lowering = Reduction("all")
    methods = ("all",)
    vjp = None

    @staticmethod
    def call(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Return whether all elements are not 0, over ``dim`` (None: all); bool, but uint8 for uint8."""
        return _truth(All, x, dim, keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return xp.all(x, axis=dims, keepdims=keepdim)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[True, False, True], [True, True, True], [False, False, False]])
        return [Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.all(1))]


all = All.call


class Argmax(IndexReduction):
    """Index of the largest element in the reduced dimensions, row-major; the first of ties; NaN wins."""

    name = "argmax"
    lowering = Reduction("argmax")
    methods = ("argmax",)
    vjp = None

    @staticmethod
    def call(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        """Return the int64 index of the largest element along ``dim`` (None: of the flattened tensor)."""
        return _index(Argmax, x, dim, keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return _searched(xp, xp.argmax, x, dims, keepdim)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[1, 3, 3, -1], [-2, -5, -5, 0], [1, np.nan, 5, np.nan]], np.float32)
        whole = np.array([[1, 7, 7], [-1, 7, -1]], np.int32)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.argmax(1)),
            Sample((whole,), (("dims", (0,)), ("keepdim", True)), lambda torch, t: t.argmax(0, True)),
            Sample((whole,), (("dims", (0, 1)), ("keepdim", False)), lambda torch, t: t.argmax()),
        ]


argmax = Argmax.call


class Argmin(IndexReduction):
    """Index of the smallest element in the reduced dimensions, row-major; the first of ties; NaN wins."""

    name = "argmin"
    lowering = Reduction("argmin")
    methods = ("argmin",)
    vjp = None

    @staticmethod
    def call(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        """Return the int64 index of the smallest element along ``dim`` (None: of the flattened tensor)."""
        return _index(Argmin, x, dim, keepdim)

    @staticmethod
    def numpy(xp: Any, x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return _searched(xp, xp.argmin, x, dims, keepdim)

    @staticmethod
    def samples() -> list[Sample]:
        x = np.array([[1, 3, 3, -1], [-2, -5, -5, 0], [1, np.nan, 5, np.nan]], np.float32)
        whole = np.array([[1, 7, 7], [-1, 7, -1]], np.int32)
        return [
            Sample((x,), (("dims", (1,)), ("keepdim", False)), lambda torch, t: t.argmin(1)),
            Sample((whole,), (("dims", (0,)), ("keepdim", True)), lambda torch, t: t.argmin(0, True)),
            Sample((whole,), (("dims", (0, 1)), ("keepdim", False)), lambda torch, t: t.argmin()),
        ]


argmin = Argmin.call


def sum_to_shape(x: Any, shape: tuple[int, ...]) -> Any:
    """Return ``x`` summed over the dimensions in which ``shape`` broadcasts to its shape."""
    lead = x.ndim - len(shape)
    dims = tuple(i for i, extent in enumerate(x.shape) if i < lead or (shape[i - lead] == 1 and extent != 1))
    return reshape(bind(Sum, x, dims=dims, keepdim=False), shape) if dims else reshape(x, shape)
