"""Layers that change the shape alone: Flatten, Unflatten."""

from __future__ import annotations

from typing import Any

from ..ops.core import as_tensor
from .module import Module


class Flatten(Module):
    """Dimensions ``start_dim`` to ``end_dim`` as one: (N, C, H, W) → (N, C * H * W) by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Any:
        """Return the flattened tensor."""
        return as_tensor(input).flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Return the dimensions."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Dimension ``dim`` as several, of extents ``unflattened_size``."""

    def __init__(self, dim: int, unflattened_size: Any) -> None:
        super().__init__()
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, input: Any) -> Any:
        """Return the unflattened tensor."""
        return as_tensor(input).unflatten(self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        """Return the dimension and its extents."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
