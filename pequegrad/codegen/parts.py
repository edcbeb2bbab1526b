"""Values that are copies: in memory of their own or, several of them, each a part of another value.

Invariant: parts that several copies write do not overlap, unless one waits for the other.
"""

from __future__ import annotations

from typing import Any

from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Node, Value
from .fuse import Fuser, Group, Item, live
from .layout import Place, axes_of, contiguous_strides


class PartWriter:
    """Writes values into memory of their own, and into parts of others, as copies that ``fuser`` places.

    ``last_uses``: of each value, what `last_uses` says of it."""

    def __init__(self, fuser: Fuser, last_uses: dict[Value, Value | None]) -> None:
        self.fuser = fuser
        self._last_uses = last_uses

    def copied(self, value: Value, origin: Node | Item) -> Value:
        """Return ``value`` in memory of its own, in row-major order."""
        copy = Value(value.spec)
        self.fuser.add_point(Item("copy", REGISTRY["copy"], (), (value,), (copy,), origin.location))
        return copy

    def in_memory(self, value: Value, origin: Item, is_contiguous: bool) -> Value:
        """Return ``value``, or a copy where it is a literal, or strided and ``is_contiguous`` is asked for."""
        place = self.fuser.place(value)
        if place.root in self.fuser.literals or (is_contiguous and not place.is_contiguous):
            return self.copied(value, origin)
        return value

    def write(self, item: Item, value: Value, place: Place) -> Item:
        """Copy ``value`` to a place inside the root of another value."""
        part = Value(value.spec)
        self.fuser.places[part] = place
        copy = Item("copy", REGISTRY["copy"], (), (value,), (part,), item.location)
        self.fuser.add_point(copy)
        return copy

    def _part_of(
        self, whole: Value, starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...] | None = None
    ) -> Place:
        seen = REGISTRY["slice"].access(
            whole.shape,
            contiguous_strides(whole.shape),
            0,
            starts=starts,
            sizes=sizes,
            steps=steps or (1,) * len(sizes),
        )
        return Place(whole, *seen)

    def concat(self, item: Item) -> None:
        dim = dict(item.params)["dim"]
        start = 0
        for value in item.inputs:
            if value.spec.size:
                starts = tuple(start if d == dim else 0 for d in range(len(value.shape)))
                self.write(item, value, self._part_of(item.output, starts, value.shape))
            start += value.shape[dim]

    def pad(self, item: Item) -> None:
        params = dict(item.params)
        (x,) = item.inputs
        if x.spec.size:
            self.write(item, x, self._part_of(item.output, params["lo"], x.shape))
        self._write_around(item, params["lo"], x.shape, None, params["value"])

    def slice_update(self, item: Item) -> None:
        params = dict(item.params)
        base, new = item.inputs
        starts, sizes, steps = params["starts"], params["sizes"], params["steps"]
        earlier = self.make_room(item, base)
        if earlier:
            self._write_after(item, new, self._part_of(self.fuser.place(base).root, starts, sizes, steps), earlier)
            return
        target = self._part_of(item.output, starts, sizes, steps)
        if all(abs(step) == 1 or size == 1 for step, size in zip(steps, sizes, strict=True)):
            lows = tuple(
                start + (size - 1) * step if step < 0 else start
                for start, size, step in zip(starts, sizes, steps, strict=True)
            )
            self.write(item, new, target)
            self._write_around(item, lows, sizes, base, None)
            return
        copied = self.write(item, base, self.fuser.place(item.output))
        self._write_after(item, new, target, [live(copied.group)])

    def make_room(self, item: Item, base: Value) -> list[Group]:
        """Have the result of ``item`` be what ``base`` is, in the same memory, where nobody needs that as it was any more.

        Return the groups that must run before anything is written there; none where it takes memory of its own.
        """
        fuser = self.fuser
        place = fuser.place(base)
        root = place.root
        if not place.is_whole or root not in fuser.writers or self._last_uses.get(base) is not item.output:
            return []
        fuser.places[item.output] = place
        readers = [g for g in fuser.live_groups() if any(root in fuser.roots(g, member) for member in g.items)]
        return [*dict.fromkeys((*fuser.producers(root), *readers))]

    def _write_after(self, item: Item, value: Value, place: Place, earlier: list[Group]) -> None:
        """Copy ``value`` to a place inside what the groups ``earlier`` write or read."""
        part = Value(value.spec)
        self.fuser.places[part] = place
        written = Item("copy", REGISTRY["copy"], (), (self._ready(value, item),), (part,), item.location)
        self._append_after(written, earlier)

    def _ready(self, value: Value, item: Item) -> Value:
        return value if self.fuser.place(value).root not in self.fuser.literals else self.copied(value, item)

    def _append_after(self, item: Item, earlier: list[Group]) -> None:
        fuser = self.fuser
        axes = axes_of(item.shape, ("point",) * len(item.shape))
        fuser.prepare(axes, item)
        group = fuser.new_group("map", axes)
        fuser.append(group, item)
        for before in earlier:
            fuser.add_edge(live(before), group)

    def _write_around(
        self, item: Item, starts: tuple[int, ...], sizes: tuple[int, ...], base: Value | None, fill: Any
    ) -> None:
        """Write what surrounds a box of the item's result, from ``base`` or a number, as boxes that do not overlap."""
        whole = item.output
        for dim, extent in enumerate(whole.shape):
            for low, high in ((0, starts[dim]), (starts[dim] + sizes[dim], extent)):
                if low == high:
                    continue
                at = tuple(starts[d] if d < dim else low if d == dim else 0 for d in range(len(sizes)))
                box = tuple(
                    sizes[d] if d < dim else high - low if d == dim else whole.shape[d] for d in range(len(sizes))
                )
                if not all(box):
                    continue
                part = Value(type(whole.spec)(box, whole.dtype))
                if base is None:
                    self.fuser.literals[part] = fill
                else:
                    seen = self.fuser.place(base)
                    steps = (1,) * len(box)
                    seen_part = REGISTRY["slice"].access(
                        seen.shape, seen.strides, seen.offset, starts=at, sizes=box, steps=steps
                    )
                    self.fuser.places[part] = Place(seen.root, *seen_part)
                self.write(item, part, self._part_of(whole, at, box))


def last_uses(graph: Graph) -> dict[Value, Value | None]:
    """Return for each value the first result of the application that reads it last, of all that read it or a view of it.

    None where that reads it twice, or where it leaves the graph.
    """
    seen: dict[Value, Value] = {}
    found: dict[Value, Value | None] = {}
    for node in graph.nodes:
        read = [seen.get(value, value) for value in node.inputs]
        for value in read:
            found[value] = node.outputs[0] if read.count(value) == 1 else None
        if node.op.view and read:
            seen[node.outputs[0]] = read[0]
    for output in graph.outputs:
        found[seen.get(output.value, output.value)] = None
    return found
