"""What is there already: a step out of memory or out of the disk cache, found by its traced graph.

Invariant: imports nothing that only a build needs, and starts no process unless a compiler was replaced; a module is
loaded only after its sums were found right.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from ..forking import ForkSafeLock
from ..records import record
from ..targets import Target
from . import folder as disk
from . import keys, loader
from .folder import STEPS, Entry
from .keys import CacheKey, GetProbes
from .loader import StepModule

if TYPE_CHECKING:
    from pathlib import Path

Origin = Literal["compiled", "disk", "memory"]


@record
class BuiltStep:
    """A step ready to run. ``entry``: where it lies. ``seconds``: what getting it took now."""

    module: StepModule
    entry: Entry
    seconds: float
    origin: Origin

    def again(self, seconds: float) -> BuiltStep:
        """Return the step as it comes out of memory, which took ``seconds``."""
        return BuiltStep(self.module, self.entry, seconds, "memory")

    @property
    def path(self) -> Path:
        """Its module file."""
        return _path(self.entry.product)

    @property
    def source_path(self) -> Path:
        """Its source file."""
        return _path(self.entry.source)


loaded: dict[str, BuiltStep] = {}
"""The steps of this process, by digest; under `lock`."""
lock = ForkSafeLock()


def make_graph_key(graph_text: str, target: Target, *, name: str, probes: GetProbes) -> CacheKey:
    """Return the key under which is kept what a traced graph became, for `find_by_graph`. Raises ToolchainError."""
    return keys.make_graph_key(graph_text, target, name=name, memo=disk.open_root(), probes=probes)


def find_by_graph(key: CacheKey, target: Target) -> tuple[BuiltStep, str] | None:
    """Return the step that the graph of ``key`` became, here or in another process, and how it is run, if both are there
    and whole. Raises DeviceError where this machine cannot run it."""
    start = time.perf_counter()
    root = disk.open_root()
    known = root.recall_graph(key.digest, key.fields())
    if known is None:
        return None
    digest, facts = known
    keys.check_can_run(target, key)
    with lock.now:
        built = loaded.get(digest)
    if built is not None:
        return built.again(0.0), facts
    entry = root.read_known(STEPS, digest, keys.digest_of)
    if entry is None:
        return None
    root.touch(entry)
    return load(entry, digest, "disk", start), facts


def keep_by_graph(key: CacheKey, step: CacheKey, facts: str) -> None:
    """Keep, for `find_by_graph`, that the graph of ``key`` became the step of the key ``step``, and how it is run."""
    disk.open_root().keep_graph(key.digest, key.fields(), step.digest, facts)


def load(entry: Entry, digest: str, origin: Origin, start: float) -> BuiltStep:
    """Load a checked entry; of two threads that do so at once, one's module is kept. ``start``: when getting it began."""
    module = loader.load(entry.product, digest)
    built = BuiltStep(module, entry, time.perf_counter() - start, origin)
    with lock.now:
        built = loaded.setdefault(digest, built)
    disk.log(f"{origin} {entry.folder} in {built.seconds * 1e3:.1f} ms")
    return built


def check_can_run(target: Target) -> None:
    """Raise DeviceError if this machine cannot run steps for the target: its processor or device is another, or there is
    none."""
    keys.check_can_run(target)


def _path(text: str) -> Path:
    from pathlib import Path  # not at the top: few ask, and it takes 3 ms

    return Path(text)
