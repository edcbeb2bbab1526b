"""The arena: buffers alive together never overlap, and little is wasted."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pequegrad.codegen.memory import ALIGNMENT, Lifetime, aligned, assign_offsets, least_bytes

LIFETIMES = st.lists(
    st.builds(
        lambda nbytes, first, length: Lifetime(nbytes, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=40,
)


@given(LIFETIMES)
def test_buffers_alive_in_one_phase_do_not_overlap(lifetimes):
    offsets, size = assign_offsets(lifetimes)
    for phase in range(20):
        alive = sorted(
            (offset, offset + aligned(life.nbytes))
            for offset, life in zip(offsets, lifetimes, strict=True)
            if life.first <= phase <= life.last
        )
        for (_, end), (start, _) in itertools.pairwise(alive):
            assert end <= start
    assert all(offset >= 0 and offset % ALIGNMENT == 0 for offset in offsets)
    assert size >= max((o + aligned(life.nbytes) for o, life in zip(offsets, lifetimes, strict=True)), default=0)


@given(LIFETIMES)
def test_no_arena_is_smaller_than_what_is_alive_at_once(lifetimes):
    _, size = assign_offsets(lifetimes)
    assert least_bytes(lifetimes) <= size <= sum(aligned(life.nbytes) for life in lifetimes)


def test_a_chain_of_equal_buffers_takes_the_room_of_two():
    lifetimes = [Lifetime(1000, i, i + 1) for i in range(10)]
    assert assign_offsets(lifetimes)[1] == 2 * aligned(1000) == least_bytes(lifetimes)


def test_many_buffers_are_placed_in_about_the_least_room():
    random = np.random.default_rng(0)
    firsts = random.integers(0, 400, 2000)
    lifetimes = [
        Lifetime(int(size), int(first), int(first + length))
        for size, first, length in zip(
            random.integers(64, 100_000, 2000), firsts, random.integers(0, 20, 2000), strict=True
        )
    ]
    assert assign_offsets(lifetimes)[1] <= 1.25 * least_bytes(lifetimes)
