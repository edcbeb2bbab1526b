"""Blocks of samples in a device's shared memory: where they pay, and to the same result as NumPy's, in any order of threads."""

from __future__ import annotations

import re

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim, targets
from pequegrad.codegen import block_sizes
from pequegrad.codegen.interpret import run_plan
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import StepPlan
from pequegrad.codegen.schedule import MODEL, Choices
from pequegrad.codegen.text import format_plan
from pequegrad.errors import DeviceError, IndexOutOfRange
from pequegrad.nn import functional
from pequegrad.ops.random import manual_seed
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen import nets
from tests.codegen.compiling import Batch, Compiled, configure_simulator, target_for
from tests.codegen.tracing import Traced, compare
from tests.simulator.simulating import Simulated

LAUNCHES = pytest.mark.parametrize("launch", ["graph", "cooperative"])


def optimized(traced: Traced) -> Traced:
    return Traced(run_pipeline(traced.graph), traced.arrays)


def planned(traced: Traced, architecture: str = "sm_90", choices: Choices = MODEL) -> StepPlan:
    return lower(traced.graph, targets.get("cuda", architecture=architecture), 2, "fp32", choices)


def blocks_of(plan: StepPlan):
    return [phase.blocks for phase in plan.phases if phase.blocks is not None]


def strided(batch: int) -> Traced:
    """Convolutions with a stride, padding and groups, average pooling, a mean over places, momentum."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(),
        nn.AvgPool2d(2), nn.Conv2d(12, 24, 1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip
    x = random.standard_normal((batch, 2, 8, 8)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return nets.training_step(model, optimizer, x, random.integers(0, 3, batch), functional.cross_entropy)


def pooled(batch: int) -> Traced:
    """Average pooling, one convolution and a classifier: what a block ends with reads what it begins with."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    x = random.standard_normal((batch, 1, 32, 32)).astype(np.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    return nets.training_step(model, optimizer, x, random.integers(0, 3, batch), functional.cross_entropy)


# --- where they pay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "kib"), [("sm_90", 227), ("sm_80", 163)])
def test_forward_and_backward_of_a_convnet_are_one_phase_that_fits_in_shared_memory(architecture, kib):
    plan = planned(optimized(nets.convnet(512)), architecture)
    (blocks,) = blocks_of(plan)
    assert blocks.count * blocks.size == 512 and blocks.chunks > 100
    assert len(plan.phases) < 6 and sum(len(phase.kernels) for phase in plan.phases if phase.blocks) == 21
    assert 0 < plan.shared_bytes < 1024 * kib and not plan.local_bytes
    assert f"+{plan.shared_bytes} shared" in format_plan(plan)


@pytest.mark.parametrize(
    "make", [nets.mlp, nets.transformer, lambda: nets.convnet(64)], ids=["mlp", "transformer", "small batch"]
)
def test_what_would_leave_multiprocessors_idle_or_read_weights_again_is_not_cut(make):
    assert not blocks_of(planned(optimized(make())))


def test_an_architecture_with_too_little_shared_memory_gets_phases():
    assert not blocks_of(planned(optimized(nets.convnet(512)), "sm_75"))


def test_no_blocks_where_they_are_switched_off_or_do_not_fit():
    traced = optimized(nets.convnet(512))
    assert not blocks_of(planned(traced, choices=Choices(block_bytes=0)))
    assert not blocks_of(planned(traced, choices=Choices(block_samples=16)))


# --- whether they are right ---------------------------------------------------------------------------------------

NETS = {"convnet": lambda: nets.convnet(16), "strided": lambda: strided(12)}


@LAUNCHES
@pytest.mark.parametrize("net", NETS)
def test_blocks_give_what_the_graph_gives_in_numpy_in_any_order_of_threads(net, launch):
    traced = optimized(NETS[net]())
    expected = run_graph(traced.graph, traced.arrays)
    step = Compiled(traced.graph, target_for("cuda-sim").with_launch(launch), choices=Choices(block_samples=2))
    assert blocks_of(step.plan)
    for seed in (1, 2, 3):
        compare(expected, step.run(traced.arrays, seed), f"{net}, {launch}, seed {seed}", rtol=2e-5)


@LAUNCHES
def test_chunks_of_unlike_length_add_up_what_their_blocks_sum(launch, monkeypatch):
    monkeypatch.setattr(block_sizes, "MULTIPROCESSORS", 4)
    traced = optimized(strided(14))
    expected = run_graph(traced.graph, traced.arrays)
    step = Compiled(traced.graph, target_for("cuda-sim").with_launch(launch), choices=Choices(block_samples=1))
    (blocks,) = blocks_of(step.plan)
    assert {len(blocks.blocks_of(chunk)) for chunk in range(blocks.chunks)} == {3, 4} and blocks.sums
    run_plan_agrees(traced, step.plan, expected)
    for seed in (1, 2, 3):
        compare(expected, step.run(traced.arrays, seed), f"{launch}, seed {seed}", rtol=2e-5)


def run_plan_agrees(traced: Traced, plan: StepPlan, expected) -> None:
    """Compare with the plan's interpreter, which knows no threads."""
    step = Compiled.__new__(Compiled)
    step.plan = plan
    passed = step.allocated(traced.arrays)
    run_plan(plan, passed)
    results = iter(passed[len(traced.graph.inputs) :])
    positions = {item.value: i for i, item in enumerate(traced.graph.inputs)}
    found = [
        next(results) if output.role == "result" else passed[positions[output.target]]
        for output in traced.graph.outputs
    ]
    compare(expected, found, "plan", rtol=2e-5)


def without_barrier_before(function: str):
    """Return an edit that takes away the barrier between a body of a block and the one before it."""

    def edited(text: str) -> str:
        changed = re.sub(rf"  __syncthreads\(\);\n(  {function})", r"\1", text)
        assert changed != text
        return changed

    return edited


def without_barrier_between_blocks(text: str) -> str:
    changed = re.sub(r" *__syncthreads\(\);\n( *phase\d+_block\()", r"\1", text)
    assert changed != text
    return changed


@pytest.mark.parametrize(
    ("make", "edit"),
    [
        (nets.convnet, without_barrier_before(r"conv2d[1-9]\d*_conv2d_add")),
        (pooled, without_barrier_between_blocks),
    ],
    ids=["before a convolution", "between blocks"],
)
def test_the_simulator_sees_a_barrier_that_is_missing_in_a_block(make, edit, monkeypatch):
    monkeypatch.setattr(block_sizes, "MULTIPROCESSORS", 2)
    traced = optimized(make(8))
    expected = run_graph(traced.graph, traced.arrays)
    step = Compiled(traced.graph, target_for("cuda-sim"), edit=edit, choices=Choices(block_samples=1))
    for seed in (1, 2, 3):
        with pytest.raises(AssertionError):
            compare(expected, step.run(traced.arrays, seed), f"seed {seed}", rtol=2e-5)


# --- what else a phase can do -------------------------------------------------------------------------------------


def looked_up(rows: np.ndarray) -> Batch:
    """Return rows of a table, chosen by sample, and two products of them, the last one added to a state."""
    batch = Batch("lookup")
    table, weight = (np.linspace(-1, 1, n, dtype=np.float32).reshape(-1, 4) for n in (40, 16))
    total = batch.input(np.zeros((8, 4), np.float32), role="state")
    chosen = batch.apply("gather", [batch.input(table), batch.input(rows)], dim=0, aligned=False)[0]
    hidden = batch.apply("tanh", batch.apply("matmul", [chosen, batch.input(weight)]))[0]
    changed = batch.apply("matmul", [hidden, batch.input(weight)])[0]
    batch.update("total", total, batch.apply("add", [total, changed])[0])
    return batch


@LAUNCHES
def test_an_index_out_of_range_in_a_block_is_an_error_and_changes_no_state(launch):
    rows = np.arange(8)
    good, bad = looked_up(rows), looked_up(np.where(rows == 5, 10, rows))
    graph = good.graph()
    step = Compiled(graph, target_for("cuda-sim").with_launch(launch), choices=Choices(block_samples=2))
    assert any(kernel.family == "index" for phase in step.plan.phases if phase.blocks for kernel in phase.kernels)
    passed = step.allocated(bad.arrays)
    for _ in range(2):
        with pytest.raises(IndexOutOfRange, match="index 10 is outside a dimension of size 10"):
            step.module.run(passed, 1)
    for array, before in zip(passed, bad.arrays, strict=False):
        np.testing.assert_array_equal(array, before)
    compare(run_graph(graph, good.arrays), step.run(good.arrays, 1), "after a failure", rtol=1e-6)


@LAUNCHES
def test_a_kernel_that_breaks_in_a_block_is_named_by_its_phase(launch, monkeypatch):
    monkeypatch.setattr(block_sizes, "MULTIPROCESSORS", 1)  # one chunk: its block of threads says which phase it begins

    def edit(text: str) -> str:
        return re.sub(r"(\n  row\w+\(alone, .* \+ block \* \d+)\);", r"\1 + 100000000);", text, count=1)

    traced = optimized(strided(4))
    step = Compiled(
        traced.graph, target_for("cuda-sim").with_launch(launch), edit=edit, choices=Choices(block_samples=1)
    )
    assert "+ 100000000);" in step.source
    with pytest.raises(
        DeviceError, match=r", 4 blocks of 1 samples, in 1 chunks: .* and \d+ more: .*launch failure.*lost"
    ):
        step.module.run(step.allocated(traced.arrays), 1)


def test_what_stays_in_a_block_is_no_traffic_of_the_device_and_its_phases_no_launches():
    traced = optimized(nets.convnet(16))
    counted = {}
    for samples in (None, 1):
        step = Compiled(
            traced.graph, target_for("cuda-sim").with_launch("graph"), choices=Choices(block_samples=samples)
        )
        step.run(traced.arrays, 1)
        configure_simulator(step.module.path, seed=1, counts_traffic=True)
        simulated = Simulated(step.module.path)
        simulated.configure(1, traffic=True)
        step.module.run(step.allocated(traced.arrays), 1)
        counted[samples] = simulated.statistics()
        simulated.configure(1)
    apart, together = counted[None], counted[1]
    assert (apart["kernels"], together["kernels"]) == (15, 4)
    assert (apart["graph_launches"], together["graph_launches"]) == (1, 1)
    # Weights are read, and shares of their gradients written, for each block: here of one sample. Lower is better: then
    # renew the numbers.
    sectors = [[count["load_sectors"], count["store_sectors"]] for count in (apart, together)]
    assert sectors == [[403924, 39372], [200013, 14258]]


@LAUNCHES
def test_many_steps_with_blocks_are_bit_for_bit_as_many_calls(launch, monkeypatch):
    monkeypatch.setattr(block_sizes, "FEWEST_ON_DEVICE", 1)
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((20, 1, 10, 10)).astype(np.float32), random.integers(0, 3, 20)
    order = random.integers(0, 20, (3, 6))

    def training():
        pg.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
        optimizer = optim.Adam(model.parameters(), lr=0.01)

        @pg.compile(strict=True, target="cuda-sim")
        def step(x, y):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return model, step

    with pg.config(cuda_launch=launch):
        (one, calls), (other, many) = training(), training()
        lowered = calls.lower(images[order[0]], labels[order[0]])
        assert re.search(r"// phase \d+: \d+ blocks of \d+ samples, in \d+ chunks: conv2d", lowered.source)
        assert "shared" in str(lowered.memory)
        losses = [calls(images[rows], labels[rows]).numpy() for rows in order]
        np.testing.assert_array_equal(many.run_many(order, images, labels).numpy(), losses)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
