"""The tables of a module (parameters, buffers, children, hooks), and the count of changes to them and to modules.

Invariant: every change of a table is counted, also one that goes past the module's own methods.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any


class Changes:
    """The process-wide count of changes to modules; every change sets a value that was never there before."""

    __slots__ = ("_next", "count")

    def __init__(self) -> None:
        self._next = itertools.count(1)
        self.count = 0

    def bump(self) -> None:
        """Count one change; two threads never leave the same number behind."""
        self.count = next(self._next)


changes = Changes()


def _counted(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def changed(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        finally:  # also after an error: an update may have gone half-way
            changes.bump()

    return changed


class Members(dict[Any, Any]):
    """A dict that counts its changes."""

    __slots__ = ()
    __setitem__ = _counted(dict.__setitem__)
    __delitem__ = _counted(dict.__delitem__)
    __ior__ = _counted(dict.__ior__)
    clear = _counted(dict.clear)
    pop = _counted(dict.pop)
    popitem = _counted(dict.popitem)
    setdefault = _counted(dict.setdefault)
    update = _counted(dict.update)
