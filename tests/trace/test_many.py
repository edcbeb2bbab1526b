"""`run_many` does, bit for bit, what as many calls do; on every target, and where it runs eagerly."""

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.errors import DTypeError, IndexOutOfRange, ShapeError
from pequegrad.nn import functional as F
from pequegrad.trace import many

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((40, 6)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 40)
ORDER = RANDOM.integers(0, 40, (9, 8))


class Training:
    """A net with dropout, its optimizer and its step, always from the same state."""

    def __init__(self, make_optimizer, **options):
        pg.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3))
        self.optimizer = make_optimizer(self.model.parameters())

        def step(x, y):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            return {"loss": loss, "size": len(x)}

        self.step = pg.compile(step, strict=True, **options)

    def state(self):
        arrays = [parameter.detach().numpy().copy() for parameter in self.model.parameters()]
        state = self.optimizer.state_dict()["state"]
        return arrays + [t.numpy().copy() for entry in state.values() for t in entry.values() if hasattr(t, "numpy")]


OPTIMIZERS = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=0.01),
}


@pytest.mark.parametrize("target", ["cpp", "cuda-sim"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_many_steps_are_bit_for_bit_as_many_calls(name, target):
    one, other = (Training(OPTIMIZERS[name], target=target) for _ in range(2))
    pg.manual_seed(1)
    losses = [one.step(IMAGES[rows], LABELS[rows])["loss"].numpy() for rows in ORDER]
    pg.manual_seed(1)
    results = other.step.run_many(ORDER, IMAGES, LABELS)
    np.testing.assert_array_equal(results["loss"].numpy(), losses)
    assert results["size"] == 8
    assert results["loss"].shape == (9,)
    for a, b in zip(one.state(), other.state(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("launch", ["graph", "cooperative"])
def test_more_steps_than_one_launch_holds_are_all_done(launch, monkeypatch):
    monkeypatch.setattr(many, "SECONDS", 1e3)
    total = pg.Tensor(np.zeros(1, np.int64))

    @pg.compile(strict=True, target="cuda-sim")
    def step(x):
        total.add_(x.sum())
        return total * 1

    x = np.arange(7)
    order = RANDOM.integers(0, 7, (1300, 2))
    with pg.config(cuda_launch=launch):
        totals = step.run_many(order, x).numpy()
    np.testing.assert_array_equal(totals[:, 0], np.cumsum(x[order].sum(1)))


@pytest.mark.parametrize("launch", ["graph", "cooperative"])
def test_many_steps_in_one_launch_are_bit_for_bit_as_many_calls(launch):
    with pg.config(cuda_launch=launch):
        one, other = (Training(OPTIMIZERS["adam"], target="cuda-sim") for _ in range(2))
        pg.manual_seed(1)
        losses = [one.step(IMAGES[rows], LABELS[rows])["loss"].numpy() for rows in ORDER]
        pg.manual_seed(1)
        np.testing.assert_array_equal(other.step.run_many(ORDER, IMAGES, LABELS)["loss"].numpy(), losses)


def test_many_steps_run_natively_once_the_step_is_known():
    training = Training(OPTIMIZERS["adam"])
    training.step(IMAGES[ORDER[0]], LABELS[ORDER[0]])
    before = training.step.cache_info().hits
    training.step.run_many(ORDER, IMAGES, LABELS)
    assert training.step.cache_info().hits == before + 1


def test_the_stance_that_forces_eager_is_a_loop_with_the_same_shape():
    one, other = (Training(OPTIMIZERS["adam"]) for _ in range(2))
    pg.manual_seed(1)
    expected = one.step.run_many(ORDER, IMAGES, LABELS)["loss"].numpy()
    pg.manual_seed(1)
    with pg.stance("force_eager"):
        losses = other.step.run_many(ORDER, IMAGES, LABELS)["loss"].numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_gradient_that_is_carried_from_step_to_step_accumulates():
    weight, twin = (pg.Tensor(np.ones(6, np.float32), requires_grad=True) for _ in range(2))

    def step_of(weight):
        @pg.compile(strict=True)
        def step(x):
            loss = (x * weight).sum()
            loss.backward()
            return loss

        return step

    one, other = step_of(weight), step_of(twin)
    losses = [one(IMAGES[rows]).numpy() for rows in ORDER]
    np.testing.assert_array_equal(other.run_many(ORDER, IMAGES).numpy(), losses)
    np.testing.assert_array_equal(twin.grad.numpy(), weight.grad.numpy())


def test_gradients_that_are_kept_are_those_of_the_last_step():
    weight = pg.Tensor(np.ones(6, np.float32), requires_grad=True)

    @pg.compile(strict=True, keep_grads=True)
    def step(x):
        weight.grad = None
        loss = (x * weight).sum()
        loss.backward()
        return loss

    step.run_many(ORDER, IMAGES)
    np.testing.assert_allclose(weight.grad.numpy(), IMAGES[ORDER[-1]].sum(0), rtol=1e-5)


def test_a_result_that_is_a_captured_tensor_is_stacked_as_it_was_after_each_step():
    counter = pg.Tensor(np.zeros(2, np.float32))

    @pg.compile(strict=True)
    def step(x):
        counter.add_(x.sum())
        return counter

    x = np.ones((4, 1), np.float32)
    np.testing.assert_array_equal(step.run_many([[0], [1], [2]], x).numpy(), [[1, 1], [2, 2], [3, 3]])


def test_a_step_that_writes_to_its_argument_leaves_the_dataset_as_it_is():
    @pg.compile(strict=True)
    def step(x):
        x.mul_(2)
        return x.sum()

    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(step.run_many([[0, 1], [0, 1], [2, 3]], x).numpy(), [12, 12, 12])
    np.testing.assert_array_equal(x, 1)


def test_a_learning_rate_that_changes_between_takes_effect():
    one, other = (Training(OPTIMIZERS["sgd"]) for _ in range(2))
    for rate in (0.1, 0.01):
        one.optimizer.param_groups[0]["lr"] = other.optimizer.param_groups[0]["lr"] = rate
        pg.manual_seed(3)
        losses = [one.step(IMAGES[rows], LABELS[rows])["loss"].numpy() for rows in ORDER]
        pg.manual_seed(3)
        np.testing.assert_array_equal(other.step.run_many(ORDER, IMAGES, LABELS)["loss"].numpy(), losses)


@pytest.mark.parametrize("target", ["cpp", "cuda-sim"])
def test_a_bad_index_in_the_data_stops_the_steps_and_is_named(target):
    table = pg.Tensor(np.zeros((5, 2), np.float32))

    @pg.compile(strict=True, target=target)
    def step(rows):
        table.add_(1)
        return table[rows].sum()

    indices = np.array([0, 1, 2, 7, 4])
    with pytest.raises(IndexOutOfRange, match="index 7"):
        step.run_many([[0], [1], [2], [3], [4]], indices).numpy()
    assert step.run_many([[0], [1]], indices).shape == (2,)


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        ([[0, 40]], IndexOutOfRange, "row 40.*rows 0 to 39"),
        ([[0, -1]], IndexOutOfRange, "row -1"),
        ([0, 1], ShapeError, r"\(2,\)"),
        (np.zeros((0, 8), np.int64), ShapeError, r"\(0, 8\)"),
        ([[0.5]], DTypeError, "float64"),
    ],
)
def test_an_order_that_does_not_fit_is_refused_before_any_step(order, error, text):
    training = Training(OPTIMIZERS["sgd"])
    before = training.state()
    with pytest.raises(error, match=text):
        training.step.run_many(order, IMAGES, LABELS)
    for a, b in zip(before, training.state(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_rows_to_take_it_says_so():
    step = pg.compile(lambda x: x + 1)
    with pytest.raises(ShapeError, match="no rows"):
        step.run_many([[0]], np.float32(1))
    with pytest.raises(ShapeError, match="at least one tensor"):
        step.run_many([[0]], 3)


def test_half_precision_and_strided_data():
    @pg.compile(strict=True)
    def step(x):
        return x.float().sum(), x * 2

    x = pg.Tensor(RANDOM.standard_normal((12, 3)).astype(np.float32)).to(pg.bfloat16)
    order = np.arange(12).reshape(6, 2)
    sums, doubled = step.run_many(order, x.transpose(0, 1).contiguous().transpose(0, 1))
    np.testing.assert_array_equal(doubled.float().numpy().reshape(12, 3), (x * 2).float().numpy())
    assert sums.shape == (6,)
