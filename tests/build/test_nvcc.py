"""nvcc as a checker: the steps of the examples and a transformer block compile for real devices, and nothing spills."""

from __future__ import annotations

import shutil

import pytest

from pequegrad import targets
from pequegrad.build import cache, kernel_report
from pequegrad.codegen.emit import render
from pequegrad.codegen.launch import SHARED_BYTES
from pequegrad.codegen.lower import lower
from pequegrad.codegen.text import format_plan
from pequegrad.passes import run_pipeline
from tests.codegen import nets

NETS = {"mlp": nets.mlp, "convnet": nets.convnet, "transformer": nets.transformer}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on this machine")


@pytest.mark.parametrize("launch", ["graph", "cooperative"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("net", NETS)
def test_whole_steps_compile_without_spills(net, architecture, launch):
    target = targets.get("cuda", architecture=architecture).with_launch(launch)
    plan = lower(run_pipeline(NETS[net]().graph), target, 2)
    key = cache.make_key(format_plan(plan), target, name=plan.name)
    built = cache.get_or_build(key, lambda: render(plan, target), target, is_for_here=False)
    kernels = kernel_report.read(built.path.parent)
    assert {kernel.architecture for kernel in kernels} == {architecture}
    assert all(0 < kernel.registers <= 255 and kernel.shared <= SHARED_BYTES for kernel in kernels)
    of_the_step = [kernel for kernel in kernels if "loop_state" not in kernel.name]  # not of `run_many`
    assert (len(of_the_step) == 1) == (launch == "cooperative")
    assert not [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]


def test_both_compilers_get_the_same_text():
    graph = run_pipeline(nets.mlp().graph)
    texts = set()
    for target in (targets.get("cuda", architecture="sm_90"), targets.get("cuda-sim")):
        texts.add(render(lower(graph, target, 2), target))
    assert len(texts) == 1


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tensor_cores_compile_without_spills(precision):
    target = targets.get("cuda", architecture="sm_80")
    plan = lower(run_pipeline(nets.transformer(batch=8, length=64, width=256).graph), target, 2, precision)
    key = cache.make_key(format_plan(plan), target, name=plan.name)
    built = cache.get_or_build(key, lambda: render(plan, target), target, is_for_here=False)
    assert f"{precision}_precision" in built.source_path.read_text(encoding="utf-8")
    kernels = kernel_report.read(built.path.parent)
    assert not [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]
