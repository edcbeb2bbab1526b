"""Printing: short, exact, aligned."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pequegrad as pg
from pequegrad import Tensor
from pequegrad.formatting import format_number

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([1.0, 1, 1, 1, 1], "[1, 1, 1, 1, 1]"),
        ([1.5, NAN, INF, -INF, -0.0], "[1.5, nan, inf, -inf, -0]"),
        ([1e-10, 1e10, 0.1, 123456.0], "[1e-10, 1e+10, 0.1, 123456]"),
        ([True, False], "[True, False]"),
        ([1, -2], "[1, -2]"),
        ([], "[]"),
        (3.5, "3.5"),
        (True, "True"),
        (np.zeros((0, 3)), "[] of shape (0, 3)"),
        (np.float16([0.1, 60000]), "[0.1, 60000]"),
        ([[1, -20], [300, 4]], "[[  1, -20],\n [300,   4]]"),
        ([[0.5, 10.0]], "[[0.5,  10]]"),
        (np.arange(2000), "[0, 1, 2, ..., 1997, 1998, 1999]"),
    ],
)
def test_tensors_print_short(data, text):
    assert str(Tensor(data)) == text


def test_large_matrices_show_their_corners_aligned():
    lines = str(Tensor(np.arange(10_000).reshape(100, 100))).split("\n")
    assert len(lines) == 7 and lines[3].strip() == "...,"
    assert lines[0] == "[[   0,    1,    2, ...,   97,   98,   99],"


def test_columns_are_as_wide_as_what_is_shown_only():
    values = np.zeros((100, 100))
    values[50, 50] = 123456789
    assert str(Tensor(values)).startswith("[[0, 0, 0, ..., 0, 0, 0],")


@given(st.floats(width=32, allow_nan=False))
def test_a_printed_float32_reads_back_as_itself(number):
    assert np.float32(format_number(np.float32(number))) == np.float32(number)


@given(st.floats(-1e30, 1e30))
def test_a_printed_bfloat16_reads_back_as_itself_and_is_short(number):
    value = ml_dtypes.bfloat16(number)
    text = format_number(value)
    assert ml_dtypes.bfloat16(float(text)) == value
    assert len(format_number(ml_dtypes.bfloat16(0.1))) == 3


def test_repr_names_dtype_and_gradient():
    assert repr(Tensor([1.0])) == "Tensor([1], dtype=float32)"
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor([1], dtype=float32, requires_grad=True)"
    assert f"{Tensor(1.23456):.2f}" == "1.23" and f"{Tensor([1.0])}" == "[1]"


def test_notebooks_get_a_table_shortened():
    page = Tensor(np.arange(6.0).reshape(2, 3))._repr_html_()
    assert page.count("<tr>") == 2 and page.count("<td>") == 6 and "float64, shape (2, 3)" in page
    large = pg.zeros(50, 50)._repr_html_()
    assert large.count("<tr>") == 7 and "…" in large
    assert "<pre>[1, 2]</pre>" in Tensor([1, 2])._repr_html_()
