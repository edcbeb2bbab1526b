"""An update that is repeated for parameters like another records what calling it would have."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import Tensor, nn, optim
from pequegrad.ops.core import Interpreter
from pequegrad.trace.graph import format_graph
from pequegrad.trace.record import record_call
from pequegrad.trace.tracer import Tracer

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.1, "centered": True}),
    ("Adagrad", {"lr": 0.01, "lr_decay": 0.1}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.fixture
def calls(monkeypatch):
    """The specs of the parameters for which an update of AdamW was called."""
    found = []
    update = optim.AdamW.update

    def noted(self, parameter, gradient, state, group, rates):
        found.append(str(parameter.spec))
        return update(self, parameter, gradient, state, group, rates)

    noted.__code__ = noted.__code__.replace(co_filename=update.__code__.co_filename)  # as if it were ours
    monkeypatch.setattr(optim.AdamW, "update", noted)
    return found


def trained(parameters, step):
    """Return the text of a trace of ``step``, after a backward pass that gives each parameter a gradient, and its sources."""

    def function(_):
        loss = sum(((parameter * parameter).sum() for parameter in parameters), start=Tensor(0.0))
        loss.backward()
        step()
        return loss

    for parameter in parameters:
        parameter.grad = None
    trace = record_call(function, [Tensor(1.0)], ["x"], name="step", keep_grads=False)
    sources = [f"{type(item.source).__name__} {item.name} {item.is_written}" for item in trace.inputs]
    return format_graph(trace.graph, locations=True), sources


def assert_same_without_repeating(monkeypatch, parameters, step):
    repeated = trained(parameters, step)
    with monkeypatch.context() as patch:
        patch.setattr(Tracer, "updated", Interpreter.updated)
        assert trained(parameters, step) == repeated


def weights(*shapes):
    return [nn.Parameter(Tensor(np.ones(shape, np.float32))) for shape in shapes]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_each_optimizer_records_what_it_would_call_by_call(monkeypatch, name, settings):
    parameters = weights((3, 2), (3, 2), (2,), (3, 2), (1,), (), (2,), (1, 1), (), (0, 3), (2, 1, 3))
    optimizer = getattr(optim, name)(parameters, **settings)
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_an_update_is_called_once_for_parameters_of_any_shape_and_once_for_single_numbers(calls):
    """A number does not decide in which dtype it is computed with, so what an update records may be another for those."""
    parameters = weights((3, 2), (3, 2), (), (2,), (3, 2), ())
    trained(parameters, optim.AdamW(parameters).step)
    assert calls == ["float32[3,2]", "float32[]"]


def test_a_rate_that_has_a_shape_is_broadcast_for_each_shape_of_a_parameter(monkeypatch):
    rate = Tensor(np.full(2, 0.1, np.float32))
    parameters = weights((3, 2), (2,), (5, 2), (3, 2))
    optimizer = optim.SGD(parameters, lr=rate, momentum=0.9)
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_an_update_of_more_than_elements_is_called_for_each_shape(monkeypatch):
    shapes = []

    def update(self, parameter, gradient, state, group, rates):
        shapes.append(parameter.shape)
        return parameter - rates["lr"].to(parameter.dtype) * (gradient - gradient.mean()), {}

    update.__code__ = update.__code__.replace(co_filename=optim.SGD.update.__code__.co_filename)  # as if it were ours
    monkeypatch.setattr(optim.SGD, "update", update)
    parameters = weights((3, 2), (2,), (3, 2), (2,))
    assert_same_without_repeating(monkeypatch, parameters, optim.SGD(parameters, lr=0.1).step)
    assert shapes[:2] == [(3, 2), (2,)]
    assert len(shapes) == 2 + 4


def test_a_state_of_a_shape_of_its_own_is_another_likeness(monkeypatch):
    parameters = weights((3, 2), (3, 2), (5, 2))
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    optimizer.ensure_state()
    for parameter in parameters:
        optimizer.state[parameter]["extra"] = Tensor(np.ones(2, np.float32))
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_groups_of_other_settings_have_updates_of_their_own(monkeypatch, calls):
    parameters = weights((3, 2), (3, 2), (3, 2), (3, 2))
    groups = [{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:], "amsgrad": True}]
    optimizer = optim.AdamW(groups)
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)
    assert len(calls) == 2 + 4


def test_state_of_other_entries_is_another_likeness(monkeypatch):
    parameters = weights((3, 2), (3, 2), (3, 2))
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    optimizer.ensure_state()
    optimizer.state[parameters[1]]["extra"] = Tensor(np.ones((3, 2), np.float32))
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_state_in_another_order_is_another_likeness(monkeypatch):
    parameters = weights((3, 2), (3, 2), (3, 2))
    optimizer = optim.AdamW(parameters)
    optimizer.ensure_state()
    optimizer.state[parameters[1]] = dict(reversed(optimizer.state[parameters[1]].items()))
    for state in optimizer.state.values():
        state["step"] = Tensor(np.ones((3, 2), np.float32))  # of the shape of the others: only its name tells it apart
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_a_second_step_is_at_its_own_line_with_its_own_rates(monkeypatch):
    parameters = weights((3, 2), (3, 2))
    optimizer = optim.AdamW(parameters)

    def step():
        optimizer.step()
        optimizer.step()

    assert_same_without_repeating(monkeypatch, parameters, step)


@pytest.mark.parametrize("seen", ["parameters", "state"])
def test_views_and_shared_memory_are_not_taken_for_memory_of_their_own(monkeypatch, seen):
    whole = Tensor(np.ones((4, 2), np.float32))
    parameters = weights((2, 2), (2, 2), (2, 2))
    if seen == "parameters":
        parameters += [whole[:2].requires_grad_(), whole[2:].requires_grad_()]
    optimizer = optim.AdamW(parameters)
    optimizer.ensure_state()
    if seen == "state":
        optimizer.state[parameters[0]]["exp_avg"] = optimizer.state[parameters[0]]["exp_avg_sq"]
        optimizer.state[parameters[2]]["exp_avg"] = whole[:2]
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_a_rate_that_is_itself_trained_is_read_as_it_is_by_then(monkeypatch):
    rate = nn.Parameter(Tensor(np.float32(0.1)))
    parameters = [*weights((), ()), rate, *weights(())]
    optimizer = optim.SGD(parameters, lr=rate)
    assert_same_without_repeating(monkeypatch, parameters, optimizer.step)


def test_an_update_of_the_users_is_called_for_each_parameter():
    seen = []

    class Noted(optim.AdamW):
        def update(self, parameter, gradient, state, group, rates):
            seen.append(parameter)
            return super().update(parameter, gradient, state, group, rates)

    parameters = weights((3, 2), (3, 2), (3, 2))
    trained(parameters, Noted(parameters).step)
    assert len(seen) == 3


def test_a_parameter_of_a_kind_of_the_users_is_not_repeated(calls):
    class Mine(nn.Parameter):
        pass

    parameters = weights((3, 2), (3, 2)) + [Mine(Tensor(np.ones((3, 2), np.float32))) for _ in range(2)]
    trained(parameters, optim.AdamW(parameters).step)
    assert len(calls) == 3


def test_compiled_training_is_eager_training():
    def train(compiled):
        parameters = weights((3, 2), (3, 2), (2,))
        optimizer = optim.AdamW(parameters, lr=0.1)

        def step():
            optimizer.zero_grad()
            loss = sum((((i + 1) * p - 3) ** 2).sum() for i, p in enumerate(parameters))
            loss.backward()
            optimizer.step()
            return loss

        run = pg.compile(step, strict=True) if compiled else step
        losses = [run().item() for _ in range(3)]
        return losses, [parameter.detach().numpy() for parameter in parameters]

    (mine, ours), (theirs, eager) = train(True), train(False)
    assert mine == pytest.approx(theirs, rel=1e-5)
    for one, other in zip(ours, eager, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
