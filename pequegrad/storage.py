"""Who owns a tensor's bytes.

Invariant: all tensors that share memory by pequegrad's doing share one Storage; every in-place write through any of
them raises its version, and nothing ever replaces the memory under a live array.
"""

from __future__ import annotations

from typing import Any


class Storage:
    """The root array of a tensor and of its views, or the current graph value while it exists only in a trace."""

    __slots__ = ("__weakref__", "data", "version")

    def __init__(self, data: Any) -> None:
        self.data = data
        self.version = 0
