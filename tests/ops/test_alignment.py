"""What nets and optimizers are made of begins at the beginning of a line of cache."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import arrays, nn


def is_on_a_line(tensor: pg.Tensor) -> bool:
    return arrays.address_of(tensor.detach().numpy()) % arrays.LINE == 0


@pytest.mark.parametrize("dtype", [pg.float32, pg.float64, pg.float16, pg.bfloat16, pg.int64, pg.bool_])
@pytest.mark.parametrize("value", [0, 1])
def test_constants_of_some_size_begin_on_a_line(dtype: pg.DType, value: int) -> None:
    for shape in [(1024,), (33, 47), (3, 1, 501)]:
        kept = [pg.full(shape, value, dtype=dtype) for _ in range(8)]
        assert all(is_on_a_line(tensor) for tensor in kept)
        for tensor in kept:
            assert tensor.shape == shape and tensor.dtype is dtype and tensor.is_contiguous()
            np.testing.assert_array_equal(tensor.numpy().astype(np.float64), np.full(shape, float(value)))


def test_small_and_empty_constants_are_what_they_were() -> None:
    assert pg.zeros(()).item() == 0 and pg.ones(3).tolist() == [1, 1, 1] and pg.zeros(0, 5).shape == (0, 5)
    assert np.signbit(pg.full((400,), -0.0).numpy()).all()


def test_parameters_and_states_of_optimizers_begin_on_a_line() -> None:
    model = nn.Sequential(nn.Linear(30, 70), nn.Tanh(), nn.Linear(70, 40))
    optimizer = pg.optim.AdamW(model.parameters())
    model(pg.ones(2, 30)).sum().backward()
    optimizer.step()
    large = [p for p in model.parameters() if p.numel() * 4 >= 1024]
    assert len(large) == 2 and all(is_on_a_line(p) for p in large)
    states = [v for p in large for v in optimizer.state[p].values() if isinstance(v, pg.Tensor) and v.shape == p.shape]
    assert len(states) == 4 and all(is_on_a_line(state) for state in states)


def test_a_copy_for_profiling_is_the_same_numbers() -> None:
    x = np.arange(1200, dtype=np.float32).reshape(30, 40)
    for array in (x, x.T, x[:0], x[3:4, 5]):
        copy = arrays.host_copy(array)
        assert copy.flags.c_contiguous and not np.shares_memory(copy, array)
        np.testing.assert_array_equal(copy, array)
