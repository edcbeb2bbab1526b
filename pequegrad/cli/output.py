"""How the commands print: plain lines, JSON, sizes and ages; colour only where a person reads it.

Invariant: what goes into a pipe or file has no colour, nor anything when NO_COLOR is set.
"""

from __future__ import annotations

import json
import time
from typing import Any, TextIO

from ..config import config

_GREEN, _RED, _RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"


class Printer:
    """Writes to one stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.has_color = stream.isatty() and not config.no_color

    def line(self, text: str = "") -> None:
        """Write one line."""
        print(text, file=self.stream)

    def json(self, value: Any) -> None:
        """Write a value as JSON; paths become text."""
        print(json.dumps(value, indent=2, default=str), file=self.stream)

    def check(self, is_good: bool, what: str, detail: str) -> None:
        """Write the result of one check of the doctor."""
        self._report("ok" if is_good else "FAILED", _GREEN if is_good else _RED, what, detail)

    def note(self, is_there: bool, what: str, detail: str) -> None:
        """Write what the doctor found of something that is not needed."""
        self._report("ok" if is_there else "no", _GREEN if is_there else "", what, detail)

    def _report(self, word: str, color: str, what: str, detail: str) -> None:
        padding = " " * (len("FAILED") - len(word))
        if self.has_color and color:
            word = f"{color}{word}{_RESET}"
        first, *rest = detail.splitlines() or [""]
        self.line(f"{word}{padding}  {what}: {first}")
        for line in rest:
            self.line(f"        {line}")


def readable_bytes(count: int) -> str:
    """Return a size such as ``1.5 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def readable_age(moment: float) -> str:
    """Return how long ago a moment, in seconds since the epoch, was."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
