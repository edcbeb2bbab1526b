"""Promotion: torch's lattice for every pair, and names in every spelling."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

from pequegrad import dtypes
from pequegrad.dtypes import DTYPES, as_dtype, promote, result_type
from pequegrad.errors import DTypeError

torch = pytest.importorskip("torch")


def theirs(dtype):
    return getattr(torch, dtype.name)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(DTYPES, DTYPES)), ids=lambda dtype: dtype.name)
def test_every_pair_promotes_as_in_torch(first, second):
    assert theirs(promote(first, second)) == torch.promote_types(theirs(first), theirs(second))


@pytest.mark.parametrize("ranks", list(itertools.product((0, 1), repeat=2)))
def test_tensors_with_and_without_dimensions_promote_as_in_torch(ranks):
    for first, second in itertools.product(DTYPES, DTYPES):
        tensors = [torch.ones([1] * rank, dtype=theirs(d)) for rank, d in zip(ranks, (first, second), strict=True)]
        ours = result_type(list(zip((first, second), ranks, strict=True)))
        assert theirs(ours) == torch.result_type(*tensors), (first, second, ranks)


@pytest.mark.parametrize("number", [True, 2, 2.5])
def test_python_numbers_are_weakest(number):
    kind = {bool: dtypes.bool_, int: dtypes.int64, float: dtypes.float32}[type(number)]
    for dtype, rank in itertools.product(DTYPES, (0, 1)):
        tensor = torch.ones([1] * rank, dtype=theirs(dtype))
        assert theirs(result_type([(dtype, rank), (kind, None)])) == torch.result_type(tensor, number)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("float32", "float32"), ("float", "float32"), ("double", "float64"), ("half", "float16"), ("long", "int64"),
        (float, "float32"), (int, "int64"), (bool, "bool"), (np.float32, "float32"), (np.dtype("u1"), "uint8"),
        (dtypes.bfloat16, "bfloat16"), (dtypes.bfloat16.numpy, "bfloat16"),
    ],
)  # fmt: skip
def test_names_in_every_spelling(spelling, name):
    assert as_dtype(spelling).name == name


@pytest.mark.parametrize("spelling", ["complex64", "int8", object, 3, "nonsense"])
def test_anything_else_is_refused_with_the_list(spelling):
    with pytest.raises(DTypeError, match="not one of bool, uint8, int32"):
        as_dtype(spelling)


def test_a_dtype_is_one_object_also_after_pickling():
    for dtype in DTYPES:
        assert pickle.loads(pickle.dumps(dtype)) is dtype
