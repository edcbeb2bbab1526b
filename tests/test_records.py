"""Tests of pequegrad.records: light classes that do what the standard library's do, and a collector that rests."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any, NamedTuple

import pytest

from pequegrad import records
from pequegrad.records import RecordTuple, collector_at_rest, record


class Ours(RecordTuple):
    __slots__ = ()
    left: Any
    right: Any


class Theirs(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    "use",
    [
        lambda kind: kind(1, right=2)._asdict(),
        lambda kind: tuple(kind(1, 2)._replace(left=3)),
        lambda kind: kind._fields,
        lambda kind: repr(kind(1, "x")).replace(kind.__name__, ""),
        lambda kind: kind(1, 2) == (1, 2) and hash(kind(1, 2)) == hash((1, 2)),
        lambda kind: tuple(copy.deepcopy(kind([1], 2))),
        lambda kind: type(pickle.loads(pickle.dumps(kind(1, 2)))) is kind,
        lambda kind: [part.left for part in (kind(1, 2), kind._make([3, 4]))],
        lambda kind: hasattr(kind(1, 2), "__dict__"),
    ],
)
def test_a_tuple_with_names_does_what_pythons_own_does(use):
    assert use(Ours) == use(Theirs)


def test_a_tuple_with_names_can_be_matched():
    match Ours(1, 2):
        case Ours(left, right):
            assert (left, right) == (1, 2)


@pytest.mark.parametrize("arguments", [((1,), {}), ((1, 2, 3), {}), ((1, 2), {"left": 3}), ((1,), {"other": 2})])
def test_a_tuple_with_names_refuses_other_fields(arguments):
    with pytest.raises(TypeError, match="expected left, right"):
        Ours(*arguments[0], **arguments[1])


def new_record():
    """Return a class of which there is no object yet."""

    @record
    class Pair:
        left: int
        right: Any = "default"

    return Pair


def test_the_first_objects_of_a_record_are_like_those_made_by_its_own_methods():
    kind = new_record()
    first = [kind(1), kind(1, 2), kind(left=1), kind(1, right=2)]
    for i in range(records._FEW):
        assert kind(i, right=i) == kind(i, i)
    assert first == [kind(1), kind(1, 2), kind(left=1), kind(1, right=2)]
    assert [hash(pair) for pair in first[:2]] == [hash(kind(1)), hash(kind(1, 2))]
    assert repr(first[0]).endswith("Pair(left=1, right='default')")


@pytest.mark.parametrize("arguments", [((), {}), ((1, 2, 3), {}), ((1,), {"left": 2}), ((1,), {"other": 2})])
def test_the_first_object_of_a_record_refuses_what_later_ones_do(arguments):
    kind, used = new_record(), new_record()
    for _ in range(records._FEW + 1):
        used(1)
    with pytest.raises(TypeError) as early:
        kind(*arguments[0], **arguments[1])
    with pytest.raises(TypeError) as late:
        used(*arguments[0], **arguments[1])
    assert str(early.value) == str(late.value)


@pytest.fixture
def collecting():
    """The collector is on, with nothing of its young generations left."""
    gc.collect()
    assert gc.isenabled()


def test_what_grew_while_the_collector_rested_is_old_afterwards(collecting):
    with collector_at_rest():
        assert not gc.isenabled()
        made = [[i] for i in range(10)]
    assert gc.isenabled()
    young = {id(item) for generation in (0, 1) for item in gc.get_objects(generation=generation)}
    assert not [item for item in made if id(item) in young]


def test_what_the_program_froze_stays_frozen(collecting):
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with collector_at_rest():
            pass
        assert gc.get_freeze_count() == count > 0
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off(collecting):
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
