"""Immutable objects, for the modules that every import of the package loads.

`dataclasses` writes and compiles the text of each class's methods when the class is made; for some fifteen classes that
is a tenth of the time that NumPy takes to import. What loads late uses dataclasses.

Invariant: nobody sees a field of a `Frozen` object change, unless it goes through `object.__setattr__`.
"""

from __future__ import annotations

import gc
from typing import Any


class Frozen:
    """Base of objects whose fields ``__init__`` sets, by `set_fields`, and that nothing changes afterwards."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot assign to {name!r}. Make a new one.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}.")

    def set_fields(self, **values: Any) -> None:
        """Set fields by name; for ``__init__`` alone."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


class Record(Frozen):
    """A value: compared, hashed, shown and copied by its fields, which are its ``__slots__`` and ``__init__`` takes."""

    __slots__: tuple[str, ...] = ()

    def values(self) -> tuple[Any, ...]:
        """Return the fields, in order."""
        return tuple([getattr(self, name) for name in self.__slots__])

    def __eq__(self, other: Any) -> bool:
        return self.values() == other.values() if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.values())

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in zip(self.__slots__, self.values()))
        return f"{type(self).__qualname__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.values()


class collector_at_rest:
    """Keeps the garbage collector from looking, inside a ``with`` block, through what grows there and stays: records."""

    __slots__ = ("_was_on",)

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()
