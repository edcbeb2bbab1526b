"""How functions are parted into objects that compile at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pequegrad.codegen.objects import LEAST_MILLISECONDS, parted


def test_little_work_is_one_object_for_any_number_of_workers():
    assert parted([LEAST_MILLISECONDS, LEAST_MILLISECONDS - 1], 8) == (0, 0)
    assert parted([], 8) == ()
    assert parted([0, 0], 8) == (0, 0)


def test_one_worker_compiles_one_object():
    assert parted([1000] * 4, 1) == (0, 0, 0, 0)


def test_parts_are_about_equal_in_work_not_in_number():
    assert parted([300, 100, 100, 100], 2) == (0, 1, 1, 1)
    assert parted([100, 100, 100, 300], 2) == (0, 0, 0, 1)


def test_an_object_that_no_function_falls_into_is_none():
    assert parted([600, 600], 8) == (0, 1)


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(1, 16))
def test_parts_are_runs_counted_from_zero_and_none_is_twice_its_share(milliseconds, most):
    numbers = parted(milliseconds, most)
    assert len(numbers) == len(milliseconds) and list(numbers) == sorted(numbers)
    assert sorted(set(numbers)) == list(range(len(set(numbers)))) and len(set(numbers)) <= most
    share = sum(milliseconds) / max(1, min(most, sum(milliseconds) // LEAST_MILLISECONDS))
    for number in set(numbers):
        own = [each for each, part in zip(milliseconds, numbers, strict=True) if part == number]
        assert sum(own) <= share + max(milliseconds)
