"""How the functions of a step are parted into objects that compilers make at once.

Invariant: the parts are runs of functions in their order, so that the source reads the same, and about equal in work.
"""

from __future__ import annotations

from collections.abc import Sequence

# What each object costs anew, on Zen 4 with g++ 12: the headers' text takes 60 to 80 ms. Two objects of this much work beside
# take two thirds of the time of one; of less, most of what is won would be lost where another process has the second core.
LEAST_MILLISECONDS = 150


def parted(milliseconds: Sequence[int], most: int) -> tuple[int, ...]:
    """Return the number, from 0 on, of the object that each function belongs to: of at most ``most``, and not so many that one
    would have less than it costs anew. ``milliseconds``: what each function takes a compiler, about."""
    total = sum(milliseconds)
    count = max(1, min(most, total // LEAST_MILLISECONDS))
    numbers: list[int] = []
    seen: dict[int, int] = {}
    before = 0
    for own in milliseconds:
        # The middle of each function decides; an object that none falls into is none.
        part = (2 * before + own) * count // (2 * total) if total else 0
        numbers.append(seen.setdefault(part, len(seen)))
        before += own
    return tuple(numbers)
