"""Immutable objects, for the modules that every import of the package, or every start from a warm cache, loads.

`dataclasses` writes and compiles the text of each class's methods when the class is made; for some fifteen classes that
is a tenth of the time that NumPy takes to import, and for the records of the code generator as long as it takes to plan a
small step. What comes in small numbers and loads only where a step is made, or is saved, uses dataclasses.

Invariant: nobody sees a field of a `Frozen` object change, unless it goes through `object.__setattr__`.
"""

from __future__ import annotations

import gc
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from typing_extensions import Self, dataclass_transform

    Kind = TypeVar("Kind", bound=type)
    Made = TypeVar("Made")
else:

    def dataclass_transform(**_):
        """Tell type checkers; there are none here."""
        return lambda function: function


_FEW = 30
"""Of a class. To write its own methods takes 0.1 ms: as long as some 50 objects take without them."""


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


class Entity(Frozen):
    """A thing: shown and copied by its fields, which are its ``__slots__`` and ``__init__`` takes; compared by identity."""

    __slots__: tuple[str, ...] = ()

    def values(self) -> tuple[Any, ...]:
        """Return the fields, in order."""
        return tuple([getattr(self, name) for name in self.__slots__])

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in zip(self.__slots__, self.values()))
        return f"{type(self).__qualname__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.values()


class Record(Entity):
    """A value: an Entity that is compared and hashed by its fields."""

    __slots__ = ()

    def __eq__(self, other: Any) -> bool:
        return self.values() == other.values() if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.values())


class RecordTuple(tuple[Any, ...]):
    """A tuple whose items have the names that a subclass annotates, none with a default: what `typing.NamedTuple` makes,
    whose first class in a process takes as long as a hundredth of NumPy's import."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]]
    __match_args__: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)
        cls.__match_args__ = cls._fields  # type: ignore[misc]  # mypy takes it for final, and Python reads it from the class
        for i, name in enumerate(cls._fields):
            setattr(cls, name, property(itemgetter(i)))

    def __new__(cls, *items: Any, **named: Any) -> Self:
        values = {**dict(zip(cls._fields, items)), **named}
        if len(items) + len(named) != len(cls._fields) or values.keys() != set(cls._fields):
            raise TypeError(
                f"{cls.__name__}: expected {', '.join(cls._fields)}. Got {len(items)} items and {list(named)}."
            )
        return cls._make([values[name] for name in cls._fields])

    @classmethod
    def _make(cls, items: Iterable[Any]) -> Self:
        return tuple.__new__(cls, items)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        items = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self))
        return f"{type(self).__name__}({items})"

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self))

    def _replace(self, **changes: Any) -> Self:
        return type(self)(**{**self._asdict(), **changes})


@dataclass_transform(frozen_default=True, eq_default=True)
def record(kind: Kind) -> Kind:
    """Make a Record of a class that annotates its fields, as ``dataclass(frozen=True, slots=True)`` would."""
    return _with_fields(kind, Record)


@dataclass_transform(frozen_default=True, eq_default=False)
def entity(kind: Kind) -> Kind:
    """Make an Entity of a class that annotates its fields, as ``dataclass(frozen=True, slots=True, eq=False)`` would."""
    return _with_fields(kind, Entity)


def fields(made: Any) -> dict[str, Any]:
    """Return the fields of a record or entity by name, in order."""
    return dict(zip(made.__slots__, made.values()))


def replace(made: Made, **changes: Any) -> Made:
    """Return a record or entity like ``made`` but for the fields that are named."""
    return type(made)(**{**fields(made), **changes})


def _with_fields(kind: Any, base: type[Entity]) -> Any:
    names = tuple(vars(kind).get("__annotations__", ()))
    left_out = {*names, "__dict__", "__weakref__"}
    members = {name: value for name, value in vars(kind).items() if name not in left_out}
    bases = (*[other for other in kind.__bases__ if other is not object], base)
    made: Any = type(kind)(kind.__name__, bases, {**members, "__slots__": names})
    defaults = {name: vars(kind)[name] for name in names if name in vars(kind)}
    made.__init__ = _init_of_few(made, names, defaults)
    return made


def _init_of_few(made: Any, names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., None]:
    """Return the ``__init__`` of a class's first objects, which writes the class its own methods for those that follow."""
    setters = {name: vars(made)[name].__set__ for name in names}
    left = _FEW

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        values = {**defaults, **dict(zip(names, args)), **kwargs}
        is_complete = values.keys() == setters.keys() and kwargs.keys().isdisjoint(names[: len(args)])
        if left < 0 or len(args) > len(names) or not is_complete:
            _write_methods(made, names, defaults)
            made.__init__(self, *args, **kwargs)  # whose signature says what is wrong, if anything is
            return
        for name, value in values.items():
            setters[name](self, value)

    return __init__


def _write_methods(made: Any, names: tuple[str, ...], defaults: dict[str, Any]) -> None:
    # Functions of its own for each class: nodes, values and what kernels are made of come by the thousand.
    setters = {f"_set_{name}": vars(made)[name].__set__ for name in names}
    parameters = "".join(f", {name}=_defaults[{name!r}]" if name in defaults else f", {name}" for name in names)
    body = "; ".join(f"_set_{name}(self, {name})" for name in names) or "pass"
    values = "".join(f"self.{name}, " for name in names)
    scope: dict[str, Any] = {"_defaults": defaults, **setters}
    exec(f"def __init__(self{parameters}): {body}\ndef values(self): return ({values})", scope)
    made.__init__, made.values = scope["__init__"], scope["values"]


class collector_at_rest:
    """Keeps the garbage collector from looking, inside a ``with`` block, through what grows there and stays: records.

    Nor does it look through them soon after: they count as old then, which only its rare full collections look at.
    """

    __slots__ = ("_was_on",)

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            if not gc.get_freeze_count():  # else unfreezing would undo what the program has asked for
                gc.freeze()
                gc.unfreeze()
            gc.enable()
