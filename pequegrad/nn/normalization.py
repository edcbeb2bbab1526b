"""Layers that shift and scale by statistics: LayerNorm, BatchNorm1d, BatchNorm2d; and Dropout.

Invariant: running statistics are buffers, changed in place and by ops alone, so that a compiled step carries them on.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..dtypes import int64
from ..errors import ShapeError
from ..ops.core import as_tensor, grad_mode
from ..ops.creation import empty
from ..ops.movement import full
from . import functional, init
from .module import Module
from .parameter import Parameter


class Dropout(Module):
    """In training, zeroes elements with probability ``p``, scales others by 1 / (1 - p) (Srivastava et al. 2014)."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ShapeError(f"Dropout: p must lie in [0, 1]. Got {p}.")
        self.p, self.inplace = p, inplace

    def forward(self, input: Any) -> Any:
        """Return a tensor of the input's shape."""
        return functional.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"p={self.p}, inplace={self.inplace}"


class LayerNorm(Module):
    """Normalises over the last dimensions, of ``normalized_shape``, then times weight plus bias (Ba et al. 2016)."""

    def __init__(
        self, normalized_shape: Any, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine

        def new() -> Parameter:
            return Parameter(empty(self.normalized_shape, dtype=dtype, device=device))

        self.register_parameter("weight", new() if elementwise_affine else None)
        self.register_parameter("bias", new() if elementwise_affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight to ones and bias to zeros."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Any) -> Any:
        """Return a tensor of the input's shape, (…, *normalized_shape)."""
        return functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the shape and settings."""
        text = f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        return f"{text}, bias={self.bias is not None}"


class _BatchNorm(Module):
    """Normalises each channel over the batch, then times weight plus bias (Ioffe and Szegedy 2015).

    In training, and where no running statistics are kept, by the batch's; in evaluation by the running ones.
    ``momentum`` None: the running statistics are the plain mean over all batches seen.
    """

    allowed_ndims: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, device: Any = None, dtype: Any = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats

        def new() -> Any:
            return empty(num_features, dtype=dtype, device=device)

        self.register_parameter("weight", Parameter(new()) if affine else None)
        self.register_parameter("bias", Parameter(new()) if affine and bias else None)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, new() if track_running_stats else None)
        self.register_buffer("num_batches_tracked", full((), 0, dtype=int64) if track_running_stats else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the batches seen: mean 0, variance 1, count 0."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            init.zeros_(self.num_batches_tracked)

    def reset_parameters(self) -> None:
        """Set weight to ones, bias to zeros, and forget the batches seen."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Any) -> Any:
        """Return a tensor of the input's shape, (N, num_features, …)."""
        input = as_tensor(input)
        if input.ndim not in self.allowed_ndims:
            expected = " or ".join(map(str, self.allowed_ndims))
            raise ShapeError(
                f"{type(self).__name__}: expected {expected} dimensions (N, C, …). Got shape {input.shape}."
            )
        momentum: Any = self.momentum
        if self.training and self.num_batches_tracked is not None:
            with grad_mode(False):
                self.num_batches_tracked.assign(self.num_batches_tracked + 1)
                if momentum is None:
                    momentum = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
        return functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        """Return the number of channels and the settings."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    __doc__ = f"{_BatchNorm.__doc__}\n    Inputs are (N, C) or (N, C, L)."
    allowed_ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    __doc__ = f"{_BatchNorm.__doc__}\n    Inputs are (N, C, H, W)."
    allowed_ndims = (4,)
