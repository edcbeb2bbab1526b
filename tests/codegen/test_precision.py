"""Products in the precision that was asked for: tensor cores' on targets that have them, float32 elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import targets
from pequegrad.codegen.emit import render
from pequegrad.codegen.lower import lower
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Batch, Compiled, target_for

# Largest error relative to the sums' size: operands are rounded to 11 and to 8 bits.
NEAR = {"fp32": 3e-6, "tf32": 1e-3, "bf16": 2e-2}


def products() -> Batch:
    """Return products with an epilogue, and a convolution with its gradients."""
    batch = Batch("precision")
    random = np.random.default_rng(0)
    for m, n, k in [(70, 72, 40), (16, 130, 33), (5, 7, 9), (140, 136, 600)]:
        x, w = (batch.input(random.standard_normal(shape).astype("f")) for shape in ((m, k), (k, n)))
        batch.expect(f"{m} {n} {k}", batch.apply("relu", batch.apply("matmul", [x, w])))
    x, w = (batch.input(random.standard_normal(shape).astype("f")) for shape in ((2, 12, 10, 9), (20, 12, 3, 3)))
    settings = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    batch.expect("convolution", batch.apply("conv2d", [x, w], **settings))
    return batch


@pytest.mark.parametrize("precision", NEAR)
def test_products_are_as_near_as_their_precision(precision):
    batch = products()
    target = target_for("cuda-sim")
    compiled = Compiled(batch.graph(), target, precision)
    expected = run_graph(batch.graph(), batch.arrays)
    error = 0.0
    for seed in (1, 2, 3):
        for ours, theirs in zip(compiled.run(batch.arrays, seed), expected, strict=True):
            error = max(error, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    assert error < NEAR[precision]
    # An error below the next finer precision's would show that nothing was rounded.
    assert error > {"fp32": 0.0, "tf32": NEAR["fp32"], "bf16": NEAR["tf32"]}[precision]


def test_only_what_was_asked_for_is_rounded():
    graph = products().graph()

    def source(target, precision):
        return render(lower(graph, target, 1, precision), target)

    hopper, turing = (targets.get("cuda", architecture=name) for name in ("sm_90", "sm_75"))
    assert "tf32_precision" in source(hopper, "tf32") and "bf16_precision" in source(hopper, "bf16")
    assert "_precision" not in source(hopper, "fp32")
    assert "_precision" not in source(turing, "tf32")
    cpp = targets.get("cpp")
    assert source(cpp, "bf16") == source(cpp, "fp32")
