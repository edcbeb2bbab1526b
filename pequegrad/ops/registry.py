"""All ops by name: importing this registers every one.

Invariant: of what `import pequegrad` leaves for later, because neither Tensor nor the package names it, no op has a method.
"""

from __future__ import annotations

from . import attention, composite, pooling, window  # noqa: F401 (they register what they and those they import define)
from .core import REGISTRY

__all__ = ["REGISTRY"]
