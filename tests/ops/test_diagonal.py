"""A diagonal is a view, as in torch: it shares memory, writes through, and carries gradients both ways."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.errors import AutogradError, ShapeError
from tests.ops.comparing import assert_like_torch, torch

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
CASES = [(0, 0, 1), (1, 0, 2), (-1, 1, 2), (2, 2, 0), (-3, 0, 1), (3, -1, -2), (9, 1, 2), (-9, 1, 2)]
per_case = pytest.mark.parametrize("case", CASES, ids=str)


@per_case
def test_it_lies_in_memory_where_torch_has_it(case):
    x, its = pg.tensor(X), torch.tensor(X)
    shown, expected = x.diagonal(*case), its.diagonal(*case)
    np.testing.assert_array_equal(shown.numpy(), expected.numpy())
    assert shown.storage is x.storage
    if shown.numel():
        assert np.shares_memory(shown.numpy(), x.numpy())
        wanted = [4 * stride for extent, stride in zip(expected.shape, expected.stride()) if extent > 1]
        assert [stride for extent, stride in zip(shown.shape, shown.strides()) if extent > 1] == wanted


@per_case
def test_writes_go_through_to_the_base_and_back(case):
    x, its = pg.tensor(X), torch.tensor(X)
    x.T.diagonal(*case).mul_(-2)
    its.permute(2, 1, 0).diagonal(*case).mul_(-2)
    np.testing.assert_array_equal(x.numpy(), its.numpy())
    shown = x.diagonal(*case)
    x.add_(1)
    np.testing.assert_array_equal(shown.numpy(), its.add(1).diagonal(*case).numpy())


@per_case
def test_gradients_agree_with_torch_for_a_diagonal_that_is_read_and_one_that_is_written(case):
    assert_like_torch(lambda x: x.diagonal(*case) * 3, lambda x: x.diagonal(*case) * 3, X)

    def overwritten(x):
        y = x * x
        shown = y.diagonal(*case)
        shown *= x.diagonal(*case) + 1
        return y * 2, shown

    assert_like_torch(overwritten, overwritten, X)


def test_a_written_base_makes_a_saved_diagonal_stale():
    for module in (pg, torch):
        x = module.ones((3, 3), requires_grad=True)
        y = x * 2
        z = y.diagonal() * y.diagonal()
        y.add_(1)
        with pytest.raises((AutogradError, RuntimeError)):
            z.sum().backward()


def test_diag_is_a_copy_as_in_torch():
    for module in (pg, torch):
        x = module.ones((3, 3))
        pg.Tensor.diag(x).fill_(7.0) if module is pg else torch.diag(x).fill_(7.0)
        assert x.sum().item() == 9


def test_a_diagonal_of_read_only_memory_is_read_only():
    array = np.ones((3, 3), np.float32)
    array.flags.writeable = False
    shown = pg.from_numpy(array).diagonal()
    with pytest.raises(AutogradError):
        shown.fill_(2.0)


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "bfloat16", "float64"])
def test_every_dtype_has_diagonals(dtype):
    x = pg.tensor(np.arange(9).reshape(3, 3)).to(dtype)
    assert x.diagonal(1).float().tolist() == ([1, 1] if dtype == "bool" else [1, 5])
    x.diagonal().fill_(0)
    assert x.diagonal().float().tolist() == [0, 0, 0]


def test_equal_dimensions_are_refused():
    with pytest.raises(ShapeError, match="must differ"):
        pg.ones((2, 2)).diagonal(0, 1, -1)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_compiled_reads_writes_and_gradients_equal_torch(case):
    state = pg.tensor(X)
    its_state = torch.tensor(X)

    def step(x, state):
        y = (x * x).permute(1, 0, 2)
        y.diagonal(*case).add_(x.sum())
        loss = (y.diagonal(*case) * 2 + state.diagonal(*case)[..., :1]).sum() + y.sum() / 8
        loss.backward()
        return y.diagonal(*case) + 0

    def compiled(x):
        result = step(x, state.permute(1, 0, 2))
        with pg.no_grad():
            state.permute(1, 0, 2).diagonal(*case).copy_(result.detach())
        return result

    with pg.config(quiet=True):
        run = pg.compile(compiled, strict=True)
        x, its = pg.tensor(X / 8, requires_grad=True), torch.tensor(X / 8, requires_grad=True)
        result = run(x)
    expected = step(its, its_state.permute(1, 0, 2))
    its_state.permute(1, 0, 2).diagonal(*case).copy_(expected.detach())
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), its.grad.numpy(), rtol=1e-5)
    np.testing.assert_allclose(state.numpy(), its_state.numpy(), rtol=1e-5)
