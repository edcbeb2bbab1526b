"""Samples side by side: what a step, or a block of samples of it, keeps to itself, with the samples as innermost dimension.

Convolutions with few channels and small images, and windows, are then plain arithmetic on whole vectors. Products of
fewer samples than features read weights where they lie, and no feature is left over behind the last whole vector.

Invariant: element e of sample n, at n · pitch + e before, lies at e · size + n. Kernels do the same arithmetic on it, sums
over samples in another order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..records import record, replace
from . import schedule
from .kernels import merged, strides_of
from .layout import contiguous_strides, merge_plan
from .plan import (
    Access,
    Buffer,
    Compute,
    Contract,
    Conv2d,
    Kernel,
    Layout,
    Load,
    Map,
    Origin,
    Phase,
    Row,
    Stage,
    Statement,
    Store,
    Walk,
    Window,
    statements,
)  # fmt: skip
from .slices import Cut, Reach, cuts, reaches, walked

LEAST_GAIN = 0.99
"""Products have to take less than this part of the work they took before."""

POSITIONAL = ("argmax", "argmin")
"""Monoids whose result is a place in the row, so that the order of a row's axes is part of it."""


@record
class Part:
    """A kernel for one block of samples, the axis that was cut for it, and how its buffers move from block to block."""

    kernel: Kernel
    cut: Cut
    walks: dict[int, Walk]


def samples_last(
    parts: Sequence[Part], units: int, size: int, local: Collection[int], buffers: list[Buffer]
) -> list[Part]:
    """Return the parts with the samples innermost in as many of the ``local`` buffers as all their users allow.

    ``units``: the number of samples, ``size``: those of a block. Nothing changes where no convolution or window gains.
    What such a kernel reads from elsewhere is copied once; ``buffers`` gets the copies.
    """
    written = {access.buffer for part in parts for access in schedule.reads_and_writes(part.kernel)[1]}
    anchors = [part for part in parts if isinstance(part.kernel, Conv2d | Window)]
    copied = {
        access.buffer
        for part in anchors
        for access, _ in schedule.operand_sizes(part.kernel)
        if access.buffer in part.walks and access.buffer not in local and access.buffer not in written
    }
    moved = set(local) | copied
    while True:
        kept = moved.difference(
            *(schedule.buffers_of(part.kernel) for part in parts if not _can_move(part, units, moved, local))
        )
        if kept == moved:
            break
        moved = kept
    if not any(moved.issuperset(_images(part.kernel)) for part in anchors):
        return list(parts)
    result: list[Part] = []
    _Rewriter(units, size, moved, local, buffers).rewrite(parts, result, result)
    return result


def everywhere_samples_last(phases: tuple[Phase, ...], buffers: list[Buffer], lanes: int) -> tuple[Phase, ...]:
    """Return the phases of a step without blocks with the samples innermost in what it keeps to itself, as far as all users
    allow, if most of its convolutions gain from it or, where there are none, its products do. ``buffers`` are changed,
    and get the copies of arguments."""
    kernels = [kernel for phase in phases for kernel in phase.kernels]
    units = _samples(kernels)
    if not units or not side_by_side(units, lanes):
        return phases
    local = {b for b, buffer in enumerate(buffers) if buffer.scope == "arena"}
    images = {b for kernel in kernels if isinstance(kernel, Conv2d | Window) for b in _images(kernel)}
    if not images and units >= max(max(k.m, k.n, k.k) for k in kernels if isinstance(k, Contract)):
        return phases  # No product has more features than samples.
    parts = [_whole(kernel, units, buffers, local | images) for kernel in kernels]
    moved = local | {b for b in images if buffers[b].scope == "argument"}
    while True:
        kept = moved.difference(*(_pinned(part, units, moved, local) for part in parts))
        if kept == moved:
            break
        moved = kept
    before: list[Part] = []
    after: list[Part] = []
    grown = list(buffers)
    _Rewriter(units, units, moved, local, grown).rewrite(parts, after, before)
    if not _pays(kernels, [part.kernel for part in after], moved, lanes):
        return phases
    buffers[:] = grown
    touched = {b for kernel in kernels for b in schedule.buffers_of(kernel)}
    for b in moved & local & touched:
        buffers[b] = replace(buffers[b], shape=(buffers[b].size // units, units), layout=Layout((0, 1)))
    rewritten = iter(after)
    built = [Phase(tuple(next(rewritten).kernel for _ in phase.kernels)) for phase in phases]
    copies = tuple(part.kernel for part in before)
    made = {access.buffer for kernel in copies for access in schedule.reads_and_writes(kernel)[1]}
    if built and not any(made.intersection(schedule.buffers_of(kernel)) for kernel in built[0].kernels):
        return (Phase(copies + built[0].kernels), *built[1:])
    return (Phase(copies), *built)


def _pays(before: Sequence[Kernel], after: Sequence[Kernel], moved: set[int], lanes: int) -> bool:
    """Whether most convolutions have all their images among what is ``moved`` or, without any, products have less to do."""
    convolutions = [kernel for kernel in before if isinstance(kernel, Conv2d)]
    if convolutions:
        gaining = [kernel for kernel in convolutions if _images(kernel) <= moved]
        return 2 * sum(map(schedule.multiply_adds, gaining)) > sum(map(schedule.multiply_adds, convolutions))

    def work(kernels: Sequence[Kernel]) -> float:
        return sum(schedule.product_work(kernel, lanes) for kernel in kernels if isinstance(kernel, Contract))

    return work(after) < LEAST_GAIN * work(before)


def _samples(kernels: Iterable[Kernel]) -> int:
    """Return the number of samples: that of most convolutions or, where there are none, the extent that the largest products
    have as rows of the left operand or sum over; 0 where there is neither."""
    batches = Counter(kernel.shape.N for kernel in kernels if isinstance(kernel, Conv2d))
    if not batches:
        for kernel in kernels:
            if isinstance(kernel, Contract) and not kernel.batch:
                for extent in {kernel.m, kernel.k}:
                    batches[extent] += schedule.multiply_adds(kernel)
    return max(batches, key=lambda n: (batches[n], n), default=0)


def _whole(kernel: Kernel, units: int, buffers: Sequence[Buffer], movable: Collection[int]) -> Part:
    """Return a kernel with the axis along which most of what may move has a part of its own for each sample."""
    best, most = Part(kernel, Cut("", 0, 1), {}), 0
    found = statements(kernel)
    if any(isinstance(s, Compute) and "{first}" in s.expression for s in found):
        return best  # A generator's lanes follow each other.
    for cut in _axes(kernel):
        if cut.extent % units or (isinstance(kernel, Contract) and cut.extent != units):
            continue
        walks: dict[int, Walk] = {}
        strange: set[int] = set()
        for reach in _touches(kernel, cut, units):
            buffer = buffers[reach.buffer]
            if reach.shift * units == buffer.size and reach.is_own:
                walks[reach.buffer] = Walk(reach.buffer, buffer.size)
            else:
                strange.add(reach.buffer)
        own = {b: walk for b, walk in walks.items() if b not in strange}
        elements = sum(walk.block for b, walk in own.items() if b in movable)
        if elements > most:
            best, most = Part(kernel, cut, own), elements
    return best


def _axes(kernel: Kernel) -> Iterable[Cut]:
    if not isinstance(kernel, Row):
        return cuts(kernel)
    found = [Cut("outer", at, extent) for at, extent in enumerate(kernel.outer)]
    if any(a.monoid in POSITIONAL for stage in kernel.stages for a in stage.accumulate):
        return found
    return found + [Cut("inner", at, extent, True) for at, extent in enumerate(kernel.inner)]


def _touches(kernel: Kernel, cut: Cut, units: int) -> Iterable[Reach]:
    """Yield what each access of a whole kernel touches for one sample."""
    each = cut.extent // units
    if isinstance(kernel, Map | Row):
        axis = cut.at + (len(kernel.outer) if isinstance(kernel, Row) and cut.is_sum else 0)
        for s in statements(kernel):
            if isinstance(s, Load | Store):
                yield walked(s.access, schedule.domain(kernel), axis, each, isinstance(s, Store))
        return
    yield from reaches(kernel, cut, units) or ()
    if cut.is_sum:
        for s in statements(kernel):
            if isinstance(s, Load | Store):
                yield walked(s.access, schedule.domain(kernel), -1, each, isinstance(s, Store))


def _pinned(part: Part, units: int, moved: set[int], local: Collection[int]) -> set[int]:
    """Return those of the ``moved`` buffers that a kernel needs as they were."""
    touched = moved.intersection(schedule.buffers_of(part.kernel))
    if not _can_move(part, units, moved, local):
        return touched
    if isinstance(part.kernel, Conv2d) and schedule.reach_bytes(part.kernel.shape, units) > schedule.CACHE_BYTES:
        return touched
    return touched - part.walks.keys()


def _images(kernel: Kernel) -> set[int]:
    """Return the operands and results of a convolution or window op that it takes sample by sample."""
    if isinstance(kernel, Conv2d):
        return {kernel.a.buffer, kernel.b.buffer} if kernel.kind == "grad_weight" else {kernel.a.buffer}
    return _operands(kernel)


def _operands(kernel: Kernel) -> set[int]:
    sizes = (*schedule.operand_sizes(kernel), *schedule.result_sizes(kernel))
    return {access.buffer for access, _ in sizes}


def _can_move(part: Part, units: int, moved: set[int], local: Collection[int]) -> bool:
    """Whether a kernel can take samples innermost in those of its buffers that are ``moved``."""
    kernel, cut = part.kernel, part.cut
    if isinstance(kernel, Map | Row):
        return True
    if isinstance(kernel, Contract):
        return cut.name != "batch" and cut.extent == units
    if isinstance(kernel, Window):
        return _images(kernel) <= moved
    if not isinstance(kernel, Conv2d) or cut.extent != units or not _images(kernel) <= moved:
        return False
    indices = [s.index for s in kernel.epilogue if isinstance(s, Compute) and s.index is not None]
    if kernel.kind != "grad_weight" and any(index.strides[0] or index.strides[2] for index in indices):
        return False  # Which place it is could not be told from a position among samples.
    positions = schedule.conv_domain(kernel)[2]
    return kernel.kind == "grad_weight" or all(
        access.strides[2] == 1 or positions == 1
        if access.buffer in moved and access.buffer in local and access.buffer in part.walks
        else access.strides[0] == access.strides[2] == 0
        for access in (s.access for s in kernel.epilogue if isinstance(s, Load | Store))
    )


class _Rewriter:
    """Makes the parts anew for buffers that are moved."""

    def __init__(self, units: int, size: int, moved: set[int], local: Collection[int], buffers: list[Buffer]) -> None:
        self.units, self.size, self.moved, self.local, self.buffers = units, size, moved, local, buffers
        self.copies: dict[tuple[int, int], int] = {}

    def rewrite(self, parts: Sequence[Part], result: list[Part], copies: list[Part]) -> None:
        """Add the rewritten parts to ``result``, and the kernels that make copies, each before it is needed, to ``copies``."""
        for part in parts:
            kernel = part.kernel
            if not self.moved.intersection(schedule.buffers_of(kernel)):
                pass
            elif isinstance(kernel, Map):
                part = replace(part, kernel=self._map(kernel, part.cut))
            elif isinstance(kernel, Row):
                part = replace(part, kernel=self._row(kernel, part.cut))
            elif isinstance(kernel, Contract):
                part = replace(part, kernel=self._contract(kernel, part.cut))
            elif isinstance(kernel, Conv2d | Window) and self.moved.issuperset(_images(kernel)):
                part = self._with_copies(part, copies)
                moved: Kernel = self._conv2d(part.kernel) if isinstance(kernel, Conv2d) else self._window(part)
                part = replace(part, kernel=moved)
            result.append(part)

    # --- accesses -------------------------------------------------------------------------------------------------

    def _is_moved(self, access: Access) -> bool:
        return access.buffer in self.moved and access.buffer in self.local

    def _strides(self, strides: Sequence[int], axis: int, is_moved: bool) -> tuple[int, ...]:
        """Return strides with the axis of samples at ``axis``."""
        factor = self.size if is_moved else 1
        return tuple(
            (1 if is_moved and stride else stride) if at == axis else stride * factor
            for at, stride in enumerate(strides)
        )

    def _access(self, access: Access, axis: int) -> Access:
        is_moved = self._is_moved(access)
        offset = access.offset * (self.size if is_moved else 1)
        return replace(access, strides=self._strides(access.strides, axis, is_moved), offset=offset)

    def _statements(self, found: Sequence[Statement], axis: int, each: int, last: int) -> tuple[Statement, ...]:
        """Return statements with ``axis`` parted in samples and ``each``, and the samples put before axis ``last``."""

        def parted(access: Access) -> Access:
            stride = access.strides[axis]
            strides = (*access.strides[:axis], stride, *access.strides[axis + 1 : last])
            whole = replace(access, strides=(*strides, stride * each, *access.strides[last:]))
            return whole if access.buffer < 0 else self._access(whole, last)

        result: list[Statement] = []
        for statement in found:
            if isinstance(statement, Load | Store):
                statement = replace(statement, access=parted(statement.access))
            elif isinstance(statement, Compute) and statement.index is not None:
                statement = replace(statement, index=parted(statement.index))
            result.append(statement)
        return tuple(result)

    def _touches(self, found: Sequence[Statement]) -> bool:
        return any(isinstance(s, Load | Store) and self._is_moved(s.access) for s in found)

    # --- kernels --------------------------------------------------------------------------------------------------

    def _map(self, kernel: Map, cut: Cut) -> Map:
        if not self._touches(kernel.body):
            return kernel
        each = cut.extent // self.units
        extents = (*kernel.extents[: cut.at], each, *kernel.extents[cut.at + 1 :], self.size)
        body = self._statements(kernel.body, cut.at, each, len(kernel.extents))
        body, sizes = merged(body, extents, [_runs(range(len(extents)), extents, strides_of(body))])
        return replace(kernel, extents=sizes[0], body=body)

    def _row(self, kernel: Row, cut: Cut) -> Row:
        every = tuple(s for stage in kernel.stages for s in (*stage.inner, *stage.outer))
        if not self._touches(every):
            return kernel
        each = cut.extent // self.units
        rank = len(kernel.outer)
        axis, last = (rank + cut.at, rank + len(kernel.inner)) if cut.is_sum else (cut.at, rank)
        both = kernel.outer + kernel.inner
        extents = (*both[:axis], each, *both[axis + 1 : last], self.size, *both[last:])
        stages = [
            Stage(
                self._statements(stage.inner, axis, each, last),
                stage.accumulate,
                self._statements(stage.outer, axis, each, last),
            )
            for stage in kernel.stages
        ]
        strides = strides_of(tuple(s for stage in stages for s in (*stage.inner, *stage.outer)))
        rank += not cut.is_sum
        alone = () if cut.is_sum else (rank - 1,)
        runs = [
            _runs([a for a in range(rank) if a not in alone], extents, strides) + [[a] for a in alone],
            _runs(range(rank, len(extents)), extents, strides),
        ]
        built = []
        for stage in stages:
            inner, _ = merged(stage.inner, extents, runs)
            outer, sizes = merged(stage.outer, extents, runs)
            built.append(Stage(inner, stage.accumulate, outer))
        outer_sizes, inner_sizes = sizes
        lane = len(outer_sizes) - 1 if alone else len(outer_sizes) + len(inner_sizes) - 1
        return replace(kernel, outer=outer_sizes, inner=inner_sizes, lane_axis=lane, stages=tuple(built))

    def _contract(self, kernel: Contract, cut: Cut) -> Contract:
        rank = len(kernel.batch)
        of_a, of_b, of_out = {"m": (rank, -1, rank), "n": (-1, rank + 1, rank + 1), "k": (rank + 1, rank, -1)}[cut.name]
        a, b = self._access(kernel.a, of_a), self._access(kernel.b, of_b)
        epilogue: list[Statement] = []
        stores = False
        for statement in kernel.epilogue:
            if isinstance(statement, Load | Store):
                stores = stores or (isinstance(statement, Store) and self._is_moved(statement.access))
                statement = replace(statement, access=self._access(statement.access, of_out))
            epilogue.append(statement)
        kernel = replace(kernel, a=a, b=b, epilogue=tuple(epilogue))
        return _transposed(kernel) if stores and cut.name == "m" else kernel

    def _conv2d(self, kernel: Any) -> Conv2d:
        shape = replace(kernel.shape, N=1, lanes=self.size)
        shape = replace(shape, weight_chunks=min(shape.weight_chunks, schedule.rows_of_results(shape)))
        if kernel.kind == "grad_weight":
            return replace(kernel, shape=shape, a=self._start(kernel.a), b=self._start(kernel.b))
        # Samples are steps of 1 along positions now, where positions were.
        epilogue = tuple(
            replace(found, access=self._positions(found.access)) if isinstance(found, Load | Store) else found
            for found in kernel.epilogue
        )
        return replace(kernel, shape=shape, a=self._start(kernel.a), epilogue=epilogue)

    def _start(self, access: Access) -> Access:
        """Return where images begin; their strides follow from the sizes."""
        return replace(access, offset=access.offset * self.size)

    def _positions(self, access: Access) -> Access:
        if not self._is_moved(access):
            return access
        return replace(access, strides=(0, access.strides[1] * self.size, 1), offset=access.offset * self.size)

    def _window(self, part: Part) -> Window:
        kernel: Any = part.kernel
        shape = replace(kernel.shape, planes=part.cut.extent // self.units, lanes=self.size)
        inputs, outputs = tuple(map(self._start, kernel.inputs)), tuple(map(self._start, kernel.outputs))
        return replace(kernel, shape=shape, inputs=inputs, outputs=outputs)

    # --- copies ---------------------------------------------------------------------------------------------------

    def _with_copies(self, part: Part, before: list[Part]) -> Part:
        """Return a part that reads copies of what is not local; ``before`` gets the kernels that make them."""
        kernel: Any = part.kernel
        walks = dict(part.walks)

        def copied(access: Access) -> Access:
            if access.buffer not in part.walks or access.buffer in self.local:
                return access
            pitch = part.walks[access.buffer].block // self.size
            found = self.copies.get((access.buffer, access.offset))
            if found is None:
                found = self._copy(access, pitch, kernel.origin, part, before)
                self.copies[access.buffer, access.offset] = found
            walks.pop(access.buffer, None)
            walks[found] = Walk(found, pitch * self.size)
            return replace(access, buffer=found, offset=0)

        if isinstance(kernel, Conv2d):
            kernel = replace(kernel, a=copied(kernel.a), b=copied(kernel.b))
        else:
            kernel = replace(kernel, inputs=tuple(map(copied, kernel.inputs)))
        return Part(kernel, part.cut, walks)

    def _copy(self, access: Access, pitch: int, origin: Origin, part: Part, before: list[Part]) -> int:
        source = self.buffers[access.buffer]
        self.buffers.append(Buffer(f"v{len(self.buffers)}", (self.units, pitch), source.dtype, Layout((0, 1)), "arena"))
        number = len(self.buffers) - 1
        body = (
            Load(0, source.dtype, Access(access.buffer, (1, pitch), access.offset)),
            Store(0, Access(number, contiguous_strides((pitch, self.size)))),
        )
        spec = f"{source.dtype.name}[{pitch},{self.size}]"
        kernel = Map(
            f"{source.name}_samples_last", replace(origin, ops=("copy",), result=spec), (pitch, self.size), body
        )
        walks = {access.buffer: part.walks[access.buffer], number: Walk(number, pitch * self.size)}
        before.append(Part(kernel, Cut("extents", 1, self.units), walks))
        return number


def _runs(axes: Iterable[int], extents: Sequence[int], strides: Collection[tuple[int, ...]]) -> list[list[int]]:
    """Return the axes of more than one step, in runs that all of ``strides`` walk as one."""
    axes = [axis for axis in axes if extents[axis] > 1]
    picked = merge_plan([extents[axis] for axis in axes], {tuple(s[axis] for axis in axes) for s in strides})
    return [[axes[i] for i in run] for run in picked]


def _transposed(kernel: Contract) -> Contract:
    """Return the same product as that of the transposed operands, which writes its result by columns."""

    def swap(strides: tuple[int, ...]) -> tuple[int, ...]:
        return (*strides[:-2], strides[-1], strides[-2])

    epilogue: list[Statement] = []
    for statement in kernel.epilogue:
        if isinstance(statement, Load | Store):
            statement = replace(statement, access=replace(statement.access, strides=swap(statement.access.strides)))
        elif isinstance(statement, Compute) and statement.index is not None:
            statement = replace(statement, index=replace(statement.index, strides=swap(statement.index.strides)))
        epilogue.append(statement)
    return replace(
        kernel,
        m=kernel.n,
        n=kernel.m,
        a=replace(kernel.b, strides=swap(kernel.b.strides)),
        b=replace(kernel.a, strides=swap(kernel.a.strides)),
        epilogue=tuple(epilogue),
    )


def side_by_side(size: int, lanes: int) -> bool:
    """Whether a block of ``size`` samples fills whole vectors of ``lanes`` elements."""
    return lanes > 1 and math.gcd(size, lanes) == lanes
