"""What a device lacks or has too little of: a dtype is refused by name, and what is too large gets another schedule."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import targets
from pequegrad.build import cache
from pequegrad.codegen.emit import render
from pequegrad.codegen.launch import BLOCK
from pequegrad.codegen.lower import lower
from pequegrad.codegen.schedule import Choices
from pequegrad.codegen.thread_views import MOST_KEPT
from pequegrad.dtypes import float64
from pequegrad.errors import DTypeError, NotCompilable
from pequegrad.nn import functional
from pequegrad.ops.core import TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.passes import run_pipeline
from pequegrad.records import replace
from pequegrad.targets.cuda import MOST_POINTERS
from pequegrad.trace.graph import GraphBuilder, Location, Output
from pequegrad.trace.interpreter import run_graph
from tests.codegen import nets
from tests.codegen.compiling import Batch, Compiled, target_for
from tests.codegen.tracing import Traced, compare, trace

SIMULATED = targets.get("cuda-sim")


@pytest.mark.parametrize("name", ["cpp", "cuda-sim"])
def test_a_dtype_that_a_target_lacks_is_refused_with_the_users_line_and_what_it_has(name):
    builder = GraphBuilder()
    x = builder.add_input(TensorSpec((2, 3), float64), "argument", "x")
    values = builder.apply(REGISTRY["exp"], [x], {}, Location("train.py", 12, "f"))
    builder.outputs.append(Output(values[0], "result", "y"))
    target = replace(targets.get(name), dtypes=frozenset({"float32", "bool"}))
    with pytest.raises(
        NotCompilable, match=rf"^train.py:12: exp: target '{name}' has no float64\. It has bool, float32\.$"
    ):
        lower(builder.build(), target)


@pytest.mark.parametrize("strict", [True, False])
def test_a_complex_array_is_refused_with_the_users_line_before_anything_is_compiled(strict, monkeypatch):
    monkeypatch.setattr(cache, "get_or_build", None)
    step = pg.compile(lambda x: x * 2, target="cuda-sim", strict=strict)
    with pytest.raises(DTypeError, match=r"test_device_limits\.py:\d+: Tensor: .*real numbers\. Got .* complex64"):
        step(np.ones(3, np.complex64))


def sums(count: int) -> Batch:
    """Return sums of so many arrays, each by a kernel of its own, none of which waits for another."""
    batch = Batch("sums")
    for number in range(count):
        x = batch.input(np.arange(number, number + 5, dtype=np.float32))
        batch.expect(f"sum {number}", batch.apply("sum", [x], dims=(0,), keepdim=False))
    return batch


def test_kernels_that_could_run_at_once_are_cut_into_launches_that_their_pointers_fit():
    plan = lower(sums(300).graph(), SIMULATED, 2)
    assert [len(phase.kernels) for phase in plan.phases] == [300]
    source = render(plan, SIMULATED)
    signatures = re.findall(r"__global__.*? launch_phase\d+\((.*?)\) \{", source, re.DOTALL)
    assert source.count("  // phase ") == 3
    # Launches of equal text are one function.
    assert [signature.count("* p") for signature in signatures] == [MOST_POINTERS, 600 - 2 * MOST_POINTERS]


@pytest.mark.parametrize("launch", ["graph", "cooperative"])
def test_launches_of_a_phase_that_was_cut_do_all_its_work(launch):
    target = replace(target_for("cuda-sim").with_launch(launch), most_pointers=6)
    batch = sums(8)
    step = Compiled(batch.graph(), target)
    assert len(step.plan.phases) == 1 and step.source.count("  // phase ") == 3
    for seed in (1, 2, 3):
        compare(run_graph(step.graph, batch.arrays), step.run(batch.arrays, seed), f"{launch}, seed {seed}")


def test_samples_whose_blocks_would_touch_more_buffers_than_a_launch_takes_get_phases():
    graph = run_pipeline(nets.convnet(16).graph)
    target = targets.get("cuda", architecture="sm_90")
    plans = [
        lower(graph, replace(target, most_pointers=most), 2, "fp32", Choices(block_samples=2))
        for most in (MOST_POINTERS, 8)
    ]
    assert [any(phase.blocks for phase in plan.phases) for plan in plans] == [True, False]


def test_rows_longer_than_a_block_can_hold_are_read_again_or_dealt_out_to_blocks_and_give_the_same():
    """Of 3,000 elements, more than the registers of a block hold; of 70,000, 273 KiB: more than its shared memory."""
    assert 500 < MOST_KEPT * BLOCK < 3_000 and SIMULATED.shared_bytes < 4 * 70_000
    found = []
    for columns in (500, 3_000, 70_000):
        x = np.random.default_rng(0).standard_normal((2, columns)).astype(np.float32)
        traced = trace(lambda x: functional.softmax(x, 1), x)
        traced = Traced(run_pipeline(traced.graph), traced.arrays)
        step = Compiled(traced.graph, target_for("cuda-sim"))
        found.append((len(step.plan.kernels) > 1, "kept0" in step.source))
        for seed in (1, 2, 3):
            got = step.run(traced.arrays, seed)
            compare(run_graph(traced.graph, traced.arrays), got, f"{columns} columns, seed {seed}")
            np.testing.assert_allclose(got[0].sum(1), 1, rtol=1e-4)
    assert found == [(False, True), (False, False), (True, False)]
