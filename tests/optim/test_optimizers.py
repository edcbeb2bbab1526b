"""Each optimizer beside torch's: ten steps, in groups, with every hyperparameter."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from pequegrad import Tensor, nn, optim
from pequegrad.dtypes import float64
from pequegrad.errors import StateDictError
from pequegrad.ops.core import Interpreter, use_interpreter

torch = pytest.importorskip("torch")

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.01, "maximize": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.1, "eps": 1e-3}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-5}),
]
per_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v))

SHAPES = ((3, 4), (4,), ())


def pair(dtype, name, settings):
    """The same parameters, in two groups, with the same optimizer, of ours and torch's."""
    arrays = [np.random.randn(*shape).astype(dtype) if shape else dtype(0.7) for shape in SHAPES]
    ours = [nn.Parameter(Tensor(array)) for array in arrays]
    theirs = [torch.nn.Parameter(torch.tensor(array)) for array in arrays]

    def groups(parameters):
        return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": settings["lr"] / 2}]

    return (
        ours, getattr(optim, name)(groups(ours), **settings),
        theirs, getattr(torch.optim, name)(groups(theirs), **settings),
    )  # fmt: skip


def set_gradients(ours, theirs):
    for mine, other in zip(ours, theirs):
        gradient = np.asarray(np.random.randn(*mine.shape), mine.dtype.numpy)
        mine.grad, other.grad = Tensor(gradient), torch.tensor(gradient)


def assert_equal(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs):
        np.testing.assert_allclose(mine.array, other.detach().numpy(), rtol=tolerance, atol=tolerance)


def assert_equal_state(ours, theirs, tolerance):
    mine, other = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert mine.keys() == other.keys()
    for number, entries in other.items():
        for name, value in entries.items():
            if value is not None:
                np.testing.assert_allclose(mine[number][name].array, value.numpy(), rtol=tolerance, atol=tolerance)


@per_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 3e-6)])
def test_ten_steps_equal_torch(name, settings, dtype, tolerance):
    ours, optimizer, theirs, reference = pair(dtype, name, settings)
    for i in range(10):
        set_gradients(ours, theirs)
        if i == 5:
            optimizer.param_groups[0]["lr"] *= 0.5
            reference.param_groups[0]["lr"] *= 0.5
        optimizer.step()
        reference.step()
    assert_equal(ours, theirs, tolerance)
    assert_equal_state(optimizer, reference, tolerance)
    assert [p.dtype.numpy for p in ours] == [np.dtype(dtype)] * 3


@per_case
def test_state_of_torch_loads_and_goes_on(name, settings):
    ours, optimizer, theirs, reference = pair(np.float64, name, settings)
    for _ in range(3):
        set_gradients(ours, theirs)
        reference.step()
    for mine, other in zip(ours, theirs):
        mine.detach().copy_(other.detach().numpy())
    optimizer.load_state_dict(reference.state_dict())
    for _ in range(3):
        set_gradients(ours, theirs)
        optimizer.step()
        reference.step()
    assert_equal(ours, theirs, 1e-11)


@per_case
def test_own_state_round_trips_and_keeps_its_memory(name, settings):
    ours, optimizer, theirs, _ = pair(np.float32, name, settings)
    set_gradients(ours, theirs)
    optimizer.step()
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    before = {id(t): t for state in optimizer.state.values() for t in state.values()}
    values = {id(t): t.array.copy() for t in before.values()}
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 77.0
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[1]["lr"] == settings["lr"] / 2
    after = {id(t): t for state in optimizer.state.values() for t in state.values()}
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        np.testing.assert_array_equal(tensor.array, values[key])


def test_state_that_was_never_made_loads_as_the_initial_one_into_the_same_memory():
    parameter = nn.Parameter(Tensor([1.0]))
    optimizer = optim.Adagrad([parameter], initial_accumulator_value=0.5)
    fresh = optimizer.state_dict()
    parameter.grad = Tensor([2.0])
    optimizer.step()
    total = optimizer.state[parameter]["sum"]
    assert total.item() == 4.5
    optimizer.load_state_dict(fresh)
    assert optimizer.state[parameter]["sum"] is total and total.item() == 0.5
    assert optimizer.state[parameter]["step"].item() == 0


def test_frozen_parameter_that_has_a_gradient_is_updated_as_in_torch():
    parameter = nn.Parameter(Tensor([1.0]), requires_grad=False)
    parameter.grad = Tensor([1.0])
    optim.SGD([parameter], lr=0.25, momentum=0.9).step()
    assert parameter.item() == 0.75


class Scalars(Interpreter):
    """Gives hyperparameters as a tracer does: as 0-d float64 Tensors, remembered by key."""

    def __init__(self):
        self.keys = set()

    def scalar(self, owner, key, value):
        self.keys.add(key)
        return Tensor(np.float64(value))


@per_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 3e-6)])
def test_hyperparameters_as_inputs_of_a_step_give_the_same_numbers(name, settings, dtype, tolerance):
    ours, optimizer, theirs, reference = pair(dtype, name, settings)
    interpreter = Scalars()
    for _ in range(4):
        set_gradients(ours, theirs)
        with use_interpreter(interpreter):
            optimizer.step()
        reference.step()
    assert_equal(ours, theirs, tolerance)
    assert [p.dtype.numpy for p in ours] == [np.dtype(dtype)] * 3
    off = {name for name in optimizer.switches if not settings.get(name, optimizer.defaults[name])}
    assert {key if isinstance(key, str) else key[0] for key in interpreter.keys} == set(optimizer.rates) - off
    assert ("betas" in optimizer.rates) == (("betas", 1) in interpreter.keys)


def test_lion_follows_its_paper():
    p = np.float64([0.5, -1.0, 2.0])
    m, parameter = np.zeros(3), nn.Parameter(Tensor(p))
    optimizer = optim.Lion([parameter], lr=0.1, betas=(0.8, 0.9), weight_decay=0.3)
    for _ in range(5):
        g = np.random.randn(3)
        parameter.grad = Tensor(g)
        optimizer.step()
        p = p * (1 - 0.1 * 0.3) - 0.1 * np.sign(0.8 * m + 0.2 * g)
        m = 0.9 * m + 0.1 * g
    np.testing.assert_allclose(parameter.array, p, rtol=1e-12)
    np.testing.assert_allclose(optimizer.state[parameter]["exp_avg"].array, m, rtol=1e-12)


def test_parameters_without_gradient_are_left_alone():
    first, second = nn.Parameter(Tensor([1.0])), nn.Parameter(Tensor([2.0]))
    optimizer = optim.Adam([first, second], weight_decay=0.5)
    first.grad = Tensor([1.0])
    optimizer.step()
    assert second.item() == 2.0 and optimizer.state[second]["step"].item() == 0
    assert first.item() != 1.0


def test_state_exists_before_the_first_step_and_none_is_added_by_it():
    parameter, frozen = nn.Parameter(Tensor([1.0, 2.0])), nn.Parameter(Tensor([3.0]), requires_grad=False)
    optimizer = optim.Adam([parameter, frozen], amsgrad=True)
    optimizer.ensure_state()
    before = dict(optimizer.state[parameter])
    assert set(before) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"} and frozen not in optimizer.state
    assert before["step"].shape == () and before["step"].dtype.name == "float32"
    parameter.grad = Tensor([0.1, 0.2])
    optimizer.step()
    assert all(optimizer.state[parameter][name] is tensor for name, tensor in before.items())
    assert before["step"].item() == 1


def test_step_updates_in_place_so_that_views_stay_true():
    parameter = nn.Parameter(Tensor([1.0, 2.0]))
    view = parameter.detach().numpy()
    optimizer = optim.SGD([parameter], lr=1.0)
    parameter.grad = Tensor([0.5, 0.25])
    optimizer.step()
    np.testing.assert_array_equal(view, [0.5, 1.75])
    assert parameter.is_leaf and parameter.requires_grad


def test_momentum_switched_on_later_starts_its_buffer():
    parameter = nn.Parameter(Tensor(np.float64([1.0])))
    optimizer = optim.SGD([parameter], lr=1.0)
    before = optimizer.static_fields(optimizer.param_groups[0])
    parameter.grad = Tensor(np.float64([1.0]))
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    assert optimizer.static_fields(optimizer.param_groups[0]) != before
    optimizer.step()
    optimizer.step()
    assert parameter.item() == 1 - 1 - 1 - 1.5


def test_static_fields_do_not_change_with_rates():
    optimizer = optim.AdamW([nn.Parameter(Tensor([1.0]))])
    group = optimizer.param_groups[0]
    before = optimizer.static_fields(group)
    group.update(lr=5.0, betas=(0.1, 0.2), eps=1.0, weight_decay=3.0, initial_lr=2.0)
    assert optimizer.static_fields(group) == before
    group["weight_decay"] = 0
    assert optimizer.static_fields(group) != before


def test_closure_computes_with_gradients_and_its_loss_is_returned():
    parameter = nn.Parameter(Tensor([3.0]))
    optimizer = optim.SGD([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter * parameter).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == pytest.approx(2.4)


def test_zero_grad_drops_or_fills():
    parameter = nn.Parameter(Tensor([3.0]))
    optimizer = optim.SGD([parameter])
    parameter.grad = gradient = Tensor([1.0])
    optimizer.zero_grad(set_to_none=False)
    assert parameter.grad is gradient and gradient.item() == 0
    optimizer.zero_grad()
    assert parameter.grad is None


def test_model_and_optimizer_copied_together_stay_together():
    model = nn.Linear(2, 1)
    optimizer = optim.Adam(model.parameters())
    model(Tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    for clone, its_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert its_optimizer.param_groups[0]["params"][0] is clone.weight
        assert clone.weight is not model.weight and its_optimizer.state[clone.weight]["step"].item() == 1
        before = model.weight.array.copy()
        clone.weight.grad = Tensor(np.ones((1, 2), np.float32))
        its_optimizer.step()
        np.testing.assert_array_equal(model.weight.array, before)
        assert not np.array_equal(clone.weight.array, before)


def test_learning_rate_may_be_a_tensor():
    parameter, rate = nn.Parameter(Tensor([1.0])), Tensor(0.25, dtype=float64)
    optimizer = optim.SGD([parameter], lr=rate)
    parameter.grad = Tensor([1.0])
    optimizer.step()
    rate.fill_(0.5)
    optimizer.step()
    assert parameter.item() == 0.25 and parameter.dtype.name == "float32"


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (ValueError, lambda p: optim.SGD([])),
        (TypeError, lambda p: optim.SGD(p)),
        (TypeError, lambda p: optim.SGD([1.0])),
        (TypeError, lambda p: optim.SGD([p], learning_rate=1)),
        (ValueError, lambda p: optim.SGD([p, p])),
        (ValueError, lambda p: optim.SGD([p], lr=-1)),
        (ValueError, lambda p: optim.SGD([p], nesterov=True)),
        (ValueError, lambda p: optim.Adam([p], betas=(0.9, 1.0))),
        (RuntimeError, lambda p: optim.SGD([p * 2])),
    ],
)
def test_bad_arguments_are_refused(error, make):
    with pytest.raises(error):
        make(nn.Parameter(Tensor([1.0])))


def test_state_that_does_not_fit_is_refused_and_changes_nothing():
    parameter = nn.Parameter(Tensor([1.0, 2.0]))
    optimizer = optim.Adam([parameter], lr=0.5)
    other = optim.Adam([nn.Parameter(Tensor([1.0])), nn.Parameter(Tensor([1.0]))])
    with pytest.raises(StateDictError, match=r"expected groups of \[1\] parameters. Got \[2\]"):
        optimizer.load_state_dict(other.state_dict())
    narrow = optim.Adam([nn.Parameter(Tensor([1.0, 2.0, 3.0]))], lr=0.1)
    narrow.ensure_state()
    with pytest.raises(StateDictError, match=r"exp_avg of parameter 0 must have shape \(2,\). Got \(3,\)"):
        optimizer.load_state_dict(narrow.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5 and not optimizer.state
