"""How many kernels, phases and bytes the steps of three nets come to. Lower is better: then renew the numbers."""

from __future__ import annotations

import pytest

from pequegrad import targets
from pequegrad.codegen import schedule
from pequegrad.codegen.lower import lower
from pequegrad.codegen.memory import memory_report
from pequegrad.codegen.plan import Contract, Conv2d, Store
from pequegrad.passes import run_pipeline
from tests.codegen.nets import convnet, mlp, transformer
from tests.codegen.tracing import Traced, check_plan


def planned(traced, **options):
    return check_plan(Traced(run_pipeline(traced.graph), traced.arrays), **options)


def bytes_moved(plan):
    times = [phase.blocks.count if phase.blocks is not None else 1 for phase in plan.phases]
    return sum(
        count * sum(sum(schedule.traffic(kernel, plan)) for kernel in phase.kernels)
        for count, phase in zip(times, plan.phases)
    )


PINNED = {
    "mlp": (mlp, 11, 5, 3_421_828, 236_096),
    # Nearly all of it is one phase, run on blocks of samples whose values never leave the cache.
    "convnet": (convnet, 32, 4, 3_085_388, 339_200),
    # Attention and its gradient are a kernel each: scores, weights and their gradients have no memory.
    "transformer": (transformer, 36, 17, 6_096_204, 1_282_048),
}


@pytest.mark.parametrize("name", PINNED)
def test_kernels_phases_bytes_and_arena_of_a_training_step(name):
    make, *expected = PINNED[name]
    plan = planned(make())
    assert [len(plan.kernels), len(plan.phases), bytes_moved(plan), plan.arena_bytes] == expected


def stores_into_states(plan, family):
    return [
        kernel
        for kernel in plan.kernels
        if isinstance(kernel, family)
        and any(isinstance(s, Store) and plan.buffers[s.access.buffer].scope == "state" for s in kernel.epilogue)
    ]


def test_every_weight_of_the_mlp_is_updated_by_the_product_that_makes_its_gradient():
    assert len(stores_into_states(planned(mlp()), Contract)) == 2


def test_adam_of_every_convolution_rides_in_its_weight_gradient():
    assert len(stores_into_states(planned(convnet(32)), Conv2d)) == 2


def test_softmax_and_cross_entropy_forward_and_backward_are_one_kernel():
    rows = [kernel for kernel in planned(mlp()).kernels if kernel.family == "row" and "exp" in kernel.origin.ops]
    assert len(rows) == 1
    assert "log" in rows[0].origin.ops
    assert rows[0].origin.ops.count("sum") >= 2


def test_the_arena_is_near_the_least_that_any_arena_could_be():
    for make in (mlp, convnet, transformer):
        report = memory_report(planned(make()))
        assert report.live_bytes <= report.arena_bytes <= 1.1 * report.live_bytes
        assert report.arena_bytes <= report.unshared_bytes


def test_small_steps_run_on_one_thread_and_large_ones_on_all():
    small, large = mlp(1), mlp(128)
    assert lower(large.graph, targets.get("cpp"), 2).workers == 2
    assert lower(transformer(1, 1, 4, 8).graph, targets.get("cpp"), 2).workers == 1
    assert lower(small.graph, targets.get("cpp"), 1).workers == 1


def test_plans_do_not_depend_on_the_number_of_workers():
    graph = run_pipeline(convnet(32).graph)
    one, many = (lower(graph, targets.get("cpp"), workers) for workers in (1, 7))
    assert one.phases == many.phases
    assert one.buffers == many.buffers
