"""What mode="autotune" may choose for a step: decision by decision, the few values beside the cost model's worth a try.

Invariant: the list follows from the plan, the target and the number of workers alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..targets import Target
from . import schedule
from .plan import Contract, Conv2d, StepPlan
from .product_views import tiles_for
from .schedule import Choices, Product

HOTTEST_EXCHANGED, HOTTEST_TILED = 3, 2
"""Of how many products, the hottest ones, the operands or the tile are tried."""
MOST_TILES = 3
"""Tiles tried for each of the hottest products of a step on a device."""


PLAIN = Choices(block_bytes=0, samples_last=False)
"""Choices that leave all products as lowering makes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Alternative:
    """One other value of a decision: its name for people, and the field of `Choices` that it changes."""

    text: str
    field: str
    value: Any

    def apply(self, choices: Choices) -> Choices:
        """Return ``choices`` with this one made."""
        changed: dict[str, Any] = {self.field: self.value}
        if self.field in ("tiles", "exchanged"):
            changed = {self.field: (*getattr(choices, self.field), self.value)}
        return dataclasses.replace(choices, **changed)


def alternatives(plan: StepPlan, plain: StepPlan, target: Target, workers: int) -> Iterator[tuple[Alternative, ...]]:
    """Yield, for each decision behind the cost model's ``plan``, its alternatives; those of most effect first.

    ``plain``: the same plan under `PLAIN`, where products have the sizes by which lowering knows them."""
    is_by_lanes = target.execution == "lanes"
    if is_by_lanes and workers > 1:
        is_shared = plan.workers > 1
        yield (Alternative("1 worker" if is_shared else f"{workers} workers", "is_shared", not is_shared),)
    in_shared_memory = tuple(_blocks_in_shared_memory(plan)) if target.shared_bytes else ()
    if in_shared_memory:
        yield in_shared_memory
    elif target.has_blocks and not target.shared_bytes:
        usual = schedule.BLOCK_BYTES
        sizes = {"no blocks of samples": 0, "smaller blocks": usual // 2, "larger blocks": 2 * usual}
        yield tuple(Alternative(text, "block_bytes", size) for text, size in sizes.items())
    if target.execution == "threads" and target.launch == "auto":
        yield tuple(Alternative(f"launch as {how}", "launch", how) for how in ("graph", "cooperative"))
    products = _hottest(plain)
    if is_by_lanes:
        for product in map(schedule.product_of, products[:HOTTEST_EXCHANGED]):
            yield (Alternative(f"{_shown(product)} exchanged", "exchanged", product),)
    else:
        yield from (_tiles(kernel, target) for kernel in products[:HOTTEST_TILED])
    if is_by_lanes and any(isinstance(kernel, Conv2d | Contract) for kernel in plan.kernels):
        yield (Alternative("samples outermost", "samples_last", False),)
    if is_by_lanes and any(isinstance(kernel, Conv2d) and kernel.kind == "grad_weight" for kernel in plan.kernels):
        counts = sorted({workers, 4 * schedule.MOST_WEIGHT_CHUNKS} - {schedule.MOST_WEIGHT_CHUNKS})
        yield tuple(Alternative(f"{n} chunks of weight gradients", "weight_chunks", n) for n in counts)
    yield tuple(
        Alternative(f"chains of {n} computed again", "recomputed", n) for n in (1, 3 * schedule.MOST_RECOMPUTED)
    )


def _blocks_in_shared_memory(plan: StepPlan) -> Iterator[Alternative]:
    """Yield blocks of half and of twice as many samples, and none; where there are none, blocks for convolutions."""
    sizes = {phase.blocks.size for phase in plan.phases if phase.blocks is not None}
    if sizes:
        yield Alternative("no blocks of samples", "block_bytes", 0)
        others = {max(sizes) // 2, 2 * max(sizes)} - {0}
    else:
        others = {1, 4} if any(isinstance(kernel, Conv2d) for kernel in plan.kernels) else set()
    for size in sorted(others):
        yield Alternative(f"blocks of {size} sample{'s' * (size > 1)}", "block_samples", size)


def _hottest(plan: StepPlan) -> list[Contract]:
    """Return the products of most work, one for all of the same sizes."""
    work: dict[Product, int] = {}
    kernels: dict[Product, Contract] = {}
    for kernel in plan.kernels:
        if isinstance(kernel, Contract):
            product = schedule.product_of(kernel)
            work[product] = work.get(product, 0) + schedule.multiply_adds(kernel)
            kernels.setdefault(product, kernel)
    return [kernels[product] for product in sorted(work, key=lambda product: (-work[product], product))]


def _tiles(kernel: Contract, target: Target) -> tuple[Alternative, ...]:
    product = schedule.product_of(kernel)
    _, *others = tiles_for(kernel, target)
    return tuple(Alternative(f"{_shown(product)} by {name}", "tiles", (product, name)) for name in others[:MOST_TILES])


def _shown(product: Product) -> str:
    batch, *sizes = product
    return ("" if batch == 1 else f"{batch} × ") + "x".join(map(str, sizes))
