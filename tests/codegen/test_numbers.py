"""Arithmetic on numbers that a kernel does over and over: found, and written once; what depends on order is left alone."""

from __future__ import annotations

import re

import numpy as np

from pequegrad import targets
from pequegrad.codegen.emit import render
from pequegrad.codegen.lower import lower
from pequegrad.codegen.numbers import LEAST_ALIKE, is_worth_keeping, parted
from pequegrad.codegen.plan import Access, Compute, Load, Store
from pequegrad.dtypes import float32
from pequegrad.ops.registry import REGISTRY
from tests.codegen.compiling import Batch, target_for

MUL = REGISTRY["mul"]
DTYPES = (float32,) * 40


def doubled(variable: int, source: int, target: int) -> tuple:
    """target := source * source"""
    arguments = (variable, variable)
    return (
        Load(variable, float32, Access(source, ())),
        Compute(variable + 1, float32, MUL, arguments, (float32, float32), (), "{0} * {1}"),
        Store(variable + 1, Access(target, ())),
    )


def body_of(*pairs: tuple[int, int]) -> tuple:
    """Return a body in which stores stand behind all else, as in a plan."""
    found = [s for i, (source, target) in enumerate(pairs) for s in doubled(2 * i, source, target)]
    return tuple(sorted(found, key=lambda s: isinstance(s, Store)))


def test_parts_that_are_alike_are_found_and_what_is_not_stays():
    other = (Load(90, float32, Access(30, ())), Store(90, Access(31, ())))
    body = body_of((0, 1), (2, 3), (4, 5))
    alone, alike = parted((*body[:6], other[0], *body[6:], other[1]), DTYPES)
    assert alone == other and [len(parts) for parts in alike] == [LEAST_ALIKE]
    assert [part[0].access.buffer for part in alike[0]] == [0, 2, 4]
    # One that writes over what it reads is another than those that do not.
    in_place = body_of((0, 1), (2, 3), (4, 4))
    assert parted(in_place, DTYPES) == (in_place, [])


def test_a_part_that_reads_what_another_writes_leaves_all_in_order():
    body = body_of((0, 1), (2, 3), (4, 0))
    assert parted(body, DTYPES) == (body, [])


def test_results_that_share_arithmetic_are_one_part():
    body = body_of((0, 1), (2, 3), (4, 5))
    more = tuple(Store(2 * i + 1, Access(10 + i, ())) for i in range(3))
    alone, alike = parted((*body, *more), DTYPES)
    assert alone == () and [[len(part) for part in parts] for parts in alike] == [[4, 4, 4]]


def test_numbers_of_many_parameters_are_written_once_and_right():
    batch = Batch("numbers")
    rate = batch.input(np.float32([0.5]).reshape(()))
    for i in range(6):
        x = batch.input(np.float32(i + 2.0).reshape(()))
        (power,) = batch.apply("pow", [rate, x])
        batch.expect(f"power{i}", batch.apply("sub", [x, power]), ulps=2)
    target = targets.get("cpp")
    text = render(lower(batch.graph(), target, 1), target)
    assert len(re.findall(r"pg::pow\(", text)) == 1
    assert len(re.findall(r"^  each0\(", text, re.M)) == 6
    assert batch.failures(target_for("native")) == []


def test_results_are_kept_for_the_same_numbers_where_that_is_less_work():
    """Each parameter has a step count of its own, and all are the same: twelve powers in every step of Adam for six parameters."""
    batch = Batch("same_numbers")
    rate = batch.input(np.float32([0.5]).reshape(()))
    for i in range(6):
        x = batch.input(np.float32(i + 2.0).reshape(()))
        (result,) = batch.apply("pow", [rate, x])
        for op in ("sub", "mul", "add"):
            (result,) = batch.apply(op, [x, result])
        batch.expect(f"result{i}", [result], ulps=2)
    target = targets.get("cpp")
    text = render(lower(batch.graph(), target, 1), target)
    assert len(re.findall(r"^  each0\(", text, re.M)) == 1
    assert len(re.findall(r"if \(pg::is_same_number\(", text)) == 5
    assert batch.failures(target_for("native")) == []
    batch.arrays[1:] = [np.float32(value).reshape(()) for value in (2.0, 2.0, 3.0, 3.0, -0.0, 0.0)]
    assert batch.failures(target_for("native")) == []


def test_a_part_that_changes_what_it_reads_keeps_no_result():
    arithmetic = tuple(
        Compute(i, float32, MUL, (i - 1, i - 1), (float32, float32), (), "{0} * {1}") for i in range(1, 9)
    )
    for target, is_kept in ((1, True), (0, False)):
        part = (Load(0, float32, Access(0, ())), *arithmetic, Store(8, Access(target, ())))
        assert is_worth_keeping(part) == is_kept
    assert not is_worth_keeping((*part[:2], Store(1, Access(1, ()))))
