"""Every op that has a kernel, compiled for each instruction set, gives what its own NumPy evaluation gives.

One graph holds all cases of a dtype, so that one compilation serves them.
"""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad.dtypes import DTYPES
from tests.codegen.compiling import TARGETS, Batch, Compiled, assert_no_failures, target_for
from tests.codegen.op_cases import OPS, batch_of

# Half precision is the same code of integer operations for each instruction set: two of them cost enough.
MODULES = [
    (name, dtype.name)
    for name in TARGETS
    for dtype in DTYPES
    if name in ("native", "x86-64-v2", "cuda-sim") or dtype.name not in ("float16", "bfloat16")
]


@pytest.mark.parametrize(("instruction_set", "dtype"), MODULES)
def test_compiled_ops_give_what_numpy_gives(instruction_set, dtype):
    assert_no_failures(batch_of(dtype).failures(target_for(instruction_set)))


def test_every_op_with_a_kernel_is_among_the_cases():
    graphs = [batch_of(dtype.name).graph() for dtype in DTYPES]
    assert {node.op.name for graph in graphs for node in graph.nodes} >= set(OPS)


def test_a_wrong_result_would_be_noticed():
    """The comparison itself: a graph whose NumPy meaning is changed afterwards must fail."""
    batch = Batch("planted")
    x = batch.input(np.arange(5, dtype=np.float32))
    batch.expect("square", batch.apply("square", [x]))
    compiled = Compiled(batch.graph(), target_for("native"))
    got = compiled.run(batch.arrays, 1)[0]
    np.testing.assert_array_equal(got, np.arange(5, dtype=np.float32) ** 2)
    batch.arrays[0] = batch.arrays[0] + 1
    assert not np.array_equal(compiled.run(batch.arrays, 1)[0], got)
