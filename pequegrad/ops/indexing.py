"""Ops that address elements: slices, gather, scatter, and Python's indexing made of them."""

from __future__ import annotations

from typing import Any


def getitem(x: Any, key: Any) -> Any:
    """Return ``x[key]``."""
    raise TypeError("indexing is not there yet")


def setitem(x: Any, key: Any, value: Any) -> None:
    """Write ``x[key] = value``."""
    raise TypeError("indexing is not there yet")
