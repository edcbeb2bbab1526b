"""How large a launch is: threads of a block, and blocks of a grid.

Invariant: estimates for a large device of today (132 multiprocessors of up to 2,048 threads); results do not depend on
them but by the order of sums, which is fixed once a step is emitted.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 256
"""Threads of every block: PG_BLOCK in the runtime."""
WARP = 32
BLOCK_WARPS = BLOCK // WARP
MULTIPROCESSORS = 132
MOST_BLOCKS = 8 * MULTIPROCESSORS
"""Blocks of a launch at most; each of them then does several shares."""
SHARED_BYTES = 48 * 1024
"""Shared memory of a block that every device has without being asked."""

MOST_SLOTS = 256
"""Arguments that one kernel can take by value."""


def is_cooperative(launch: str, blocks: Sequence[int], slots: int) -> bool:
    """Whether a step is launched as one cooperative kernel, with a grid barrier between phases, rather than as a graph.

    ``launch``: what was asked for; "auto" decides. ``blocks``: what each phase asks for. A barrier and a node of a graph
    cost about the same, a microsecond; but one kernel's grid is no larger than what runs at the same time, and all its
    phases have the registers of the worst, so it is for steps whose phases are all small.
    """
    if launch == "graph" or slots > MOST_SLOTS or not blocks:
        return False
    return launch == "cooperative" or (len(blocks) > 1 and max(blocks) <= MULTIPROCESSORS)
