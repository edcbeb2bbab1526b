"""A step for a GPU is built and saved where there is none, and refused there; its state lies where it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import arrays
from pequegrad.build import programs
from pequegrad.errors import ArtifactError, PequegradWarning, ToolchainError
from pequegrad.export import loading
from pequegrad.targets import Device
from tests.device import conftest as device_fixtures
from tests.export.helpers import batches, losses, make_program

cupy = device_fixtures.cupy
without_cupy = device_fixtures.without_cupy


def has_nvcc() -> bool:
    try:
        programs.locate_nvcc()
    except ToolchainError:
        return False
    return True


@pytest.mark.skipif(not has_nvcc(), reason="there is no nvcc on this machine")
def test_a_step_for_a_gpu_is_saved_without_one_and_refused_without_one(tmp_path, monkeypatch):
    program = make_program()
    losses(program.step, batches(1))
    program.step.compile(*batches(1)[0], target="cuda", arch="sm_90").save(tmp_path / "step")
    manifest = loading.read_manifest(tmp_path / "step")
    needs = manifest.requires
    assert (needs.target, needs.device, needs.architecture) == ("cuda", "cuda", "sm_90")
    assert int(needs.toolkit.split(".")[0]) >= 12 and manifest.arena_bytes == 0
    assert b"__global__" in (tmp_path / "step" / "step.cu").read_bytes()
    assert pg.load(tmp_path / "step" / "state.safetensors")["optimizer.state.model.0.weight.step"].item() == 1
    monkeypatch.setattr(loading.machine, "find_device", lambda: "this machine has no CUDA driver (libcuda.so.1)")
    with pytest.raises(ArtifactError, match=r"was built for sm_90, and this machine has no CUDA driver"):
        pg.load_step(tmp_path / "step")
    monkeypatch.setattr(loading.machine, "find_device", lambda: Device((8, 0), (13, 0)))
    with pytest.raises(ArtifactError, match=r"was built for sm_90, and this device is sm_80"):
        pg.load_step(tmp_path / "step")


class Module:
    """In place of a module for a GPU: notes what it is handed, and adds one to what is written."""

    def __init__(self, manifest: Any) -> None:
        self.slots: list[Any] = []
        self._manifest = manifest

    def try_run(self, slots: list[Any], workers: int) -> None:
        self.slots = [arrays.unheld(slot) for slot in slots]
        for slot, array in zip(self._manifest.slots, self.slots):
            if slot.is_written and slot.role != "result":
                array += 1


def on_gpu(saved, home):
    manifest = loading.read_manifest(saved)
    manifest = dataclasses.replace(manifest, requires=dataclasses.replace(manifest.requires, device="cuda"))
    contents = loading.read_contents(saved, manifest)
    state = loading._read_state(contents[manifest.state.name], manifest, saved)
    module: Any = Module(manifest)
    return loading.LoadedStep(manifest, contents, state, module, home or loading._home(manifest)), module


def test_state_and_results_lie_on_the_gpu_and_save_from_there(saved, tmp_path, cupy):
    step, module = on_gpu(saved, None)
    weight = step.state["model.0.weight"]
    assert weight.device == "cuda" and type(step.state["optimizer.param_groups.0.lr"]) is float
    before = weight.numpy().copy()
    x, y = batches(1)[0]
    assert step(pg.Tensor(x).to("cuda"), y).device == "cuda"
    by_role = {slot.role: type(array) for slot, array in zip(step.manifest.slots, module.slots)}
    assert by_role["parameter"] is by_role["result"] is cupy.ndarray and by_role["scalar"] is np.ndarray
    assert [type(array) for array in module.slots[:2]] == [cupy.ndarray, np.ndarray]
    np.testing.assert_array_equal(step.state["model.0.weight"].numpy(), before + 1)
    step.state["model.0.bias"] = np.full(9, 7, np.float32)
    step.save(tmp_path / "again")
    state = pg.load(tmp_path / "again" / "state.safetensors")
    np.testing.assert_array_equal(state["model.0.weight"].numpy(), before + 1)
    assert state["model.0.bias"].tolist() == [7] * 9


def test_without_cupy_the_state_stays_on_the_cpu_and_that_is_said(saved, without_cupy):
    with pytest.warns(PequegradWarning, match=r"train_step: its state lies on the CPU, and is copied .*CuPy"):
        step, _ = on_gpu(saved, None)
    assert step.state["model.0.weight"].device == "cpu"


def test_a_step_for_the_cpu_takes_arguments_from_a_gpu(saved, cupy):
    x, y = batches(1)[0]
    mine, other = pg.load_step(saved), pg.load_step(saved)
    assert mine(pg.Tensor(x).to("cuda"), cupy.asarray(y)).item() == other(x, y).item()
