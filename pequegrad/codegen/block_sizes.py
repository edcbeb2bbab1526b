"""How many samples a block has, in how many chunks blocks are dealt out, and whether that pays: for caches, and for the
shared memory of a device.

Invariant: costs are estimates in nanoseconds; those of a device were never measured, and `mode="autotune"` knows better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..records import record, replace
from ..targets import Target
from . import schedule
from .launch import MULTIPROCESSORS
from .memory import Lifetime, assign_offsets, least_bytes
from .plan import Contract, Kernel, Row
from .product_views import own_shared_bytes
from .schedule import BYTE_COST, CALL_COST
from .slices import Cut, part_of


@record
class Demand:
    """What kernels ask for that could run block by block, on ``units`` samples.

    ``members``: the kernels, each with its cut axis; ``phases``: how many they have now. ``lives``: for one sample, the
    bytes of each buffer that blocks would keep to themselves, from the first member that uses it to the last.
    ``buffers``: how many they touch besides.
    ``moved``: the bytes of all samples that would not leave the block; ``touched``: all that the members read and write.
    ``shared``: those that every block reads again; ``private``: the sums of a chunk. ``multiple``: a block is this many
    samples, or a multiple of it, where it can be.
    """

    units: int
    members: tuple[tuple[Kernel, Cut], ...]
    phases: int
    lives: tuple[Lifetime, ...]
    buffers: int
    moved: int
    touched: int
    shared: int
    private: int
    multiple: int

    @property
    def live(self) -> int:
        """The bytes of a sample that are alive at once."""
        return least_bytes(self.lives) if self.lives else 0

    @property
    def rows(self) -> int:
        """The rows of a sample in the kernel that has fewest."""
        return min((cut.extent // self.units for _, cut in self.members), default=1)

    def kept(self, size: int) -> int:
        """Return the bytes that a block of ``size`` samples keeps to itself."""
        return assign_offsets([replace(life, nbytes=life.nbytes * size) for life in self.lives])[1]


@record
class Cutting:
    """Samples of a block, chunks in which blocks are dealt out, and the nanoseconds that this saves."""

    size: int
    chunks: int
    gain: float


# --- in caches ----------------------------------------------------------------------------------------------------


def in_caches(demand: Demand, kept: int = schedule.BLOCK_BYTES) -> Cutting | None:
    """Return the cutting by which blocks that keep about ``kept`` bytes alive stay in a core's own cache."""
    units, live = demand.units, demand.live
    if units * live <= schedule.CACHE_BYTES:
        return None
    sizes = [
        size
        for size in range(1, units // schedule.FEWEST_BLOCKS + 1)
        if units % size == 0 and size * live <= 2 * kept and size * demand.rows >= schedule.LEAST_BLOCK_ROWS
    ]
    if not sizes:
        return None
    size = max((size for size in sizes if size % demand.multiple == 0), default=max(sizes))
    count = units // size
    chunks = min(count, schedule.MOST_BLOCK_CHUNKS)
    saved = BYTE_COST * demand.moved * (1 - kept / max(units * live, 1))
    calls = len(demand.members)
    extra = BYTE_COST * (count * demand.shared + 2 * chunks * demand.private) + CALL_COST * count * calls
    return Cutting(size, chunks, saved - extra)


# --- in shared memory ---------------------------------------------------------------------------------------------

STATIC_BYTES = 2**14
"""Shared memory that is left to what kernels declare themselves, and which adds up over all of a launch's."""
FEWEST_ON_DEVICE = MULTIPROCESSORS // 2
"""Fewer blocks would leave most of a device idle."""

# Nanoseconds: from a phase to the next one, in a graph or by a barrier of the grid; of a kernel that does next to nothing, on
# what lies in the device's memory, and on a block in shared memory; and of all multiprocessors at work, for a byte from the
# second cache or the device's memory, for a byte that a kernel touches wherever it lies, and for a multiply-add.
_PHASE_COST = 1300.0
_LATENCY = 700.0
_BLOCK_LATENCY = 300.0
_DEVICE_BYTE_COST = 0.0002
_TOUCH_COST = 0.00013
_DEVICE_MULTIPLY_ADD_COST = 0.00005
_LONELY = 1.6
"""How much longer the same work takes with one block of threads on a multiprocessor, as the registers of all kernels of a
block together allow: it has nothing to do while that one waits."""
_ROWS_OF_A_TILE = 16


def in_shared_memory(demand: Demand, target: Target, asked: int | None) -> Cutting | None:
    """Return the best cutting into blocks that a block of threads keeps in the shared memory that it has on ``target``,
    or None where none fits. ``asked``: the samples of a block, whether they pay or not."""
    if demand.buffers > target.most_pointers:
        return None
    fitting: list[Cutting] = []
    for size in (asked,) if asked is not None else range(1, demand.units // FEWEST_ON_DEVICE + 1):
        if demand.units % size or size * demand.live > target.shared_bytes:
            continue
        own = max(own_shared_bytes(part_of(kernel, cut, demand.units, size), target) for kernel, cut in demand.members)
        if demand.kept(size) + own + STATIC_BYTES <= target.shared_bytes:
            fitting.append(_on_device(demand, size, asked is not None))
    return max(fitting, key=lambda cutting: cutting.gain, default=None)


def _on_device(demand: Demand, size: int, is_asked: bool) -> Cutting:
    count = demand.units // size
    rounds = -(-count // MULTIPROCESSORS)
    chunks = -(-count // rounds)
    calls = len(demand.members)
    work = _TOUCH_COST * demand.touched + _DEVICE_MULTIPLY_ADD_COST * sum(map(_work, demand.members))
    before = demand.phases * (_PHASE_COST + _LATENCY) + _DEVICE_BYTE_COST * demand.moved + work
    sums = chunks * demand.private + count * _row_bytes(demand.members)
    stretched = _LONELY * rounds * MULTIPROCESSORS / count
    padded = _TOUCH_COST * demand.touched + _DEVICE_MULTIPLY_ADD_COST * sum(
        _work(member) * _padding(member, size, demand.units) for member in demand.members
    )
    after = 2 * _PHASE_COST + rounds * calls * _BLOCK_LATENCY + stretched * padded
    after += _DEVICE_BYTE_COST * (count * demand.shared + 2 * sums)
    return Cutting(size, chunks, before - after if not is_asked else max(before - after, 1.0))


def _work(member: tuple[Kernel, Cut]) -> int:
    return schedule.multiply_adds(member[0])


def _padding(member: tuple[Kernel, Cut], size: int, units: int) -> float:
    """Return how many times more rows a product's tiles have than a block of samples fills."""
    kernel, cut = member
    if not isinstance(kernel, Contract) or cut.is_sum:
        return 1.0
    rows = cut.extent // units * size
    return -(-rows // _ROWS_OF_A_TILE) * _ROWS_OF_A_TILE / rows


def _row_bytes(members: Sequence[tuple[Kernel, Cut]]) -> int:
    """Return the bytes of sums of rows, of which each block has its own."""
    return sum(4 * math.prod(kernel.outer) for kernel, cut in members if isinstance(kernel, Row) and cut.is_sum)
