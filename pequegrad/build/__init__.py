"""From a key and a source text to a step that runs: the compiler, the disk cache, the loader.

Invariant: only ``toolchain`` starts processes, only ``cache`` and ``folder`` write into the cache, only
``loader`` imports step modules.
"""

from __future__ import annotations

from .cache import BuiltStep, get_or_build, make_key
from .keys import CacheKey, runtime_folder
from .loader import StepFailure, StepModule

__all__ = ["BuiltStep", "CacheKey", "StepFailure", "StepModule", "get_or_build", "make_key", "runtime_folder"]
