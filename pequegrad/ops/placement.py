"""The op that brings a tensor to another device.

Invariant: it changes where elements lie and nothing else; a traced function never records it, for a compiled step
decides by itself where its values lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import CPU, moved
from .core import Expression, Op, Sample, TensorSpec, as_tensor, bind, context
from .sharding import Sharding


class ToDevice(Op):
    """The same elements on another device."""

    name = "to_device"
    lowering = Expression("{0}")
    elementwise = True

    @staticmethod
    def call(x: Any, device: str) -> Any:
        """Return ``x`` on a device, named as `Tensor.device` names it; itself if it lies there, or while tracing."""
        x = as_tensor(x)
        if not context.interpreter.has_data or x.device == device:
            return x
        return bind(ToDevice, x, device=device, source=x.device)

    @staticmethod
    def infer(x: TensorSpec, *, device: str, source: str) -> TensorSpec:  # type: ignore[override]
        return x

    @staticmethod
    def numpy(xp: Any, x: Any, *, device: str, source: str) -> Any:
        return x.copy() if device == source else moved(x, device)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        return (to_device(g, saved.params["source"]),)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return inputs[0]

    @staticmethod
    def samples() -> list[Sample]:
        params = (("device", CPU), ("source", CPU))
        return [Sample((np.arange(6, dtype=np.float32).reshape(2, 3),), params, lambda torch, t: t.to("cpu"), (0,))]


to_device = ToDevice.call
