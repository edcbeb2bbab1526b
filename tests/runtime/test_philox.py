"""philox.h against Random123's known answers and a NumPy reference, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

# counter, key, words: from Random123's kat_vectors, philox4x32 with 10 rounds.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
STREAMS = [(0, 0, 0), (42, 7, 0), (2**63 + 12345, 2**40 + 3, 1000), (1, 2, 2**34 - 8), (99, 1, 5)]
COUNT = 101


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox 4x32-10 of counters (n, 4) under keys (2,), as uint64 holding 32 bits."""
    c, (k0, k1) = counter.astype(np.uint64).T, key.astype(np.uint64)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.stack([(b >> shift) ^ c[1] ^ k0, b & mask, (a >> shift) ^ c[3] ^ k1, a & mask])
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return c.T


def stream_words(seed: int, stream: int, indices: np.ndarray) -> np.ndarray:
    block = indices // 4
    low = 0xFFFFFFFF
    high, rest = np.full_like(block, stream >> 32), np.full_like(block, stream & low)
    counter = np.stack([block & low, block >> 32, rest, high], 1)
    drawn = philox(counter, np.array([seed & low, seed >> 32], np.uint64))
    return drawn[np.arange(len(indices)), indices % 4].astype(np.uint32)


def pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(a.ctypes.data) for a in arrays]


def position(seed: int, stream: int, first: int) -> tuple:
    return ctypes.c_uint64(seed), ctypes.c_uint64(stream), ctypes.c_int64(first)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_random123(build, counter: str, key: str, expected: str) -> None:
    out = np.zeros(4, np.uint32)
    build("vec_probe").philox_block_at(*pointers(words(counter), words(key), out))
    assert np.array_equal(out, words(expected))
    assert np.array_equal(philox(words(counter)[None], words(key))[0], words(expected))


@pytest.mark.parametrize("place", STREAMS, ids=str)
def test_words_of_a_stream_do_not_depend_on_lanes(build, place: tuple[int, int, int]) -> None:
    vector, scalar = np.zeros(COUNT, np.uint32), np.zeros(COUNT, np.uint32)
    build("vec_probe").random_words(*position(*place), *pointers(vector, scalar), ctypes.c_long(COUNT))
    expected = stream_words(place[0], place[1], place[2] + np.arange(COUNT))
    assert np.array_equal(vector, expected)
    assert np.array_equal(scalar, expected)


@pytest.mark.parametrize("place", STREAMS, ids=str)
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_uniforms_are_exact_and_normals_within_rounding(build, name: str, place: tuple[int, int, int]) -> None:
    dtype = np.float32 if name == "f32" else np.float64
    uniforms, normals, scalars = np.zeros(COUNT, dtype), np.zeros(COUNT, dtype), np.zeros(2 * COUNT, dtype)
    getattr(build("vec_probe"), f"random_{name}")(
        *position(*place), *pointers(uniforms, normals, scalars), ctypes.c_long(COUNT)
    )
    index = place[2] + np.arange(COUNT)
    if name == "f32":
        expected = (stream_words(*place[:2], index) >> 8).astype(np.float32) * np.float32(2**-24)
    else:
        a, b = (stream_words(*place[:2], 2 * index + i).astype(np.float64) for i in (0, 1))
        expected = (np.floor(a / 32) * 67108864 + np.floor(b / 64)) / 2**53
    assert np.array_equal(uniforms, expected)
    assert np.array_equal(scalars[:COUNT], expected)
    u1, u2 = ((stream_words(*place[:2], index // 2 * 2 + i).astype(np.float64) + 0.5) / 2**32 for i in (0, 1))
    exact = np.sqrt(-2 * np.log(u1)) * np.where(index % 2 == 0, np.cos(2 * np.pi * u2), np.sin(2 * np.pi * u2))
    np.testing.assert_allclose(normals, exact.astype(dtype), rtol=2.5e-7 if name == "f32" else 1e-13, atol=1e-14)
    assert np.array_equal(normals, scalars[COUNT:])


@pytest.mark.parametrize("place", STREAMS, ids=str)
def test_integers_are_exact(build, place: tuple[int, int, int]) -> None:
    out, scalar = np.zeros(COUNT, np.int64), np.zeros(COUNT, np.int64)
    low, span = -5, 2**32 - 1 if place[0] else 17
    build("vec_probe").random_integers(
        *position(*place), ctypes.c_int64(low), ctypes.c_uint64(span), *pointers(out, scalar), ctypes.c_long(COUNT)
    )
    drawn = stream_words(*place[:2], place[2] + np.arange(COUNT)).astype(np.uint64)
    expected = low + (drawn * np.uint64(span) >> np.uint64(32)).astype(np.int64)
    assert np.array_equal(out, expected)
    assert np.array_equal(scalar, expected)
