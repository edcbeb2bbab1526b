"""Each schedule beside torch's: thirty epochs, two groups."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import Tensor, nn, optim
from pequegrad.optim import lr_scheduler as schedules

torch = pytest.importorskip("torch")
reference = torch.optim.lr_scheduler if torch else None

CASES = {
    "step": lambda m, o: m.StepLR(o, step_size=4, gamma=0.5),
    "multi step": lambda m, o: m.MultiStepLR(o, [3, 7, 7, 20], gamma=0.3),
    "exponential": lambda m, o: m.ExponentialLR(o, 0.9),
    "lambda": lambda m, o: m.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "lambdas": lambda m, o: m.LambdaLR(o, [lambda epoch: 0.9**epoch, lambda epoch: epoch + 1]),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 30, eta_min=0.001),
    "cosine, three times": lambda m, o: m.CosineAnnealingLR(o, 7),
    "linear": lambda m, o: m.LinearLR(o, 0.1, 0.8, 12),
    "sequential": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 5), m.CosineAnnealingLR(o, 10), m.ExponentialLR(o, 0.8)], [5, 15]
    ),
}
per_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def pair():
    def groups(parameter):
        return [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.03}]

    ours = optim.SGD(groups(lambda: nn.Parameter(Tensor([1.0]))), lr=0.1)
    theirs = torch.optim.SGD(groups(lambda: torch.nn.Parameter(torch.ones(1))), lr=0.1)
    return ours, theirs


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@per_case
@pytest.mark.filterwarnings("ignore")
def test_thirty_epochs_equal_torch(make):
    ours, theirs = pair()
    mine, other = make(schedules, ours), make(reference, theirs)
    for epoch in range(30):
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12, atol=1e-15, err_msg=f"epoch {epoch}")
        np.testing.assert_allclose(mine.get_last_lr(), rates(ours), rtol=0)
        mine.step()
        other.step()


@per_case
def test_schedule_resumes_from_its_state(make):
    ours, again = pair()[0], pair()[0]
    schedule = make(schedules, ours)
    for _ in range(6):
        schedule.step()
    resumed = make(schedules, again)
    again.load_state_dict(ours.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(10):
        schedule.step()
        resumed.step()
    assert rates(again) == rates(ours) and resumed.last_epoch == 16


@pytest.mark.filterwarnings("ignore")
def test_rate_changed_by_hand_is_carried_on_as_in_torch():
    ours, theirs = pair()
    mine, other = schedules.StepLR(ours, 3), reference.StepLR(theirs, 3)
    for epoch in range(8):
        if epoch == 4:
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 5.0
        mine.step()
        other.step()
    np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "max", "threshold_mode": "abs", "threshold": 0.01, "cooldown": 2, "min_lr": 0.02}]
)
def test_plateau_equals_torch(settings):
    ours, theirs = pair()
    mine = schedules.ReduceLROnPlateau(ours, patience=2, factor=0.4, **settings)
    other = reference.ReduceLROnPlateau(theirs, patience=2, factor=0.4, **settings)
    for value in np.random.rand(30):
        mine.step(Tensor(value))
        other.step(value)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)
    assert rates(ours)[0] < 0.1


def test_bad_arguments_are_refused():
    optimizer = pair()[0]
    with pytest.raises(TypeError):
        schedules.StepLR("optimizer", 1)
    with pytest.raises(KeyError, match="initial_lr"):
        schedules.StepLR(optimizer, 1, last_epoch=3)
    with pytest.raises(ValueError, match="2 functions"):
        schedules.LambdaLR(optimizer, [lambda epoch: 1.0])
