"""Tests of pequegrad.records: what tracing and lowering make in bulk costs the garbage collector nothing."""

import gc

import pytest

from pequegrad.records import collector_at_rest


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
