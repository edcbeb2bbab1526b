"""What every registered op promises, tested from its own samples: values, gradients, dtypes, sharding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pequegrad import Tensor, dtypes
from pequegrad.errors import PequegradError
from pequegrad.ops.core import TensorSpec, bind
from pequegrad.ops.registry import REGISTRY
from pequegrad.ops.sharding import REPLICATED, Mapped, Partial, Replicated
from tests.ops.comparing import assert_gradients_by_differences, assert_sample_like_torch, torch

CASES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in sorted(REGISTRY.items())
    for i, sample in enumerate(op.samples())
]
DIFFERENTIABLE = [case for case in CASES if case.values[1].differentiable]
ELEMENTWISE = [case for case in CASES if case.values[0].elementwise and case.values[1].arrays]


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_sample_agrees_with_torch(op, sample):
    if sample.torch is None:
        pytest.skip("torch has no such function")
    assert_sample_like_torch(op, sample)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_inferred_spec_is_what_evaluation_gives(op, sample):
    params = dict(sample.params)
    specs = [TensorSpec(array.shape, dtypes.as_dtype(array.dtype)) for array in sample.arrays]
    inferred = op.infer(*specs, **params)
    with np.errstate(all="ignore"):
        results = op.numpy(np, *sample.arrays, **params)
    inferred = (inferred,) if isinstance(inferred, TensorSpec) else inferred
    results = results if isinstance(results, tuple) else (results,)
    for spec, result in zip(inferred, results, strict=True):
        assert (spec.shape, spec.dtype.numpy) == (np.shape(result), np.asarray(result).dtype)


def _smooth_arrays(op, sample):
    """Return the sample in float64, moved off kinks and ties, and, if elementwise, without what is not finite."""
    arrays = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in sample.arrays]
    if op.elementwise:
        arrays = [array.reshape(-1) for array in np.broadcast_arrays(*arrays)]
    for i in sample.differentiable:
        arrays[i] = arrays[i] + 0.137 + 0.03 * np.sin(np.arange(arrays[i].size) + 3 * i).reshape(arrays[i].shape)
    if op.elementwise:
        with np.errstate(all="ignore"):
            values = op.numpy(np, *arrays, **dict(sample.params))
            kept = np.isfinite(values) & (np.abs(values) < 1e3)
        for i in sample.differentiable:
            kept &= np.isfinite(arrays[i]) & (np.abs(arrays[i]) < 30)
        arrays = [array[kept] for array in arrays]
    return arrays


@pytest.mark.parametrize(("op", "sample"), DIFFERENTIABLE)
def test_gradients_of_two_orders_agree_with_differences(op, sample):
    if op.name == "cast":
        pytest.skip("a cast to float32 is a staircase for differences")
    arrays = _smooth_arrays(op, sample)
    if not all(np.isfinite(arrays[i]).all() for i in sample.differentiable):
        pytest.skip("the sample's point is its infinities")

    def function(*moving):
        inputs = [Tensor(array) for array in arrays]
        for i, tensor in zip(sample.differentiable, moving, strict=True):
            inputs[i] = tensor
        result = bind(op, *inputs, **dict(sample.params))
        return result[0] if isinstance(result, tuple) else result

    assert_gradients_by_differences(function, *(arrays[i] for i in sample.differentiable), tolerance=1e-5)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "sample"), ELEMENTWISE)
def test_half_precision_rounds_once_like_torch(op, sample, dtype):
    if sample.torch is None or not all(array.dtype in (np.float32, np.bool_) for array in sample.arrays):
        pytest.skip("not a float32 sample")
    if "dtype" in dict(sample.params):
        pytest.skip("the sample fixes its dtypes")
    name = dtype.name
    ours = [Tensor(a) if a.dtype == np.bool_ else Tensor(a).to(dtype) for a in sample.arrays]
    theirs = [
        torch.tensor(a) if a.dtype == np.bool_ else torch.tensor(a).to(getattr(torch, name)) for a in sample.arrays
    ]
    result, expected = bind(op, *ours, **dict(sample.params)), sample.torch(torch, *theirs)
    assert result.dtype.name == str(expected.dtype).removeprefix("torch.")
    unit = 2**-10 if name == "float16" else 2**-7
    np.testing.assert_allclose(
        result.to("float32").numpy(), expected.float().numpy(), rtol=unit, atol=1e-7, equal_nan=True
    )


# --- sharding -------------------------------------------------------------------------------------------------------

COMBINE = {
    "sum": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "max": np.maximum,
    "min": np.minimum,
    "any": np.logical_or,
    "all": np.logical_and,
}


def _assignments(arrays, extent):
    """Yield a sharding per input along a dimension of ``extent``, mapped in one input or more."""
    choices = [[REPLICATED, *(Mapped(dim) for dim, n in enumerate(array.shape) if n == extent)] for array in arrays]
    for shardings in itertools.islice(itertools.product(*choices), 64):
        if any(isinstance(sharding, Mapped) for sharding in shardings):
            yield shardings


def _reads_at_its_place(params, shardings):
    """Whether a replicated operand would have to be cut at the block, because elements are paired by their place."""
    return params.get("aligned", False) and any(isinstance(sharding, Replicated) for sharding in shardings)


def _block(array, sharding, part):
    if isinstance(sharding, Replicated):
        return array
    return np.take(array, range(*part), axis=sharding.dim)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_sharding_rule_holds_for_blocks(op, sample):
    """Where a rule says how the result is spread, the op on blocks gives those blocks of the op on the whole."""
    params = dict(sample.params)
    specs = tuple(TensorSpec(array.shape, dtypes.as_dtype(array.dtype)) for array in sample.arrays)
    is_checked = False
    with np.errstate(all="ignore"):
        whole = op.numpy(np, *sample.arrays, **params)
        if isinstance(whole, tuple):
            whole = whole[0]
        for extent in sorted({n for array in sample.arrays for n in array.shape if n > 1}):
            for shardings in _assignments(sample.arrays, extent):
                result = op.shard(shardings, specs, **params)
                if result is None or _reads_at_its_place(params, shardings):
                    continue
                parts = [(0, 1), (1, extent)]
                blocks = [[_block(a, s, part) for a, s in zip(sample.arrays, shardings, strict=True)] for part in parts]
                try:
                    computed = [op.numpy(np, *block, **params) for block in blocks]
                except (ValueError, IndexError, PequegradError):
                    continue  # its parameters name the whole shape; codegen adapts those
                computed = [value[0] if isinstance(value, tuple) else value for value in computed]
                assert not isinstance(result, Replicated), f"{shardings} cannot leave a replicated result"
                if isinstance(result, Partial):
                    combined = COMBINE[result.monoid](*computed)
                    np.testing.assert_allclose(combined, whole, rtol=1e-5, atol=1e-6)
                    is_checked = True
                elif sum(np.shape(value)[result.dim] for value in computed) == whole.shape[result.dim]:
                    np.testing.assert_allclose(np.concatenate(computed, axis=result.dim), whole, rtol=1e-5, atol=1e-6)
                    is_checked = True
    if (op.elementwise or op.reduction) and max((a.size for a in sample.arrays), default=0) > 1:
        assert is_checked or op.name.startswith("arg"), "no sharding of this sample could be checked"
