"""Random orders for loaders and splits.

Invariant: with no generator given, ``pequegrad.manual_seed`` decides the order.
"""

from __future__ import annotations

import numpy as np

from ..errors import DTypeError
from ..ops.random import randint, randperm

Generator = np.random.Generator | int | None


def permutation(count: int, generator: Generator = None) -> np.ndarray:
    """Return 0 … count-1 in random order, int64 (count,), from pequegrad's state or from ``generator``.

    ``generator`` is a numpy.random.Generator, which advances, or an int, which seeds a new one.
    """
    if generator is None:
        return randperm(count).numpy()
    return _numpy_generator(generator).permutation(count)


def draw_seed(generator: Generator = None) -> int:
    """Return a seed of 31 bits from pequegrad's random state or from ``generator``, which advances."""
    if generator is None:
        return int(randint(0, 2**31 - 1, (1,)).item())
    return int(_numpy_generator(generator).integers(2**31 - 1))


def _numpy_generator(generator: Generator) -> np.random.Generator:
    if isinstance(generator, int):
        return np.random.default_rng(generator)
    if not isinstance(generator, np.random.Generator):
        raise DTypeError(
            "generator must be a numpy.random.Generator, an int seed, or None. Got "
            f"{type(generator).__name__}. Try numpy.random.default_rng(seed)."
        )
    return generator
