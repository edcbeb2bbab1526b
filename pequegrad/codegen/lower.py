"""From the graph to the plan: views become strides, applications become items of groups, groups kernels in phases.

Invariant: whatever this leaves out is refused with NotCompilable, which names the op, the dtype and the user's line.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable
from typing import Any

from ..errors import NotCompilable
from ..ops.core import Expression, Family, Reduction, View
from ..ops.registry import REGISTRY
from ..records import replace
from ..targets import Target
from ..trace.graph import Graph, Node, Value
from . import schedule
from .block_sizes import Cutting, Demand, in_caches, in_shared_memory
from .blocks import block_phases
from .fuse import Fuser, Group, Item, live
from .lanes import everywhere_samples_last
from .layout import Place, axes_of, contiguous_strides
from .leaving import leaving_values
from .legalize import legalize
from .memory import place_buffers
from .outputs import Binder, Home
from .parts import PartWriter, last_uses
from .plan import Buffer, Contract, Conv2d, Kernel, Layout, Phase, StepPlan
from .repeating import repeat_cheap_values
from .schedule import MODEL, Choices
from .shard import annotate_grids
from .twins import Kernels
from .widen import widen_halves


def lower(
    graph: Graph, target: Target, workers: int = 1, precision: str = "fp32", choices: Choices = MODEL
) -> StepPlan:
    """Return the plan of ``graph`` for a target: passed buffers first (inputs, then results, in the graph's order).

    ``workers``: how many threads there are; a small step asks for one. ``precision``: "tf32" or "bf16" lets the target
    round the operands of float32 products. ``choices``: what stands for the cost model's. Raises NotCompilable.
    """
    plan = _Lowering(graph, target, choices).plan(workers)
    return plan if precision == "fp32" else _with_precision(plan, precision)


def _with_precision(plan: StepPlan, precision: str) -> StepPlan:
    phases = []
    for phase in plan.phases:
        kernels = tuple(
            replace(kernel, precision=precision) if isinstance(kernel, Contract | Conv2d) else kernel
            for kernel in phase.kernels
        )
        phases.append(replace(phase, kernels=kernels))
    return replace(plan, phases=tuple(phases))


class _Lowering:
    """The state of one lowering."""

    def __init__(self, graph: Graph, target: Target, choices: Choices) -> None:
        self.target = target
        self.choices = choices
        self._check(graph)
        self.keeps_order = any(node.is_recomputed for node in graph.nodes)
        self.graph = repeat_cheap_values(legalize(widen_halves(graph)), choices.recomputed).verify(graph)
        self.fuser = Fuser(choices.recomputed)
        self.buffers: list[Buffer] = []
        self._buffer_numbers: dict[Value, int] = {}
        self._homes: dict[Value, Home] = {}
        self._transposed: set[Value] = set()
        self.parts = PartWriter(self.fuser, last_uses(self.graph))

    def plan(self, workers: int) -> StepPlan:
        """Run all of it."""
        self.fuser.inputs = {item.value for item in self.graph.inputs}
        self._transposed = _read_transposed(self.graph)
        used = (value for node in self.graph.nodes for value in node.inputs)
        self.fuser.uses = collections.Counter((*used, *(output.value for output in self.graph.outputs)))
        self.fuser.leaving = leaving_values(self.graph)
        families = self._families()
        for node in self.graph.nodes:
            self.fuser.is_late = node.is_recomputed
            self._place_node(node, families)
        self.fuser.is_late = False
        self._homes = Binder(self.fuser, self.graph).bind()
        slots = self._passed_buffers()
        levels = self._levels()
        phases = tuple(Phase(tuple(kernels)) for kernels in self._kernels(levels))
        choices = self.choices
        count = schedule.workers(
            StepPlan(self.graph.name, tuple(self.buffers), phases, slots, 0, 1), workers, choices.is_shared
        )
        local_bytes = 0
        if self.target.has_blocks and choices.block_bytes:
            phases, local_bytes = block_phases(
                phases, self.buffers, self.target.lanes, self._cutting, keeps_order=self.keeps_order
            )
        if choices.samples_last and not any(phase.blocks for phase in phases):
            phases = everywhere_samples_last(phases, self.buffers, self.target.lanes)
        buffers, arena_bytes = place_buffers(phases, self.buffers)
        in_shared = self.target.shared_bytes > 0
        own = (0, local_bytes) if in_shared else (local_bytes, 0)
        return annotate_grids(StepPlan(self.graph.name, buffers, phases, slots, arena_bytes, count, *own))

    def _cutting(self, demand: Demand) -> Cutting | None:
        if self.target.shared_bytes:
            return in_shared_memory(demand, self.target, self.choices.block_samples)
        return in_caches(demand, self.choices.block_bytes)

    def _check(self, graph: Graph) -> None:
        literals: dict[Value, Any] = {}
        known_dtypes = self.target.dtypes
        for node in graph.nodes:
            if isinstance(node.op.lowering, NotCompilable):
                raise NotCompilable(f"{_named(node)}: {node.op.lowering.reason}")
            known = tuple([literals.get(value) for value in node.inputs])
            if node.op.is_constant or (node.op.view and node.inputs[0] in literals):
                literals[node.outputs[0]] = known[0] if known else dict(node.params).get("value")
            reason = node.op.refusal(tuple([value.spec for value in node.inputs]), known)
            if reason is not None:
                raise NotCompilable(f"{_named(node)}: {reason}")
            for value in (*node.inputs, *node.outputs):
                if value.spec.dtype.name not in known_dtypes:
                    raise NotCompilable(
                        f"{_named(node)}: target {self.target.name!r} has no {value.dtype.name}. "
                        f"It has {', '.join(sorted(self.target.dtypes))}."
                    )

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _families(self) -> dict[str, Callable[[Item], None]]:
        """Return what places an application of each kernel family."""
        return {
            "contract": self._contract,
            "conv2d": self._conv2d,
            "conv2d_grad_input": self._conv2d,
            "conv2d_grad_weight": self._conv2d,
            "max_pool2d": self._window,
            "window_take": self._window,
            "window_put": self._window,
            "avg_pool2d": self._window,
            "avg_pool2d_grad": self._window,
            "gather": self._gather,
            "check_index": self._gather,
            "scatter": self._scatter,
            "scatter_add": self._scatter_add,
            "scan": self._scan,
            "sort": self._sort,
            "attention": self._attention,
            "random": self._random,
            "concat": self.parts.concat,
            "pad": self.parts.pad,
            "slice_update": self.parts.slice_update,
        }

    def _place_node(self, node: Node, families: dict[str, Callable[[Item], None]]) -> None:
        lowering = node.op.lowering
        fuser = self.fuser
        item = Item("point", node.op, node.params, node.inputs, node.outputs, node.location)
        if isinstance(lowering, View) and node.op.is_constant:
            fuser.literals[item.output] = dict(node.params)["value"]
        elif isinstance(lowering, View):
            place = fuser.place(node.inputs[0])
            seen = node.op.access(place.shape, place.strides, place.offset, **dict(node.params))
            if seen is None:
                copied = fuser.place(self.parts.copied(node.inputs[0], node))
                seen = node.op.access(copied.shape, copied.strides, copied.offset, **dict(node.params))
                place = copied
            fuser.places[item.output] = Place(place.root, *seen)
        elif isinstance(lowering, Expression):
            if fuser.is_free(item):
                fuser.free[item.output] = item
            else:
                fuser.add_point(item)
        elif isinstance(lowering, Reduction):
            item.kind = "reduce"
            fuser.add_reduction(item, dict(node.params)["dims"])
        elif isinstance(lowering, Family):
            if lowering.name not in families:
                raise NotCompilable(f"{_named(node)}: there is no kernel family {lowering.name!r}")
            families[lowering.name](item)
        else:
            raise NotCompilable(f"{node.op.name}: its lowering {lowering!r} is unknown")

    def _contract(self, item: Item) -> None:
        if not item.inputs[0].shape[-1]:
            self.fuser.literals[item.output] = item.output.dtype.numpy.type(0).item()
            return
        item.kind, item.inputs = "anchor", tuple(self.parts.in_memory(value, item, False) for value in item.inputs)
        if self._is_other_way_round(item):
            item = self._other_way_round(item)
        shape = item.output.shape
        self.fuser.add_anchor(item, "contract", axes_of(shape, (*("batch",) * (len(shape) - 2), "m", "n")))

    def _is_other_way_round(self, item: Item) -> bool:
        is_transposed = item.output in self._transposed
        *batch, m, n = item.output.shape
        m, n = (n, m) if is_transposed else (m, n)
        return is_transposed != ((math.prod(batch), m, n, item.inputs[0].shape[-1]) in self.choices.exchanged)

    def _other_way_round(self, item: Item) -> Item:
        """Return the product of the transposed operands, exchanged: its result is the transpose, with equal sums."""
        x, y = (self._swapped(value) for value in item.inputs)
        shape = item.output.shape
        root = Value(type(item.output.spec)((*shape[:-2], shape[-1], shape[-2]), item.output.dtype))
        strides = contiguous_strides(root.shape)
        self.fuser.places[item.output] = Place(root, shape, (*strides[:-2], strides[-1], strides[-2]))
        return Item("anchor", item.op, item.params, (y, x), (root,), item.location)

    def _swapped(self, value: Value) -> Value:
        """Return the view of a value with its last two dimensions exchanged."""
        place = self.fuser.place(value)
        *rest, rows, columns = range(len(place.shape))
        order = (*rest, columns, rows)
        swapped = Value(type(value.spec)(tuple(place.shape[d] for d in order), value.dtype))
        self.fuser.places[swapped] = Place(
            place.root, swapped.shape, tuple(place.strides[d] for d in order), place.offset
        )
        return swapped

    def _conv2d(self, item: Item) -> None:
        item.kind, item.inputs = "anchor", tuple(self.parts.in_memory(value, item, True) for value in item.inputs)
        self.fuser.add_anchor(item, "conv2d", axes_of(item.output.shape, ("n", "c", "s", "s")))

    def _window(self, item: Item) -> None:
        item.kind, item.inputs = "anchor", tuple(self.parts.in_memory(value, item, True) for value in item.inputs)
        self.fuser.add_anchor(item, "window", ())

    def _gather(self, item: Item) -> None:
        item.kind, item.inputs = "anchor", tuple(self.parts.in_memory(value, item, True) for value in item.inputs)
        self.fuser.add_anchor(item, "index", ())

    def _scatter_add(self, item: Item) -> None:
        """Zeros, and then an Index kernel that adds to them where they lie."""
        zero = Value(item.output.spec)
        self.fuser.literals[zero] = item.output.dtype.numpy.type(0).item()
        self._scatter_over(item, zero, item.inputs)

    def _scatter(self, item: Item) -> None:
        self._scatter_over(item, item.inputs[0], item.inputs[1:])

    def _scatter_over(self, item: Item, base: Value, operands: tuple[Value, ...]) -> None:
        fuser = self.fuser
        earlier = self.parts.make_room(item, base)
        if not earlier:
            root = Value(item.output.spec)
            fuser.places[item.output] = fuser.place(root)
            earlier = [live(self.parts.write(item, base, fuser.place(root)).group)]
        item.kind = "anchor"
        item.inputs = tuple(self.parts.in_memory(value, item, True) for value in operands)
        group = fuser.add_anchor(item, "index", ())
        for before in earlier:
            fuser.add_edge(live(before), group)

    def _scan(self, item: Item) -> None:
        item.kind, item.inputs = "anchor", (self.parts.in_memory(item.inputs[0], item, True),)
        self.fuser.add_anchor(item, "scan", ())

    def _sort(self, item: Item) -> None:
        item.kind, item.inputs = "anchor", (self.parts.in_memory(item.inputs[0], item, True),)
        self.fuser.add_anchor(item, "sort", ())

    def _attention(self, item: Item) -> None:
        """Results lie in memory as what they belong to: out as the queries, a gradient as its operand."""
        fuser = self.fuser
        item.kind = "anchor"
        item.inputs = tuple(self.parts.in_memory(value, item, False) for value in item.inputs)
        likes = item.inputs if item.op is REGISTRY["attention_grad"] else item.inputs[:1]
        for like, value in zip(likes, item.outputs, strict=False):
            self._order_like(fuser.place(like), value)
        fuser.add_anchor(item, "attention", ())

    def _order_like(self, like: Place, value: Value) -> None:
        """Give ``value`` memory in which its dimensions, but for the last, nest as those of ``like``."""
        *rest, last = range(len(value.shape))
        is_spread = any(stride == 0 and extent > 1 for stride, extent in zip(like.strides, like.shape, strict=True))
        order = [*sorted(rest, key=lambda dim: -like.strides[dim] if like.shape[dim] > 1 else -math.inf), last]
        if is_spread or order == [*rest, last]:
            return
        root = Value(type(value.spec)(tuple(value.shape[dim] for dim in order), value.dtype))
        steps = dict(zip(order, contiguous_strides(root.shape), strict=True))
        self.fuser.places[value] = Place(root, value.shape, tuple(steps[dim] for dim in (*rest, last)))

    def _random(self, item: Item) -> None:
        """Operands of a draw are the seed and the stream, two numbers."""
        place = self.fuser.place(item.inputs[0])
        numbers = []
        for i in range(2):
            number = Value(type(item.inputs[0].spec)((), item.inputs[0].dtype))
            self.fuser.places[number] = Place(place.root, (), (), place.offset + i * place.strides[0])
            numbers.append(number)
        item.inputs = tuple(numbers)
        self.fuser.add_point(item)

    # --- phases ---------------------------------------------------------------------------------------------------

    def _levels(self) -> list[list[Group]]:
        """Return the groups of each phase: as early as their edges allow, updates of states together at the end."""
        level: dict[Group, int] = {}
        groups = self.fuser.live_groups()
        for group in groups:
            stack = [group]
            while stack:
                top = stack[-1]
                waiting = [p for p in map(live, top.predecessors) if p not in level]
                if waiting:
                    stack.extend(waiting)
                    continue
                level[top] = 1 + max((level[live(p)] for p in top.predecessors), default=-1)
                stack.pop()
        last = max(level.values(), default=-1)
        followers: dict[Group, list[Group]] = {}
        for group in groups:
            for before in map(live, group.predecessors):
                followers.setdefault(before, []).append(group)
        for group in groups:
            if group.kind == "map" and group not in followers and self._writes_state(group):
                level[group] = last
        for group in sorted((group for group in groups if group.is_late), key=lambda group: -level[group]):
            level[group] = min((level[after] - 1 for after in followers.get(group, ())), default=level[group])
        result: list[list[Group]] = [[] for _ in range(last + 1)]
        for group in groups:
            result[level[group]].append(group)
        return [self.fuser.join_side_by_side(groups) for groups in result if groups]

    def _writes_state(self, group: Group) -> bool:
        return any(self._homes.get(item.output, ("",))[0] == "input" for item in group.items)

    # --- buffers --------------------------------------------------------------------------------------------------

    def _passed_buffers(self) -> tuple[int, ...]:
        written = {position for kind, position in self._homes.values() if kind == "input"}
        for i, item in enumerate(self.graph.inputs):
            self._add_buffer(item.value, item.name, item.role, i, i in written)
        numbers = {}
        for i, output in enumerate(self.graph.outputs):
            if output.role == "result":
                numbers[i] = self._add_buffer(Value(output.value.spec), output.name, "result", len(self.buffers), True)
        for root, (kind, position) in self._homes.items():
            self._buffer_numbers[root] = position if kind == "input" else numbers[position]
        return tuple(range(len(self.buffers)))

    def _add_buffer(self, value: Value, name: str, scope: str, slot: int = -1, is_written: bool = False) -> int:
        layout = Layout(tuple(range(len(value.shape))))
        self.buffers.append(Buffer(name, value.shape, value.dtype, layout, scope, slot, is_written=is_written))
        self._buffer_numbers[value] = len(self.buffers) - 1
        return len(self.buffers) - 1

    def _buffer_of(self, root: Value) -> int:
        found = self._buffer_numbers.get(root)
        return self._add_buffer(root, f"v{len(self.buffers)}", "arena") if found is None else found

    # --- kernels --------------------------------------------------------------------------------------------------

    def _kernels(self, levels: list[list[Group]]) -> list[list[Kernel]]:
        stored = set(self._homes) | set(self.fuser.writers)
        for groups in levels:
            for group in groups:
                for item in group.items:
                    stored.update(self.fuser.roots(group, item))
        late = {root for root, (kind, _) in self._homes.items() if kind == "input"}
        counter = itertools.count()
        made = Kernels(self.fuser, self._buffer_of, self._buffer_numbers.get, stored.__contains__, late.__contains__)
        phases = []
        for groups in levels:
            kernels = []
            for group in groups:
                name = f"{group.kind}{next(counter)}_{_title(group)}"
                kernels.append(self._chosen(made.of(group, name)))
            phases.append(kernels)
        return phases

    def _chosen(self, kernel: Kernel) -> Kernel:
        """Return a kernel cut as was chosen."""
        if isinstance(kernel, Contract):
            tile = self.choices.tile(schedule.product_of(kernel))
            return replace(kernel, tile=tile) if tile else kernel
        if isinstance(kernel, Conv2d) and kernel.kind == "grad_weight":
            chunks = schedule.weight_chunks(kernel.shape, self.choices.weight_chunks)
            return replace(kernel, shape=replace(kernel.shape, weight_chunks=chunks))
        return kernel


def _named(node: Node) -> str:
    """Return what a refusal begins with: the user's line and the op."""
    return f"{node.location}: {node.op.name}" if node.location is not None else node.op.name


def _read_transposed(graph: Graph) -> set[Value]:
    """Return the values that all users read with the last two dimensions exchanged, such as a weight's gradient."""
    found: dict[Value, bool] = {output.value: False for output in graph.outputs}
    for node in graph.nodes:
        for value in node.inputs:
            shape = value.shape
            is_swap = False
            if node.op.view and len(shape) >= 2 and value.spec.size > 1:
                strides = contiguous_strides(shape)
                swapped = (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2]), 0
                is_swap = node.op.access(shape, strides, 0, **dict(node.params)) == swapped
            found[value] = found.get(value, True) and is_swap
    return {value for value, is_swap in found.items() if is_swap}


def _title(group: Group) -> str:
    """Return up to three ops of a group, the anchor's first."""
    names = [item.op.name for item in group.items if item.kind != "copy"] or ["copy"]
    if len(names) > 3:
        reductions = [item.op.name for item in group.items if item.kind in ("reduce", "anchor")]
        names = [*dict.fromkeys(reductions), names[-1]][-3:]
    return "_".join(names)
