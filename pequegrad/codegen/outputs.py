"""Where the values that leave a step are written: new arrays for results, the states themselves for updates.

Invariant: a state is written only after everybody has read its old value, and after every kernel that may fail; where a
value cannot be computed in place under that rule, it goes through memory of its own and is copied at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..ops.registry import REGISTRY
from ..trace.graph import Graph, Output, Value
from .fuse import Fuser, Group, Item, live
from .kernels import indexed_range
from .layout import axes_of, row_major, strides_over

Home = tuple[str, int]
"""("input", position) or ("result", position among all outputs): the passed buffer that a value lives in."""


@dataclass(slots=True)
class Binder:
    """Gives homes to the outputs of a graph, adding copies where a value cannot live there itself."""

    fuser: Fuser
    graph: Graph
    homes: dict[Value, Home] = field(default_factory=dict)
    _readers: dict[Value, dict[Group, list[Item]]] = field(default_factory=dict)
    """For each state that is written, the groups that read it, and of each the items that do."""
    _updated: set[Value] = field(default_factory=set)
    _writers: dict[Value, list[Group]] = field(default_factory=dict)
    """For each state that has got its new value, the groups that write it."""
    _fallible: list[Group] = field(default_factory=list)

    def bind(self) -> dict[Value, Home]:
        """Return the home of each value that has one."""
        updates = [
            output
            for output in self.graph.outputs
            if output.role == "update"
            and output.target is not None
            and not self._is_itself(output)
            and output.value.spec.size
        ]
        self._updated = {output.target for output in updates if output.target is not None}
        self._bind_results({self.fuser.place(output.value).root for output in updates})
        self._find_readers()
        self._fallible = self._find_fallible()
        positions = {item.value: i for i, item in enumerate(self.graph.inputs)}
        for output in updates:
            assert output.target is not None
            self._bind_update(output, output.target, ("input", positions[output.target]))
        return self.homes

    def _is_itself(self, output: Output) -> bool:
        place = self.fuser.place(output.value)
        return place.root is output.target and place.is_whole

    def _bind_results(self, reserved: set[Value]) -> None:
        for i, output in enumerate(self.graph.outputs):
            if output.role != "result" or not output.value.spec.size:
                continue
            place = self.fuser.place(output.value)
            is_made = bool(self.fuser.producers(place.root)) and place.root not in self.fuser.free
            if is_made and place.is_whole and place.root not in reserved and place.root not in self.homes:
                self.homes[place.root] = ("result", i)
                continue
            copy = self._copy_of(output.value)
            self.homes[copy.output] = ("result", i)
            self.fuser.add_point(copy)

    def _copy_of(self, value: Value) -> Item:
        root = self.fuser.place(value).root
        maker = self.fuser.free.get(root) or self.fuser.items.get(root)
        location = maker.location if maker is not None else None
        return Item("copy", REGISTRY["copy"], (), (value,), (Value(value.spec),), location)

    def _find_readers(self) -> None:
        for group in self.fuser.live_groups():
            for item in group.items:
                for root in self.fuser.roots(group, item):
                    if root in self._updated:
                        self._add_reader(root, group, item)

    def _add_reader(self, root: Value, group: Group, item: Item) -> None:
        self._readers.setdefault(root, {}).setdefault(group, []).append(item)

    def _find_fallible(self) -> list[Group]:
        """Return the kernels that may fail: of those that check the same indices against the same extent, the first."""
        first: dict[Any, Group] = {}
        for group in self.fuser.live_groups():
            if group.kind == "index" and group.anchor is not None:
                indices = self.fuser.place(group.anchor.inputs[-1])
                first.setdefault((indices.root, indices.offset, indices.strides, indexed_range(group.anchor)), group)
        return list(first.values())

    # --- updates --------------------------------------------------------------------------------------------------

    def _bind_update(self, output: Output, target: Value, home: Home) -> None:
        fuser = self.fuser
        place = fuser.place(output.value)
        writer = fuser.items.get(place.root)
        if place.is_whole and place.root not in self.homes and place.root not in fuser.free:
            if writer is not None:
                group = live(writer.group)
                if self._may_overwrite(group, writer, target):
                    self.homes[place.root] = home
                    self._order(group, target)
                    return
            elif self._bind_parts(place.root, target):
                self.homes[place.root] = home
                return
        value = output.value
        if self._reads_a_state(value, target):
            copy = self._copy_of(value)
            self._append_map(copy)
            value = copy.output
        copy = self._copy_of(value)
        self.homes[copy.output] = home
        self._order(self._append_map(copy), target)

    def _append_map(self, item: Item) -> Group:
        fuser = self.fuser
        axes = axes_of(item.shape, ("point",) * len(item.shape))
        fuser.prepare(axes, item)
        group = fuser.new_group("map", axes)
        fuser.append(group, item)
        for root in fuser.roots(group, item):
            if root in self._updated:
                self._add_reader(root, group, item)
                for writer in self._writers.get(root, ()):
                    fuser.add_edge(group, live(writer))
        return group

    def _reads_a_state(self, value: Value, target: Value) -> bool:
        """Whether a plain copy of ``value`` into ``target`` would read a state that this step overwrites, elsewhere."""
        fuser = self.fuser
        place = fuser.place(value)
        if place.root in fuser.free:
            probe = self._copy_of(value)
            axes = axes_of(probe.shape, ("point",) * len(probe.shape))
            group = Group(-1, "map", axes)
            return any(
                root in self._updated and (root is not target or offset or strides != row_major(axes))
                for root, strides, offset in fuser.reads(group, probe)
            )
        return place.root in self._updated

    def _may_overwrite(self, group: Group, writer: Item, target: Value) -> bool:
        if any(group is fallible or fallible.depends_on(group) for fallible in self._fallible):
            return False
        for reader in self._readers.get(target, ()):
            reader = live(reader)
            if reader is not group and reader.depends_on(group):
                return False
        if writer.kind == "anchor" and group.kind not in ("contract", "conv2d"):
            return False
        is_row = writer.kind == "reduce" or writer.level == "outer"
        tags = ("outer",) if is_row else None
        stored = strides_over(group.axes, writer.output.shape, self.fuser.place(writer.output).strides, tags)
        for item in self._readers.get(target, {}).get(group, ()):
            for root, strides, offset in self.fuser.reads(group, item):
                if root is target and (strides != stored or offset):
                    return False
        return True

    def _bind_parts(self, root: Value, target: Value) -> bool:
        """Have the kernels that write ``root`` part by part change a state where it lies, if that is right; what they
        would only copy from there to its own place is left out."""
        fuser = self.fuser
        parts = fuser.writers.get(root, [])
        still = {part for part in parts if self._stays(part, target)}
        writers = [*dict.fromkeys(live(part.group) for part in parts if part not in still)]
        if not writers or any(live(part.group).depends_on(writer) for part in still for writer in writers):
            return False  # the old value, put back where another part has been written, is no copy to its own place
        for reader, items in self._readers.get(target, {}).items():
            reader = live(reader)
            reading = [item for item in items if item not in still]
            if reading and any(reader.depends_on(writer) for writer in writers if writer is not reader):
                return False
            if reader in writers and any(self._reads_elsewhere(item, parts, target) for item in reading):
                return False
        checked = [group for group in self._fallible if group in writers]
        for fallible in self._fallible:
            before = self._index_makers(fallible) if fallible in writers else [fallible]
            if any(group is writer or group.depends_on(writer) for group in before for writer in writers):
                return False
        for group in checked:
            self._fallible[self._fallible.index(group)] = self._check_of(group)
        for part in still:
            group = live(part.group)
            group.items.remove(part)
            self._readers[target][group].remove(part)
            if not self._readers[target][group]:
                del self._readers[target][group]
        for writer in writers:
            self._order(writer, target)
        return True

    def _stays(self, part: Item, target: Value) -> bool:
        """Whether an item copies a part of ``target`` to the same place in what it writes."""
        if part.kind != "copy":
            return False
        read, written = self.fuser.place(part.inputs[0]), self.fuser.place(part.output)
        return read.root is target and (read.shape, read.strides, read.offset) == (
            written.shape, written.strides, written.offset,
        )  # fmt: skip

    def _reads_elsewhere(self, item: Item, parts: list[Item], target: Value) -> bool:
        """Whether an item reads ``target`` where its own group writes something else than the same element."""
        group = live(item.group)
        written = set()
        for part in parts:
            if live(part.group) is group:
                place = self.fuser.place(part.output)
                tags = ("outer",) if part.level == "outer" else None
                written.add((strides_over(group.axes, part.output.shape, place.strides, tags), place.offset))
        return any(
            root is target and {(strides, offset)} != written for root, strides, offset in self.fuser.reads(group, item)
        )

    def _index_makers(self, group: Group) -> list[Group]:
        assert group.anchor is not None
        return self.fuser.producers(self.fuser.place(group.anchor.inputs[-1]).root)

    def _check_of(self, group: Group) -> Group:
        """Return a new group that checks the indices of an index kernel, so that this one cannot fail any more."""
        assert group.anchor is not None
        index = group.anchor.inputs[-1]
        extent, ignored = indexed_range(group.anchor)
        params = (("extent", extent), ("ignored", ignored))
        check = Item(
            "anchor", REGISTRY["check_index"], params, (index,), (Value(index.spec),), group.anchor.location
        )  # fmt: skip
        return self.fuser.add_anchor(check, "index", ())

    def _order(self, group: Group, target: Value) -> None:
        for reader in self._readers.get(target, ()):
            if live(reader) is not group:
                self.fuser.add_edge(live(reader), group)
        for fallible in self._fallible:
            self.fuser.add_edge(fallible, group)
        self._writers.setdefault(target, []).append(group)
