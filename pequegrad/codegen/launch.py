"""How large a launch is: threads of a block, and blocks of a grid.

Invariant: estimates for a large device of today (132 multiprocessors of up to 2,048 threads); results do not depend on
them but by the order of sums, which is fixed once a step is emitted.
"""

from __future__ import annotations

BLOCK = 256
"""Threads of every block: PG_BLOCK in the runtime."""
WARP = 32
BLOCK_WARPS = BLOCK // WARP
MULTIPROCESSORS = 132
MOST_BLOCKS = 8 * MULTIPROCESSORS
"""Blocks of a launch at most; each of them then does several shares."""
SHARED_BYTES = 48 * 1024
"""Shared memory of a block that every device has without being asked."""
