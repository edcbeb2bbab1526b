"""Attention and its gradient, compiled: every size beside a block's, operands as views of one product, rows that are NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pequegrad import Tensor, autodiff, targets
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Attention
from pequegrad.errors import NotCompilable
from pequegrad.nn import functional
from pequegrad.ops.registry import REGISTRY
from pequegrad.passes import run_pipeline
from tests.codegen.compiling import TARGETS, Batch, assert_no_failures, target_for
from tests.codegen.tracing import Traced, check_plan, trace

SETS = pytest.mark.parametrize("instruction_set", TARGETS)
# L, S, E, F, causal
SIZES = [
    (1, 1, 1, 1, False), (7, 33, 16, 16, False), (33, 7, 8, 5, True), (64, 64, 32, 32, True), (130, 65, 20, 33, True),
    (65, 130, 64, 16, True), (64, 130, 32, 32, False), (1, 130, 3, 7, False), (33, 33, 100, 128, True),
]  # fmt: skip
NEAR = {np.float32: 5e-6, np.float64: 1e-13}


def normal(shape, dtype=np.float32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def claim(
    batch: Batch, name: str, arrays: tuple[np.ndarray, ...], is_causal: bool, tolerance: float, order=None
) -> None:
    """Claim attention and its gradient; with ``order``, operands and the result's gradient come as permuted views."""
    q, k, v = arrays
    params = {"scale": 0.3, "is_causal": is_causal}
    with np.errstate(all="ignore"):
        out, sums = REGISTRY["attention"].numpy(np, q, k, v, **params)
        g = normal(out.shape, out.dtype, 99)
        excess = (out * g).sum(-1)

    def entered(array):
        if order is None:
            return batch.input(array)
        lying = batch.input(np.ascontiguousarray(array.transpose(order)))
        return batch.apply("permute", [lying], dims=tuple(np.argsort(order).tolist()))[0]

    operands = [entered(array) for array in (q, k, v)]
    batch.expect(f"{name} forward", batch.apply("attention", operands, **params), None, tolerance)
    operands += [batch.input(sums), entered(g), batch.input(excess)]
    batch.expect(f"{name} gradient", batch.apply("attention_grad", operands, **params), None, tolerance)


@SETS
@pytest.mark.parametrize("dtype", NEAR, ids=lambda dtype: dtype.__name__)
def test_attention_of_sizes_around_a_block(instruction_set, dtype):
    batch = Batch(f"attention_{np.dtype(dtype).name}")
    for number, (L, S, E, F, is_causal) in enumerate(SIZES):
        if dtype is np.float64 and max(E, F) > 64:
            continue
        q, k, v = (normal((2, *shape), dtype, number + i) for i, shape in enumerate(((L, E), (S, E), (S, F))))
        claim(batch, f"{L} {S} {E} {F} {is_causal}", (2 * q, k, v), is_causal, NEAR[dtype])
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
def test_attention_of_strided_operands(instruction_set):
    batch = Batch("strided_attention")
    for number, (order, E) in enumerate(itertools.product([(0, 2, 1, 3), (2, 0, 1, 3), (1, 0, 3, 2)], (16, 5))):
        q, k, v = (normal((2, 3, n, E), seed=number + n) for n in (40, 33, 33))
        claim(batch, f"{order} {E}", (q, k, v), number % 2 == 0, 5e-6, order)
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
def test_rows_that_meet_nan_or_infinity_are_nan_and_no_others(instruction_set):
    batch = Batch("odd_attention")
    q, k, v = (normal((1, n, 16), seed=n) for n in (70, 80, 80))
    q[0, 3, 1], q[0, 65, 2] = np.nan, np.inf
    k[0, 0, 2] = 1.0
    claim(batch, "odd queries", (q, k, v), False, 5e-6)
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(instruction_set, dtype):
    if instruction_set not in ("native", "cuda-sim"):
        pytest.skip("half precision is the same code for each instruction set")
    batch = Batch(f"attention_{dtype}")
    kind = Tensor(np.zeros(1, np.float32)).to(dtype).numpy().dtype
    q, k, v = (normal((2, n, 16), seed=n).astype(kind) for n in (40, 33, 33))
    params = {"scale": 0.25, "is_causal": True}
    batch.expect("forward", batch.apply("attention", [batch.input(a) for a in (q, k, v)], **params), None, 1e-2)
    assert_no_failures(batch.failures(target_for(instruction_set)))


def fused(x, g):
    """Attention of views of one (B, T, 3 C) product, and its gradient."""
    x = x.detach()
    x.requires_grad = True
    B, T, C = g.shape
    q, k, v = (part.reshape(B, T, 4, C // 4).permute(0, 2, 1, 3) for part in x.split(C, -1))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).permute(0, 2, 1, 3).reshape(B, T, C)
    return mixed, autodiff.grad([mixed], [x], [g])[0]


def test_views_of_one_product_are_read_and_results_laid_out_without_copies():
    traced = trace(fused, normal((2, 12, 96)), normal((2, 12, 32)))
    plan = check_plan(Traced(run_pipeline(traced.graph), traced.arrays))
    kernels = {kernel.kind: kernel for kernel in plan.kernels if isinstance(kernel, Attention)}
    assert set(kernels) == {"forward", "gradient"}
    forward = kernels["forward"]
    assert [access.offset for access in forward.inputs] == [0, 32, 64]
    assert all(access.strides == (12 * 96, 8, 96, 1) for access in forward.inputs)
    assert forward.outputs[0].strides == (12 * 32, 8, 32, 1)
    assert plan.buffers[forward.outputs[0].buffer].scope == "result"


def test_no_buffer_holds_the_scores():
    traced = trace(fused, normal((2, 200, 96)), normal((2, 200, 32)))
    plan = lower(run_pipeline(traced.graph), targets.get("cpp"))
    assert max(buffer.size for buffer in plan.buffers) < 2 * 4 * 200 * 200


def test_too_many_features_are_refused():
    batch = Batch("wide")
    operands = [batch.input(normal((4, 129))) for _ in range(3)]
    batch.expect("wide", batch.apply("attention", operands, scale=1.0, is_causal=False))
    with pytest.raises(NotCompilable, match=r"from 1 to 128 features. Got \(129, 129\)"):
        lower(batch.graph(), targets.get("cpp"))
