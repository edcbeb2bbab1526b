"""Under `config.debug_nans` a compiled step that gives NaN names the op and its line, and changes nothing."""

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.errors import NotANumberError

TARGETS = ("cpp", "cuda-sim")
GOOD = np.full((4, 3), 2.0, np.float32)
BAD = np.array([[2, 2, 2], [2, -1, 2], [2, 2, 2], [2, 2, 2]], np.float32)


class Training:
    """A net with dropout and Adam whose loss is NaN where an input is negative."""

    def __init__(self, target):
        pg.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.1)

        def step(x):
            self.optimizer.zero_grad()
            loss = (self.model(x) * x.log().sum()).mean()
            loss.backward()
            self.optimizer.step()
            return loss

        self.step = pg.compile(step, strict=True, target=target)

    def state(self):
        moments = self.optimizer.state_dict()["state"].values()
        tensors = [*self.model.parameters(), *(t for entry in moments for t in entry.values() if hasattr(t, "numpy"))]
        return [tensor.detach().numpy().copy() for tensor in tensors]


def same(left, right):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_nan_names_the_op_and_its_line_and_leaves_state_and_randomness_as_before(target):
    training, other = Training(target), Training(target)
    training.step(GOOD).item(), training.step(GOOD).item()
    before = training.state()
    with (
        pg.config(debug_nans=True),
        pytest.raises(
            NotANumberError, match=r"test_nans\.py:\d+: step: log of .*1 of 12.*no input has NaN.*changed nothing"
        ),
    ):
        training.step(BAD)
    assert same(training.state(), before)
    after = training.step(GOOD).item()
    pg.manual_seed(0)
    other = Training(target)
    assert [other.step(GOOD).item() for _ in range(3)][-1] == after
    assert same(other.state(), training.state())


@pytest.mark.parametrize("target", TARGETS)
def test_run_many_stops_at_the_step_that_gives_nan(target):
    training, other = Training(target), Training(target)
    pg.manual_seed(0)
    with pg.config(debug_nans=True), pytest.raises(NotANumberError, match=r"log of"):
        training.step.run_many(np.array([[0, 2], [2, 3], [0, 1], [0, 2]]), BAD)
    pg.manual_seed(0)
    other.step(BAD[[0, 2]]), other.step(BAD[[2, 3]])
    assert same(other.state(), training.state())


def test_nan_that_is_masked_out_is_no_error():
    step = pg.compile(lambda x: pg.where(x > 0, x.log(), 0.0).sum(), strict=True, target="cpp")
    with pg.config(debug_nans=True):
        assert step(BAD).item() == pytest.approx(11 * np.log(2), rel=1e-5)


def test_nan_in_the_state_is_said_to_come_in():
    weight = pg.tensor([1.0, float("nan")])
    step = pg.compile(lambda x: (x * weight).sum(), strict=True, target="cpp")
    with pg.config(debug_nans=True), pytest.raises(NotANumberError, match="NaN came in with input"):
        step(np.ones(2, np.float32))


def test_the_check_is_made_after_quick_calls_and_ends_with_the_setting():
    step = pg.compile(lambda x: x.log(), strict=True, target="cpp")
    for _ in range(3):
        step(BAD)
    with pg.config(debug_nans=True), pytest.raises(NotANumberError):
        step(BAD)
    assert np.isnan(step(BAD).numpy()).any()


def test_the_environment_variable_turns_the_check_on_after_quick_calls(monkeypatch):
    step = pg.compile(lambda x: x.log(), strict=True, target="cpp")
    for _ in range(3):
        step(BAD)
    monkeypatch.setenv("PEQUEGRAD_DEBUG_NANS", "1")
    with pytest.raises(NotANumberError, match="log of"):
        step(BAD)
