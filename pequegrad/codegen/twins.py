"""Kernels of groups that are alike, such as those of equal layers: one is built, the others are it on other buffers.

Invariant: what comes is what `KernelBuilder` makes of the group, and buffers get their numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..records import fields, record
from ..trace.graph import Value
from .fuse import Fuser, Group
from .kernels import KernelBuilder
from .plan import Access, Kernel, Load, Stage, Store


@record
class _Made:
    """A kernel, and its buffers in the order in which it asked for them: the number of the value in the group, and its own."""

    kernel: Kernel
    asked: tuple[tuple[int, int], ...]


class Kernels:
    """Makes the kernels of one step.

    ``number_of``: the buffer that a value has already, if any; the rest as for `KernelBuilder`.
    """

    def __init__(
        self,
        fuser: Fuser,
        buffer_of: Callable[[Value], int],
        number_of: Callable[[Value], int | None],
        is_stored: Callable[[Value], bool],
        is_late: Callable[[Value], bool],
    ) -> None:
        self._fuser, self._buffer_of, self._number_of = fuser, buffer_of, number_of
        self._is_stored, self._is_late = is_stored, is_late
        self._made: dict[tuple[Any, ...], _Made] = {}

    def of(self, group: Group, name: str) -> Kernel:
        """Return the kernel of a group."""
        alike = _Likeness(self._fuser, self._number_of, self._is_stored, self._is_late)
        key = alike.key(group)
        made = self._made.get(key) if key is not None else None
        if made is not None:
            roots = list(alike.numbers)
            buffers = {buffer: self._buffer_of(roots[number]) for number, buffer in made.asked}
            return _on_buffers(made.kernel, buffers, name)
        asked: dict[Value, int] = {}

        def buffer_of(root: Value) -> int:
            number = asked[root] = self._buffer_of(root)
            return number

        kernel = KernelBuilder(self._fuser, group, name, buffer_of, self._is_stored, self._is_late).build()
        if key is not None:
            self._made[key] = _Made(kernel, tuple([(alike.numbers[root], buffer) for root, buffer in asked.items()]))
        return kernel


class _Likeness:
    """What groups share only if their kernels differ in nothing but name and buffers."""

    __slots__ = ("_aliases", "_fuser", "_is_late", "_is_stored", "_key", "_number_of", "numbers")

    def __init__(
        self,
        fuser: Fuser,
        number_of: Callable[[Value], int | None],
        is_stored: Callable[[Value], bool],
        is_late: Callable[[Value], bool],
    ) -> None:
        self._fuser, self._number_of, self._is_stored, self._is_late = fuser, number_of, is_stored, is_late
        self._key: list[Any] = []
        self._aliases: dict[Any, int] = {}
        self.numbers: dict[Value, int] = {}
        """The values that the group names, numbered as they come."""

    def key(self, group: Group) -> tuple[Any, ...] | None:
        """Return what stands for the likeness; None where it computes for itself what others have in memory."""
        key, place_of, free = self._key, self._fuser.place, self._fuser.free
        key += (group.kind, group.axes)
        for item in group.items:
            params = repr(item.params) if item.params else ""  # 0.0 and -0.0 are equal in Python, and so are 1 and True
            # Equal lines are one Location, as long as there are not many.
            key += (item.op, item.kind, item.level, id(item.location), params, len(item.inputs))
            for value in item.inputs:
                if not self._reads(value):
                    return None
            for value in item.outputs:
                place = place_of(value)
                root = place.root
                if root in free:
                    return None
                if root not in self.numbers:
                    self._names(root)
                key += (
                    self.numbers[root],
                    value is root,
                    value.spec.shape,
                    value.spec.dtype,
                    place.strides,
                    place.offset,
                )
                key += (self._is_stored(value), self._is_late(root))
        return tuple(key)

    def _reads(self, value: Value) -> bool:
        """Add what is read, and what it is made of where every reader makes it; return whether that can be told."""
        fuser = self._fuser
        place = fuser.place(value)
        root = place.root
        if root not in self.numbers:
            made = fuser.free.get(root)
            if root in fuser.literals:
                self.numbers[root] = len(self.numbers)
                self._key += ("literal", repr(fuser.literals[root]), root.spec.dtype)
            elif made is None:
                self._names(root)
            elif root in fuser.items:
                return False
            else:
                self.numbers[root] = len(self.numbers)
                self._key += ("free", made.op, repr(made.params), root.spec.shape, root.spec.dtype, len(made.inputs))
                if not all(self._reads(part) for part in made.inputs):
                    return False
        self._key += (self.numbers[root], place.shape, place.strides, place.offset, value.spec.dtype)
        return True

    def _names(self, root: Value) -> None:
        """Add a value in memory: two of them may have one buffer."""
        number = self.numbers[root] = len(self.numbers)
        buffer = self._number_of(root)
        self._key += (self._aliases.setdefault(root if buffer is None else buffer, number), root.spec.dtype)


def _on_buffers(kernel: Kernel, buffers: dict[int, int], name: str) -> Kernel:
    """Return a kernel of another name on other buffers."""

    def moved(value: Any) -> Any:
        kind = type(value)
        if kind is Load:
            return Load(value.dst, value.dtype, moved(value.access))
        if kind is Store:
            return Store(value.src, moved(value.access))
        if kind is Access:
            return Access(buffers.get(value.buffer, value.buffer), value.strides, value.offset)
        if kind is tuple:
            return tuple([moved(part) for part in value])
        if kind is Stage:
            return Stage(moved(value.inner), value.accumulate, moved(value.outer))
        return value

    rest = [moved(value) for field, value in fields(kernel).items() if field not in ("name", "origin")]
    made: Any = type(kernel)
    renamed: Kernel = made(name, kernel.origin, *rest)
    return renamed
