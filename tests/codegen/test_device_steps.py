"""Whole steps on the simulated device: both ways to launch them, what a call costs, and what happens when one fails."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pequegrad import optim
from pequegrad.codegen.launch import MULTIPROCESSORS, is_cooperative
from pequegrad.errors import DeviceError, IndexOutOfRange
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen import nets
from tests.codegen.compiling import Batch, Compiled, configure_simulator, target_for
from tests.codegen.tracing import Traced, compare
from tests.simulator.simulating import Simulated

NETS = {
    "mlp": lambda: nets.mlp(16),
    "convnet": lambda: nets.convnet(6),
    # By SGD: the true gradient of a key's bias is 0, and Adam would blow its rounding up to a full step.
    "transformer": lambda: nets.transformer(layers=1, batch=2, length=8, width=16, make_optimizer=optim.SGD),
}
LAUNCHES = pytest.mark.parametrize("launch", ["graph", "cooperative"])


def compiled(traced: Traced, launch: str) -> Compiled:
    return Compiled(traced.graph, target_for("cuda-sim").with_launch(launch))


@LAUNCHES
@pytest.mark.parametrize("net", NETS)
def test_steps_give_what_the_graph_gives_in_numpy_in_any_order_of_threads(net, launch):
    traced = NETS[net]()
    traced = Traced(run_pipeline(traced.graph), traced.arrays)
    expected = run_graph(traced.graph, traced.arrays)
    step = compiled(traced, launch)
    for seed in (1, 2, 3):
        compare(expected, step.run(traced.arrays, seed), f"{net}, {launch}, seed {seed}", rtol=2e-5)


@LAUNCHES
def test_a_step_is_one_launch_and_captures_once(launch):
    traced = NETS["mlp"]()
    step = compiled(Traced(run_pipeline(traced.graph), traced.arrays), launch)
    step.run(traced.arrays, 1)
    simulated = Simulated(step.module.path)
    simulated.configure(1)
    passed = step.allocated(traced.arrays)
    for _ in range(3):
        step.module.run(passed, 1)
    counted = simulated.statistics()
    phases = step.source.count("  // phase ")
    if launch == "graph":
        assert (counted["graph_launches"], counted["launches"]) == (3, 0)
        assert counted["kernels"] == 3 * phases
    else:
        assert (counted["graph_launches"], counted["launches"], counted["kernels"]) == (0, 3, 3)
        assert counted["grid_barriers"] > 0
    # Arrays on the host are copied in, but for results, and out where the step writes them; and so is what may have
    # failed: a label that is no class.
    buffers = [step.plan.buffers[number] for number in step.plan.slots]
    assert counted["copies_to_device"] == 3 * sum(buffer.scope != "result" for buffer in buffers)
    assert counted["copies_to_host"] == 3 * (sum(buffer.is_written for buffer in buffers) + 1)


def test_small_steps_are_one_kernel_and_large_ones_a_graph():
    assert is_cooperative("auto", [MULTIPROCESSORS, 3], 20)
    assert not is_cooperative("auto", [MULTIPROCESSORS + 1, 3], 20)
    assert not is_cooperative("auto", [3], 20)
    assert not is_cooperative("cooperative", [3, 3], 300)


def looked_up(index: list[int]) -> tuple[Batch, np.ndarray]:
    """Return rows of a table added to a state, behind them another phase that changes a second state."""
    batch = Batch("lookup")
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    x, state = batch.input(table), batch.input(np.zeros((2, 3), np.float32), role="state")
    total = batch.input(np.zeros((), np.float32), role="state")
    rows = batch.apply("gather", [x, batch.input(np.array(index))], dim=0, aligned=False)[0]
    changed = batch.apply("add", [rows, state])[0]
    batch.update("rows", state, changed)
    summed = batch.apply("sum", [changed], dims=(0, 1), keepdim=False)[0]
    batch.update("total", total, batch.apply("add", [total, summed])[0])
    return batch, table


@LAUNCHES
def test_an_index_out_of_range_is_an_error_and_changes_no_state(launch):
    batch, _ = looked_up([1, 7])
    step = Compiled(batch.graph(), target_for("cuda-sim").with_launch(launch))
    passed = step.allocated(batch.arrays)
    for _ in range(2):  # the step works again after it has told
        with pytest.raises(IndexOutOfRange, match=r"index 7 is outside a dimension of size 4"):
            step.module.run(passed, 1)
    for array, before in zip(passed, batch.arrays, strict=False):
        np.testing.assert_array_equal(array, before)
    good, table = looked_up([1, 3])
    passed = step.allocated(good.arrays)
    step.module.run(passed, 1)
    np.testing.assert_array_equal(passed[1], table[[1, 3]])


def test_too_little_memory_says_how_much_was_asked_and_what_takes_it():
    batch = Batch("large")
    x = batch.input(np.ones((1000, 300), np.float32))
    square = batch.apply("matmul", [x, batch.apply("permute", [x], dims=(1, 0))[0]])[0]
    batch.expect("sum", batch.apply("sum", [square], dims=(0, 1), keepdim=False), None)
    step = Compiled(batch.graph(), target_for("cuda-sim"))
    simulated = Simulated(step.module.path)
    simulated.configure(1, memory=5_000_000)
    with pytest.raises(
        DeviceError,
        match=r"out of memory: x0: 1200000 bytes asked, \d+ of 5000000 bytes free\. The step takes \d+ bytes: its arena \d+, "
        r"copies of arguments 1200004 \(x0 1200000\); what it can have is \d+ % of that\.",
    ):
        step.module.run(step.allocated(batch.arrays), 1)
    simulated.configure(1, memory=1 << 32)
    step.module.run(step.allocated(batch.arrays), 1)


@LAUNCHES
def test_a_broken_kernel_is_named_by_its_phase_and_the_context_is_lost(launch):
    """The text of a good step is broken on the way to the compiler: its store goes beyond the result."""
    batch = Batch("broken")
    x = batch.input(np.ones(40, np.float32))
    total = batch.apply("sum", [x], dims=(0,), keepdim=False)[0]
    spread = batch.apply("expand", [total], shape=(40,))[0]
    batch.expect("exp", batch.apply("exp", batch.apply("mul", [spread, x])), 4)
    target = target_for("cuda-sim").with_launch(launch)
    step = Compiled(
        batch.graph(), target, edit=lambda text: text.replace("pg::store(p1 + i1,", "pg::store(p1 + 1 + i1,")
    )
    assert "p1 + 1 + i1" in step.source
    name = re.findall(r"^  // phase \d+: (\S+)", step.source, re.M)[-1]
    with pytest.raises(
        DeviceError, match=rf", {name}: .*launch failure.*context is lost: .*those on the CPU are whole.*out of bounds"
    ):
        step.module.run(step.allocated(batch.arrays), 1)
    configure_simulator(step.module.path, seed=1)
    with pytest.raises(DeviceError, match="context was lost by an earlier error"):
        step.module.run(step.allocated(batch.arrays), 1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list a process's mappings")
def test_thousands_of_simulated_threads_are_few_mappings():
    """A guard page below each thread's stack was a mapping of its own; a few cooperative steps used up all of Linux's."""
    mappings = Path("/proc/self/maps")
    traced = NETS["convnet"]()
    step = compiled(Traced(run_pipeline(traced.graph), traced.arrays), "cooperative")
    before = len(mappings.read_text().splitlines())
    step.run(traced.arrays, 1)
    assert len(mappings.read_text().splitlines()) < before + 500


DEVICE_MEMORY = """
extern "C" __attribute__((visibility("default"))) void* place_on_device(const void* host, long bytes) {
  void* memory = nullptr;
  cudaMalloc(&memory, size_t(bytes));
  cudaMemcpy(memory, host, size_t(bytes), cudaMemcpyHostToDevice);
  return memory;
}
extern "C" __attribute__((visibility("default"))) void read_device(void* host, const void* memory, long bytes) {
  cudaDeviceSynchronize();
  cudaMemcpy(host, memory, size_t(bytes), cudaMemcpyDeviceToHost);
}
"""


def with_device_memory(text: str) -> str:
    return text + DEVICE_MEMORY


class OnDevice:
    """An array in the memory of the simulator inside a step's module."""

    def __init__(self, library: ctypes.CDLL, array: np.ndarray) -> None:
        self.library, self.like = library, array
        library.place_on_device.restype = ctypes.c_void_p
        self.address = library.place_on_device(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(array.nbytes))
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def read(self) -> np.ndarray:
        """Return what it holds once all that was launched has ended."""
        out = np.empty_like(self.like)
        address, size = ctypes.c_void_p(self.address), ctypes.c_long(out.nbytes)
        self.library.read_device(out.ctypes.data_as(ctypes.c_void_p), address, size)
        return out


@LAUNCHES
def test_state_on_the_device_is_changed_where_it_lies_and_may_move_between_calls(launch):
    batch = Batch("counter")
    x = batch.input(np.arange(40, dtype=np.float32))
    state = batch.input(np.zeros(40, np.float32), role="state")
    total = batch.apply("sum", [x], dims=(0,), keepdim=False)[0]
    spread = batch.apply("expand", [total], shape=(40,))[0]
    batch.update("state", state, batch.apply("add", [state, spread])[0])
    step = Compiled(batch.graph(), target_for("cuda-sim").with_launch(launch), edit=with_device_memory)
    simulated = Simulated(step.module.path)
    simulated.configure(1)
    first, second = (OnDevice(simulated.library, np.full(40, start, np.float32)) for start in (0, 1))
    given, _ = step.allocated(batch.arrays)
    for state_now in (first, first, second, first):
        step.module.run([given, state_now], 1)
    assert simulated.statistics()["synchronizations"] == 0  # nobody has read anything yet
    np.testing.assert_array_equal(first.read(), np.full(40, 3 * 780.0, np.float32))
    np.testing.assert_array_equal(second.read(), np.full(40, 1 + 780.0, np.float32))
    counted = simulated.statistics()
    # The argument at each call, and nothing back but what the test reads.
    assert (counted["copies_to_device"], counted["copies_to_host"]) == (4, 2)
