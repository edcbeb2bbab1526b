"""Literals and one-line expressions read back as the numbers that they stand for."""

import math

import numpy as np
import pytest

from pequegrad.codegen.expressions import literal, render_expression
from pequegrad.codegen.plan import Compute
from pequegrad.dtypes import bool_, float32, float64, int32, int64, uint8
from pequegrad.errors import CompilerBug
from pequegrad.ops.registry import REGISTRY


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.1, 1e-30, 3.4e38, -2.5, 123456789.0, 1e-45])
def test_a_float32_literal_reads_back_exactly(value):
    text = literal(np.float32(value), float32)
    assert text.endswith("f")
    assert np.float32(text[:-1]) == np.float32(value)
    assert math.copysign(1, float(text[:-1])) == math.copysign(1, value)


def test_numbers_without_a_plain_spelling_use_builtins():
    assert literal(math.nan, float32) == '__builtin_nanf("")'
    assert literal(-math.inf, float64) == "-__builtin_inf()"
    assert literal(-(2**63), int64) == "(-9223372036854775807L - 1)"
    assert literal(-(2**31), int32) == "(-2147483647 - 1)"


def test_integers_and_bools_carry_their_type():
    assert literal(7, int64) == "7L"
    assert literal(7, uint8) == "pg::u8(7)"
    assert literal(1, bool_) == "true"


def test_a_literal_beyond_float32_is_a_bug_of_ours():
    with pytest.raises(CompilerBug, match="does not fit into float32"):
        literal(1e300, float32)


def compute(expression, params=()):
    return Compute(3, float32, REGISTRY["add"], (1, 2), (float32, int64), params, expression)


def test_placeholders_are_operands_types_index_and_parameters():
    statement = compute("pg::f<{T}, {T1}>({0}, {1}, {slope}, {steps}, {index})", (("slope", 0.5), ("steps", 4)))
    text = render_expression(statement, ["a", "b"], lambda what: f"here_{what}")
    assert text == "pg::f<pg::f32, pg::i64>(a, b, 0.5f, 4.0f, here_index)"


def test_an_unknown_placeholder_names_the_op_and_the_name():
    with pytest.raises(CompilerBug, match=r"add.*slope"):
        render_expression(compute("{0} * {slope}"), ["a", "b"], str)
