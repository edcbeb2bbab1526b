"""Which line of user code is running: the innermost frame that belongs neither to this package nor to a library.

Invariant: a Location is always found; where no user code is on the stack, it is `NOWHERE`.
"""

from __future__ import annotations

import functools
import os
import sys
from types import CodeType, FrameType
from typing import Any

from .records import Record


class Location(Record):
    """A line of user code."""

    __slots__ = ("file", "line", "function")  # noqa: RUF023 (the order of __init__)
    file: str
    line: int
    function: str

    def __init__(self, file: str, line: int, function: str) -> None:
        self.set_fields(file=file, line=line, function=function)

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


NOWHERE = Location("<unknown>", 0, "<unknown>")

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_LIBRARIES = ("site-packages", "dist-packages")
# Libraries that call us back or run the user's code; a frame of theirs is not the user's line.
_THIRD_PARTY = ("numpy", "ml_dtypes", "tqdm", "_pytest", "pluggy", "IPython", "ipykernel", "hypothesis")

# How many lines' Locations are kept at hand.
_KEPT = 4096


class _UserFiles(dict[str, bool]):
    """By file name, whether code of the file is the user's: not ours, not Python's own, not NumPy's."""

    def __missing__(self, filename: str) -> bool:
        known = self[filename] = _classify(filename)
        return known


# A dict, not a function: it is asked about every frame between an op and the user's line.
USER_FILES = _UserFiles()


def _classify(filename: str) -> bool:
    if filename.startswith("<frozen"):
        return False
    path = os.path.abspath(filename)
    if path.startswith(_PACKAGE):
        return False
    parts = path.split(os.sep)
    for i, part in enumerate(parts[:-1]):
        if part in _LIBRARIES:
            return parts[i + 1] not in _THIRD_PARTY
    return not path.startswith(_STDLIB)


def user_location() -> Location:
    """Return the innermost line of user code on this thread's stack, or NOWHERE."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if USER_FILES[code.co_filename]:
            return location_at(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return NOWHERE


@functools.lru_cache(maxsize=_KEPT)
def location_at(file: str, line: int, function: str) -> Location:
    """Return the Location of a line; the same one for the same line, as long as there are not many."""
    return Location(file, line, function)


def is_ours(function: Any) -> bool:
    """Whether a Python function or method is not the user's."""
    code = getattr(function, "__code__", None)
    return code is not None and not USER_FILES[code.co_filename]


def definition(code: CodeType | None) -> Location:
    """Return where a function is defined."""
    return NOWHERE if code is None else Location(code.co_filename, code.co_firstlineno, code.co_name)
