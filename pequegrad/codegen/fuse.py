"""Which values are computed together: items (one application each) gathered into groups, one kernel a group.

Invariant: the groups with their edges form a directed acyclic graph at every moment; an item reads a value of its own
group only where the group's kernel has it at hand: at the same element, or at the same row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import CompilerBug
from ..ops.core import Family, Op, Reduction
from ..trace.graph import Location, Params, Value
from . import schedule
from .layout import Axes, Places, axes_of, do_merge, index_per_dim, refine, row_major, strides_over

FIXED_TAGS = {"contract": ("m", "n"), "conv2d": ("n", "c", "s"), "map": (), "row": ()}
"""Parts of a domain that the kernel must be able to walk as one axis, by kind of group."""

# Where several groups could take an item: the one whose result is in registers, then the one that has the row.
PREFERENCE = {"contract": 2, "conv2d": 2, "row": 1, "map": 0}


@dataclass(slots=True, eq=False)
class Item:
    """One application inside a group. ``kind``: "point", "copy" (a point without arithmetic), "reduce" or "anchor"."""

    kind: str
    op: type[Op]
    params: Params
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    location: Location | None = None
    group: Group | None = None
    level: str = "full"
    order: int = -1
    weight: int = 1
    """For what is recomputed in each user: how many applications that takes."""
    loaded: list[Value] | None = None
    """What it had to load when it joined its group, where that hangs on no axes; the group may have got some of it since."""

    @property
    def output(self) -> Value:
        return self.outputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the elements that it walks over: its result's, or its input's for a reduction."""
        return self.inputs[0].shape if self.kind == "reduce" else self.outputs[0].shape


@dataclass(slots=True, eq=False)
class Group:
    """Items that one kernel computes, over one domain."""

    number: int
    kind: str
    axes: Axes
    anchor: Item | None = None
    items: list[Item] = field(default_factory=list)
    bits: int = 0
    ancestors: int = 0
    predecessors: set[Group] = field(default_factory=set)
    successors: set[Group] = field(default_factory=set)
    is_late: bool = False
    """Whether it computes once more what another group did: it runs as late as its users allow."""
    merged_into: Group | None = None
    size: int = field(init=False)
    """Elements of the domain, however its axes are cut."""

    def __post_init__(self) -> None:
        self.size = math.prod([extent for extent, _ in self.axes])

    @property
    def outer_size(self) -> int:
        return math.prod(extent for extent, tag in self.axes if tag == "outer")

    def depends_on(self, other: Group) -> bool:
        """Whether some path leads from ``other`` to here."""
        return bool(self.ancestors & other.bits)

    def tags(self, level: str) -> tuple[str, ...] | None:
        """Return the tags of the axes that a value of this level has; None for all."""
        return ("outer",) if level == "outer" else None


def _draws(item: Item) -> bool:
    """Whether an item draws random numbers: kernels draw as many at once as there are lanes, and not one for a row."""
    return isinstance(item.op.lowering, Family)


class Fuser:
    """Places items into groups, greedily, in the order in which they come."""

    def __init__(self, most_recomputed: int = schedule.MOST_RECOMPUTED) -> None:
        self.most_recomputed = most_recomputed
        self.places = Places()
        self.place = self.places.__getitem__
        """Returns where a value lies."""
        self.literals: dict[Value, Any] = {}
        self.free: dict[Value, Item] = {}
        """Values that every user computes for itself: counters, and short chains on numbers."""
        self.items: dict[Value, Item] = {}
        self.writers: dict[Value, list[Item]] = {}
        """For values that several copies write, each a part: those copies."""
        self.inputs: set[Value] = set()
        self.uses: dict[Value, int] = {}
        """How many operands and outputs of the graph each value is."""
        self.leaving: frozenset[Value] = frozenset()
        """Values that no product or convolution may compute beside its own result."""
        self.is_late = False
        """Whether what comes now is computed once more: it may not join what is computed only once, which runs early."""
        self.groups: list[Group] = []
        self._row_readers: dict[Value, list[Group]] = {}
        self._numbers: dict[Item, tuple[Value, ...] | None] = {}
        self._order = 0

    # --- what is read ---------------------------------------------------------------------------------------------

    def producers(self, root: Value) -> list[Group]:
        """Return the groups that write ``root``."""
        item = self.items.get(root)
        if item is not None:
            return [live(item.group)]
        return [live(item.group) for item in self.writers.get(root, ())]

    def reads(self, group: Group, item: Item) -> Iterator[tuple[Value, tuple[int, ...] | None, int]]:
        """Yield (root, strides over the group's axes, offset) of all that ``item`` loads from memory.

        Strides are None for operands of an anchor.
        """
        if item.kind == "anchor":
            for value in item.inputs:
                place = self.place(value)
                yield place.root, None, place.offset
            return
        for value in item.inputs:
            yield from self._reads_of(group, item, value)

    def roots(self, group: Group, item: Item) -> list[Value]:
        """Return the root of each of `reads`: without strides, which only what is computed anew in each user needs."""
        places, frees = self.places, self.free
        if item.kind == "anchor":
            return [places[value].root for value in item.inputs]
        if item.loaded is not None:
            return [root for root in item.loaded if self._is_loaded(group, root)]
        found: list[Value] = []
        is_lasting = True
        for value in item.inputs:
            root = places[value].root
            free = frees.get(root)
            if free is None:
                if self._is_loaded(group, root):
                    found.append(root)
            elif (parts := self._made_of(free)) is not None:
                found += [part for part in parts if self._is_loaded(group, part)]
            else:
                is_lasting = False
                found += [part for part, _, _ in self._reads_of(group, item, value)]
        if is_lasting and live(item.group) is group:
            item.loaded = found
        return found

    def _reads_of(self, group: Group, item: Item, value: Value) -> Iterator[tuple[Value, tuple[int, ...], int]]:
        place, shape = self.place(value), item.shape
        tags = None if item.kind == "reduce" else group.tags(item.level)
        strides = strides_over(group.axes, shape, place.broadcast(shape), tags)
        return self._leaves(group, place.root, strides, place.offset)

    def _is_loaded(self, group: Group, root: Value) -> bool:
        """Whether a group has to load what lies at ``root``, which it cannot compute for itself."""
        if root in self.literals:
            return False
        own = self.items.get(root)
        return own is None or (own.group is not group and live(own.group) is not group)

    def _leaves(
        self, group: Group, root: Value, strides: tuple[int, ...], offset: int
    ) -> Iterator[tuple[Value, tuple[int, ...], int]]:
        item = self.free.get(root)
        if item is not None:
            parts = self.inlined(group.axes, item, strides, offset)
            if parts is not None:
                for part, part_strides, part_offset in parts:
                    yield from self._leaves(group, part, part_strides, part_offset)
                return
        if self._is_loaded(group, root):
            yield root, strides, offset

    def inlined(
        self, axes: Axes, item: Item, strides: tuple[int, ...], offset: int
    ) -> list[tuple[Value, tuple[int, ...], int]] | None:
        """Return (root, strides, offset) of a free item's operands, it being read at ``strides``; None if it cannot."""
        if not item.inputs:
            return []
        if not item.output.shape:
            return self._inlined_number(axes, item)
        walk = index_per_dim(axes, strides, offset, item.output.shape)
        if walk is None:
            return None
        coefficients, offsets = walk
        result = []
        for value in item.inputs:
            place = self.place(value)
            steps = place.broadcast(item.output.shape)
            over = tuple(
                sum(step * c[axis] for step, c in zip(steps, coefficients, strict=True)) for axis in range(len(axes))
            )
            start = place.offset + sum(step * o for step, o in zip(steps, offsets, strict=True))
            if place.root in self.free and self.inlined(axes, self.free[place.root], over, start) is None:
                return None
            result.append((place.root, over, start))
        return result

    def _inlined_number(self, axes: Axes, item: Item) -> list[tuple[Value, tuple[int, ...], int]] | None:
        """Return what `inlined` does, for a single number, which is the same wherever it is read."""
        still = (0,) * len(axes)
        places = [self.place(value) for value in item.inputs]
        if self._made_of(item) is None:
            for place in places:
                free = self.free.get(place.root)
                if free is not None and self.inlined(axes, free, still, place.offset) is None:
                    return None
        return [(place.root, still, place.offset) for place in places]

    def _made_of(self, item: Item) -> tuple[Value, ...] | None:
        """Return what a free number is made of in the end, once for each time; None where that is not numbers alone."""
        if item.outputs[0].spec.shape:
            return None
        if item not in self._numbers:
            self._numbers[item] = self._parts_of(item)
        return self._numbers[item]

    def _parts_of(self, item: Item) -> tuple[Value, ...] | None:
        found: list[Value] = []
        for value in item.inputs:
            root = self.place(value).root
            free = self.free.get(root)
            parts = (root,) if free is None else self._made_of(free)
            if parts is None:
                return None
            found += parts
        return tuple(found)

    # --- the graph of groups --------------------------------------------------------------------------------------

    def new_group(self, kind: str, axes: Axes, anchor: Item | None = None) -> Group:
        """Open a group."""
        group = Group(len(self.groups), kind, axes, anchor, bits=1 << len(self.groups), is_late=self.is_late)
        self.groups.append(group)
        return group

    def add_edge(self, before: Group, after: Group) -> None:
        """State that ``before`` must run before ``after``."""
        if before is after or before in after.predecessors:
            return
        if before.depends_on(after):
            raise CompilerBug(f"groups {before.number} and {after.number} would wait for each other")
        after.predecessors.add(before)
        before.successors.add(after)
        self._inherit(after, before.ancestors | before.bits)

    def _inherit(self, group: Group, ancestors: int) -> None:
        waiting = [group]
        while waiting:
            reached = waiting.pop()
            together = reached.ancestors | ancestors
            if together != reached.ancestors:
                reached.ancestors = together
                waiting += map(live, reached.successors)

    def append(self, group: Group, item: Item) -> None:
        """Put an item into a group, with the edges that its operands ask for."""
        item.group = group
        item.order = self._order
        self._order += 1
        group.items.append(item)
        for output in item.outputs:
            root = self.place(output).root
            if root is output:
                self.items[output] = item
            else:
                self.writers.setdefault(root, []).append(item)
        for root in self.roots(group, item):
            for producer in self.producers(root):
                self.add_edge(producer, group)
            if group.kind == "row":
                self._row_readers.setdefault(root, []).append(group)

    # --- points ---------------------------------------------------------------------------------------------------

    def add_point(self, item: Item) -> None:
        """Put a pointwise item (or a copy) into the best group that can take it, or one of its own."""
        group = self._best_group(item)
        if group is None:
            axes = axes_of(item.shape, ("point",) * len(item.shape))
            self.prepare(axes, item)
            group = self.new_group("map", axes)
        self.append(group, item)
        for value in item.inputs:
            producer = self.items.get(self.place(value).root)
            if producer is not None and live(producer.group) is not group:
                self._try_merge(group, live(producer.group), item, value)

    def _best_group(self, item: Item) -> Group | None:
        found: dict[Group, int] = {}
        is_leaving = item.output in self.leaving
        for value in item.inputs:
            producer = self.items.get(self.places[value].root)
            if producer is not None:
                group = live(producer.group)
                is_left = is_leaving and group.kind in ("contract", "conv2d")
                if group.kind in PREFERENCE and self._may_join(group) and not is_left:
                    found[group] = max(found.get(group, -1), producer.order)
        for group in sorted(found, key=lambda g: (PREFERENCE[g.kind], found[g]), reverse=True) if found else ():
            level = self._level(group, item)
            axes = refine(group.axes, item.shape, group.tags(level)) if level else None
            if axes is not None and self._fits(group, axes, item, level or "full", (group,)):
                group.axes = axes
                item.level = level or "full"
                self.prepare(axes, item, group.tags(item.level))
                return group
        return None

    def _may_join(self, group: Group) -> bool:
        return group.is_late or not self.is_late

    def _level(self, group: Group, item: Item) -> str | None:
        size = item.output.spec.size
        if size == group.size:
            return "full"
        return "outer" if group.kind == "row" and size == group.outer_size and not _draws(item) else None

    def _fits(self, group: Group, axes: Axes, item: Item, level: str, together: tuple[Group, ...]) -> bool:
        """Whether ``item`` can be computed inside ``group`` with these axes; ``together`` count as one group."""
        tags, shape = group.tags(level), item.shape
        fixed = FIXED_TAGS[group.kind]
        places, items, written = self.places, self.items, item.outputs[0]
        for value in (*item.inputs, written):
            place = places[value]
            root = place.root
            if root in self.literals:
                continue
            producer = items.get(root)
            is_read = value is not written
            if producer is not None and (live(producer.group) not in together or root in self.free):
                producer = None
            if fixed or (producer is not None and is_read):
                strides = strides_over(axes, shape, place.broadcast(shape), tags)
                if fixed and not do_merge(axes, strides, fixed):
                    return False
            if not is_read:
                continue
            if producer is not None:
                if place.offset or strides != row_major(axes, group.tags(self._output_level(producer))):
                    return False
                continue
            for other in self.producers(root):
                for g in together:
                    if other is g or other.ancestors & g.bits:
                        return False
        return True

    @staticmethod
    def _output_level(item: Item) -> str:
        return "outer" if item.kind == "reduce" else item.level

    def prepare(self, axes: Axes, item: Item, tags: tuple[str, ...] | None = None) -> None:
        """Give memory to the free operands of ``item`` that cannot be recomputed along these axes."""
        for value in item.inputs:
            place = self.place(value)
            free = self.free.get(place.root)
            if free is not None:
                strides = strides_over(axes, item.shape, place.broadcast(item.shape), tags)
                if self.inlined(axes, free, strides, place.offset) is None:
                    self.materialise(free)

    def materialise(self, item: Item) -> None:
        """Give a free value memory of its own, for those who cannot recompute it."""
        if item.output in self.items:
            return
        copy = Item(item.kind, item.op, item.params, item.inputs, item.outputs, item.location)
        axes = axes_of(copy.shape, ("point",) * len(copy.shape))
        self.prepare(axes, copy)
        self.append(self.new_group("map", axes), copy)

    def _try_merge(self, group: Group, other: Group, reader: Item, value: Value) -> None:
        """Pull the map that makes ``value`` into the group of its ``reader``, where nothing stands between them."""
        level = self._merge_level(group, other, reader)
        if level is None or not self._may_join(other):
            return
        tags = group.tags(level)
        axes = refine(group.axes, tuple([extent for extent, _ in other.axes]), tags)
        place = self.place(value)
        if axes is None or place.offset:
            return
        if strides_over(axes, reader.shape, place.broadcast(reader.shape), tags) != row_major(axes, tags):
            return
        for first, second in ((group, other), (other, group)):
            if any(g is not second and g.depends_on(second) for g in map(live, first.predecessors)):
                return
        together = (group, other)
        levels = {item: item.level for item in other.items}
        for item in other.items:
            item.level = level
        if self._merged_axes(group, other, axes, level, together):
            self._merge(group, other)
        else:
            for item, before in levels.items():
                item.level = before

    def _merge_level(self, group: Group, other: Group, reader: Item) -> str | None:
        if other.kind != "map" or reader.kind == "reduce":
            return None
        if other.size == group.size:
            return "full" if reader.level == "full" else None
        is_per_row = group.kind == "row" and reader.level == "outer" and other.size == group.outer_size
        is_per_row = is_per_row and not any(map(_draws, other.items))
        # Values of a row that somebody else waits for would come late: after the row's reductions.
        return "outer" if is_per_row and all(self._is_used_up(item, (group, other)) for item in other.items) else None

    def _is_used_up(self, item: Item, groups: tuple[Group, ...]) -> bool:
        inside = sum(member.inputs.count(item.output) for group in groups for member in group.items)
        return inside == self.uses.get(item.output, 0)

    def _merged_axes(self, group: Group, other: Group, axes: Axes, level: str, together: tuple[Group, ...]) -> bool:
        """Give ``group`` the axes that serve both, if all items can then find their operands at hand."""
        for item in other.items:
            finer = refine(axes, item.shape, group.tags(level))
            if finer is None or not self._fits(group, finer, item, level, together):
                return False
            axes = finer
        for item in group.items:
            # What the two shared through memory must now be at hand; an anchor reads its operands elsewhere too.
            if item.kind == "anchor":
                if any(other in self.producers(self.place(value).root) for value in item.inputs):
                    return False
            elif not self._fits_after_merge(group, axes, item, other, level):
                return False
        group.axes = axes
        return True

    def _fits_after_merge(self, group: Group, axes: Axes, item: Item, other: Group, level: str) -> bool:
        tags = None if item.kind == "reduce" else group.tags(item.level)
        for value in item.inputs:
            place = self.place(value)
            if any(live(writer.group) is other for writer in self.writers.get(place.root, ())):
                return False
            producer = self.items.get(place.root)
            if producer is None or live(producer.group) is not other or place.root in self.free:
                continue
            strides = strides_over(axes, item.shape, place.broadcast(item.shape), tags)
            if place.offset or strides != row_major(axes, group.tags(level)):
                return False
        return True

    def _merge(self, group: Group, other: Group) -> None:
        other.merged_into = group
        group.items = sorted(group.items + other.items, key=lambda item: item.order)
        group.bits |= other.bits
        group.predecessors = {live(g) for g in group.predecessors | other.predecessors} - {group}
        ancestors = (group.ancestors | other.ancestors) & ~group.bits
        group.ancestors &= ~group.bits
        group.successors = {live(g) for g in group.successors | other.successors} - {group}
        other.items, other.ancestors, other.predecessors, other.successors = [], 0, set(), set()
        self._inherit(group, ancestors)
        # Who waited for one of the two now waits for both.
        for waiting in group.successors:
            self._inherit(waiting, group.bits | group.ancestors)

    # --- reductions -----------------------------------------------------------------------------------------------

    def add_reduction(self, item: Item, dims: tuple[int, ...]) -> None:
        """Put a reduction into the group that has its operand at hand, or open a Row for it."""
        place = self.place(item.inputs[0])
        producer = self.items.get(place.root)
        candidates = [live(producer.group)] if producer is not None and place.root not in self.free else []
        candidates += [live(g) for g in reversed(self._row_readers.get(place.root, ()))]
        for group in dict.fromkeys(candidates):
            if group.kind not in ("map", "row") or group.size != math.prod(item.shape) or not self._may_join(group):
                continue
            axes = self._row_axes(group, item.shape, dims)
            if axes is None:
                continue
            trial = group.axes
            group.axes = axes
            before, group.kind = group.kind, "row"
            if self._fits_reduction(group, axes, item):
                if before == "map":
                    for member in group.items:
                        for root in self.roots(group, member):
                            self._row_readers.setdefault(root, []).append(group)
                self.append(group, item)
                return
            group.axes, group.kind = trial, before
        tags = ["inner" if dim in dims else "outer" for dim in range(len(item.shape))]
        axes = axes_of(item.shape, tags)
        self.prepare(axes, item)
        self.append(self.new_group("row", axes), item)

    def _row_axes(self, group: Group, shape: tuple[int, ...], dims: tuple[int, ...]) -> Axes | None:
        axes = refine(group.axes, shape)
        if axes is None:
            return None
        marks = strides_over(axes, shape, tuple([int(dim in dims) for dim in range(len(shape))]))
        tagged = tuple((extent, "inner" if mark else "outer") for (extent, _), mark in zip(axes, marks, strict=True))
        return tagged if group.kind == "map" or tagged == axes else None

    def _fits_reduction(self, group: Group, axes: Axes, item: Item) -> bool:
        place = self.place(item.inputs[0])
        producer = self.items.get(place.root)
        if producer is not None and live(producer.group) is group:
            strides = strides_over(axes, item.shape, place.broadcast(item.shape))
            return not place.offset and strides == row_major(axes, group.tags(self._output_level(producer)))
        return all(other is not group and not other.depends_on(group) for other in self.producers(place.root))

    # --- anchors --------------------------------------------------------------------------------------------------

    def add_anchor(self, item: Item, kind: str, axes: Axes) -> Group:
        """Open a group around a kernel of its own family; its operands must have memory."""
        for value in item.inputs:
            free = self.free.get(self.place(value).root)
            if free is not None:
                self.materialise(free)
        group = self.new_group(kind, axes, item)
        self.append(group, item)
        return group

    def is_free(self, item: Item) -> bool:
        """Whether users recompute this value: made of counters and literals alone, or short arithmetic on numbers."""
        if item.op.is_constant:
            return True
        if not schedule.is_cheap(item.op) or isinstance(item.op.lowering, Reduction):
            return False
        weight = 1
        is_number = item.output.spec.size <= 2  # a number, or the two of a random state
        for value in item.inputs:
            root = self.place(value).root
            if root in self.free:
                weight += self.free[root].weight
            elif not (root in self.literals or (is_number and root in self.inputs and root.spec.size <= 2)):
                return False
        item.weight = weight
        return weight <= self.most_recomputed

    def join_side_by_side(self, groups: list[Group]) -> list[Group]:
        """Make one group of the maps on single numbers among ``groups``, none of which depends on another.

        The last thing that happens to groups: their edges are not kept up.
        """
        numbers = [group for group in groups if group.kind == "map" and not group.axes]
        for other in numbers[1:]:
            other.merged_into = numbers[0]
            numbers[0].items += other.items
        return [group for group in groups if group not in numbers[1:]]

    def live_groups(self) -> list[Group]:
        """Return the groups that were not merged into others, in the order of their first items."""
        return sorted((g for g in self.groups if g.merged_into is None and g.items), key=lambda g: g.items[0].order)


def live(group: Group | None) -> Group:
    """Return the group that ``group`` has become part of."""
    if group is None:
        raise CompilerBug("an item stands in no group")
    while group.merged_into is not None:
        group = group.merged_into
    return group
