"""Turns a finished group into the record of its kernel.

Invariant: stores stand behind all loads and arithmetic of their sweep, and those into a state in the last sweep: so a
kernel may read at an index what it overwrites there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import CompilerBug, NotCompilable
from ..ops.core import Expression, Family
from ..ops.registry import REGISTRY
from ..records import replace
from ..trace.graph import Value
from . import schedule
from .expressions import POSITIONS
from .fuse import Fuser, Group, Item, live
from .layout import Axes, axes_of, contiguous_strides, merge_plan, row_major, strides_over
from .plan import (
    Access,
    Accumulate,
    Attention,
    Compute,
    Contract,
    Conv2d,
    ConvShape,
    Index,
    Kernel,
    Load,
    Map,
    Origin,
    PoolShape,
    Row,
    Scan,
    Sort,
    Stage,
    Statement,
    Store,
    Window,
)  # fmt: skip

GENERATORS = {
    "uniform": "pg::uniform<{T}>({0}, {1}, {first})",
    "normal": "pg::normal<{T}>({0}, {1}, {first})",
    "randint": "pg::randint({0}, {1}, {first}, {low}, {range})",
}
"""C text of the kinds of random draws; operands are the seed and the stream."""


def expression_of(item: Item) -> str:
    """Return the C text of a pointwise item."""
    lowering = item.op.lowering
    if isinstance(lowering, Expression):
        return lowering.text
    if isinstance(lowering, Family) and lowering.name == "random":
        return GENERATORS[getattr(item.op, "kind", "")]
    raise CompilerBug(f"op {item.op.name} has no expression")


@functools.cache
def _asks_for_its_place(text: str) -> bool:
    """Whether an expression reads the index of its element."""
    return any(f"{{{word}}}" in text for word in POSITIONS)


class Body:
    """Statements in the making, over the axes of one group."""

    def __init__(self, kernel: KernelBuilder, own: Callable[[Item], int]) -> None:
        self.kernel = kernel
        self.own = own
        self.statements: list[Statement] = []
        self.stores: list[Store] = []
        self._known: dict[Any, int] = {}

    def read(self, root: Value, strides: tuple[int, ...], offset: int) -> int:
        """Return the variable that holds the element of ``root`` at an affine index."""
        fuser, group = self.kernel.fuser, self.kernel.group
        item = fuser.items.get(root)
        free = fuser.free.get(root)
        if free is None and item is not None:
            return self.own(item) if live(item.group) is group else self.load(root, strides, offset)
        if root in fuser.literals:
            return self._literal(root)
        if free is not None:
            parts = fuser.inlined(group.axes, free, strides, offset)
            if parts is not None:
                key = (root, strides, offset)
                if key not in self._known:
                    arguments = tuple(self.read(*part) for part in parts)
                    self._known[key] = self._compute(free, arguments, lambda: Access(-1, strides, offset))
                return self._known[key]
        if item is not None and live(item.group) is group:
            return self.own(item)
        return self.load(root, strides, offset)

    def load(self, root: Value, strides: tuple[int, ...], offset: int) -> int:
        """Return the variable of an element loaded from memory."""
        access = Access(self.kernel.buffer_of(root), strides, offset)
        if access not in self._known:
            self._known[access] = self.kernel.new_variable()
            self.statements.append(Load(self._known[access], root.dtype, access))
        return self._known[access]

    def point(self, item: Item) -> int:
        """Return the variable of a pointwise item of this group."""
        group, place_of = self.kernel.group, self.kernel.fuser.place
        axes, tags, shape = group.axes, group.tags(item.level), item.shape
        arguments = []
        for value in item.inputs:
            place = place_of(value)
            strides = strides_over(axes, shape, place.broadcast(shape), tags)
            arguments.append(self.read(place.root, strides, place.offset))
        if item.kind == "copy":
            return arguments[0]
        return self._compute(item, tuple(arguments), lambda: Access(-1, row_major(axes, tags), 0))

    def _compute(self, item: Item, arguments: tuple[int, ...], index: Callable[[], Access]) -> int:
        text = expression_of(item)
        dst = self.kernel.new_variable()
        dtypes = tuple([value.spec.dtype for value in item.inputs])
        place = index() if _asks_for_its_place(text) else None
        self.statements.append(Compute(dst, item.output.dtype, item.op, arguments, dtypes, item.params, text, place))
        return dst

    def _literal(self, root: Value) -> int:
        value = self.kernel.fuser.literals[root]
        key = (root.dtype, repr(value))
        if key not in self._known:
            dst = self._known[key] = self.kernel.new_variable()
            params = (("dtype", root.dtype), ("shape", ()), ("value", value))
            self.statements.append(Compute(dst, root.dtype, REGISTRY["full"], (), (), params, "{value}"))
        return self._known[key]

    def store(self, item: Item, variable: int) -> None:
        """Write a variable to the place of the item's result, behind all else."""
        group = self.kernel.group
        place = self.kernel.fuser.place(item.output)
        is_row = item.kind == "reduce" or item.level == "outer"
        shape = item.output.shape
        strides = strides_over(group.axes, shape, place.strides, ("outer",) if is_row else None)
        self.stores.append(Store(variable, Access(self.kernel.buffer_of(place.root), strides, place.offset)))

    def take(self) -> tuple[Statement, ...]:
        """Return the statements so far, stores last, and forget them."""
        result = (*self.statements, *self.stores)
        self.statements, self.stores = [], []
        return result

    def forget(self) -> None:
        """End the scope of all variables."""
        self._known = {}


class KernelBuilder:
    """Builds the record of one group.

    ``is_stored``: whether a value needs memory; ``is_late``: whether it overwrites a state.
    """

    def __init__(
        self,
        fuser: Fuser,
        group: Group,
        name: str,
        buffer_of: Callable[[Value], int],
        is_stored: Callable[[Value], bool],
        is_late: Callable[[Value], bool],
    ) -> None:
        self.fuser, self.group, self.name = fuser, group, name
        self.buffer_of, self.is_stored, self.is_late = buffer_of, is_stored, is_late
        self._variables = 0

    def new_variable(self) -> int:
        """Return an unused variable."""
        self._variables += 1
        return self._variables - 1

    def build(self) -> Kernel:
        """Return the kernel of this group."""
        builders: dict[str, Callable[[], Kernel]] = {
            "map": self._map, "row": self._row, "contract": self._contract, "conv2d": self._conv2d,
            "window": self._window, "index": self._index, "scan": self._scan, "sort": self._sort,
            "attention": self._attention,
        }  # fmt: skip
        return builders[self.group.kind]()

    @property
    def origin(self) -> Origin:
        items = self.group.items
        locations = dict.fromkeys(item.location for item in items if item.location is not None)
        ops = tuple(item.op.name for item in items)
        last = next((item.output for item in reversed(items) if self._leaves(item)), items[-1].output)
        return Origin(tuple(locations), ops, str(last.spec))

    def _leaves(self, item: Item) -> bool:
        return item.kind == "copy" or self.is_stored(item.output)

    # --- one sweep ------------------------------------------------------------------------------------------------

    def _single_body(self, anchor: Item | None) -> tuple[Statement, ...]:
        """Return the statements of all items in order; the anchor's sum is variable 0."""
        variables = {} if anchor is None else {anchor: self.new_variable()}
        body = Body(self, variables.__getitem__)
        for item in self.group.items:
            if item is not anchor:
                variables[item] = body.point(item)
            if self._leaves(item):
                body.store(item, variables[item])
        return prune(body.take())

    def _map(self) -> Map:
        extents = tuple(extent for extent, _ in self.group.axes)
        statements = self._single_body(None)
        runs = merge_plan(extents, strides_of(statements))
        statements, sizes = merged(statements, extents, [runs])
        return Map(self.name, self.origin, sizes[0], statements)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _row(self) -> Row:
        stages = self._stages()
        extents = tuple(extent for extent, _ in self.group.axes)
        order = [[i for i, (_, tag) in enumerate(self.group.axes) if tag == part] for part in ("outer", "inner")]
        every = tuple(s for stage in stages for s in (*stage.inner, *stage.outer))
        strides = strides_of(every)
        runs = []
        for part in order:
            picked = merge_plan([extents[i] for i in part], [tuple(s[i] for i in part) for s in strides])
            runs.append([[part[i] for i in run] for run in picked])
        built = []
        for stage in stages:
            inner, sizes = merged(stage.inner, extents, runs)
            outer, sizes = merged(stage.outer, extents, runs)
            built.append(Stage(inner, stage.accumulate, outer))
        outer_sizes, inner_sizes = sizes
        loads: list[Access] = [s.access for stage in built for s in stage.inner if isinstance(s, Load | Store)]
        computed = [s for stage in built for s in stage.inner if isinstance(s, Compute)]
        draws = [s.index for s in computed if s.index is not None and "{first}" in s.expression]
        extents = outer_sizes + inner_sizes
        candidates = range(len(extents)) if any(e > 1 for e in outer_sizes) else range(len(outer_sizes), len(extents))
        lane = schedule.lane_axis(extents, draws or loads, candidates)
        return Row(self.name, self.origin, outer_sizes, inner_sizes, lane, tuple(built))

    def _stages(self) -> list[Stage]:
        stage_of = self._stage_numbers()
        count = max(stage_of.values()) + 1
        items = self.group.items
        row_variables: dict[Item, int] = {}
        own: dict[Item, int] = {}
        stored_at: dict[Item, int] = {}
        now = 0

        def variable(item: Item) -> int:
            if item.kind == "reduce" or item.level == "outer":
                return row_variables[item]
            if item not in own:
                if stored_at.get(item, now) < now:
                    place = self.fuser.place(item.output)
                    own[item] = inner.load(place.root, row_major(self.group.axes), 0)
                else:
                    own[item] = inner.point(item)
            return own[item]

        inner, outer = Body(self, variable), Body(self, variable)
        stages = []
        for now in range(count):
            own.clear()
            inner.forget()
            accumulate = []
            is_last = now == count - 1
            for item in items:
                if item.kind == "reduce" and stage_of[item] == now:
                    source = self._operand(inner, item)
                    row_variables[item] = self.new_variable()
                    monoid = item.op.lowering.monoid
                    accumulate.append(Accumulate(row_variables[item], item.output.dtype, monoid, source))
                elif item.kind != "reduce" and item.level == "full" and self._leaves(item):
                    at = count - 1 if self.is_late(self.fuser.place(item.output).root) else stage_of[item]
                    if at == now:
                        inner.store(item, variable(item))
                        stored_at[item] = now
            for item in items:
                is_row = item.kind == "reduce" or item.level == "outer"
                if is_row and stage_of[item] == now and item.kind != "reduce":
                    row_variables[item] = outer.point(item)
                if is_row and self._leaves(item):
                    at = count - 1 if self.is_late(self.fuser.place(item.output).root) else stage_of[item]
                    if at == now:
                        outer.store(item, row_variables[item])
            stages.append(Stage(prune(inner.take(), {a.src for a in accumulate}), tuple(accumulate), outer.take()))
            # What a row computes before its first sweep is a stage too, with nothing to sweep.
            assert is_last or accumulate or not stages[-1].inner
        return stages

    def _operand(self, inner: Body, item: Item) -> int:
        place = self.fuser.place(item.inputs[0])
        strides = strides_over(self.group.axes, item.shape, place.broadcast(item.shape))
        return inner.read(place.root, strides, place.offset)

    def _stage_numbers(self) -> dict[Item, int]:
        stage_of: dict[Item, int] = {}
        for item in self.group.items:
            stage = 0
            for value in item.inputs:
                producer = self.fuser.items.get(self.fuser.place(value).root)
                if producer not in stage_of or self.fuser.place(value).root in self.fuser.free:
                    continue
                comes_per_row = producer.kind == "reduce" or producer.level == "outer"
                goes_per_row = item.level == "outer" and item.kind != "reduce"
                stage = max(stage, stage_of[producer] + (comes_per_row and not goes_per_row))
            stage_of[item] = stage
        return stage_of

    # --- contractions ---------------------------------------------------------------------------------------------

    def _contract(self) -> Contract:
        item = self.group.anchor
        assert item is not None
        x, y = (self.fuser.place(value) for value in item.inputs)
        batch_shape = item.output.shape[:-2]
        m, n = item.output.shape[-2:]
        k = x.shape[-1]
        epilogue = self._single_body(item)
        axes = self.group.axes
        batch = tuple(axis for axis in axes if axis[1] == "batch")
        a = [*strides_over(batch, batch_shape, x.broadcast((*batch_shape, m, k))[:-2]), *_kept(x)]
        b = [*strides_over(batch, batch_shape, y.broadcast((*batch_shape, k, n))[:-2]), *_kept(y)]
        walks = [[i for i, axis in enumerate(axes) if axis[1] == tag] for tag in ("batch", "m", "n")]
        # The runs that all of the epilogue's accesses, and both operands, walk as one.
        over = strides_of(epilogue)
        extents = [extent for extent, _ in axes]
        together = [tuple(s[i] for i in walks[0]) for s in over] + [tuple(a[:-2]), tuple(b[:-2])]
        runs = merge_plan([extent for extent, _ in batch], together)
        a, b = ([*(side[run[-1]] for run in runs), *side[-2:]] for side in (a, b))
        sizes = [math.prod(batch[i][0] for i in run) for run in runs]
        groups = [[walks[0][i] for i in run] for run in runs]
        rows = [walks[1]] if walks[1] else [[]]
        while groups and b[len(groups) - 1] == 0 and self._folds(over, extents, groups[-1], rows[0], a, m):
            # A batch of products with one right side is one product of taller matrices.
            rows = [groups[-1] + rows[0]]
            m *= sizes.pop()
            groups.pop()
            if len(rows[0]) and a[-2] == 0:
                a[-2] = a[-3]
            del a[-3], b[-3]
        statements, _ = merged(epilogue, extents, [groups, rows, [walks[2]]], keep_empty=True)
        return Contract(
            self.name, self.origin, tuple(sizes), m, n, k, Access(self.buffer_of(x.root), tuple(a), x.offset),
            Access(self.buffer_of(y.root), tuple(b), y.offset), item.output.dtype, statements,
        )  # fmt: skip

    @staticmethod
    def _folds(
        over: list[tuple[int, ...]], extents: list[int], batch: list[int], rows: list[int], a: list[int], m: int
    ) -> bool:
        if m == 1:
            return True
        return a[-3] == a[-2] * m and all(s[batch[-1]] == s[rows[0]] * extents[rows[0]] for s in over)

    def _conv2d(self) -> Conv2d:
        item = self.group.anchor
        assert item is not None
        kind = {"conv2d": "forward", "conv2d_grad_input": "grad_input", "conv2d_grad_weight": "grad_weight"}[
            family(item)
        ]
        first, second = (value.shape for value in item.inputs)
        out = item.output.shape
        x, w, y = {
            "forward": (first, second, out),
            "grad_input": (out, second, first),
            "grad_weight": (first, out, second),
        }[kind]
        params = dict(item.params)
        top, _, left, _ = params["padding"]
        geometry: list[int] = [*params["stride"], top, left, *params["dilation"], params["groups"]]
        shape = ConvShape(*[*x, w[0], w[2], w[3], *geometry, y[2], y[3]])
        if kind == "grad_weight":
            shape = replace(shape, weight_chunks=schedule.weight_chunks(shape))
        epilogue = self._single_body(item)
        axes = self.group.axes
        walks = [[[i for i, axis in enumerate(axes) if axis[1] == tag]] for tag in ("n", "c", "s")]
        statements, _ = merged(epilogue, [extent for extent, _ in axes], walks, keep_empty=True)
        a, b = (self._contiguous(value) for value in item.inputs)
        return Conv2d(self.name, self.origin, kind, shape, a, b, item.output.dtype, statements)

    # --- the rest -------------------------------------------------------------------------------------------------

    def _contiguous(self, value: Value, shape: tuple[int, ...] | None = None) -> Access:
        place = self.fuser.place(value)
        if not place.is_contiguous:
            raise CompilerBug(f"{self.group.kind}: an operand {value.spec} is not contiguous")
        return Access(self.buffer_of(place.root), contiguous_strides(shape or value.shape), place.offset)

    def _window(self) -> Window:
        item = self.group.anchor
        assert item is not None
        params = dict(item.params)
        kind = family(item)
        image = item.output.shape if kind in ("window_put", "avg_pool2d_grad") else item.inputs[0].shape
        windows = item.inputs[0].shape if kind in ("window_put", "avg_pool2d_grad") else item.output.shape
        top, _, left, _ = params["padding"]
        geometry: list[Any] = [*params["kernel"], *params["stride"], top, left, *params.get("dilation", (1, 1))]
        counts_border = params.get("count_include_pad", True)
        shape = PoolShape(*[image[0] * image[1], *image[2:], *geometry, *windows[2:], counts_border])
        inputs = tuple(self._contiguous(value) for value in item.inputs)
        outputs = tuple(self._contiguous(value) for value in item.outputs)
        return Window(self.name, self.origin, kind, shape, item.inputs[0].dtype, inputs, outputs)

    def _index(self) -> Index:
        item = self.group.anchor
        assert item is not None
        params = dict(item.params)
        if family(item) == "check_index":
            (checked,) = item.inputs
            size = checked.spec.size
            return Index(
                self.name, self.origin, "check", 1, params["extent"], size, 1, False, checked.dtype, checked.dtype,
                None, self._contiguous(checked, (size,)), self._contiguous(item.output, (size,)),
                ignored=params["ignored"],
            )  # fmt: skip
        dim = params["dim"]
        is_gather = family(item) == "gather"
        *rest, index = item.inputs
        whole = rest[0].shape if is_gather else item.output.shape
        inner = math.prod(whole[dim + 1 :])
        count = index.shape[dim] if params["aligned"] else index.spec.size
        outer = math.prod(whole[:dim])
        out = self._contiguous(item.output, (outer, count if is_gather else whole[dim], inner))
        table = self._contiguous(rest[0], (outer, whole[dim], inner)) if is_gather else out
        shape = (outer, count, inner) if params["aligned"] else (count,)
        return Index(
            self.name, self.origin, family(item), outer, whole[dim], count, inner, params["aligned"], rest[0].dtype,
            index.dtype, table, self._contiguous(index, shape), out,
            None if is_gather else self._contiguous(rest[-1], (outer, count, inner)),
        )  # fmt: skip

    def _scan(self) -> Scan:
        item, shape = self._along_a_dimension()
        (x,) = item.inputs
        source, out = self._contiguous(x, shape), self._contiguous(item.output, shape)
        return Scan(self.name, self.origin, *shape, x.dtype, source, out)

    def _sort(self) -> Sort:
        item, shape = self._along_a_dimension()
        (x,) = item.inputs
        accesses = [self._contiguous(value, shape) for value in (x, *item.outputs)]
        return Sort(self.name, self.origin, *shape, dict(item.params)["descending"], x.dtype, *accesses)

    def _along_a_dimension(self) -> tuple[Item, tuple[int, int, int]]:
        """Return the anchor and its operand's shape as (outer, extent, inner)."""
        item = self.group.anchor
        assert item is not None
        shape, dim = item.inputs[0].shape, dict(item.params)["dim"]
        return item, (math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))

    def _attention(self) -> Attention:
        item = self.group.anchor
        assert item is not None
        params = dict(item.params)
        q, _, v, *rest = item.inputs
        batch_shape = q.shape[:-2]
        batch = axes_of(batch_shape, ("batch",) * len(batch_shape))
        accesses = [self._matrix(value, batch, len(batch_shape)) for value in (*item.inputs, *item.outputs)]
        runs = merge_plan([extent for extent, _ in batch], {access.strides[: len(batch)] for access in accesses})
        sizes = tuple(math.prod(batch[i][0] for i in run) for run in runs)
        merged_accesses = tuple(
            replace(access, strides=(*(access.strides[run[-1]] for run in runs), *access.strides[len(batch) :]))
            for access in accesses
        )
        count = len(item.inputs)
        return Attention(
            self.name, self.origin, "gradient" if rest else "forward", sizes, q.shape[-2], v.shape[-2], q.shape[-1],
            v.shape[-1], params["scale"], params["is_causal"], q.dtype, merged_accesses[:count], merged_accesses[count:],
        )  # fmt: skip

    def _matrix(self, value: Value, batch: Axes, rank: int) -> Access:
        """Return the access over (batch…, row, feature) of a value with ``rank`` dimensions of a batch; of one of rows,
        over (batch…, row)."""
        place = self.fuser.place(value)
        strides = strides_over(batch, place.shape[:rank], place.strides[:rank])
        return Access(self.buffer_of(place.root), (*strides, *place.strides[rank:]), place.offset)


def indexed_range(item: Item) -> tuple[int, int | None]:
    """Return the extent that the indices of an index kernel must stay below, and the one beside them that is good."""
    if family(item) == "check_index":
        params = dict(item.params)
        return params["extent"], params["ignored"]
    whole = item.inputs[0].shape if family(item) == "gather" else item.output.shape
    return whole[dict(item.params)["dim"]], None


def family(item: Item) -> str:
    """Return the name of the kernel family that an anchor asks for."""
    lowering = item.op.lowering
    if not isinstance(lowering, Family):
        raise NotCompilable(f"{item.op.name} has no kernel family")
    return lowering.name


def _kept(place: Any) -> tuple[int, int]:
    """Return the last two strides, 0 where the extent is 1 and walks nowhere."""
    rows, columns = place.strides[-2:]
    return (rows if place.shape[-2] != 1 else 0), (columns if place.shape[-1] != 1 else 0)


def strides_of(statements: Iterable[Any]) -> list[tuple[int, ...]]:
    """Return the different strides of all accesses and indices."""
    found: dict[tuple[int, ...], None] = {}
    for statement in statements:
        access = getattr(statement, "access", None) or getattr(statement, "index", None)
        if access is not None:
            found[access.strides] = None
    return list(found)


def merged(
    statements: Iterable[Statement], extents: Any, parts: list[list[list[int]]], keep_empty: bool = False
) -> tuple[tuple[Statement, ...], list[tuple[int, ...]]]:
    """Rewrite accesses for axes merged in runs, part by part; also return the new extents of each part.

    A part without axes gets one of extent 1, unless ``keep_empty``; an empty run is an axis of extent 1.
    """
    plan: list[list[list[int]]] = [part if part or keep_empty else [[]] for part in parts]
    sizes = [tuple(math.prod(extents[i] for i in run) for run in part) for part in plan]

    def walk(access: Access, is_index: bool) -> Access:
        # A counter's lanes follow each other even along an axis of extent 1, where nothing else walks.
        alone = int(is_index and not any(access.strides))
        strides = tuple(access.strides[run[-1]] if run else alone for part in plan for run in part)
        return Access(access.buffer, strides, access.offset)

    result: list[Statement] = []
    for statement in statements:
        if isinstance(statement, Load):
            result.append(Load(statement.dst, statement.dtype, walk(statement.access, False)))
        elif isinstance(statement, Store):
            result.append(Store(statement.src, walk(statement.access, False)))
        elif statement.index is not None:
            result.append(replace(statement, index=walk(statement.index, "{first}" in statement.expression)))
        else:
            result.append(statement)
    return tuple(result), sizes


def prune(statements: tuple[Statement, ...], wanted: Iterable[int] = ()) -> tuple[Statement, ...]:
    """Return the statements without those whose variables nobody uses; ``wanted`` are used elsewhere."""
    needed = set(wanted)
    kept: list[Statement] = []
    for statement in reversed(statements):
        if isinstance(statement, Store):
            needed.add(statement.src)
        elif statement.dst not in needed:
            continue
        elif isinstance(statement, Compute):
            needed.update(statement.arguments)
        kept.append(statement)
    return tuple(reversed(kept))
