"""Kernels that follow each other on samples become one phase of blocks: where it saves traffic, and to the same result."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim, records, targets
from pequegrad.codegen.interpret import check_blocks
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Walk
from pequegrad.codegen.text import format_plan
from pequegrad.errors import CompilerBug, IndexOutOfRange
from pequegrad.nn import functional as F
from pequegrad.passes import run_pipeline
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.nets import convnet, mlp
from tests.codegen.tracing import Traced, check_plan, compare

CPP = targets.get("cpp")
WITHOUT = records.replace(CPP, has_blocks=False)


def optimized(traced: Traced) -> Traced:
    return Traced(run_pipeline(traced.graph), traced.arrays)


def blocks_of(plan):
    return [phase.blocks for phase in plan.phases if phase.blocks is not None]


def test_a_large_batch_of_a_convnet_is_one_phase_of_blocks():
    plan = check_plan(optimized(convnet(512)))
    (blocks,) = blocks_of(plan)
    assert blocks.count * blocks.size == 512
    assert sum(len(phase.kernels) for phase in plan.phases if phase.blocks) > len(plan.kernels) / 2
    assert plan.local_bytes < 2**20


def test_what_fits_in_a_cache_is_not_cut():
    assert not blocks_of(check_plan(optimized(mlp(16))))


def test_blocks_take_less_memory_and_say_so():
    graph = optimized(convnet(512)).graph
    with_blocks, without = (lower(graph, target, 2) for target in (CPP, WITHOUT))
    assert with_blocks.arena_bytes + 2 * with_blocks.local_bytes < without.arena_bytes / 8
    assert "Blocks(" in format_plan(with_blocks)
    assert "Blocks(" not in format_plan(without)


@pytest.mark.parametrize("batch", [480, 511])
def test_steps_with_and_without_blocks_agree(batch):
    traced = optimized(convnet(batch))
    expected, found = (Compiled(traced.graph, target).run(traced.arrays, 2) for target in (WITHOUT, CPP))
    compare(expected, found, f"batch {batch}", rtol=2e-4)


def test_the_bits_do_not_depend_on_the_number_of_workers():
    traced = optimized(convnet(512))
    step = Compiled(traced.graph, target_for("native"))
    one, two, three = (step.run(traced.arrays, workers) for workers in (1, 2, 3))
    for a, b, c in zip(one, two, three, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_statistics_over_the_batch_stay_whole():
    pg.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 24 * 24, 3)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((128, 3, 28, 28)).astype(np.float32), random.integers(0, 3, 128)

    def eager(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step = pg.compile(eager, strict=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = [step(x, y).item() for _ in range(2)]
    model.load_state_dict(before)
    expected = [eager(pg.from_numpy(x), pg.from_numpy(y)).item() for _ in range(2)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_bad_row_is_found_before_any_state_changes():
    pg.manual_seed(0)
    table = pg.Tensor(np.ones((10, 4096), np.float32), requires_grad=True)
    optimizer = optim.SGD([table], lr=0.01)

    @pg.compile(strict=True)
    def step(x, rows):
        optimizer.zero_grad()
        loss = ((x * 2).tanh() * table[rows]).exp().sum()
        loss.backward()
        optimizer.step()
        return loss

    x, rows = np.ones((512, 4096), np.float32), np.zeros(512, np.int64)
    rows[400] = 10
    with pytest.raises(IndexOutOfRange, match="index 10"):
        step(x, rows)
    np.testing.assert_array_equal(table.detach().numpy(), 1)


def test_a_block_that_leaves_its_own_part_is_caught():
    plan = lower(optimized(convnet(512)).graph, CPP, 2)
    number, phase = next((i, phase) for i, phase in enumerate(plan.phases) if phase.blocks is not None)
    check_blocks(plan, phase, number)
    written = {
        walk.buffer for walks in phase.blocks.walks for walk in walks if plan.buffers[walk.buffer].scope != "argument"
    }
    assert written
    shortened = tuple(
        tuple(Walk(w.buffer, w.block // 2, w.chunk // 2) if w.buffer in written else w for w in walks)
        for walks in phase.blocks.walks
    )
    with pytest.raises(CompilerBug, match="leaves its block's part"):
        check_blocks(plan, records.replace(phase, blocks=records.replace(phase.blocks, walks=shortened)), number)
