"""What user code reads from outside while it is traced, and whether it draws random numbers: seen line by line.

Invariant: a value reached from a global, a free variable or an attribute by code that is neither ours nor a library's
ends up as a guard, unless it was made inside the trace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .tracer import Tracer


class Watch:
    def __init__(self, function: Callable[..., Any], tracer: Tracer) -> None:
        self._tracer = tracer

    @contextlib.contextmanager
    def watching(self, *, is_recording: bool) -> Iterator[None]:
        yield

    def change(self) -> str | None:
        return None

    def line_of(self, failure: str) -> Any:
        return None

    def guards(self) -> list[Callable[[], str | None]]:
        return []
