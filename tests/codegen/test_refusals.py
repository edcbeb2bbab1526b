"""What a kernel could not do as eager does is refused, with the reason, and runs eagerly."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.errors import NotCompilable, PequegradWarning


def divide(x, y):
    return x // y


def test_an_integer_division_by_an_unknown_divisor_is_refused():
    x = pg.tensor([7, -7, 5])
    with pytest.raises(NotCompilable, match=r"floor_divide.*may be zero"):
        pg.compile(divide, strict=True)(x, pg.tensor([2, 2, 1]))


def test_it_falls_back_to_eager_which_raises_at_a_zero():
    step = pg.compile(divide)
    x = pg.tensor([7, -7, 5])
    with pytest.warns(PequegradWarning, match="may be zero"):
        assert step(x, pg.tensor([2, 2, 1])).tolist() == [3, -4, 5]
    with pytest.raises(ZeroDivisionError):
        step(x, pg.tensor([2, 0, 1]))


def test_division_by_a_constant_and_of_floats_compiles():
    x = np.array([7, -7, 5])
    assert pg.compile(lambda x: x // 2 + x % 3, strict=True)(x).tolist() == (x // 2 + x % 3).tolist()
    y = np.array([2.0, 0.0, 1.0], np.float32)
    result = pg.compile(divide, strict=True)(x.astype(np.float32), y)
    assert result.tolist() == [3.0, -np.inf, 5.0]
