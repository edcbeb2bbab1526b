"""The cases of every op that has a kernel: its own samples, hard numbers in many layouts, casts and reductions.

Imports no test runner, so that a benchmark can run the same cases on a device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping

import numpy as np

from pequegrad.dtypes import DTYPES, as_dtype
from pequegrad.errors import DTypeError, NotCompilable, ShapeError
from pequegrad.ops.core import Expression, Op, Reduction, TensorSpec
from pequegrad.ops.registry import REGISTRY
from tests.codegen.compiling import Batch

OPS = {
    name: op
    for name, op in REGISTRY.items()
    if op.__module__.startswith("pequegrad.") and not isinstance(op.lowering, NotCompilable)
}
EVERY_OP = frozenset(OPS)
# Their public functions turn integers into floats first.
FLOATS_ONLY = {
    "erf",
    "sigmoid",
    "softplus",
    "rsqrt",
    "reciprocal",
    "floor",
    "ceil",
    "trunc",
    "round",
    "avg_pool2d",
    "avg_pool2d_grad",
}
# Their public functions refuse bools.
NO_BOOLS = {
    "relu",
    "floor_divide",
    "trunc_divide",
    "remainder",
    "fmod",
    "matmul",
    "window_take",
    "window_put",
    "max_pool2d",
    "cumsum",
}
# Of two zeros either may win, in NumPy too.
ZEROS_ALIKE = {"maximum", "minimum", "clamp", "relu", "amax", "amin"}
# Approximations: ours and NumPy's are each off by one or two units.
ULPS = {
    "exp": 4,
    "expm1": 4,
    "log": 4,
    "log1p": 4,
    "sin": 4,
    "cos": 4,
    "tanh": 4,
    "sigmoid": 4,
    "softplus": 4,
    "erf": 4,
    "pow": 4,
    "rsqrt": 2,
}
SUMS = (
    "sum", "prod", "squared_deviations", "cumsum", "scatter_add", "matmul", "conv2d", "avg_pool2d", "window_put",
    "random_normal", "attention",
)  # fmt: skip
FLOATS = [
    0.0,
    -0.0,
    1,
    -1,
    0.5,
    -0.5,
    2,
    -3,
    1e-3,
    -1e3,
    2.5,
    88,
    -100,
    np.inf,
    -np.inf,
    np.nan,
    1e30,
    -1e30,
    1e-40,
    3e-38,
]


def allowance(name: str, dtype: np.dtype) -> tuple[float | None, float]:
    """Return (units in the last place, relative tolerance): exactly one of the two counts."""
    if name.startswith(SUMS):
        return None, {2: 2e-2, 4: 2e-6, 8: 1e-13}[max(2, dtype.itemsize)]
    return (1.01 if dtype.itemsize == 2 and name in ULPS else ULPS.get(name, 0)), 0.0


def takes(name: str, dtype: np.dtype, arrays: list[np.ndarray], params: dict) -> bool:
    """Whether the public functions apply the op to such arrays, and a kernel may."""
    op = OPS[name]
    if (dtype.kind in "biu" and name in FLOATS_ONLY) or (dtype.kind == "b" and (name in NO_BOOLS or "conv2d" in name)):
        return False
    samples = [array for sample in op.samples() for array in sample.arrays]
    if samples and dtype.kind != "b" and all(array.dtype.kind == "b" for array in samples):
        return False
    specs = tuple(TensorSpec(a.shape, as_dtype(a.dtype)) for a in arrays)
    if op.refusal(specs, (None,) * len(specs)):
        return False
    try:
        inferred = op.infer(*specs, **params)
        with np.errstate(all="ignore"):
            result = op.numpy(np, *arrays, **params)
    except (TypeError, ValueError, ZeroDivisionError, DTypeError, ShapeError):
        return False
    first, spec = (result[0], inferred[0]) if isinstance(result, tuple) else (result, inferred)
    return np.asarray(first).dtype == spec.dtype.numpy


def claim(batch: Batch, what: str, name: str, values: list, params: dict, dtype: np.dtype) -> None:
    ulps, tolerance = allowance(name, dtype)
    batch.expect(f"{name} {what}", batch.apply(name, values, **params), ulps, tolerance, name in ZEROS_ALIKE)


def add_samples(batch: Batch, dtype: np.dtype, ops: Mapping[str, type[Op]]) -> None:
    """Add each op's own samples, in this dtype where they are of one that stands for all."""
    for name, op in ops.items():
        for number, sample in enumerate(op.samples()):
            kinds = [a.dtype for a in sample.arrays if a.dtype.kind != "b"] or [a.dtype for a in sample.arrays]
            main = kinds[0] if kinds and not name.startswith("random") else None
            with np.errstate(all="ignore"):
                arrays = [a.astype(dtype) if a.dtype == main else a for a in sample.arrays]
            params = dict(sample.params)
            if takes(name, dtype, arrays, params):
                claim(batch, f"sample {number}", name, [batch.input(a) for a in arrays], params, dtype)


def numbers(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], name: str, operand: int) -> np.ndarray:
    """Return an array full of hard cases for one operand of an op."""
    count = math.prod(shape)
    if dtype.kind == "b":
        pool = np.array([False, True])
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        pool = np.array(
            [0, 1, 2, 3, 7, 100, limits.max, limits.min, limits.max // 2, *((-1, -2, -9) if dtype.kind == "i" else ())]
        )
        if operand == 1 and name in ("floor_divide", "trunc_divide", "remainder", "fmod"):
            pool = pool[(pool != 0) & (pool != -1)]
        elif operand == 1 and "shift" in name:
            pool = np.array([0, 1, 2, 5, limits.bits - 1, limits.bits, limits.bits + 3])
        elif operand == 1 and name == "pow":
            pool = np.arange(6)
    else:
        pool = np.concatenate([np.array(FLOATS), rng.standard_normal(20) * 3])
        if dtype.itemsize == 2:
            # What overflows in half precision is decided by one bit of the rounding before it.
            pool = pool[~(np.abs(pool) >= 1e4) | np.isinf(pool)]
        if name in ("sin", "cos", "pow"):
            pool = pool[~(np.abs(pool) > 1e4) | np.isinf(pool)]
    with np.errstate(all="ignore"):
        return rng.choice(pool, count).astype(dtype).reshape(shape)


def place(batch: Batch, make, layout: str):
    """Return a value of a layout; ``make(shape)`` gives its array."""
    if layout == "long":
        return batch.input(make((65,)))
    if layout == "permuted":
        return batch.apply("permute", [batch.input(make((17, 3)))], dims=(1, 0))[0]
    if layout == "strided":
        return batch.apply("slice", [batch.input(make((7, 40)))], starts=(1, 2), sizes=(3, 17), steps=(2, 2))[0]
    if layout == "flipped":
        return batch.apply("slice", [batch.input(make((3, 17)))], starts=(0, 16), sizes=(3, 17), steps=(1, -1))[0]
    if layout == "row":
        return batch.apply("expand", [batch.input(make((17,)))], shape=(3, 17))[0]
    if layout == "column":
        return batch.apply("expand", [batch.input(make((3, 1)))], shape=(3, 17))[0]
    return batch.input(
        make({"matrix": (3, 17), "number": (), "one": (1,), "empty": (0, 3), "deep": (2, 3, 4, 5)}[layout])
    )


# Layouts of up to three operands; each op meets the first and two others in turn.
LAYOUTS = [
    ("permuted", "strided", "matrix"),
    ("flipped", "row", "column"),
    ("column", "permuted", "flipped"),
    ("strided", "flipped", "row"),
    ("row", "column", "strided"),
    ("matrix", "number", "one"),
    ("number", "number", "number"),
    ("one", "one", "number"),
    ("deep", "number", "deep"),
    ("empty", "one", "number"),
]


def add_pointwise(batch: Batch, dtype: np.dtype, ops: Mapping[str, type[Op]]) -> None:
    """Add each pointwise op on hard numbers, in several layouts."""
    rng = np.random.default_rng(5)
    turn = 0
    for name, op in ops.items():
        samples = op.samples()
        if not isinstance(op.lowering, Expression) or not samples[0].arrays or name == "cast":
            continue
        arity = len(samples[0].arrays)
        probe = [numbers(rng, dtype, (4,), name, i) for i in range(arity)]
        condition = samples[0].arrays[0].dtype.kind == "b" and arity == 3
        if condition:
            probe[0] = probe[0] != 0
        if not takes(name, dtype, probe, {}):
            continue
        for layouts in (("long",) * 3, LAYOUTS[turn % len(LAYOUTS)], LAYOUTS[(turn + 3) % len(LAYOUTS)]):

            def make(operand: int, shape: tuple[int, ...], name: str = name, condition: bool = condition) -> np.ndarray:
                array = numbers(rng, dtype, shape, name, operand)
                return array != 0 if condition and operand == 0 else array

            values = [place(batch, functools.partial(make, i), layouts[i]) for i in range(arity)]
            claim(batch, " ".join(layouts[:arity]), name, values, {}, dtype)
        turn += 1


def add_casts(batch: Batch, dtype: np.dtype) -> None:
    """Add casts to every dtype, of numbers that the other can hold."""
    rng = np.random.default_rng(6)
    for to in DTYPES:
        shared = (
            np.array([0, 1, 2, 3, 90, 100]) if to.kind != "float" else np.array([0, 1, 3, 7, 100, 0.1, 2.0**-20, 200.5])
        )
        if dtype.kind in "fV" and to.kind == "int":
            shared = np.concatenate([shared, [0.9, 2.5, 99.99]])
        if dtype.kind in "fV" and to.kind == "bool":
            shared = np.array([0, -0.0, np.nan, 1e-7, 3])
        if dtype.kind in "fV" and to.kind == "float":
            shared = np.concatenate([shared, [-0.0, np.nan, np.inf, -np.inf, -3.25]])
        array = rng.choice(shared, (3, 17)).astype(dtype)
        for layout in ("matrix", "flipped"):
            value = place(batch, lambda shape, array=array: array, layout)
            batch.expect(f"cast to {to.name}, {layout}", batch.apply("cast", [value], dtype=to))


def add_reductions(batch: Batch, dtype: np.dtype, ops: Mapping[str, type[Op]]) -> None:
    """Add every reduction over several dimensions and layouts, with ties, NaN, and nothing to reduce."""
    rng = np.random.default_rng(7)
    cases = [("long", (0,)), ("number", ()), ("one", (0,)), ("permuted", (0,)), ("permuted", (1,)), ("strided", (0, 1))]
    cases += [
        ("deep", (1, 3)),
        ("deep", (0, 2)),
        ("deep", (1,)),
        ("deep", (0, 1, 2, 3)),
        ("row", (0,)),
        ("column", (1,)),
    ]
    cases += [("flipped", (1,)), ("empty", (0,)), ("empty", (1,))]
    for name, op in ops.items():
        if not isinstance(op.lowering, Reduction):
            continue
        for number, (layout, dims) in enumerate(cases):

            def make(shape: tuple[int, ...], name: str = name) -> np.ndarray:
                if dtype.kind == "b":
                    return rng.random(shape) < 0.7
                # Few different numbers: ties are sure.
                array = rng.integers(0, 4, shape).astype(dtype)
                if dtype.kind in "fV" and name != "sum":
                    array = np.where(rng.random(shape) < 0.1, np.array(np.nan, dtype), array)
                return array

            value = place(batch, make, layout)
            params = {"dims": dims, "keepdim": number % 2 == 0}
            sample = np.zeros(value.shape, dtype)
            if takes(name, dtype, [sample], params):
                claim(batch, f"{layout} {dims}", name, [value], params, dtype)


def batch_of(name: str, only: Collection[str] = EVERY_OP) -> Batch:
    """Return all cases of a dtype, or those of some ops."""
    dtype = as_dtype(name).numpy
    ops = {op: OPS[op] for op in OPS if op in only}
    batch = Batch(f"ops_{name}")
    add_samples(batch, dtype, ops)
    add_pointwise(batch, dtype, ops)
    if "cast" in only:
        add_casts(batch, dtype)
    add_reductions(batch, dtype, ops)
    return batch
