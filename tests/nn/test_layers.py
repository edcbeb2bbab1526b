"""Each layer beside torch's: state_dict, result, gradients."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import Tensor, nn
from pequegrad.errors import ShapeError
from pequegrad.ops.random import manual_seed

torch = pytest.importorskip("torch")


def floats(*shape):
    return np.random.RandomState(7).randn(*shape)


IMAGE = floats(2, 4, 8, 6)
CASES = {
    "Linear": (lambda kit: kit.Linear(4, 3), floats(5, 4)),
    "Linear of 3 dimensions, no bias": (lambda kit: kit.Linear(4, 3, bias=False), floats(2, 5, 4)),
    "Conv2d": (lambda kit: kit.Conv2d(4, 6, 3), IMAGE),
    "Conv2d, everything": (lambda kit: kit.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, False), IMAGE),
    "Conv2d, same": (lambda kit: kit.Conv2d(4, 2, 3, padding="same"), IMAGE),
    "MaxPool2d": (lambda kit: kit.MaxPool2d(2), IMAGE),
    "MaxPool2d, everything": (lambda kit: kit.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "AvgPool2d": (lambda kit: kit.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
    "AdaptiveAvgPool2d": (lambda kit: kit.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "Flatten": (lambda kit: kit.Flatten(), IMAGE),
    "Unflatten": (lambda kit: kit.Unflatten(1, (2, 2)), IMAGE),
    "LayerNorm": (lambda kit: kit.LayerNorm((8, 6)), IMAGE),
    "LayerNorm, no bias": (lambda kit: kit.LayerNorm(6, eps=1e-3, bias=False), IMAGE),
    "LayerNorm, plain": (lambda kit: kit.LayerNorm(6, elementwise_affine=False), IMAGE),
    "BatchNorm1d": (lambda kit: kit.BatchNorm1d(4), floats(5, 4)),
    "BatchNorm1d of 3 dimensions": (lambda kit: kit.BatchNorm1d(4, momentum=0.3), floats(5, 4, 3)),
    "BatchNorm2d": (lambda kit: kit.BatchNorm2d(4, eps=1e-3), IMAGE),
    "BatchNorm2d, cumulative": (lambda kit: kit.BatchNorm2d(4, momentum=None), IMAGE),
    "BatchNorm2d, plain": (lambda kit: kit.BatchNorm2d(4, affine=False), IMAGE),
    "BatchNorm2d, no bias": (lambda kit: kit.BatchNorm2d(4, bias=False), IMAGE),
    "BatchNorm2d, no running statistics": (lambda kit: kit.BatchNorm2d(4, track_running_stats=False), IMAGE),
    "Identity": (lambda kit: kit.Identity(3, bias=True), IMAGE),
    "ReLU": (lambda kit: kit.ReLU(), IMAGE),
    "ReLU6": (lambda kit: kit.ReLU6(), IMAGE * 5),
    "LeakyReLU": (lambda kit: kit.LeakyReLU(0.2), IMAGE),
    "ELU": (lambda kit: kit.ELU(0.7), IMAGE),
    "GELU": (lambda kit: kit.GELU(), IMAGE),
    "GELU, tanh": (lambda kit: kit.GELU("tanh"), IMAGE),
    "SiLU": (lambda kit: kit.SiLU(), IMAGE),
    "Softplus": (lambda kit: kit.Softplus(2.0, 1.5), IMAGE),
    "Tanh": (lambda kit: kit.Tanh(), IMAGE),
    "Sigmoid": (lambda kit: kit.Sigmoid(), IMAGE),
    "LogSigmoid": (lambda kit: kit.LogSigmoid(), IMAGE),
    "Softmax": (lambda kit: kit.Softmax(dim=1), IMAGE),
    "LogSoftmax": (lambda kit: kit.LogSoftmax(dim=-1), IMAGE),
    "Dropout, none": (lambda kit: kit.Dropout(0.0), IMAGE),
    "Sequential": (lambda kit: kit.Sequential(kit.Linear(6, 5), kit.Tanh(), kit.Linear(5, 2)), IMAGE),
}


def assert_close(mine, other, what=""):
    np.testing.assert_allclose(mine.detach().array, other.detach().numpy(), rtol=1e-9, atol=1e-10, err_msg=what)


def pair(make):
    """The same layer of ours and torch's in float64, with torch's weights, through the state_dict."""
    theirs = make(torch.nn).double()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.tensor(np.random.rand(*tensor.shape)) * 0.3)
    ours = make(nn).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same_gradients(ours, theirs):
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert_close(mine.grad, other.grad, f"gradient of {name}")


@pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES.keys())
def test_layer_equals_torch_in_training_and_evaluation(make, x):
    ours, theirs = pair(make)
    for is_training in (True, True, False):
        ours.train(is_training)
        theirs.train(is_training)
        mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        result, expected = ours(mine), theirs(other)
        assert_close(result, expected, f"result, training={is_training}")
        weights = np.random.RandomState(3).randn(*result.shape)
        (result * Tensor(weights)).sum().backward()
        (expected * torch.tensor(weights)).sum().backward()
        assert_close(mine.grad, other.grad, "gradient of the input")
    assert_same_gradients(ours, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[name], value, name)


def test_bilinear_equals_torch():
    ours, theirs = pair(lambda kit: kit.Bilinear(3, 4, 2))
    x, y = floats(5, 3), floats(5, 4)
    result, expected = ours(Tensor(x), Tensor(y)), theirs(torch.tensor(x), torch.tensor(y))
    assert_close(result, expected)
    result.sum().backward()
    expected.sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embedding_equals_torch(padding_idx):
    ours, theirs = pair(lambda kit: kit.Embedding(6, 3, padding_idx=padding_idx))
    index = np.array([[0, 2, 5], [5, 2, 1]])
    result, expected = ours(Tensor(index)), theirs(torch.tensor(index))
    assert_close(result, expected)
    (result * result).sum().backward()
    (expected * expected).sum().backward()
    assert_same_gradients(ours, theirs)


def test_embedding_starts_with_a_zero_row_for_padding():
    rows = nn.Embedding(5, 4, padding_idx=-2).weight.array
    assert (rows[3] == 0).all() and (rows[[0, 1, 2, 4]] != 0).all()


CLASSES = np.array([0, 2, 1, 2, 0])
TARGET = floats(5, 3)[::-1].copy()
LOSSES = {
    "CrossEntropyLoss": (lambda kit, t: kit.CrossEntropyLoss(), CLASSES),
    "CrossEntropyLoss, everything": (
        lambda kit, t: kit.CrossEntropyLoss(t([0.5, 1.0, 2.0]), ignore_index=1, label_smoothing=0.1), CLASSES,
    ),
    "CrossEntropyLoss, each": (lambda kit, t: kit.CrossEntropyLoss(reduction="none"), CLASSES),
    "NLLLoss": (lambda kit, t: kit.NLLLoss(t([0.5, 1.0, 2.0]), reduction="sum"), CLASSES),
    "MSELoss": (lambda kit, t: kit.MSELoss(), TARGET),
    "L1Loss": (lambda kit, t: kit.L1Loss(reduction="sum"), TARGET),
    "HuberLoss": (lambda kit, t: kit.HuberLoss(delta=0.5), TARGET),
    "SmoothL1Loss": (lambda kit, t: kit.SmoothL1Loss(beta=0.5), TARGET),
    "BCEWithLogitsLoss": (lambda kit, t: kit.BCEWithLogitsLoss(pos_weight=t([0.5, 1.0, 2.0])), TARGET > 0),
}  # fmt: skip


@pytest.mark.parametrize(("make", "target"), LOSSES.values(), ids=LOSSES.keys())
def test_loss_equals_torch(make, target):
    target = target.astype(np.float64) if target.dtype == bool else target
    ours = make(nn, lambda values: Tensor(np.float64(values)))
    theirs = make(torch.nn, lambda values: torch.tensor(values, dtype=torch.float64))
    x = floats(5, 3)
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    result, expected = ours(mine, Tensor(target)), theirs(other, torch.tensor(target))
    assert_close(result, expected)
    result.sum().backward()
    expected.sum().backward()
    assert_close(mine.grad, other.grad)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "bool", "added", "per head", "padding"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_equals_torch(batch_first, mask, need_weights):
    ours, theirs = pair(lambda kit: kit.MultiheadAttention(6, 2, batch_first=batch_first))
    q, k = floats(3, 4, 6), floats(3, 5, 6)
    if not batch_first:
        q, k = q.swapaxes(0, 1), k.swapaxes(0, 1)
    options = {
        "none": {},
        "bool": {"attn_mask": np.triu(np.ones((4, 5), bool), 1)},
        "added": {"attn_mask": floats(4, 5)},
        "per head": {"attn_mask": floats(6, 4, 5)},
        "padding": {"key_padding_mask": np.arange(5) >= np.array([[5], [3], [4]])},
    }[mask]
    (result, weights), (expected, expected_weights) = (
        ours(Tensor(q), Tensor(k), Tensor(k), need_weights=need_weights, **{n: Tensor(v) for n, v in options.items()}),
        theirs(
            torch.tensor(q), torch.tensor(k), torch.tensor(k), need_weights=need_weights,
            **{n: torch.tensor(v) for n, v in options.items()},
        ),
    )  # fmt: skip
    assert_close(result, expected)
    if need_weights:
        assert_close(weights, expected_weights)
    else:
        assert weights is None and expected_weights is None
    (result * result).sum().backward()
    (expected * expected).sum().backward()
    assert_same_gradients(ours, theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_attention_without_batch_and_causal():
    ours, theirs = pair(lambda kit: kit.MultiheadAttention(4, 2))
    x = floats(5, 4)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected, weights = theirs(*[torch.tensor(x)] * 3, attn_mask=mask, average_attn_weights=False)
    result, mine = ours(*[Tensor(x)] * 3, is_causal=True, average_attn_weights=False)
    assert_close(result, expected)
    assert_close(mine, weights)


def test_dropout_zeroes_its_share_scales_the_rest_and_rests_in_evaluation():
    layer, ones = nn.Dropout(0.3), Tensor(np.ones((100, 100), np.float32))
    manual_seed(1)
    first = layer(ones).array
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((first == 0).mean() - 0.3) < 0.02
    assert not np.array_equal(layer(ones).array, first)
    manual_seed(1)
    np.testing.assert_array_equal(layer(ones).array, first)
    np.testing.assert_array_equal(layer.eval()(ones).array, ones.array)


def test_relu_in_place_changes_its_input():
    x = Tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x) is x and x.tolist() == [0.0, 2.0]


def test_running_statistics_move_in_place():
    layer = nn.BatchNorm2d(4)
    views = [layer.running_mean.numpy(), layer.running_var.numpy(), layer.num_batches_tracked.numpy()]
    layer(Tensor(IMAGE.astype(np.float32)))
    np.testing.assert_array_equal(views[0], layer.running_mean.array)
    assert views[0].any() and (views[1] != 1).any() and views[2] == 1
    layer.reset_running_stats()
    assert not views[0].any() and (views[1] == 1).all() and views[2] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(1, 1, 3, padding_mode="reflect"), "padding_mode"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups"),
        (lambda: nn.Dropout(1.5), r"\[0, 1\]"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), "padding_idx"),
        (lambda: nn.MultiheadAttention(5, 2), "num_heads"),
        (lambda: nn.MultiheadAttention(4, 2)(*[Tensor(floats(3, 5))] * 3), r"\(3, 5\)"),
        (lambda: nn.BatchNorm2d(3)(Tensor(floats(2, 3))), "BatchNorm2d: expected 4 dimensions"),
        (lambda: nn.BatchNorm1d(3)(Tensor(floats(2, 4)).float()), r"\(3,\)"),
        (lambda: nn.Linear(3, 2)(Tensor(floats(2, 4)).float()), r"weight \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


def test_dtype_argument_reaches_all_state():
    for layer in (
        nn.Linear(2, 2, dtype="float64"),
        nn.BatchNorm1d(2, dtype="float64"),
        nn.Conv2d(1, 1, 1, dtype="float64"),
    ):
        assert {t.dtype.name for t in layer.state_dict().values()} <= {"float64", "int64"}
