"""The lines of user code that a trace names; see `pequegrad.locations`."""

from __future__ import annotations

from ..locations import NOWHERE, Location, definition, is_user_file, user_location

__all__ = ["NOWHERE", "Location", "definition", "is_user_file", "user_location"]
