"""Cheap values of the forward pass are made again for gradients, where something to make them of is written anyway."""

from __future__ import annotations

import numpy as np

from pequegrad import nn, optim
from pequegrad.codegen import lower as lowering
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Load, Row, Store
from pequegrad.codegen.repeating import repeat_cheap_values
from pequegrad.nn import functional as F
from pequegrad.ops.random import manual_seed
from pequegrad.passes.recompute_values import recompute_values
from pequegrad.trace.interpreter import run_graph
from tests.codegen.nets import training_step
from tests.codegen.test_blocks import CPP, optimized
from tests.codegen.tracing import check_plan


class Gelu(nn.Module):
    def forward(self, x):
        return F.gelu(x, approximate="tanh")


def step_of(activation):
    manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 96), activation, nn.Linear(96, 16))
    random = np.random.default_rng(0)
    x = random.standard_normal((32, 16)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return optimized(training_step(model, optimizer, x, random.integers(0, 16, 32), F.cross_entropy))


def wide(plan, kernel, kind):
    """The arena's values of 32 by 96, whichever lies innermost, that a kernel's epilogue stores or loads."""
    return [
        s
        for s in kernel.epilogue
        if isinstance(s, kind) and plan.buffers[s.access.buffer].scope == "arena" and all(s.access.strides)
        and {kernel.m, kernel.n} == {32, 96}
    ]  # fmt: skip


def test_a_chain_leaves_a_product_as_what_it_is_made_of_and_its_dear_value():
    plan = check_plan(step_of(Gelu()))
    products = [kernel for kernel in plan.kernels if isinstance(kernel, Contract)]
    # x, tanh and the result; the gradient reads the first two.
    assert max(len(wide(plan, kernel, Store)) for kernel in products) == 3
    assert max(len(wide(plan, kernel, Load)) for kernel in products) == 2


def test_what_is_made_again_is_made_where_it_is_read(monkeypatch):
    again = lower(step_of(Gelu()).graph, CPP)
    monkeypatch.setattr(lowering, "repeat_cheap_values", lambda graph, most: graph)
    kept = lower(step_of(Gelu()).graph, CPP)
    assert len(again.kernels) == len(kept.kernels)
    assert again.arena_bytes < kept.arena_bytes


def test_a_norm_between_convolutions_keeps_what_it_is_of_and_a_mask():
    manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4 * 64, 5))
    random = np.random.default_rng(0)
    x = random.standard_normal((4, 2, 12, 12)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    plan = check_plan(optimized(training_step(model, optimizer, x, random.integers(0, 5, 4), F.cross_entropy)))
    wide = {b for b, buffer in enumerate(plan.buffers) if buffer.scope == "arena" and buffer.size >= 4 * 4 * 100}
    rows = {
        kernel: [s for stage in kernel.stages for s in stage.inner]
        for kernel in plan.kernels
        if isinstance(kernel, Row)
    }
    written = {
        kernel: {s.access.buffer for s in found if isinstance(s, Store)} & wide for kernel, found in rows.items()
    }
    forward, backward = (kernel for kernel, buffers in written.items() if buffers)
    assert sorted(plan.buffers[b].dtype.name for b in written[forward]) == ["bool", "float32"]
    assert len(written[backward]) == 1
    read = [{s.access.buffer for s in rows[kernel] if isinstance(s, Load)} & wide for kernel in (forward, backward)]
    # The norm's operand, and in the gradient also the gradient of its result.
    assert read[0] < read[1] and list(map(len, read)) == [1, 2]
    # Sums, of deviations in the forward pass once more, and then the result.
    assert [len(kernel.stages) for kernel in (forward, backward)] == [3, 2]


def test_results_keep_their_bits():
    traced = step_of(Gelu())
    again = repeat_cheap_values(traced.graph)
    assert sum(node.is_recomputed for node in again.nodes) > 3
    for before, after in zip(run_graph(traced.graph, traced.arrays), run_graph(again, traced.arrays), strict=True):
        np.testing.assert_array_equal(after, before)


def test_what_the_next_product_reads_is_not_made_again():
    graph = step_of(nn.ReLU()).graph
    assert repeat_cheap_values(graph) is graph


def test_a_limit_on_chains_is_kept():
    graph = step_of(Gelu()).graph
    repeated = [sum(node.is_recomputed for node in repeat_cheap_values(graph, most).nodes) for most in (0, 1, 8)]
    assert repeated[0] == 0 < repeated[1] < repeated[2]


def test_what_small_memory_arranged_stays():
    graph = recompute_values(step_of(nn.Sequential(Gelu(), nn.Linear(96, 96), Gelu())).graph, 2)
    assert any(node.is_recomputed for node in graph.nodes)
    assert repeat_cheap_values(graph) is graph
