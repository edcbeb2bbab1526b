"""Initial values: torch's bounds and standard deviations, from the generator that manual_seed starts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pequegrad import Tensor, nn
from pequegrad.errors import ShapeError
from pequegrad.nn import init
from pequegrad.ops.random import manual_seed

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def seed():
    manual_seed(3)


LAYERS = {
    "linear": lambda kit: kit.Linear(300, 400),
    "convolution": lambda kit: kit.Conv2d(32, 64, (5, 3), groups=2),
    "embedding": lambda kit: kit.Embedding(300, 200),
    "attention": lambda kit: kit.MultiheadAttention(200, 2),
    "bilinear": lambda kit: kit.Bilinear(30, 40, 600),
    "layer norm": lambda kit: kit.LayerNorm(100),
    "batch norm": lambda kit: kit.BatchNorm2d(100),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_layer_starts_with_torchs_distribution(make):
    torch.manual_seed(0)
    ours, theirs = make(nn).state_dict(), make(torch.nn).state_dict()
    assert ours.keys() == theirs.keys()
    for name, other in theirs.items():
        mine, other = ours[name].array.astype(np.float64), other.double().numpy()
        few = mine.size < 2000
        assert mine.mean() == pytest.approx(other.mean(), abs=(0.2 if few else 0.05) * (other.std() + 1e-9)), name
        assert mine.std() == pytest.approx(other.std(), rel=0.15 if few else 0.02), name
        if "Embedding" not in make.__code__.co_names:  # a normal distribution has no bound
            assert np.abs(mine).max() == pytest.approx(np.abs(other).max(), rel=0.05), name


FILLS = {
    "uniform": ("uniform_", (-2.0, 3.0), {}),
    "normal": ("normal_", (1.0, 2.0), {}),
    "xavier uniform": ("xavier_uniform_", (), {"gain": 2.0}),
    "xavier normal": ("xavier_normal_", (), {"gain": 2.0}),
    "kaiming uniform": ("kaiming_uniform_", (), {"mode": "fan_out", "nonlinearity": "relu"}),
    "kaiming normal": ("kaiming_normal_", (0.3,), {}),
    "truncated normal": ("trunc_normal_", (0.5, 2.0, -1.0, 3.0), {}),
}


@pytest.mark.parametrize(("name", "arguments", "settings"), FILLS.values(), ids=FILLS.keys())
def test_fill_has_torchs_moments_and_fills_in_place(name, arguments, settings):
    torch.manual_seed(0)
    parameter = nn.Parameter(Tensor(np.zeros((64, 32, 3, 3), np.float32)))
    view = parameter.detach().numpy()
    assert getattr(init, name)(parameter, *arguments, **settings) is parameter
    other = getattr(torch.nn.init, name)(torch.empty(64, 32, 3, 3), *arguments, **settings).double().numpy()
    assert view.mean() == pytest.approx(other.mean(), abs=0.03 * float(other.std()))
    assert view.std() == pytest.approx(other.std(), rel=0.02)
    if "normal" not in name or name == "trunc_normal_":
        assert np.abs(view).max() == pytest.approx(np.abs(other).max(), rel=0.01)
    assert parameter.requires_grad and parameter.is_leaf


def test_seed_decides_the_weights():
    manual_seed(5)
    first = nn.Linear(4, 4).weight.array
    manual_seed(5)
    np.testing.assert_array_equal(nn.Linear(4, 4).weight.array, first)
    assert not np.array_equal(nn.Linear(4, 4).weight.array, first)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (4, 2, 3)])
def test_orthogonal_rows_or_columns(shape):
    matrix = init.orthogonal_(Tensor(np.zeros(shape)), gain=2).array.reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_constants():
    t = Tensor(np.empty((2, 3), np.float32))
    assert init.constant_(t, 2.5).tolist() == [[2.5] * 3] * 2
    assert init.ones_(t).tolist() == [[1.0] * 3] * 2
    assert init.zeros_(t).tolist() == [[0.0] * 3] * 2
    assert init.eye_(t).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "arguments", [("linear",), ("conv2d",), ("tanh",), ("relu",), ("selu",), ("leaky_relu",), ("leaky_relu", 0.3)]
)
def test_gain_equals_torch(arguments):
    assert init.calculate_gain(*arguments) == pytest.approx(torch.nn.init.calculate_gain(*arguments))


def test_bad_arguments_are_refused():
    with pytest.raises(ShapeError, match="at least 2"):
        init.xavier_uniform_(Tensor([1.0]))
    with pytest.raises(ValueError, match="mode"):
        init.kaiming_uniform_(Tensor([[1.0]]), mode="fan")
    with pytest.raises(ValueError, match="gelu"):
        init.calculate_gain("gelu")
    with pytest.raises(ValueError, match="hardly"):
        init.trunc_normal_(Tensor([1.0]), a=10, b=11)
    assert init.kaiming_uniform_(Tensor(np.empty((3, 0), np.float32))).shape == (3, 0)
    assert math.isclose(init.calculate_gain("relu"), math.sqrt(2))
