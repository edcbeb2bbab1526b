"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

Invariant: element i of a draw is a function of (seed, stream, i) alone. Word i of a stream is word i % 4 of the
block with counter (lo(i / 4), hi(i / 4), lo(stream), hi(stream)) and key (lo(seed), hi(seed)). The state (seed,
stream) is a tensor that each draw reads and advances in place, so that a traced step captures and advances it like
any other state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import CPU, checked_device, to_host
from ..dtypes import DType, as_dtype, float32, float64, int64
from ..errors import DTypeError, ShapeError
from .core import (
    EAGER,
    Family,
    Op,
    Sample,
    TensorSpec,
    as_tensor,
    bind,
    context,
    grad_mode,
    is_tensor,
    use_interpreter,
)  # fmt: skip
from .creation import iota
from .elementwise import where
from .gathering import argsort
from .movement import shape_argument
from .placement import to_device
from .rounding import floor
from .sharding import REPLICATED, Sharding

DEFAULT_SEED = 67280421310721  # torch's, for a program that sets none
_LOW = 0xFFFFFFFF


def philox_blocks(xp: Any, counters: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Return the four words of the Philox 4x32-10 block of each counter, in the counters' memory; uint64 arrays of 32-bit
    values."""
    c0, c1, c2, c3 = counters
    k0, k1 = key
    shift, low = xp.uint64(32), xp.uint64(_LOW)
    # In place: new memory for each result takes longer than the arithmetic.
    a, b = xp.empty_like(c0), xp.empty_like(c0)
    for _ in range(10):
        xp.multiply(c0, xp.uint64(0xD2511F53), out=a)
        xp.multiply(c2, xp.uint64(0xCD9E8D57), out=b)
        xp.right_shift(b, shift, out=c0)
        c0 ^= c1
        c0 ^= xp.uint64(k0)
        xp.bitwise_and(b, low, out=c1)
        xp.right_shift(a, shift, out=c2)
        c2 ^= c3
        c2 ^= xp.uint64(k1)
        xp.bitwise_and(a, low, out=c3)
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def philox_words(xp: Any, state: Any, count: int) -> Any:
    """Return the first ``count`` words of the stream of ``state``, int64 (seed, stream); uint64 below 2**32."""
    seed, stream = (int(part) & 0xFFFFFFFFFFFFFFFF for part in to_host(state))
    blocks = xp.arange(-(-count // 4)).astype(xp.uint64)
    constant = (xp.full(blocks.shape, part, xp.uint64) for part in (stream & _LOW, stream >> 32))
    counters = (blocks & xp.uint64(_LOW), blocks >> xp.uint64(32), *constant)
    words = xp.empty((blocks.size, 4), xp.uint64)
    for i, column in enumerate(philox_blocks(xp, counters, (seed & _LOW, seed >> 32))):
        words[:, i] = column
    return words.reshape(-1)[:count]


class RandomOp(Op):
    """Family: draws of a state tensor. ``kind`` tells the kernel family which formula."""

    lowering = Family("random")
    kind = ""

    @staticmethod
    def infer(state: TensorSpec, *, shape: tuple[int, ...], dtype: DType, **params: Any) -> TensorSpec:  # type: ignore[override]
        if state != TensorSpec((2,), int64):
            raise ShapeError(f"random: expected the state (seed, stream), int64[2]. Got {state}.")
        return TensorSpec(shape, dtype)

    @staticmethod
    def shard(inputs: Any, specs: Any, **params: Any) -> Sharding | None:
        return REPLICATED


_STATE = np.array([7, 3])


class RandomUniform(RandomOp):
    """Uniform on [0, 1): float32 of the upper 24 bits of one word, float64 of 53 bits of two."""

    name = "random_uniform"
    kind = "uniform"

    @staticmethod
    def call(state: Any, shape: tuple[int, ...], dtype: Any = float32) -> Any:
        """Return what ``state`` gives, float32 or float64; the state does not advance."""
        if as_dtype(dtype) not in (float32, float64):
            raise DTypeError(f"random_uniform: dtype must be float32 or float64. Got {dtype!r}.")
        return bind(RandomUniform, state, shape=shape, dtype=as_dtype(dtype))

    @staticmethod
    def numpy(xp: Any, state: Any, *, shape: tuple[int, ...], dtype: DType) -> Any:
        count = int(np.prod(shape, dtype=np.int64))
        if dtype is float32:
            words = philox_words(xp, state, count)
            words >>= xp.uint64(8)
            values = words.astype(xp.float32)
            values *= xp.float32(2.0**-24)
            return values.reshape(shape)
        words = philox_words(xp, state, 2 * count)
        high, low = words[0::2] >> xp.uint64(5), words[1::2] >> xp.uint64(6)
        return ((high * xp.uint64(67108864) + low).astype(xp.float64) * 2.0**-53).reshape(shape)

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((_STATE,), (("shape", (2, 3)), ("dtype", dtype))) for dtype in (float32, float64)]


class RandomNormal(RandomOp):
    """Standard normal by Box and Muller, in float64 and rounded: elements 2j and 2j + 1 of words 2j and 2j + 1."""

    name = "random_normal"
    kind = "normal"

    @staticmethod
    def call(state: Any, shape: tuple[int, ...], dtype: Any = float32) -> Any:
        """Return what ``state`` gives in a floating-point dtype; the state does not advance."""
        if not as_dtype(dtype).is_floating_point:
            raise DTypeError(f"random_normal: dtype must be floating-point. Got {dtype!r}.")
        return bind(RandomNormal, state, shape=shape, dtype=as_dtype(dtype))

    @staticmethod
    def numpy(xp: Any, state: Any, *, shape: tuple[int, ...], dtype: DType) -> Any:
        count = int(np.prod(shape, dtype=np.int64))
        words = philox_words(xp, state, count + count % 2).astype(xp.float64)
        radius = xp.sqrt(-2.0 * xp.log((words[0::2] + 0.5) * 2.0**-32))
        turn = 6.283185307179586 * ((words[1::2] + 0.5) * 2.0**-32)
        pairs = xp.stack([radius * xp.cos(turn), radius * xp.sin(turn)], axis=1)
        return pairs.reshape(-1)[:count].reshape(shape).astype(dtype.numpy)

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((_STATE,), (("shape", (5,)), ("dtype", float32)))]


class RandomInt(RandomOp):
    """Integers low + (word * range >> 32), uniform on [low, low + range) up to a bias of range / 2**32."""

    name = "random_int"
    kind = "randint"

    @staticmethod
    def call(state: Any, shape: tuple[int, ...], low: int, range: int) -> Any:
        """Return what ``state`` gives as int64; 0 < ``range`` <= 2**32. The state does not advance."""
        if not 0 < range <= 2**32:
            raise ShapeError(f"random_int: there must be 1 to 2**32 integers to choose from. Got {range}.")
        return bind(RandomInt, state, shape=shape, dtype=int64, low=low, range=range)

    @staticmethod
    def numpy(xp: Any, state: Any, *, shape: tuple[int, ...], dtype: DType, low: int, range: int) -> Any:
        words = philox_words(xp, state, int(np.prod(shape, dtype=np.int64)))
        return ((words * xp.uint64(range) >> xp.uint64(32)).astype(xp.int64) + low).reshape(shape)

    @staticmethod
    def samples() -> list[Sample]:
        return [Sample((_STATE,), (("shape", (2, 3)), ("dtype", int64), ("low", -2), ("range", 10)))]


# --- generators -----------------------------------------------------------------------------------------------


class Generator:
    """A source of random numbers: a state tensor, int64 (seed, stream). Each draw takes a stream of its own.

    The numbers are the same on every device. The state moves to the first GPU that draws, and stays there: so a compiled
    step finds it where the parameters lie, and a program has one sequence of numbers, wherever it draws them.
    """

    def __init__(self, device: Any = None) -> None:
        self._first_device = CPU if device is None else checked_device(device)
        self._state: Any = None

    @property
    def state(self) -> Any:
        """The state tensor itself, which draws advance in place."""
        if self._state is None:
            # Made outside of any trace, in which it would be a constant of the step instead of its state.
            with use_interpreter(EAGER):
                self._state = to_device(as_tensor(np.array([DEFAULT_SEED, 0])), self._first_device)
        return self._state

    def manual_seed(self, seed: int) -> Generator:
        """Start the numbers of ``seed``, any integer of 64 bits, from the beginning."""
        if not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**64:
            raise DTypeError(f"manual_seed: seed must be an int of 64 bits. Got {seed!r}.")
        signed = (int(seed) + 2**63) % 2**64 - 2**63
        self.state.assign(as_tensor(np.array([signed, 0])))
        return self

    def initial_seed(self) -> int:
        """Return the seed that the numbers started from."""
        return int(to_host(self.state.array)[0])

    def get_state(self) -> Any:
        """Return a copy of the state, int64 (seed, stream)."""
        return self.state.clone()

    def set_state(self, state: Any) -> Generator:
        """Go on from a state that `get_state` gave."""
        new = as_tensor(state)
        if new.spec != self.state.spec:
            raise ShapeError(f"set_state: expected the state (seed, stream), int64[2]. Got {new.spec}.")
        self.state.assign(new)
        return self

    def draw(self, op: Callable[..., Any], *arguments: Any, device: str | None = None) -> Any:
        """Return ``op(state, *arguments)`` on ``device`` (None: the CPU) and advance to the next stream."""
        state = self.state
        place = CPU if device is None else device
        if state.device == CPU != place and context.interpreter.may_move(state):
            with use_interpreter(EAGER), grad_mode(False):
                state.data = to_device(state, place)
        drawn = op(to_device(state, place), *arguments)
        with grad_mode(False):
            state.assign(state + iota((2,), device=state.device))
        return drawn


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Start the default generator's numbers of ``seed`` from the beginning, and return it."""
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    """Return the seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Any:
    """Return a copy of the default generator's state."""
    return default_generator.get_state()


def set_rng_state(state: Any) -> None:
    """Let the default generator go on from ``state``."""
    default_generator.set_state(state)


def _place(device: Any) -> str | None:
    return None if device is None else checked_device(device)


def _finish(drawn: Any, dtype: Any, requires_grad: bool) -> Any:
    drawn = drawn if dtype is None else drawn.to(as_dtype(dtype))
    return drawn.requires_grad_() if requires_grad else drawn


def _float_dtype(dtype: Any, who: str) -> DType:
    kind = float32 if dtype is None else as_dtype(dtype)
    if not kind.is_floating_point:
        raise DTypeError(f"{who}: dtype must be floating-point. Got {kind.name}. Use randint for integers.")
    return kind


def rand(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """Return uniform numbers on [0, 1) of shape ``size``; float32 by default."""
    shape, kind = shape_argument(size, "rand"), _float_dtype(dtype, "rand")
    wide = kind if kind in (float32, float64) else float32
    drawn = (generator or default_generator).draw(RandomUniform.call, shape, wide, device=_place(device))
    if kind is not wide:
        # As many bits as the format has after the point: rounding up would give 1 now and then.
        steps = 2.0 ** (11 if kind.name == "float16" else 8)
        drawn = floor(drawn * steps) / steps
    return _finish(drawn, kind, requires_grad)


def randn(
    *size: Any, generator: Generator | None = None, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """Return standard normal numbers of shape ``size``; float32 by default."""
    shape, kind = shape_argument(size, "randn"), _float_dtype(dtype, "randn")
    drawn = (generator or default_generator).draw(RandomNormal.call, shape, kind, device=_place(device))
    return _finish(drawn, None, requires_grad)


def randint(
    low: int, high: Any = None, size: Any = None, *, generator: Generator | None = None, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Any:  # fmt: skip
    """Return integers in [low, high) of shape ``size``: ``randint(high, size)`` or ``randint(low, high, size)``."""
    if size is None:
        low, high, size = 0, low, high
    if not isinstance(high, int | np.integer) or not isinstance(low, int | np.integer):
        raise DTypeError(f"randint: low and high must be ints. Got {low!r} and {high!r}.")
    if size is None or high <= low:
        raise ShapeError(f"randint: expected low < high and a size. Got low {low}, high {high}, size {size}.")
    shape = shape_argument((size if isinstance(size, int) else tuple(size),), "randint")
    source = generator or default_generator
    drawn = source.draw(RandomInt.call, shape, int(low), int(high - low), device=_place(device))
    return _finish(drawn, dtype, requires_grad)


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None) -> Any:
    """Return the integers 0 to ``n`` - 1 in random order; int64 by default."""
    return _finish(argsort(rand(n, generator=generator, dtype=float64, device=device)), dtype, False)


def bernoulli(x: Any, p: Any = None, *, generator: Generator | None = None) -> Any:
    """Return ones with probability ``x`` (or ``p``, for each element of ``x``), else zeros, in the dtype of ``x``."""
    x = as_tensor(x)
    probability = x if p is None else p
    _check_probability(probability, "bernoulli")
    return (_uniform_for(x, generator) < probability).to(x.dtype)


def _uniform_for(x: Any, generator: Generator | None) -> Any:
    kind = float64 if x.dtype is float64 else float32
    return rand(x.shape, generator=generator, dtype=kind, device=x.device)


def _check_probability(p: Any, who: str) -> None:
    if is_tensor(p):
        if not p.dtype.is_floating_point:
            raise DTypeError(f"{who}: probabilities must be floating-point. Got {p.dtype.name}. Use .to(float32).")
        is_right = context.interpreter is not EAGER or bool(((p.array >= 0) & (p.array <= 1)).all())
    else:
        is_right = 0 <= p <= 1
    if not is_right:
        raise ShapeError(f"{who}: probabilities must lie in [0, 1]. Got {p}.")


def dropout(x: Any, p: Any = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Return ``x`` with elements set to zero with probability ``p`` and the others scaled by 1 / (1 - p), in training.

    An element stays where uniform < 1 - p, with the same uniform numbers on every target. ``p``: a number or a Tensor.
    """
    x = as_tensor(x)
    _check_probability(p, "dropout")
    if not training or (not is_tensor(p) and p == 0):
        return x
    keep = 1 - p
    stays = _uniform_for(x, None) < keep
    result = where(stays, x / keep if is_tensor(p) or p < 1 else x, 0.0)
    return x.assign(result) if inplace else result


def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None) -> Any:
    """Return normal numbers of shape ``size``, or of the shape of the tensors ``mean`` and ``std``."""
    if size is None:
        location = as_tensor(mean) + as_tensor(std) * 0
        drawn = randn(location.shape, generator=generator, dtype=location.dtype, device=location.device)
        return drawn * std + mean
    return randn(size, generator=generator) * std + mean


def rand_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Any:
    """Return uniform numbers on [0, 1) of the shape and dtype of ``x``."""
    return rand(x.shape, dtype=dtype or x.dtype, device=x.device, requires_grad=requires_grad)


def randn_like(x: Any, *, dtype: Any = None, requires_grad: bool = False) -> Any:
    """Return standard normal numbers of the shape and dtype of ``x``."""
    return randn(x.shape, dtype=dtype or x.dtype, device=x.device, requires_grad=requires_grad)


def randint_like(x: Any, low: int, high: int | None = None, *, dtype: Any = None) -> Any:
    """Return integers from ``low`` to ``high`` - 1 of the shape and dtype of ``x``."""
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, x.shape, dtype=dtype or x.dtype, device=x.device)


# The in-place fills of a tensor: what `x.uniform_()` and its like assign.


def uniform_values(x: Any, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None) -> Any:
    """Return uniform numbers on [a, b) like ``x``."""
    drawn = rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return drawn if (a, b) == (0, 1) else drawn * (b - a) + a


def normal_values(x: Any, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Any:
    """Return normal numbers like ``x``."""
    drawn = randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return drawn if (mean, std) == (0, 1) else drawn * std + mean


def integer_values(x: Any, low: int, high: int | None = None, *, generator: Generator | None = None) -> Any:
    """Return integers from ``low`` to ``high`` - 1 like ``x``."""
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, x.shape, generator=generator, dtype=x.dtype, device=x.device)


def bernoulli_values(x: Any, p: Any = 0.5, *, generator: Generator | None = None) -> Any:
    """Return ones with probability ``p``, else zeros, like ``x``."""
    return bernoulli(x, p, generator=generator)
