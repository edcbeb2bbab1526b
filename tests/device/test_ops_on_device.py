"""Every op's samples on the device: the same numbers as on the CPU, and nothing leaves it on the way."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import Tensor, arrays
from pequegrad.ops.core import bind, make
from pequegrad.ops.registry import REGISTRY

CASES = [
    pytest.param(op, sample, id=f"{name}-{i}")
    for name, op in sorted(REGISTRY.items())
    if name != "to_device"
    for i, sample in enumerate(op.samples())
]


def run(op, sample, device):
    inputs = [
        Tensor(array, device=device, requires_grad=i in sample.differentiable and array.dtype.kind == "f")
        for i, array in enumerate(sample.arrays)
    ]
    results = bind(op, *inputs, **dict(sample.params))
    return inputs, results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize(("op", "sample"), [case for case in CASES if case.values[1].arrays])
def test_values_and_gradients_are_those_of_the_cpu_and_stay_on_the_device(cupy, op, sample):
    _, expected = run(op, sample, "cpu")
    inputs, results = run(op, sample, "cuda")
    assert [result.device for result in results] == ["cuda"] * len(expected)
    assert all(isinstance(result.array, cupy.ndarray) for result in results)
    for result, wanted in zip(results, expected, strict=True):
        assert result.spec == wanted.spec
        np.testing.assert_array_equal(np.asarray(result.detach()), np.asarray(wanted.detach()))
    if not sample.differentiable or op.vjp is None:
        return
    theirs, expected = run(op, sample, "cpu")
    for result, wanted in zip(results[:1], expected[:1], strict=True):
        if not result.requires_grad:
            return
        result.backward(Tensor(np.ones(result.shape), dtype=result.dtype, device="cuda"))
        wanted.backward(Tensor(np.ones(result.shape), dtype=result.dtype))
    for mine, other in zip(inputs, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            assert mine.grad.device == "cuda"
            np.testing.assert_array_equal(np.asarray(mine.grad), np.asarray(other.grad))


@pytest.mark.parametrize(("op", "sample"), [case for case in CASES if not case.values[1].arrays])
def test_what_is_made_from_nothing_is_made_where_it_is_asked_for(cupy, op, sample):
    arrays.cupy()
    made = make(op, "cuda", **dict(sample.params))
    assert made.device == "cuda" and isinstance(made.array, cupy.ndarray)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(make(op, None, **dict(sample.params))))
