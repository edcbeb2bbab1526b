"""pequegrad: eager tensors, and whole training steps compiled ahead of time.

Invariant: importing this imports what eager tensors need; the rest loads when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .records import collector_at_rest

with collector_at_rest():  # all of it stays, and looking through it as it grows takes a tenth of the import
    from . import errors
    from .autodiff import enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled
    from .config import config
    from .dtypes import DType, bfloat16, bool_, float16, float32, float64, int32, int64, uint8
    from .ops.activations import log_softmax, softmax
    from .ops.bits import bitwise_and, bitwise_left_shift, bitwise_not, bitwise_or, bitwise_right_shift, bitwise_xor
    from .ops.comparison import (
        allclose,
        eq,
        equal,
        ge,
        greater,
        greater_equal,
        gt,
        isclose,
        isfinite,
        isinf,
        isnan,
        le,
        less,
        less_equal,
        logical_and,
        logical_not,
        logical_or,
        logical_xor,
        lt,
        ne,
        not_equal,
    )  # fmt: skip
    from .ops.composite import addcdiv, addcmul, lerp
    from .ops.contraction import addmm, bmm, dot, einsum, matmul, mm, mv, outer, tensordot
    from .ops.creation import (
        arange,
        diag,
        diagonal,
        empty,
        empty_like,
        eye,
        full_like,
        linspace,
        ones,
        ones_like,
        tril,
        triu,
        zeros,
        zeros_like,
    )  # fmt: skip
    from .ops.division import div, divide, floor_divide, fmod, remainder, true_divide, trunc_divide
    from .ops.elementwise import abs, absolute, add, cast, mul, multiply, neg, negative, sign, sub, subtract, where
    from .ops.gathering import (
        argsort,
        gather,
        index_add,
        index_copy,
        index_fill,
        index_select,
        scatter,
        scatter_add,
        sort,
        take,
        take_along_dim,
        topk,
    )  # fmt: skip
    from .ops.indexing import index_put, masked_fill, masked_select, nonzero, one_hot
    from .ops.joining import cat, chunk, repeat_interleave, roll, split, stack, tile, unbind
    from .ops.movement import expand, full, permute, reshape
    from .ops.power import pow, reciprocal, rsqrt, sqrt, square
    from .ops.random import (
        Generator,
        bernoulli,
        dropout,
        get_rng_state,
        initial_seed,
        manual_seed,
        normal,
        rand,
        rand_like,
        randint,
        randint_like,
        randn,
        randn_like,
        randperm,
        set_rng_state,
    )  # fmt: skip
    from .ops.reduction import all, amax, amin, any, argmax, argmin, prod, sum
    from .ops.rounding import ceil, floor, round, trunc
    from .ops.scan import cumsum
    from .ops.selection import clamp, clip, maximum, minimum, relu
    from .ops.slicing import flip, narrow, select
    from .ops.statistics import aminmax, count_nonzero, logsumexp, max, mean, min, norm, std, std_mean, var, var_mean
    from .ops.transcendental import cos, erf, exp, expm1, log, log1p, sigmoid, sin, tanh
    from .ops.views import (
        broadcast_to,
        expand_as,
        flatten,
        movedim,
        ravel,
        squeeze,
        t,
        transpose,
        unflatten,
        unsqueeze,
        view_as,
    )  # fmt: skip
    from .tensor import Tensor, from_dlpack, from_numpy, is_tensor, tensor

if TYPE_CHECKING:
    from . import data, nn, optim
    from .compiler import compile, stance
    from .export.loading import load_step
    from .serialization import load, save

_LATE = {
    "compile": ("compiler", "compile"),
    "stance": ("compiler", "stance"),
    "load": ("serialization", "load"),
    "load_step": ("export.loading", "load_step"),
    "save": ("serialization", "save"),
    "data": ("data", None),
    "nn": ("nn", None),
    "optim": ("optim", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'pequegrad' has no attribute {name!r}")
    module_name, attribute = _LATE[name]
    with collector_at_rest():
        module = importlib.import_module(f"{__name__}.{module_name}")
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


__all__ = [
    "DType", "Generator", "Tensor", "abs", "absolute", "add", "addcdiv", "addcmul", "addmm", "all", "allclose",
    "amax", "amin", "aminmax", "any", "arange", "argmax", "argmin", "argsort", "bernoulli", "bfloat16",
    "bitwise_and", "bitwise_left_shift", "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bmm",
    "bool_", "broadcast_to", "cast", "cat", "ceil", "chunk", "clamp", "clip", "compile", "config", "cos",
    "count_nonzero", "cumsum", "data", "diag", "diagonal", "div", "divide", "dot", "dropout", "einsum", "empty",
    "empty_like", "enable_grad", "eq", "equal", "erf", "errors", "exp", "expand", "expand_as", "expm1", "eye",
    "flatten", "flip", "float16", "float32", "float64", "floor", "floor_divide", "fmod", "from_dlpack",
    "from_numpy", "full", "full_like", "gather", "ge", "get_rng_state", "grad", "greater", "greater_equal", "gt",
    "index_add", "index_copy", "index_fill", "index_put", "index_select", "initial_seed", "int32", "int64",
    "is_grad_enabled", "is_tensor", "isclose", "isfinite", "isinf", "isnan", "le", "lerp", "less", "less_equal",
    "linspace", "load", "load_step", "log", "log1p", "log_softmax", "logical_and", "logical_not", "logical_or", "logical_xor",
    "logsumexp", "lt", "manual_seed", "masked_fill", "masked_select", "matmul", "max", "maximum", "mean", "min",
    "minimum", "mm", "movedim", "mul", "multiply", "mv", "narrow", "ne", "neg", "negative", "nn", "no_grad",
    "nonzero", "norm", "normal", "not_equal", "one_hot", "ones", "ones_like", "optim", "outer", "permute", "pow",
    "prod", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "ravel",
    "reciprocal", "relu", "remainder", "repeat_interleave", "reshape", "roll", "round", "rsqrt", "save", "scatter",
    "scatter_add", "select", "set_grad_enabled", "set_rng_state", "sigmoid", "sign", "sin", "softmax", "sort",
    "split", "sqrt", "square", "squeeze", "stack", "stance", "std", "std_mean", "sub", "subtract", "sum", "t",
    "take", "take_along_dim", "tanh", "tensor", "tensordot", "tile", "topk", "transpose", "tril", "triu",
    "true_divide", "trunc", "trunc_divide", "uint8", "unbind", "unflatten", "unsqueeze", "var", "var_mean",
    "view_as", "where", "zeros", "zeros_like",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
