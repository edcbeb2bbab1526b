"""The reverse sweep: accumulation, graphs kept and freed, gradients of gradients, views, in-place writes, as torch."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import Tensor
from pequegrad.errors import AutogradError, DTypeError, ShapeError

torch = pytest.importorskip("torch")


def leaf(values):
    return Tensor(np.float32(values), requires_grad=True)


def test_the_example_of_the_readme_prints_its_numbers(capsys):
    from pequegrad.tensor import Tensor

    t1 = Tensor([1, 2, 3, 4, 5], requires_grad=True)
    t2 = Tensor([5, 4, 3, 2, 1], requires_grad=True)
    t3 = t1 + t2
    t4 = t3.sum()
    t4.backward()
    print(t1.grad)
    print(t3)
    assert capsys.readouterr().out == "[1, 1, 1, 1, 1]\n[6, 6, 6, 6, 6]\n"


# --- accumulation -----------------------------------------------------------------------------------------------------


def test_gradients_of_several_uses_and_calls_add_up():
    x = leaf([1, 2])
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [3, 5]
    (x * 2).sum().backward()
    assert x.grad.tolist() == [5, 7]
    x.zero_grad()
    assert x.grad is None


def test_accumulation_writes_into_the_memory_of_the_gradient_that_is_there():
    x = leaf([1, 2])
    x.sum().backward()
    memory = x.grad.numpy()
    x.sum().backward()
    assert memory.tolist() == [2, 2]


def test_gradients_of_two_leaves_do_not_share_memory():
    x, y = leaf([1, 1]), leaf([1, 1])
    ((x + y) * 2).sum().backward()
    x.grad.zero_()
    assert y.grad.tolist() == [2, 2]


def test_a_gradient_does_not_share_memory_with_what_the_caller_passed():
    x, start = leaf([1, 1]), Tensor([3.0, 4.0])
    x.backward(start)
    start.zero_()
    assert x.grad.tolist() == [3, 4]


def test_broadcast_operands_get_gradients_of_their_own_shape():
    x, row, number = leaf(np.ones((2, 3))), leaf([1, 2, 3]), leaf(2)
    (x * row * number).sum().backward()
    assert (x.grad.shape, row.grad.tolist(), number.grad.item()) == ((2, 3), [4, 4, 4], 12)


def test_gradients_return_to_the_dtype_of_the_leaf():
    x, y = (
        Tensor([1.0, 2.0], dtype="float16", requires_grad=True),
        Tensor([1.0, 2.0], dtype="float64", requires_grad=True),
    )
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (pg.float16, pg.float64)


# --- backward's arguments -------------------------------------------------------------------------------------------


def test_backward_of_several_elements_needs_a_gradient_of_their_shape():
    x = leaf([1, 2])
    with pytest.raises(AutogradError, match=r"implied only for a scalar. Got shape \(2,\)"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match="must have the output's shape"):
        (x * 2).backward(Tensor([1.0]))
    (x * 2).backward(np.float32([1, 3]))
    assert x.grad.tolist() == [2, 6]


def test_backward_without_history_is_an_error_that_names_the_line():
    with pytest.raises(AutogradError, match=r"test_autodiff\.py:\d+: backward: float32\[1\] does not require grad"):
        Tensor([1.0]).backward()


def test_a_second_backward_needs_retain_graph():
    x = leaf([2])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [8]
    with pytest.raises(AutogradError, match="a second time"):
        y.backward()


def test_integers_take_no_part():
    with pytest.raises(DTypeError, match="floating-point"):
        Tensor([1]).requires_grad_()
    x = leaf([1.5, 2.5])
    assert not x.to("int64").requires_grad and not (x > 0).requires_grad
    assert Tensor([1, 2], requires_grad=True).dtype is pg.float32


# --- gradients of gradients -----------------------------------------------------------------------------------------


def test_grad_returns_gradients_and_touches_no_leaf():
    x, y = leaf([1, 2]), leaf([3, 4])
    gx, gy = pg.grad((x * y * y).sum(), [x, y])
    assert gx.tolist() == [9, 16] and gy.tolist() == [6, 16]
    assert x.grad is None and y.grad is None and not gx.requires_grad


def test_grad_of_an_intermediate_result():
    x = leaf([1, 2])
    y = x * 3
    (gradient,) = pg.grad((y * y).sum() + y.sum(), y)
    assert gradient.tolist() == [7, 13]


def test_grad_takes_several_outputs_and_their_gradients():
    x = leaf([1, 2])
    (gradient,) = pg.grad([(x * 2), x.sum()], x, grad_outputs=[Tensor([1.0, 10.0]), None])
    assert gradient.tolist() == [3, 21]


def test_third_derivative():
    x = leaf([2])
    y = x**4
    for _ in range(3):
        (y,) = pg.grad(y.sum(), x, create_graph=True)
    assert y.tolist() == [48]


def test_create_graph_in_backward_makes_grad_differentiable():
    x = leaf([3])
    (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    (again,) = pg.grad(x.grad.sum(), x)
    assert again.tolist() == [18]


def test_gradient_penalty_agrees_with_torch():
    w = np.float32([[0.5, -1], [2, 0.3]])
    ours, theirs = leaf(w), torch.tensor(w, requires_grad=True)
    x = leaf([[1, 2]])
    y = torch.tensor([[1.0, 2.0]], requires_grad=True)
    (g,) = pg.grad((x @ ours).tanh().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad((y @ theirs).tanh().sum(), y, create_graph=True)
    ((g.norm() - 1) ** 2).backward()
    ((h.norm() - 1) ** 2).backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-5)


def test_grad_says_which_input_is_wrong():
    x = leaf([1])
    with pytest.raises(AutogradError, match=r"input 1, .* does not require grad"):
        pg.grad(x.sum(), [x, Tensor([1.0])])
    other = leaf([1])
    with pytest.raises(AutogradError, match=r"do not depend on input 1.*allow_unused"):
        pg.grad(x.sum(), [x, other])
    assert pg.grad(x.sum(), [x, other], allow_unused=True)[1] is None
    with pytest.raises(ShapeError, match="one of grad_outputs per output"):
        pg.grad(x.sum(), x, grad_outputs=[None, None])


# --- switches -------------------------------------------------------------------------------------------------------


def test_no_grad_is_a_context_and_a_decorator_with_and_without_parentheses():
    x = leaf([1])
    with pg.no_grad():
        assert not (x * 2).requires_grad
        with pg.enable_grad():
            assert (x * 2).requires_grad
        assert not pg.is_grad_enabled()
    assert pg.is_grad_enabled()

    @pg.no_grad()
    def with_parentheses():
        """Doc."""
        return (x * 2).requires_grad

    @pg.no_grad
    def without():
        return (x * 2).requires_grad

    assert not with_parentheses() and not without() and with_parentheses.__doc__ == "Doc."


def test_no_grad_ends_where_an_exception_leaves_it_and_nests_in_itself():
    switch = pg.no_grad()
    with pytest.raises(ZeroDivisionError), switch, switch:
        raise ZeroDivisionError
    assert pg.is_grad_enabled()


def test_set_grad_enabled_lasts_until_set_again_or_the_block_ends():
    pg.set_grad_enabled(False)
    assert not pg.is_grad_enabled()
    pg.set_grad_enabled(True)
    with pg.set_grad_enabled(False):
        assert not pg.is_grad_enabled()
    assert pg.is_grad_enabled()
    decorated = pg.set_grad_enabled(False)(pg.is_grad_enabled)
    assert pg.is_grad_enabled() and not decorated()


def test_a_generator_cannot_be_decorated():
    with pytest.raises(TypeError, match="suspended"):

        @pg.no_grad
        def steps():
            yield 1


def test_the_mode_belongs_to_the_thread():
    seen = []
    with pg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(pg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_cuts_history_and_shares_memory():
    x = leaf([1, 2])
    y = x.detach()
    assert not y.requires_grad and y.numpy() is not None
    with pg.no_grad():
        y[0] = 5
    assert x.tolist() == [5, 2]


# --- in place: what torch does, for both libraries ------------------------------------------------------------------


def write_view_of_intermediate(lib, x):
    y = x * 1
    y[1:].mul_(3)
    return (y * y).sum()


def write_through_two_views(lib, x):
    y = x * 1
    first, second = y[:2], y[1:]
    first.mul_(2)
    second.add_(first[1].clone())
    return (first * second).sum() + y.sum()


def write_view_of_view(lib, x):
    y = (x * 2).reshape(3, 1)
    y[1:].transpose(0, 1)[0].mul_(x[0])
    return (y * y).sum()


def read_view_after_base_is_written(lib, x):
    y = x * 2
    view = y[1:]
    y.mul_(x)
    return (view * view).sum()


def base_without_history_takes_it_from_a_value(lib, x):
    base = lib.zeros(4)
    base[1:] = x
    base[0] = x[2]
    return (base * base).sum()


def running_product_in_place(lib, x):
    y = lib.ones(3)
    y = y * x
    for i in range(2):
        y[i + 1] *= y[i]
    return y.sum()


def exp_in_place(lib, x):
    y = x * 1
    y.exp_()
    return (y * 2).sum()


def swap_halves(lib, x):
    y = x * 1
    y[:2] = y[1:].clone() * x[:2]
    return (y * y).sum()


def augmented_slices(lib, x):
    y = x * 1
    y[1:] += x[:2]
    y[::2] /= 2
    y[0] -= x[2]
    return (y * y * y).sum()


def write_by_mask_and_index(lib, x):
    y = x * 1
    y[y > 1.5] = 0
    y[[0, 0]] = x[1]
    return (y * x).sum()


CASES = [
    write_view_of_intermediate, write_through_two_views, write_view_of_view, read_view_after_base_is_written,
    base_without_history_takes_it_from_a_value, exp_in_place,
    swap_halves, augmented_slices, write_by_mask_and_index,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_in_place_writes_have_torchs_values_and_gradients(case):
    values = np.float32([1, 2, 3])
    ours, theirs = leaf(values), torch.tensor(values, requires_grad=True)
    result, expected = case(pg, ours), case(torch, theirs)
    assert result.item() == pytest.approx(expected.item())
    result.backward()
    expected.backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-5)


def overwritten_input(lib, x):
    y = x * 1
    z = y * y
    y.add_(1)
    return z.sum()


def overwritten_through_a_view(lib, x):
    y = x * 1
    z = y * y
    y[0].add_(1)
    return z.sum()


def overwritten_through_detach(lib, x):
    y = x * 1
    z = y * y
    y.detach().add_(1)
    return z.sum()


def overwritten_under_no_grad(lib, x):
    z = (x * x).sum()
    with lib.no_grad():
        x.mul_(2)
    return z


def leaf_written(lib, x):
    x.mul_(2)
    return x.sum()


def leaf_written_through_a_view(lib, x):
    x[0] = 1
    return x.sum()


def view_made_under_no_grad(lib, x):
    y = x * 1
    with lib.no_grad():
        view = y[:2]
    view.mul_(2)
    return y.sum()


def expanded_written(lib, x):
    (x * 1).expand(2, 3).mul_(2)
    return x.sum()


def detach_of_a_view(lib, x):
    (x * 1)[:2].detach_()
    return x.sum()


FORBIDDEN = [
    running_product_in_place, overwritten_input, overwritten_through_a_view, overwritten_through_detach,
    overwritten_under_no_grad, leaf_written,
    leaf_written_through_a_view, view_made_under_no_grad, expanded_written, detach_of_a_view,
]  # fmt: skip


@pytest.mark.parametrize("case", FORBIDDEN, ids=lambda case: case.__name__)
def test_what_would_make_a_gradient_wrong_is_an_error_here_as_in_torch(case):
    with pytest.raises(RuntimeError):
        case(torch, torch.ones(3, requires_grad=True)).backward()
    with pytest.raises((AutogradError, ShapeError)):
        case(pg, leaf([1, 1, 1])).backward()


def test_a_result_that_its_gradient_needs_must_not_change():
    x = leaf([1, 2])
    y = x.exp()
    y.add_(1)
    with pytest.raises(AutogradError, match=r"result 0 of exp, .* changed in place"):
        y.sum().backward()


def test_data_replaced_between_forward_and_backward_is_an_error():
    """torch goes on with the new numbers, and the gradient is that of another function."""
    x = leaf([1, 2])
    y = (x * x).sum()
    x.data = Tensor([5.0, 5.0])
    with pytest.raises(AutogradError, match=r"\.data was replaced"):
        y.backward()


def test_a_view_that_became_a_leaf_stays_one_when_its_base_is_written():
    """An optimizer over slices of one flat buffer writes the buffer; the slices must go on requiring grad."""
    flat = pg.zeros(4)
    part = flat[:2].requires_grad_()
    with pg.no_grad():
        flat.add_(1)
        part.mul_(3)
    assert part.requires_grad and part.is_leaf and flat.tolist() == [3, 3, 1, 1]
    part.sum().backward()
    assert part.grad.tolist() == [1, 1]


def test_in_place_result_must_fit():
    with pytest.raises(DTypeError, match="cannot be written to a tensor of int64"):
        Tensor([1]).add_(1.5)
    with pytest.raises(ShapeError, match="does not fit"):
        Tensor([1.0]).add_(Tensor([1.0, 2.0]))
    x = Tensor([1.0])
    x += Tensor([1.0], dtype="float64")
    assert x.dtype is pg.float32


def test_read_only_memory_is_not_written():
    array = np.arange(3.0)
    array.flags.writeable = False
    with pytest.raises(AutogradError, match="read-only"):
        pg.from_numpy(array).add_(1)


# --- the tape -------------------------------------------------------------------------------------------------------


def test_a_long_chain_runs_and_is_freed_without_recursion():
    x = leaf([1])
    y = x
    for _ in range(20_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.tolist() == [1]
    del y
    gc.collect()


def test_a_graph_without_cycles_is_freed_with_its_last_result():
    import weakref

    x = leaf([1, 2])
    gc.disable()
    try:
        y = x * 2
        z = y.exp().sum()
        alive = weakref.ref(y)
        del y
        z.backward()
        del z
        assert alive() is None
    finally:
        gc.enable()


def test_debug_nans_names_op_and_line():
    with (
        pg.config(debug_nans=True),
        pytest.raises(ArithmeticError, match=r"test_autodiff\.py:\d+: log of .*no input has NaN"),
    ):
        Tensor([-1.0]).log()
    assert Tensor([-1.0]).log().isnan().item()
