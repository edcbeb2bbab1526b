"""Philox beside Random123's known answers, the formulas of each distribution, and the life of a generator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pequegrad import Tensor
from pequegrad.errors import DTypeError, ShapeError
from pequegrad.ops import random
from pequegrad.ops.core import bind
from pequegrad.ops.registry import REGISTRY

# Random123-1.14, tests/kat_vectors, "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def integers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, words):
    counters = tuple(np.array([part], np.uint64) for part in integers(counter))
    k0, k1 = integers(key)
    assert [int(word[0]) for word in random.philox_blocks(np, counters, (k0, k1))] == integers(words)


def test_words_come_from_seed_stream_and_index():
    """Seed and stream enter as two 32-bit halves each, and word i is of block i // 4."""
    assert random.philox_words(np, np.array([0, 0]), 4).tolist() == integers(KNOWN_ANSWERS[0][2])
    k0, k1 = integers("a4093822 299f31d0")
    stream = integers("13198a2e 03707344")
    counters = tuple(np.array([part], np.uint64) for part in (1, 0, *stream))
    expected = [int(word[0]) for word in random.philox_blocks(np, counters, (k0, k1))]
    state = np.array([k1 << 32 | k0, stream[1] << 32 | stream[0]], np.uint64).astype(np.int64)
    assert random.philox_words(np, state, 7)[4:].tolist() == expected[:3]
    negative = np.array([-1, -1])
    all_ones = tuple(np.array([part], np.uint64) for part in (0, 0, 0xFFFFFFFF, 0xFFFFFFFF))
    expected = [int(word[0]) for word in random.philox_blocks(np, all_ones, (0xFFFFFFFF, 0xFFFFFFFF))]
    assert random.philox_words(np, negative, 4).tolist() == expected


def test_distributions_follow_their_formulas():
    state = np.array([12345, 6])
    words = [int(word) for word in random.philox_words(np, state, 12)]
    tensor = Tensor(state)
    uniform = random.RandomUniform.call(tensor, (5,), "float32").numpy()
    assert uniform.tolist() == [(word >> 8) * 2.0**-24 for word in words[:5]]
    double = random.RandomUniform.call(tensor, (5,), "float64").numpy()
    pairs = zip(words[0::2], words[1::2], strict=True)
    assert double.tolist()[:5] == [((a >> 5) * 67108864 + (b >> 6)) / 2**53 for a, b in pairs][:5]
    normal = random.RandomNormal.call(tensor, (5,), "float64").numpy()
    for i in range(5):
        u1, u2 = ((word + 0.5) * 2.0**-32 for word in words[2 * (i // 2) : 2 * (i // 2) + 2])
        turn = math.sin if i % 2 else math.cos
        assert normal[i] == pytest.approx(math.sqrt(-2 * math.log(u1)) * turn(2 * math.pi * u2), rel=1e-12)
    whole = random.RandomInt.call(tensor, (5,), -3, 10).numpy()
    assert whole.tolist() == [-3 + (word * 10 >> 32) for word in words[:5]]


@pytest.mark.parametrize("name", ["random_uniform", "random_normal", "random_int"])
def test_samples_are_evaluated(name):
    for sample in REGISTRY[name].samples():
        params = dict(sample.params)
        drawn = bind(REGISTRY[name], *(Tensor(array) for array in sample.arrays), **params)
        assert (drawn.shape, drawn.dtype) == (params["shape"], params["dtype"])


def within_five_sigma(array: np.ndarray, mean: float, variance: float, fourth_moment: float) -> None:
    n = array.size
    assert abs(array.mean() - mean) < 5 * math.sqrt(variance / n)
    assert abs(((array - mean) ** 2).mean() - variance) < 5 * math.sqrt((fourth_moment - variance**2) / n)


def test_distributions_have_their_moments():
    random.manual_seed(0)
    n = 200_000
    within_five_sigma(random.rand(n).numpy().astype(np.float64), 0.5, 1 / 12, 1 / 80)
    within_five_sigma(random.rand(n, dtype="float64").numpy(), 0.5, 1 / 12, 1 / 80)
    within_five_sigma(random.randn(n).numpy().astype(np.float64), 0, 1, 3)
    die = random.randint(1, 7, (n,)).numpy()
    within_five_sigma(die, 3.5, 35 / 12, ((die - 3.5) ** 4).mean())
    assert set(die.tolist()) == {1, 2, 3, 4, 5, 6}
    coin = random.bernoulli(Tensor(np.full(n, 0.3, np.float32))).numpy().astype(np.float64)
    within_five_sigma(coin, 0.3, 0.21, 0.3 * 0.7**4 + 0.7 * 0.3**4)
    half = random.rand(n, dtype="float16").numpy()
    assert half.max() < 1 and half.min() >= 0


def test_neighbours_and_streams_are_uncorrelated():
    random.manual_seed(1)
    first, second = (random.randn(100_000).numpy() for _ in range(2))
    for a, b in [(first[:-1], first[1:]), (first, second), (first[0::2], first[1::2])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


def test_draws_repeat_by_seed_and_differ_from_call_to_call():
    random.manual_seed(5)
    first, second = random.randn(3, 4).tolist(), random.randn(3, 4).tolist()
    assert first != second
    random.manual_seed(5)
    assert random.randn(3, 4).tolist() == first
    assert random.initial_seed() == 5
    state = random.get_rng_state()
    ahead = random.rand(2).tolist()
    random.set_rng_state(state)
    assert random.rand(2).tolist() == ahead
    random.manual_seed(6)
    assert random.randn(3, 4).tolist() != first


def test_seeding_writes_the_state_in_place():
    """A compiled step holds on to the state tensor, so it must stay the same one."""
    state = random.default_generator.state
    version = state.storage.version
    random.manual_seed(2**64 - 1)
    assert random.default_generator.state is state and state.storage.version > version
    assert state.tolist() == [-1, 0]
    random.rand(1)
    assert state.tolist() == [-1, 1]


def test_a_generator_of_ones_own_leaves_the_default_alone():
    before = random.get_rng_state().tolist()
    own = random.Generator().manual_seed(3)
    drawn = random.randn(4, generator=own).tolist()
    assert random.get_rng_state().tolist() == before
    assert random.randn(4, generator=random.Generator().manual_seed(3)).tolist() == drawn


def test_shapes_do_not_change_the_numbers():
    generator = random.Generator()
    flat = random.rand(24, generator=generator.manual_seed(9)).numpy()
    np.testing.assert_array_equal(random.rand(2, 3, 4, generator=generator.manual_seed(9)).numpy().ravel(), flat)
    np.testing.assert_array_equal(random.rand(5, generator=generator.manual_seed(9)).numpy(), flat[:5])
    assert random.rand(0).shape == (0,) and random.randn(()).shape == () and random.randn(2, 0).shape == (2, 0)


def test_randperm_is_a_permutation():
    random.manual_seed(0)
    order = random.randperm(100)
    assert order.dtype.name == "int64" and sorted(order.tolist()) == list(range(100)) != order.tolist()


def test_fills_write_in_place():
    random.manual_seed(0)
    x = Tensor(np.zeros((50, 50), np.float32))
    view = x[:25]
    assert x.uniform_(-2, -1) is x
    assert view.numpy().min() >= -2 and view.numpy().max() < -1
    x.normal_(10, 0.1)
    assert abs(view.numpy().mean() - 10) < 0.05
    whole = Tensor(np.zeros(100, np.int64)).random_(5)
    assert set(whole.tolist()) == {0, 1, 2, 3, 4}
    assert set(x.bernoulli_(0.5).numpy().ravel().tolist()) == {0.0, 1.0}


def test_likes_have_shape_and_dtype():
    x = Tensor(np.zeros((2, 3)))
    for drawn in (random.rand_like(x), random.randn_like(x), random.randint_like(x, 3)):
        assert drawn.spec == x.spec
    assert random.normal(x, 2.0).shape == (2, 3)
    assert random.randn(2, requires_grad=True).requires_grad


def test_dropout_keeps_the_mean_and_its_gradient_is_the_mask():
    random.manual_seed(0)
    x = Tensor(np.ones(100_000, np.float32), requires_grad=True)
    y = random.dropout(x, 0.25)
    kept = y.detach().numpy() != 0
    assert abs(kept.mean() - 0.75) < 5 * math.sqrt(0.75 * 0.25 / kept.size)
    np.testing.assert_allclose(y.detach().numpy()[kept], 1 / 0.75, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    assert random.dropout(x, 0.25, training=False) is x
    assert not random.dropout(x, 1.0).detach().numpy().any()
    with_tensor = random.dropout(x, Tensor(0.25))
    assert abs((with_tensor.detach().numpy() != 0).mean() - 0.75) < 0.01


def test_dropout_masks_are_the_uniform_numbers():
    random.manual_seed(4)
    expected = random.rand(5, 7).numpy() < np.float32(0.7)
    random.manual_seed(4)
    np.testing.assert_array_equal(random.dropout(Tensor(np.ones((5, 7))).float(), 0.3).numpy() != 0, expected)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: random.rand(2, dtype="int64"), DTypeError, "floating-point"),
        (lambda: random.randint(5, 5, (2,)), ShapeError, "low < high"),
        (lambda: random.randint(0.5, 5, (2,)), DTypeError, "ints"),
        (lambda: random.randint(0, 2**33, (2,)), ShapeError, r"2\*\*32"),
        (lambda: random.dropout(Tensor([1.0]), 1.5), ShapeError, r"\[0, 1\]"),
        (lambda: random.bernoulli(Tensor([1.5])), ShapeError, r"\[0, 1\]"),
        (lambda: random.bernoulli(Tensor([1])), DTypeError, "floating-point"),
        (lambda: random.manual_seed(0.5), DTypeError, "64 bits"),
        (lambda: random.set_rng_state(Tensor([1.0])), ShapeError, "int64"),
        (lambda: random.rand(2.5), DTypeError, "ints"),
    ],
)
def test_bad_arguments_name_what_was_expected(call, error, text):
    with pytest.raises(error, match=text):
        call()
