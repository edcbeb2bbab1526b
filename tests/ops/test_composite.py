"""Activations, losses, normalisation, attention and the operator tables beside torch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pequegrad import Tensor, autodiff
from pequegrad.errors import AutogradError, DTypeError, IndexOutOfRange, PequegradWarning, ShapeError
from pequegrad.ops import activations, composite, layers, losses
from tests.ops.comparing import assert_gradients_by_differences, assert_like_torch, torch

F = torch.nn.functional
RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((4, 6))
EDGES = np.array([-200, -90, -3, -1, -0.5, 0.0, 0.5, 1, 3, 21, 90, 200], np.float32)


ACTIVATIONS = {
    "leaky_relu": {"negative_slope": 0.2},
    "relu6": {},
    "elu": {"alpha": 0.7},
    "gelu": {},
    "silu": {},
    "softplus": {"beta": 2.0, "threshold": 10.0},
    "logsigmoid": {},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_agrees_with_torch_also_far_out(name):
    options = ACTIVATIONS[name]
    for array in (X, EDGES):
        assert_like_torch(
            lambda x: getattr(activations, name)(x, **options), lambda x: getattr(F, name)(x, **options), array
        )


def test_both_forms_of_gelu_agree_with_torch():
    for form in ("none", "tanh"):
        for array in (X, EDGES):
            assert_like_torch(
                lambda x, f=form: activations.gelu(x, f), lambda x, f=form: F.gelu(x, approximate=f), array
            )


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_agrees_with_torch(dim):
    huge = np.array([[1e4, -1e4, 0], [-np.inf, 0, 1], [np.inf, 0, 1], [np.nan, 0, 1]])
    for array in (X, huge, X[:, :1], X[:0], X[:, :0]):
        assert_like_torch(lambda x: x.softmax(dim), lambda x: x.softmax(dim), array)
        assert_like_torch(lambda x: x.log_softmax(dim), lambda x: x.log_softmax(dim), array)
    assert_like_torch(
        lambda x: activations.softmax(x, dim, dtype="float64"),
        lambda x: F.softmax(x, dim, dtype=torch.float64),
        EDGES[None],
    )


def test_softmax_and_cross_entropy_derivatives_agree_with_differences():
    target = np.array([0, 5, 2, 2])
    assert_gradients_by_differences(lambda x: activations.softmax(x, 1) ** 2, X)
    assert_gradients_by_differences(lambda x: activations.log_softmax(x, 0) ** 2, X)
    assert_gradients_by_differences(lambda x: losses.cross_entropy(x, Tensor(target), label_smoothing=0.1), X)
    assert_gradients_by_differences(lambda x, t: losses.cross_entropy(x, t.softmax(1)), X, X * 0.5)


@settings(max_examples=40)
@given(st.data())
def test_cross_entropy_of_any_setting_agrees_with_torch(data):
    classes = data.draw(st.integers(1, 5))
    rest = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    shape = (data.draw(st.integers(1, 4)), classes, *rest) if data.draw(st.integers(0, 5)) else (classes,)
    rest = shape[:1] + shape[2:] if len(shape) > 1 else ()
    options = {
        "reduction": data.draw(st.sampled_from(["none", "mean", "sum"])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.2])),
    }
    weight = RANDOM.random(classes) + 0.1 if data.draw(st.booleans()) else None
    logits = RANDOM.standard_normal(shape) * 3
    if data.draw(st.booleans()):
        options["ignore_index"] = data.draw(st.sampled_from([-100, 0, -1]))
        target = RANDOM.integers(0, classes, rest)
        target = np.where(RANDOM.random(rest) < 0.3, options["ignore_index"], target)
    else:
        target = RANDOM.random(shape)
    given_weight = [] if weight is None else [weight]
    # A weight's gradient is not defined by torch: it enters as a constant.
    assert_like_torch(
        lambda x: losses.cross_entropy(x, Tensor(target), *map(Tensor, given_weight), **options),
        lambda x: F.cross_entropy(x, torch.tensor(target), *map(torch.tensor, given_weight), **options),
        logits, tolerance=1e-9,
    )  # fmt: skip


def test_nll_loss_agrees_with_torch():
    target = np.array([0, 5, -100, 2])
    for reduction in ("none", "mean", "sum"):
        assert_like_torch(
            lambda x, r=reduction: losses.nll_loss(x, Tensor(target), reduction=r),
            lambda x, r=reduction: F.nll_loss(x, torch.tensor(target), reduction=r),
            X,
        )


def test_cross_entropy_where_everything_is_ignored_is_nan_as_in_torch():
    target = np.full(4, -100)
    assert_like_torch(
        lambda x: losses.cross_entropy(x, Tensor(target)), lambda x: F.cross_entropy(x, torch.tensor(target)), X
    )


LOSSES = {
    "mse_loss": [{}],
    "l1_loss": [{}],
    "huber_loss": [{"delta": 0.5}, {}],
    "smooth_l1_loss": [{"beta": 0.5}, {"beta": 0.0}, {}],
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_agrees_with_torch(name):
    y = RANDOM.standard_normal((4, 6))
    y[0] = X[0]
    for options in LOSSES[name]:
        for reduction in ("none", "mean", "sum"):
            extended = {**options, "reduction": reduction}
            assert_like_torch(
                lambda x, y, o=extended: getattr(losses, name)(x, y, **o),
                lambda x, y, o=extended: getattr(F, name)(x, y, **o),
                X, y, tolerance=1e-9,
            )  # fmt: skip


def test_binary_cross_entropy_agrees_with_torch_also_far_out():
    logits = np.array([[-800.0, -2, 0, 2, 800, 0.3], [1e-8, 50, -50, 1, -1, 0]])
    target = RANDOM.random((2, 6))
    weights = RANDOM.random(6)
    for options in ({}, {"weight": weights}, {"pos_weight": weights}, {"reduction": "sum"}, {"reduction": "none"}):
        ours = {k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        theirs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        assert_like_torch(
            lambda x, y, o=ours: losses.binary_cross_entropy_with_logits(x, y.detach(), **o),
            lambda x, y, o=theirs: F.binary_cross_entropy_with_logits(x, y.detach(), **o),
            logits, target, tolerance=1e-9,
        )  # fmt: skip


def test_linear_agrees_with_torch():
    for shape in [(6,), (4, 6), (2, 3, 6), (0, 6)]:
        assert_like_torch(
            layers.linear, F.linear, RANDOM.standard_normal(shape), RANDOM.standard_normal((3, 6)),
            RANDOM.standard_normal(3), tolerance=1e-9,
        )  # fmt: skip


def test_layer_norm_agrees_with_torch_and_differences():
    x = RANDOM.standard_normal((3, 4, 6))
    for shape in [(6,), (4, 6)]:
        w, b = RANDOM.standard_normal(shape), RANDOM.standard_normal(shape)
        assert_like_torch(
            lambda x, w, b, s=shape: layers.layer_norm(x, s, w, b, 1e-3),
            lambda x, w, b, s=shape: F.layer_norm(x, s, w, b, 1e-3),
            x, w, b, tolerance=1e-9,
        )  # fmt: skip
    assert_gradients_by_differences(lambda x: layers.layer_norm(x, 6) ** 3, x)
    half = layers.layer_norm(Tensor(np.full((2, 8), 300, np.float16)), 8)
    assert half.dtype.name == "float16" and not half.numpy().any()


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_agrees_with_torch_and_moves_its_statistics(shape, training):
    x, w, b = RANDOM.standard_normal(shape) * 2 + 1, RANDOM.standard_normal(3), RANDOM.standard_normal(3)
    ours = Tensor(np.zeros(3)), Tensor(np.ones(3))
    theirs = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert_like_torch(
        lambda x, w, b: layers.batch_norm(x, *ours, w, b, training, 0.3),
        lambda x, w, b: F.batch_norm(x, *theirs, w, b, training, 0.3),
        x, w, b, tolerance=1e-9,
    )  # fmt: skip
    for mine, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), wanted.numpy(), rtol=1e-12)
        assert not mine.requires_grad


def test_normalize_agrees_with_torch():
    for p in (2.0, 1.0, 3.0):
        assert_like_torch(lambda x, p=p: layers.normalize(x, p, 0), lambda x, p=p: F.normalize(x, p, 0), X)


def test_attention_agrees_with_torch():
    q, k, v = (RANDOM.standard_normal((2, 3, n, d)) for n, d in [(4, 6), (5, 6), (5, 7)])
    allowed = RANDOM.random((4, 5)) > 0.4
    allowed[1] = False
    bias = RANDOM.standard_normal((3, 4, 5))
    for options in ({}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": allowed}, {"attn_mask": bias}):
        ours = {key: Tensor(o) if isinstance(o, np.ndarray) else o for key, o in options.items()}
        theirs = {key: torch.tensor(o) if isinstance(o, np.ndarray) else o for key, o in options.items()}
        assert_like_torch(
            lambda q, k, v, o=ours: layers.scaled_dot_product_attention(q, k, v, **o),
            lambda q, k, v, o=theirs: F.scaled_dot_product_attention(q, k, v, **o),
            q, k, v, tolerance=1e-9,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: losses.cross_entropy(Tensor(np.zeros((128, 10))), Tensor(np.zeros((128, 1), int))),
            ShapeError,
            "cross_entropy: target must have shape (128,) to match logits (128, 10). Got (128, 1). Try "
            "target.squeeze(1).",
        ),
        (lambda: losses.cross_entropy(Tensor(X), Tensor([0, 1, 6, 2])), IndexOutOfRange, "target 6 is no class"),
        (lambda: losses.cross_entropy(Tensor(X), Tensor([0, 1, -1, 2])), IndexOutOfRange, "target -1"),
        (lambda: losses.cross_entropy(Tensor(X), Tensor([True] * 4)), DTypeError, "Got bool"),
        (lambda: losses.cross_entropy(Tensor(X), Tensor(X[:, :2])), ShapeError, "(4, 6)"),
        (lambda: losses.cross_entropy(Tensor([[1, 2]]), Tensor([0])), ShapeError, "floating-point"),
        (
            lambda: losses.cross_entropy(Tensor(X), Tensor([0] * 4), Tensor([1.0])),
            ShapeError,
            "weight must have shape (6,)",
        ),
        (lambda: losses.cross_entropy(Tensor(X), Tensor([0] * 4), reduction="avg"), ShapeError, "reduction"),
        (lambda: losses.mse_loss(Tensor(X), Tensor(X), reduction="avg"), ShapeError, "mse_loss: reduction"),
        (lambda: layers.linear(Tensor(X), Tensor(X[:, :5])), ShapeError, "last extent is 5"),
        (lambda: layers.layer_norm(Tensor(X), 5), ShapeError, "normalized_shape (5,)"),
        (lambda: layers.batch_norm(Tensor(X[:1]), None, None, training=True), ShapeError, "more than one value"),
        (lambda: layers.batch_norm(Tensor(X), None, None), ShapeError, "running_mean"),
        (lambda: activations.softmax(Tensor(X)), ShapeError, "dim=-1"),
        (lambda: activations.gelu(Tensor(X), "erf"), ShapeError, "tanh"),
        (lambda: losses.binary_cross_entropy_with_logits(Tensor(X), Tensor(X[:1])), ShapeError, "(4, 6)"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_a_loss_of_unequal_shapes_warns():
    with pytest.warns(PequegradWarning, match="broadcast"):
        losses.mse_loss(Tensor(np.zeros((4, 1))), Tensor(np.zeros(4)))


# --- operators and in-place methods ---------------------------------------------------------------------------

BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
BITS = {
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b,
    ">>": lambda a, b: a >> b,
}


@pytest.mark.parametrize("sign", [*BINARY, *BITS])
def test_operators_and_their_reflections_agree_with_torch(sign):
    function = {**BINARY, **BITS}[sign]
    pairs = [(np.array([5, 7, 2]), np.array([1, 2, 3]))]
    if sign in BINARY:
        pairs.append((np.array([0.5, 2.5, 4]), np.array([1.5, 2.5, 0.25])))
    # torch has no derivative of // and none of % by its second operand.
    has_derivative = sign not in ("//", "%")
    for a, b in pairs:
        number = b.flat[0].item()
        forms = [
            lambda x, y: function(x, y),
            lambda x, y, n=number: function(x, n),
            lambda x, y, n=number: function(n, x),
        ]
        for form in forms:
            if has_derivative or a.dtype.kind == "i":
                assert_like_torch(form, form, a, b)
            else:
                expected = form(torch.tensor(a), torch.tensor(b))
                np.testing.assert_allclose(form(Tensor(a), Tensor(b)).numpy(), expected.numpy())
        as_array = function(Tensor(a), b)
        np.testing.assert_allclose(as_array.numpy(), function(torch.tensor(a), torch.tensor(b)).numpy())
        assert isinstance(function(b, Tensor(a)), Tensor)


def test_unary_operators_agree_with_torch():
    x = np.array([-2, 0, 3])
    for function in (lambda a: -a, lambda a: +a, abs, lambda a: ~a):
        assert_like_torch(function, function, x)
    assert (~Tensor([True, False])).tolist() == [False, True]


def test_comparison_with_what_is_no_number_is_left_to_python():
    assert (Tensor([1]) == None) is False  # noqa: E711
    assert (Tensor([1]) != "a") is True


IN_PLACE_ARGUMENTS = {
    "masked_fill_": lambda x: (x > 0, 2.0),
    "clamp_": lambda x: (-0.5, 0.5),
    "clip_": lambda x: (-0.5, 0.5),
    "lerp_": lambda x: (x * 2, 0.25),
    "addcmul_": lambda x: (x, x),
    "addcdiv_": lambda x: (x, x * x + 1),
    "cumsum_": lambda x: (0,),
    "pow_": lambda x: (2,),
}
UNARY_NAMES = (
    "neg negative abs absolute sign exp expm1 sqrt rsqrt square reciprocal sin cos tanh sigmoid erf floor "
    "ceil trunc round relu tril triu log log1p"
)
BINARY_NAMES = "add sub subtract mul multiply div divide true_divide floor_divide remainder fmod eq ne lt le gt ge"


def torch_in_place(name: str):
    if name == "relu_":
        return torch.relu_
    return lambda x, *arguments: getattr(x, name)(*arguments)


@pytest.mark.parametrize("name", sorted(composite.IN_PLACE))
def test_in_place_method_agrees_with_torch(name):
    if name.startswith("__") or name in ("uniform_", "normal_", "random_", "bernoulli_"):
        return
    base = name[:-1]
    x = RANDOM.standard_normal((4, 4))
    if base in UNARY_NAMES.split():
        assert_in_place_like_torch(name, x, lambda x: ())
    elif base in BINARY_NAMES.split():
        assert_in_place_like_torch(name, x, lambda x: (1.5,))
    elif name in IN_PLACE_ARGUMENTS:
        assert_in_place_like_torch(name, x, IN_PLACE_ARGUMENTS[name])
    else:
        assert callable(getattr(Tensor, base)), f"{name} has no out-of-place form"


def assert_in_place_like_torch(name, x, arguments):
    def ours(x):
        y = x * 1.0
        assert getattr(y, name)(*arguments(x)) is y
        return y

    def theirs(x):
        y = x * 1.0
        return torch_in_place(name)(y, *arguments(x))

    # torch has no gradient of these.
    if name in ("eq_", "ne_", "lt_", "le_", "gt_", "ge_", "floor_divide_"):
        np.testing.assert_array_equal(ours(Tensor(x)).numpy(), theirs(torch.tensor(x)).numpy())
    else:
        assert_like_torch(ours, theirs, x)


def test_augmented_assignment_keeps_the_tensor_and_its_views():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    row, same = x[0], x
    x += 1
    x *= 2
    x -= 0.5
    x /= 2
    x **= 2
    x //= 1
    x %= 7
    assert x is same
    expected = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = ((((expected + 1) * 2 - 0.5) / 2) ** 2 // 1) % 7
    np.testing.assert_array_equal(x.numpy(), expected.numpy())
    np.testing.assert_array_equal(row.numpy(), expected.numpy()[0])
    bits = Tensor([6, 3])
    bits &= 5
    bits |= 8
    bits ^= 1
    bits <<= 2
    bits >>= 1
    assert bits.tolist() == [((6 & 5 | 8) ^ 1) * 2, ((3 & 5 | 8) ^ 1) * 2]


@pytest.mark.parametrize("name", sorted(composite.IN_PLACE))
def test_in_place_method_says_what_it_does(name):
    """Most said "In place: None": what checks their results had no text of its own."""
    method = getattr(Tensor, name)
    assert method.__name__ == name
    assert method.__doc__.startswith("In place: Return")


def test_in_place_results_must_fit():
    with pytest.raises(DTypeError, match="float32 cannot be written to a tensor of int64"):
        Tensor([1, 2]).add_(0.5)
    with pytest.raises(ShapeError, match="does not fit"):
        Tensor([1.0, 2.0]).add_(Tensor(np.ones((2, 2), np.float32)))
    with pytest.raises(AutogradError, match="leaf"):
        Tensor([1.0], requires_grad=True).mul_(2)


def test_in_place_changes_of_what_a_gradient_needs_are_errors():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x * 2
    z = y * y
    y.add_(1)
    with pytest.raises(AutogradError, match="changed in place"):
        autodiff.backward([z], [Tensor([1.0, 1.0])])
