"""What a forked child cannot take over from its parent: locks, of which other threads may have held some.

Invariant: nothing here is held in a child but what the thread that forked held.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_each_child(action: Callable[[], object]) -> None:
    """Have ``action`` run in every child that this process forks from now on, before anything else there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


class ForkSafeLock:
    """A re-entrant lock for a module: ``with lock.now: …``. It is never freed, for each fork knows it.

    At the moment of a fork another thread may hold it, and nobody would release it in the child: so that gets one anew. ``now``
    is the lock itself, so that a thread that forks inside of ``with`` leaves, in the child too, the one that it entered.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self._renew()
        in_each_child(self._renew)

    def _renew(self) -> None:
        self.now = threading.RLock()
