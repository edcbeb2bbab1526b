"""Running combinations along one dimension.

Invariant: the result has the input's shape; element i combines the elements up to i (from i on, if reversed).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .core import Family, Op, Sample, TensorSpec, bind, normalize_dim
from .reduction import summable
from .sharding import Mapped, Partial, Sharding


class Cumsum(Op):
    """Running sum along a dimension, from the front or from the back."""

    name = "cumsum"
    lowering = Family("scan")
    methods = ("cumsum",)

    @staticmethod
    def call(x: Any, dim: int, *, dtype: Any = None) -> Any:
        """Return the sums of the elements up to each along ``dim``. Integers and bools sum to int64."""
        x = summable(x, dtype)
        dim = normalize_dim(dim, x.ndim, "cumsum")
        return bind(Cumsum, x, dim=dim, reverse=False) if x.ndim else x.clone()

    @staticmethod
    def infer(x: TensorSpec, *, dim: int, reverse: bool) -> TensorSpec:  # type: ignore[override]
        return x

    @staticmethod
    def numpy(xp: Any, x: Any, *, dim: int, reverse: bool) -> Any:
        along = xp.flip(x, dim) if reverse else x
        sums = xp.cumsum(along, axis=dim, dtype=np.float32 if x.dtype.itemsize == 2 else x.dtype)
        return xp.ascontiguousarray(xp.flip(sums, dim) if reverse else sums).astype(x.dtype, copy=False)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        params = saved.params
        return (bind(Cumsum, g, dim=params["dim"], reverse=not params["reverse"]),)

    @staticmethod
    def shard(inputs: Any, specs: Any, *, dim: int, reverse: bool) -> Sharding | None:  # type: ignore[override]
        (sharding,) = inputs
        if isinstance(sharding, Partial) or (isinstance(sharding, Mapped) and sharding.dim == dim):
            return None
        return sharding

    @staticmethod
    def samples() -> list[Sample]:
        x = np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4)
        back = (("dim", 0), ("reverse", True))
        return [
            Sample((x,), (("dim", 1), ("reverse", False)), lambda torch, t: t.cumsum(1), (0,)),
            Sample((x,), back, lambda torch, t: t.flip(0).cumsum(0).flip(0), (0,)),
        ]


cumsum = Cumsum.call
