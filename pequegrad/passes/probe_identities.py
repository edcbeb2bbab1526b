"""Finds out whether a pointwise application gives back one of its operands, by asking the op's own definition.

Invariant: "gives back" means bit for bit, NaN's being a NaN apart: x + 0.0 is not x (-0.0 becomes 0.0), x - 0.0 is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..dtypes import DType
from ..ops.core import Op
from ..trace.graph import Params

PROBES = 400
"""Numbers an identity is tried on: special ones, and random bit patterns, of which each exponent is as likely."""


@functools.lru_cache(maxsize=64)
def probes(dtype: DType, salt: int) -> np.ndarray:
    """Return numbers to try; another ``salt`` gives others, in another order."""
    random = np.random.default_rng(salt)
    bits = random.integers(0, 256, PROBES * dtype.itemsize, dtype=np.uint8)
    if dtype.kind == "bool":
        return (bits & 1).astype(np.bool_)
    if dtype.itemsize == 1:
        return bits
    found = bits.view(dtype.numpy).copy()
    if dtype.kind == "int":
        limits = np.iinfo(dtype.numpy)
        special: list[Any] = [0, 1, -1, 2, -2, 3, limits.max, limits.min, limits.max - 1, limits.min + 1]
        found[PROBES // 2 :] >>= dtype.itemsize * 8 - 8
    else:
        special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.0, 1e4, -1e4]
        found[PROBES // 2 :] = random.standard_normal(PROBES - PROBES // 2)
    found[random.permutation(PROBES)[: len(special)]] = np.array(special).astype(dtype.numpy)
    return found


@functools.lru_cache(maxsize=4096)
def given_back(op: type[Op], params: Params, numbers: tuple[Any, ...], dtypes: tuple[DType, ...], result: DType) -> int:
    """Return which operand (of those that are not numbers) an application gives back, or -1.

    ``numbers``: the text of each operand that is a constant, None for the others.
    """
    arrays = _operands(numbers, dtypes)
    try:
        with np.errstate(all="ignore"):
            out = np.asarray(op.numpy(np, *arrays, **dict(params)), result.numpy)
    except ZeroDivisionError:
        return -1  # an op that raises on some operands gives back none of them
    for i, (text, array) in enumerate(zip(numbers, arrays, strict=True)):
        if text is None and dtypes[i] is result and _are_same(out, array):
            return i
    return -1


@functools.lru_cache(maxsize=1024)
def gives_zero(op: type[Op], params: Params, numbers: tuple[Any, ...], dtypes: tuple[DType, ...]) -> bool:
    """Whether an application gives 0 for these ``numbers`` (texts, or None) and whatever finite ones the others are."""
    arrays = _operands(numbers, dtypes)
    try:
        with np.errstate(all="ignore"):
            out = op.numpy(np, *[np.where(np.isfinite(array), array, 1) for array in arrays], **dict(params))
    except ZeroDivisionError:
        return False
    return bool((np.asarray(out) == 0).all())


@functools.lru_cache(maxsize=1024)
def undoes(
    first: type[Op], first_params: Params, second: type[Op], second_params: Params, dtypes: tuple[DType, ...]
) -> bool:
    """Whether ``second(first(x))`` is x; ``dtypes``: of x and of what lies between."""
    x = probes(dtypes[0], 0)
    with np.errstate(all="ignore"):
        between = np.asarray(first.numpy(np, x, **dict(first_params)), dtypes[1].numpy)
        out = np.asarray(second.numpy(np, between, **dict(second_params)), dtypes[0].numpy)
    return _are_same(out, x)


def _operands(numbers: tuple[Any, ...], dtypes: tuple[DType, ...]) -> list[np.ndarray]:
    """Return an array for each operand: its number where it has one, else probes."""
    return [
        probes(dtype, salt) if text is None else np.full(PROBES, _number(text), dtype.numpy)
        for salt, (text, dtype) in enumerate(zip(numbers, dtypes, strict=True))
    ]


def _number(text: str) -> bool | int | float:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return float(text)


def _are_same(out: np.ndarray, array: np.ndarray) -> bool:
    if out.shape != array.shape:
        return False
    if out.dtype.kind in "biu":
        return bool((out == array).all())
    with np.errstate(invalid="ignore"):  # bfloat16's own comparisons complain of NaN
        equal = (out == array) & (np.signbit(out) == np.signbit(array))
        return bool((equal | ((out != out) & (array != array))).all())
