"""Where values lie: places in memory, and how a kernel's axes walk over them.

Invariant: strides and offsets are in elements; a kernel's axes are in the row-major order of its values and none has
extent 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

from ..records import record
from ..trace.graph import Value

Axes = tuple[tuple[int, str], ...]
"""Extent and tag of each axis. The tag says what part of the domain an axis belongs to ("outer", "inner", "m" …)."""


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides."""
    strides = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


@record
class Place:
    """A view of the memory of ``root``, a value that has memory of its own (contiguous, in its own shape)."""

    root: Value
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether this view reads all of its root in the root's order (its shape may differ)."""
        return self.offset == 0 and math.prod(self.shape) == self.root.spec.size and self.is_contiguous

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other, in order."""
        expected = contiguous_strides(self.shape)
        return all(e == 1 or s == c for e, s, c in zip(self.shape, self.strides, expected, strict=True))

    def broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the strides that read this place as ``shape``, by broadcasting."""
        lead = len(shape) - len(self.shape)
        kept = self.strides
        if 1 in self.shape:
            kept = tuple([0 if e == 1 else s for e, s in zip(self.shape, kept, strict=True)])
        return (0,) * lead + kept if lead else kept


class Places(dict[Value, Place]):
    """Where each value lies; one seen for the first time has memory of its own."""

    def __missing__(self, value: Value) -> Place:
        shape = value.shape
        made = self[value] = Place(value, shape, contiguous_strides(shape))
        return made


def axes_of(shape: Sequence[int], tags: Sequence[str]) -> Axes:
    """Return axes for the extents of a shape that are not 1."""
    return tuple((extent, tag) for extent, tag in zip(shape, tags, strict=True) if extent != 1)


@functools.lru_cache(maxsize=4096)
def refine(axes: Axes, shape: Sequence[int], tags: Collection[str] | None = None) -> Axes | None:
    """Return ``axes`` split so that every dimension of ``shape`` is a run of them; None where they do not nest.

    Only axes with one of ``tags`` take part (None: all); the product of their extents must be that of ``shape``.
    """
    dims = [extent for extent in shape if extent != 1]
    j, rest = len(dims), 1
    result = []
    for extent, tag in reversed(axes):
        if tags is not None and tag not in tags:
            result.append((extent, tag))
            continue
        left = extent
        while left > 1:
            if rest == 1:
                j -= 1
                if j < 0:
                    return None
                rest = dims[j]
            if left % rest == 0:
                piece = rest
            elif rest % left == 0:
                piece = left
            else:
                return None
            result.append((piece, tag))
            left //= piece
            rest //= piece
    if rest != 1 or j > 0:
        return None
    return tuple(reversed(result))


@functools.lru_cache(maxsize=4096)
def strides_over(
    axes: Axes, shape: Sequence[int], strides: Sequence[int], tags: Collection[str] | None = None
) -> tuple[int, ...]:
    """Return ``strides`` over ``shape`` as strides over ``axes``, which refine it; 0 on axes of other tags."""
    if tags is None and [extent for extent, _ in axes] == list(shape):
        return tuple(strides)
    dims = [(extent, stride) for extent, stride in zip(shape, strides, strict=True) if extent != 1]
    j, rest, step = len(dims), 1, 0
    result = []
    for extent, tag in reversed(axes):
        if tags is not None and tag not in tags:
            result.append(0)
            continue
        if rest == 1:
            j -= 1
            rest, step = dims[j]
        result.append(step)
        step *= extent
        rest //= extent
    return tuple(reversed(result))


@functools.lru_cache(maxsize=4096)
def row_major(axes: Axes, tags: Collection[str] | None = None) -> tuple[int, ...]:
    """Return the strides over ``axes`` of a contiguous value that has the axes with one of ``tags``."""
    result = []
    step = 1
    for extent, tag in reversed(axes):
        if tags is not None and tag not in tags:
            result.append(0)
        else:
            result.append(step)
            step *= extent
    return tuple(reversed(result))


def do_merge(axes: Axes, strides: Sequence[int], tags: Collection[str]) -> bool:
    """Whether neighbouring axes of the same tag, of ``tags``, can be walked as one with these strides."""
    for i in range(len(axes) - 1):
        tag = axes[i][1]
        if tag in tags and tag == axes[i + 1][1] and strides[i] != strides[i + 1] * axes[i + 1][0]:
            return False
    return True


def merge_plan(extents: Sequence[int], all_strides: Collection[tuple[int, ...]]) -> list[list[int]]:
    """Return runs of axes, in order, that every one of ``all_strides`` walks as one."""
    runs: list[list[int]] = []
    for axis in range(len(extents)):
        if runs and all(s[runs[-1][-1]] == s[axis] * extents[axis] for s in all_strides):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def index_per_dim(
    axes: Axes, strides: Sequence[int], offset: int, shape: Sequence[int]
) -> tuple[list[list[int]], list[int]] | None:
    """Split a walk over contiguous memory of ``shape`` into one affine index per dimension.

    Return (coefficients[dim][axis], offsets[dim]), or None where an axis would carry from one dimension to another.
    """
    steps = contiguous_strides(shape)
    coefficients = [[0] * len(axes) for _ in shape]
    offsets = [0] * len(shape)
    highest = [0] * len(shape)
    for dim, step in enumerate(steps):
        if shape[dim] > 1:
            offsets[dim], offset = divmod(offset, step)
            highest[dim] = offsets[dim]
    lowest = list(highest)
    for axis, (extent, _) in enumerate(axes):
        stride = abs(strides[axis])
        sign = 1 if strides[axis] >= 0 else -1
        for dim, step in enumerate(steps):
            if shape[dim] > 1 and stride >= step:
                count, stride = divmod(stride, step)
                coefficients[dim][axis] = sign * count
                if sign > 0:
                    highest[dim] += count * (extent - 1)
                else:
                    lowest[dim] -= count * (extent - 1)
    if any(high >= extent for high, extent in zip(highest, shape, strict=True)) or min(lowest, default=0) < 0:
        return None
    return coefficients, offsets
