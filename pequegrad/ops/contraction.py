"""Products that sum over a shared dimension: matmul, and what is made of it.

Invariant: half-precision operands are accumulated in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dtypes import bool_
from ..errors import DTypeError, ShapeError
from .core import Family, Op, Sample, TensorSpec, as_tensor, bind, broadcast_shapes
from .creation import diagonal
from .movement import expand, permute, reshape
from .sharding import REPLICATED, Mapped, Partial, Sharding
from .views import transpose, unsqueeze

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
"""Indices of einsum: those that an equation names, and those that its ellipsis stands for."""


class Matmul(Op):
    """Products of matrices (…, M, K) and (…, K, N); the leading dimensions broadcast."""

    name = "matmul"
    lowering = Family("contract")
    methods = ("matmul",)

    @staticmethod
    def call(x: Any, other: Any) -> Any:
        """Return the matrix product; 1-dimensional operands count as a row and a column that are dropped again.

        Raises ShapeError where the inner extents differ, DTypeError for bools or two different dtypes.
        """
        x, other = as_tensor(x), as_tensor(other)
        if not x.ndim or not other.ndim:
            raise ShapeError(
                f"matmul: operands must have at least 1 dimension. Got {x.shape} and {other.shape}. Use *."
            )
        if x.shape[-1] != other.shape[-2 if other.ndim > 1 else 0]:
            raise ShapeError(
                f"matmul: the last extent of {x.shape} must equal the last but one of {other.shape}. "
                f"Got {x.shape[-1]} and {other.shape[-2 if other.ndim > 1 else 0]}. Try .mT on one of them."
            )
        if x.dtype is not other.dtype or x.dtype is bool_:
            raise DTypeError(
                f"matmul: both operands need one numeric dtype. Got {x.dtype.name} and "
                f"{other.dtype.name}. Use .to(dtype)."
            )
        rows = unsqueeze(x, 0) if x.ndim == 1 else x
        columns = unsqueeze(other, 1) if other.ndim == 1 else other
        if columns.ndim == 2 and rows.ndim > 2:
            # One product of tall matrices instead of a batch: the gradient of ``other`` is then one product too.
            tall = reshape(rows, (math.prod(rows.shape[:-1]), rows.shape[-1]))
            product = reshape(bind(Matmul, tall, columns), (*rows.shape[:-1], columns.shape[-1]))
        else:
            product = bind(Matmul, rows, columns)
        shape = product.shape[:-2] + (() if x.ndim == 1 else product.shape[-2:-1])
        return reshape(product, shape + (() if other.ndim == 1 else product.shape[-1:]))

    @staticmethod
    def infer(x: TensorSpec, y: TensorSpec) -> TensorSpec:  # type: ignore[override]
        batch = broadcast_shapes(x.shape[:-2], y.shape[:-2], who="matmul")
        return TensorSpec((*batch, x.shape[-2], y.shape[-1]), x.dtype)

    @staticmethod
    def numpy(xp: Any, x: Any, y: Any) -> Any:
        if x.dtype.itemsize == 2:
            return xp.matmul(x.astype(xp.float32), y.astype(xp.float32)).astype(x.dtype)
        return xp.matmul(x, y)

    @staticmethod
    def vjp(saved: Any, g: Any) -> Any:
        g_x = bind(Matmul, g, transpose(saved.input(1), -2, -1)) if saved.needs(0) else None
        g_y = bind(Matmul, transpose(saved.input(0), -2, -1), g) if saved.needs(1) else None
        return g_x, g_y

    @staticmethod
    def shard(inputs: Any, specs: Any) -> Sharding | None:  # type: ignore[override]
        if any(isinstance(sharding, Partial) for sharding in inputs):
            return None
        ndim = max(spec.ndim for spec in specs)
        x, y = (
            sharding.dim - spec.ndim if isinstance(sharding, Mapped) else None
            for sharding, spec in zip(inputs, specs, strict=True)
        )
        if x is None and y is None:
            return REPLICATED
        if x == -1 or y == -2:
            return Partial("sum") if (x, y) == (-1, -2) else None
        if x == -2 or y == -1:
            # A free dimension of one operand: the other must be whole.
            return Mapped(ndim + (x if y is None else y)) if x is None or y is None else None
        if x is None or y is None or x == y:
            batch_dim = y if x is None else x
            return Mapped(ndim + batch_dim)
        return None

    @staticmethod
    def samples() -> list[Sample]:
        x, y = (
            np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
            np.linspace(0, 2, 20, dtype=np.float32).reshape(1, 4, 5),
        )
        return [
            Sample((x, y), (), lambda torch, a, b: a @ b, (0, 1)),
            Sample((x[0], y[0]), (), lambda torch, a, b: a @ b, (0, 1)),
        ]


matmul = Matmul.call


def mm(x: Any, other: Any) -> Any:
    """Return the product of two matrices, (M, K) and (K, N)."""
    return matmul(*_with_ndims(x, other, (2, 2), "mm"))


def mv(x: Any, other: Any) -> Any:
    """Return the product of a matrix (M, K) and a vector (K,)."""
    return matmul(*_with_ndims(x, other, (2, 1), "mv"))


def bmm(x: Any, other: Any) -> Any:
    """Return the products of two batches of matrices, (B, M, K) and (B, K, N)."""
    x, other = _with_ndims(x, other, (3, 3), "bmm")
    if x.shape[0] != other.shape[0]:
        raise ShapeError(f"bmm: the batches must be of one size. Got {x.shape} and {other.shape}.")
    return matmul(x, other)


def dot(x: Any, other: Any) -> Any:
    """Return the sum of products of two vectors (K,)."""
    return matmul(*_with_ndims(x, other, (1, 1), "dot"))


def outer(x: Any, other: Any) -> Any:
    """Return the matrix of all products of two vectors, (M,) and (N,)."""
    x, other = _with_ndims(x, other, (1, 1), "outer")
    return unsqueeze(x, 1) * unsqueeze(other, 0)


def addmm(bias: Any, x: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Return ``beta * bias + alpha * (x @ other)``."""
    product = mm(x, other)
    product = product if alpha == 1 else product * alpha
    return product + (bias if beta == 1 else as_tensor(bias) * beta)


def _with_ndims(x: Any, other: Any, ndims: tuple[int, int], who: str) -> tuple[Any, Any]:
    x, other = as_tensor(x), as_tensor(other)
    if (x.ndim, other.ndim) != ndims:
        raise ShapeError(
            f"{who}: expected {ndims[0]} and {ndims[1]} dimensions. Got shapes {x.shape} and {other.shape}."
        )
    return x, other


def tensordot(x: Any, other: Any, dims: Any = 2) -> Any:
    """Return products summed over the last ``dims`` dimensions of ``x`` and the first of ``other``, or two lists."""
    x, other = as_tensor(x), as_tensor(other)
    if isinstance(dims, int):
        left, right = list(range(x.ndim - dims, x.ndim)), list(range(dims))
    else:
        left, right = ([part] if isinstance(part, int) else list(part) for part in dims)
    left, right = [dim % x.ndim for dim in left], [dim % other.ndim for dim in right]
    letters = iter(LETTERS)
    first = [next(letters) for _ in range(x.ndim)]
    second = [next(letters) for _ in range(other.ndim)]
    for a, b in zip(left, right, strict=True):
        second[b] = first[a]
    kept = [c for i, c in enumerate(first) if i not in left] + [c for i, c in enumerate(second) if i not in right]
    return einsum(f"{''.join(first)},{''.join(second)}->{''.join(kept)}", x, other)


# --- einsum ---------------------------------------------------------------------------------------------------


def einsum(equation: str, *operands: Any) -> Any:
    """Return the sum of products that ``equation`` describes, as ``torch.einsum``: "bij,bjk->bik", "...i,i", "ii->i".

    Made of permute, reshape and matmul, operands from left to right. Raises ShapeError for an equation that does
    not fit its operands.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    tensors = [as_tensor(tensor) for tensor in operands]
    inputs, output = _parse(equation, [tensor.ndim for tensor in tensors])
    extents: dict[str, int] = {}
    for letters, tensor in zip(inputs, tensors, strict=True):
        for letter, extent in zip(letters, tensor.shape, strict=True):
            known = extents.setdefault(letter, extent)
            if known == 1 and letter.isdigit():
                extents[letter] = extent
            elif extent != known and not (letter.isdigit() and extent == 1):
                raise ShapeError(f"einsum {equation!r}: index {letter!r} is both {known} and {extent} in shapes "
                                 f"{', '.join(str(tensor.shape) for tensor in tensors)}.")  # fmt: skip
    if missing := [letter for letter in output if letter not in extents]:
        raise ShapeError(f"einsum {equation!r}: the result names {missing[0]!r}, which no operand has.")
    letters, result = _prepared(inputs[0], tensors[0], extents)
    for i in range(1, len(tensors)):
        later = set(output).union(*inputs[i + 1 :])
        other_letters, other = _prepared(inputs[i], tensors[i], extents)
        letters, result = _pair(letters, result, other_letters, other, later, extents)
    letters, result = _sum_out(letters, result, set(output))
    return permute(result, tuple(letters.index(letter) for letter in output)) if output else result


def _parse(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result; an ellipsis becomes digits, counted from the right."""
    compact = equation.replace(" ", "")
    left, arrow, right = compact.partition("->")
    parts = left.split(",")
    if len(parts) != len(ndims):
        raise ShapeError(f"einsum {equation!r}: it names {len(parts)} operands. Got {len(ndims)}.")
    widest, inputs = 0, []
    for part, ndim in zip(parts, ndims, strict=True):
        named = part.replace("...", "")
        hidden = ndim - len(named)
        if hidden < 0 or (hidden and "..." not in part) or not (named.isascii() and (named.isalpha() or not named)):
            raise ShapeError(f"einsum {equation!r}: {part!r} does not name the {ndim} dimensions of its operand.")
        if hidden > 10:
            raise ShapeError(f"einsum {equation!r}: an ellipsis stands for at most 10 dimensions. Got {hidden}.")
        widest = max(widest, hidden)
        inputs.append(part.replace("...", DIGITS[:hidden][::-1]))
    ellipsis = DIGITS[:widest][::-1]
    if arrow:
        output = right.replace("...", ellipsis)
    else:
        every = "".join(parts)
        output = ellipsis + "".join(sorted(c for c in set(every) if c.isalpha() and every.count(c) == 1))
    if len(set(output)) != len(output):
        raise ShapeError(f"einsum {equation!r}: the result names an index twice.")
    return inputs, output


def _prepared(letters: str, tensor: Any, extents: dict[str, int]) -> tuple[str, Any]:
    """Return an operand with broadcast ellipsis dimensions spread out, and repeated letters reduced to a diagonal."""
    tensor = expand(tensor, tuple(extents[letter] for letter in letters)) if letters else tensor
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            tensor = diagonal(tensor, 0, first, letters.index(letter, first + 1))
            letters = "".join(c for i, c in enumerate(letters) if c != letter) + letter * (letters.count(letter) - 1)
    return letters, tensor


def _sum_out(letters: str, tensor: Any, kept: set[str]) -> tuple[str, Any]:
    dims = tuple(i for i, letter in enumerate(letters) if letter not in kept)
    return "".join(c for c in letters if c in kept), tensor.sum(dims, dtype=tensor.dtype) if dims else tensor


def _pair(
    a: str, x: Any, b: str, y: Any, later: set[str], extents: dict[str, int]
) -> tuple[str, Any]:  # fmt: skip
    """Return the product of two operands, summed over the letters that nothing later names."""
    a, x = _sum_out(a, x, later | set(b))
    b, y = _sum_out(b, y, later | set(a))
    batch = [c for c in a if c in b and c in later]
    shared = [c for c in a if c in b and c not in later]
    rows = [c for c in a if c not in b]
    columns = [c for c in b if c not in a]

    def arranged(letters: str, tensor: Any, *groups: Sequence[str]) -> Any:
        order = tuple(letters.index(c) for group in groups for c in group)
        tensor = permute(tensor, order) if order else tensor
        return reshape(tensor, tuple(math.prod(extents[c] for c in group) for group in groups))

    product = matmul(arranged(a, x, batch, rows, shared), arranged(b, y, batch, shared, columns))
    letters = "".join((*batch, *rows, *columns))
    return letters, reshape(product, tuple(extents[c] for c in letters))
