"""Nested containers taken apart and put together."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

from pequegrad import pytree

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Box:
    x: object
    label: str = "box"


@pytest.mark.parametrize(
    "value",
    [
        3,
        None,
        [],
        (),
        {},
        [1, (2, {"k": 3})],
        Pair(1, [2]),
        OrderedDict(b=1, a=(2,)),
        {"b": 1, "a": 2},
    ],
    ids=repr,
)
def test_flatten_and_unflatten_are_inverse(value):
    leaves, structure = pytree.flatten(value)
    again = pytree.unflatten(structure, leaves)
    assert again == value and type(again) is type(value)
    assert list(again) == list(value) if isinstance(value, dict) else True
    hash(structure)


def test_dataclass_is_a_container_only_with_an_array_inside():
    array = np.zeros(2)
    leaves, structure = pytree.flatten(Box(array))
    assert leaves[0] is array and leaves[1] == "box"
    assert pytree.unflatten(structure, leaves) == Box(array)
    box = Box(3)
    assert pytree.flatten(box) == ([box], pytree.LEAF)


def test_structures_differ_by_type_keys_and_order():
    values = [[1, 2], (1, 2), {"a": 1, "b": 2}, {"b": 1, "a": 2}, Pair(1, 2), [1, [2]]]
    structures = [pytree.flatten(value)[1] for value in values]
    assert len(set(structures)) == len(values)


def test_structures_differ_by_the_type_of_equal_keys():
    """A step that was traced with the key True ran for the key 1."""
    structures = [pytree.flatten({key: 0})[1] for key in (1, 1.0, True)]
    assert len(set(structures)) == 3 and structures[0] == pytree.flatten({1: 5})[1]
    assert pytree.flatten({"a": 0, 1: 0})[1] != pytree.flatten({"a": 0, True: 0})[1]


def test_paths_read_like_python():
    assert pytree.leaf_paths(pytree.flatten([1, {"k": Pair(2, 3)}])[1]) == ["[0]", "[1]['k'].a", "[1]['k'].b"]


def test_map_leaves_keeps_the_structure():
    assert pytree.map_leaves(lambda leaf: leaf + 1, {"a": [1, 2]}) == {"a": [2, 3]}
