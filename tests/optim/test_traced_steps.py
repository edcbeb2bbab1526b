"""A traced step of each optimizer does what the eager one does, also after its numbers were changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from pequegrad import Tensor, nn, optim
from pequegrad.nn import functional
from pequegrad.ops.random import manual_seed
from pequegrad.trace.record import record_call
from pequegrad.trace.step import BoundStep, interpret

CASES = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.1, "centered": True}),
    ("Adagrad", {"lr": 0.01, "lr_decay": 0.1}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_traced_step_equals_eager(name, settings):
    manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.ReLU(), nn.Linear(5, 3)).double()
    optimizer = getattr(optim, name)(model.parameters(), **settings)
    twin, its_optimizer = copy.deepcopy((model, optimizer))

    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss, norm

    arguments = [Tensor(np.random.randn(8, 6)), Tensor(np.arange(8) % 3)]
    trace = record_call(
        lambda tensors: step(model, optimizer, *tensors), arguments, ["x", "y"], name="step", keep_grads=False
    )
    assert all(state.get("step", Tensor(0.0)).item() == 0 for state in optimizer.state.values())
    bound = BoundStep(trace, interpret(trace.graph))
    for i in range(6):
        for group in (optimizer.param_groups[0], its_optimizer.param_groups[0]):
            if i == 3:
                group["lr"] *= 0.5
                group.update({key: value for key, value in {"betas": (0.7, 0.8), "eps": 1e-3}.items() if key in group})
        results, expected = bound(arguments), step(twin, its_optimizer, *arguments)
        for mine, other in zip(results, expected):
            assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    for key, tensor in model.state_dict().items():
        np.testing.assert_allclose(tensor.array, twin.state_dict()[key].array, rtol=1e-12, atol=1e-14, err_msg=key)
    mine, other = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    for number, entries in other.items():
        for key, tensor in entries.items():
            np.testing.assert_allclose(mine[number][key].array, tensor.array, rtol=1e-12, atol=1e-14, err_msg=key)
