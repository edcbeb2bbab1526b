"""mode="autotune": every variant computes the same, the fastest is kept, and a later process finds it in the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim, targets, tuning
from pequegrad.build import cache
from pequegrad.codegen.alternatives import PLAIN, alternatives
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Conv2d
from pequegrad.codegen.product_views import tiles_for
from pequegrad.codegen.schedule import MODEL, Choices
from pequegrad.codegen.text import format_plan
from pequegrad.errors import DeviceError
from pequegrad.nn import functional as F
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen.compiling import Compiled, target_for
from tests.codegen.nets import convnet, mlp, transformer
from tests.codegen.tracing import Traced, check_plan, compare, trace

X = np.random.default_rng(0).standard_normal((256, 24)).astype(np.float32)
NETS = {"mlp": mlp, "convnet": lambda: convnet(64), "transformer": transformer}


def training(**options):
    """Return a compiled training step, its model and its optimizer."""
    pg.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 24), nn.LayerNorm(24))
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    @pg.compile(strict=True, **options)
    def step(x):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x)
        loss.backward()
        optimizer.step()
        return loss

    return step, model, optimizer


def tried(graph, target, workers=1, precision="fp32"):
    """Return the alternatives of each decision."""
    plans = (lower(graph, target, workers, precision, choices) for choices in (MODEL, PLAIN))
    return list(alternatives(*plans, target, workers))


@pytest.fixture
def fastest(monkeypatch):
    """Let one set of choices be the fastest, whatever the clock says; return the choices that were timed."""
    timed: list[Choices] = []

    def prefer(**fields):
        def run(variant):
            timed.append(variant.choices)
            return [1.0 - 0.1 * sum(getattr(variant.choices, name) == value for name, value in fields.items())]

        monkeypatch.setattr(tuning._Variant, "run", run)
        return timed

    return prefer


@pytest.fixture
def forgetful(monkeypatch):
    """A cache whose notes are gone: every step is tuned."""
    notes: dict[str, str] = {}
    monkeypatch.setattr(cache, "recall", lambda name, stamp: notes.get(name))
    monkeypatch.setattr(cache, "remember", lambda name, stamp, value: notes.__setitem__(name, value))
    return notes


# --- what is chosen among ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_plans_under_each_alternative_are_right(net):
    traced = NETS[net]()
    graph = run_pipeline(traced.graph)
    target = targets.get("cpp")
    texts = {format_plan(lower(graph, target, 2))}
    for decision in tried(graph, target, 2):
        for alternative in decision:
            choices = alternative.apply(MODEL)
            plan = check_plan(Traced(graph, traced.arrays), alternative.text, choices=choices)
            texts.add(format_plan(plan))
    assert len(texts) >= 3


def test_choices_are_in_the_plan():
    graph = run_pipeline(convnet(64).graph)
    target = targets.get("cpp")

    def weight_chunks(choices):
        kernels = lower(graph, target, 2, "fp32", choices).kernels
        return {
            kernel.shape.weight_chunks
            for kernel in kernels
            if isinstance(kernel, Conv2d) and kernel.kind == "grad_weight"
        }

    assert weight_chunks(Choices(block_bytes=0, samples_last=False, weight_chunks=2)) == {2}
    assert weight_chunks(Choices(block_bytes=0, samples_last=False)) == {16}
    assert lower(graph, target, 2, "fp32", Choices(is_shared=False)).workers == 1
    assert lower(graph, target, 3, "fp32", Choices(is_shared=True)).workers == 3
    assert all(phase.blocks is None for phase in lower(graph, target, 2, "fp32", Choices(block_bytes=0)).phases)


def test_the_operands_of_a_product_may_be_exchanged():
    graph = run_pipeline(mlp().graph)
    before, after = (
        sorted(
            (c.m, c.n, c.k)
            for c in lower(graph, targets.get("cpp"), 1, "fp32", choices).kernels
            if isinstance(c, Contract)
        )
        for choices in (PLAIN, dataclasses.replace(PLAIN, exchanged=((1, 128, 200, 784),)))
    )
    assert (128, 200, 784) in before and (200, 128, 784) not in before
    assert after == sorted([*(product for product in before if product != (128, 200, 784)), (200, 128, 784)])


def test_each_tile_of_a_product_on_a_device_is_right():
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((40, 24), (24, 70)))
    traced = trace(lambda a, b: (a @ b).tanh(), a, b)
    graph = run_pipeline(traced.graph)
    target = target_for("cuda-sim")
    (product,) = (kernel for kernel in lower(graph, target).kernels if isinstance(kernel, Contract))
    names = tiles_for(product, target)
    assert len(set(names)) == len(names) > 3
    expected = run_graph(graph, traced.arrays)
    for name in names[1:]:
        choices = Choices(tiles=(((1, product.m, product.n, product.k), name),))
        step = Compiled(graph, target, choices=choices)
        assert f"pg::{name}" in step.source
        compare(expected, step.run(traced.arrays, 1), name, 1e-5)


def test_products_on_a_device_may_be_cut_into_other_tiles_and_launched_otherwise():
    target = targets.get("cuda", architecture="sm_90")
    graph = run_pipeline(transformer().graph)
    found = [alternative for decision in tried(graph, target) for alternative in decision]
    assert {alternative.field for alternative in found} == {"launch", "tiles", "recomputed"}
    for precision in ("fp32", "bf16"):
        for decision in tried(graph, target, 1, precision):
            for alternative in decision:
                assert lower(graph, target, 1, precision, alternative.apply(MODEL)).kernels


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_the_fastest_variant_of_each_decision_is_kept(fastest, forgetful):
    timed = fastest(is_shared=True, recomputed=1)
    with pg.config(num_threads=2):
        step, *_ = training(mode="autotune")
        step(X)
        plan = step.lower(X).plan
    assert timed[0] == MODEL
    assert plan.workers == 2
    graph = pg.compile(training()[0]._function).lower(X).graph
    expected = lower(
        run_pipeline(graph), targets.get("cpp"), 2, "fp32", Choices(is_shared=plan.workers == 2, recomputed=1)
    )
    assert format_plan(plan) == format_plan(expected)


def test_gains_within_the_noise_change_nothing(monkeypatch, forgetful):
    monkeypatch.setattr(tuning._Variant, "run", lambda variant: [1.0 - 0.02 * (variant.choices != MODEL)])
    step, *_ = training(mode="autotune")
    step(X)
    assert format_plan(step.lower(X).plan) == format_plan(training()[0].lower(X).plan)


def test_tuning_changes_no_state_and_draws_no_random_numbers(forgetful):
    def losses(mode):
        step, model, _ = training(mode=mode)
        found = [step(X).item() for _ in range(4)]
        return found, [parameter.detach().numpy().copy() for parameter in model.parameters()]

    (expected, weights), (got, tuned) = losses("default"), losses("autotune")
    assert np.allclose(got, expected, rtol=1e-5)
    compare(weights, tuned, "parameters", 1e-4)


def test_what_was_tuned_is_said_once_and_not_again_for_the_same_step(fastest, forgetful, capsys):
    timed = fastest(recomputed=1)
    with pg.config(quiet=False):
        training(mode="autotune")[0](X)
        count = len(timed)
        training(mode="autotune")[0](X)
    said = capsys.readouterr().err
    assert said.count("tuned on") == 1 and "chains of 1 computed again" in said and "% faster" in said
    assert count > 2 and len(timed) == count


def test_ahead_of_time_tunes_as_a_call_does(fastest, forgetful):
    timed = fastest(recomputed=1)
    step, *_ = training(mode="autotune")
    artifact = step.compile(X)
    count = len(timed)
    assert count > 2
    step(X)
    assert len(timed) == count
    assert step.compile(X).path == artifact.path


def test_looking_inside_measures_nothing(fastest, forgetful):
    timed = fastest(recomputed=1)
    step, *_ = training(mode="autotune")
    assert format_plan(step.lower(X).plan) == format_plan(training()[0].lower(X).plan)
    step.explain(X)
    step.profile(X, seconds=0.01)
    assert not timed and not forgetful


def test_where_nothing_can_be_measured_the_cost_model_chooses_and_says_so_once(monkeypatch, fastest, forgetful, capsys):
    def refuse(target):
        raise DeviceError("no such device here")

    timed = fastest(recomputed=1)
    monkeypatch.setattr(tuning.known, "check_can_run", refuse)
    step, *_ = training(mode="autotune")
    with pg.config(quiet=False):
        step.compile(X)
        step.compile(X)
    said = capsys.readouterr().err
    assert said.count("not tuned, the cost model's choices stay: ") == said.count("no such device here") == 1
    assert not timed and not forgetful


def test_a_small_arena_can_be_tuned_too(monkeypatch, fastest, forgetful):
    fastest(recomputed=1)
    monkeypatch.setattr(tuning, "alternatives", lambda *given: [decision[:1] for decision in alternatives(*given)][-1:])
    step, *_ = training(mode="autotune", memory="small")
    loss = step(X).item()
    assert np.isclose(loss, training()[0](X).item(), rtol=1e-5)


def test_steps_in_the_simulator_are_tuned(monkeypatch, fastest, forgetful):
    fastest(launch="graph")
    monkeypatch.setattr(tuning, "alternatives", lambda *given: [decision[:1] for decision in alternatives(*given)][:1])
    step = pg.compile(lambda a, b: (a @ b).tanh(), mode="autotune", target="cuda-sim", strict=True)
    assert np.allclose(step(X[:16], X[:24]).numpy(), np.tanh(X[:16] @ X[:24]), atol=1e-5)
    assert [json.loads(note)["launch"] for note in forgetful.values()] == ["graph"]


# --- the cache --------------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    import numpy as np
    import pequegrad as pg
    from pequegrad import tuning
    from pequegrad.build import toolchain
    built, timed = [], []
    compile_objects, run = toolchain.compile_objects, tuning._Variant.run
    toolchain.compile_objects = lambda *a: built.append(a) or compile_objects(*a)
    tuning._Variant.run = lambda v: timed.append(v) or [1.0 - 0.1 * (v.choices.recomputed == 1)]
    step = pg.compile(lambda x, y: ((x + 1) * y - x).tanh().sum(0) @ y.sum(0), mode="autotune", strict=True)
    x = np.ones((300, 20), np.float32)
    step(x, x)
    print(len(built), len(timed), file=sys.stdout)
"""


def test_a_later_process_loads_what_was_chosen_and_builds_and_times_nothing(tmp_path):
    environment = {**os.environ, "PEQUEGRAD_CACHE_DIR": str(tmp_path / "cache"), "PEQUEGRAD_NUM_THREADS": "2"}
    environment.pop("PEQUEGRAD_CACHE", None)
    program = textwrap.dedent(PROGRAM)
    runs = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (built, timed), again = ([int(word) for word in run.stdout.split()] for run in runs)
    assert built > 2 and timed > 2  # the binding, the cost model's step, and variants
    assert again == [0, 0]
    assert "tuned" not in runs[1].stderr


def test_what_the_cache_keeps_is_read_back_as_it_was():
    choices = Choices(
        block_bytes=0, is_shared=True, tiles=(((1, 2, 3, 4), "product_tile_32"),), exchanged=((1, 2, 3, 4),)
    )
    text = tuning._written(choices)
    assert tuning._read(text) == choices
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(Choices)}
