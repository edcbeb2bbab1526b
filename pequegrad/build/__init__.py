"""From a key and a source text to a step that runs: the compiler, the disk cache, the loader.

Invariant: only ``toolchain`` starts processes, only ``cache`` and ``folder`` write into the cache, only
``loader`` imports step modules. A step that is found needs ``known`` alone, and what it imports.
"""

from __future__ import annotations

from .keys import CacheKey
from .known import BuiltStep
from .loader import StepFailure, StepModule

__all__ = ["BuiltStep", "CacheKey", "StepFailure", "StepModule"]
