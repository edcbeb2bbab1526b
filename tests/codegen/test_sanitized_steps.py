"""Emitted steps as programs of their own under sanitizers: no access out of bounds, nothing undefined, no race."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pequegrad import manual_seed, nn, optim, targets
from pequegrad.codegen.emit import render
from pequegrad.codegen.interpret import allocate
from pequegrad.codegen.lower import lower
from pequegrad.nn import functional
from pequegrad.passes import run_pipeline
from pequegrad.trace.interpreter import run_graph
from tests.codegen import nets
from tests.codegen.tracing import Traced, compare
from tests.sanitizing import ADDRESS, THREAD, find_sanitizer
from tests.simulator.simulating import HERE, INCLUDE

FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-g1", "-fwrapv", "-Wno-unknown-pragmas", f"-I{INCLUDE}"]


def perceptron() -> Traced:
    """Batch norm: running statistics are state that a reduction changes."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(20, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 4)
    )
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    x = random.standard_normal((24, 20)).astype(np.float32)
    return nets.training_step(model, optimizer, x, random.integers(0, 4, 24), functional.cross_entropy)


def convnet() -> Traced:
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = random.standard_normal((2, 1, 8, 8)).astype(np.float32)
    return nets.training_step(model, optimizer, x, random.integers(0, 3, 2), functional.cross_entropy)


def transformer() -> Traced:
    return nets.transformer(layers=1, batch=1, length=8, width=8, make_optimizer=optim.SGD)


NETS = {"perceptron": perceptron, "convnet": convnet, "transformer": transformer}
# A program takes seconds to compile, and g++'s ThreadSanitizer long for each thread: few of the many combinations.
CASES = [
    ("perceptron", "graph", THREAD), ("perceptron", "cooperative", THREAD), ("convnet", "cooperative", THREAD),
    ("transformer", "cooperative", THREAD),
    ("perceptron", "cooperative", ADDRESS), ("convnet", "graph", ADDRESS), ("transformer", "graph", ADDRESS),
]  # fmt: skip


class Program:
    """An emitted step with the arguments of a traced one."""

    def __init__(self, net: str, launch: str, kind: tuple[tuple[str, ...], tuple[str, ...]], folder: Path) -> None:
        self.folder = folder
        traced = NETS[net]()
        self.traced = Traced(run_pipeline(traced.graph), traced.arrays)
        target = targets.get("cuda-sim").with_launch(launch)
        self.plan = lower(self.traced.graph, target, 2)
        self.text = render(self.plan, target)
        self.sanitizer = find_sanitizer(kind, folder)

    def run(self, edit: Callable[[str], str] = str) -> subprocess.CompletedProcess[str]:
        """Build the step's text, run it, and leave what its arguments hold afterwards in `after`."""
        source, before = self.folder / "step.cu", self.folder / "before"
        source.write_text(edit(self.text))
        passed = allocate(self.plan, self.traced.arrays)
        before.write_bytes(b"".join(array.tobytes() for array in passed))
        arguments = [*FLAGS, f'-DPG_TEST_STEP="{source}"', str(HERE / "sanitized_step.cu")]
        program = self.sanitizer.build(self.folder / "step", arguments)
        command = [str(program), "1", str(before), str(self.folder / "after")]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def outputs(self) -> list[np.ndarray]:
        """Return one array per output of the graph."""
        left = (self.folder / "after").read_bytes()
        arrays, at = [], 0
        for array in allocate(self.plan, self.traced.arrays):
            arrays.append(np.frombuffer(left, array.dtype, array.size, at).reshape(array.shape))
            at += array.nbytes
        graph = self.traced.graph
        positions = {item.value: i for i, item in enumerate(graph.inputs)}
        results = iter(arrays[len(graph.inputs) :])
        return [next(results) if out.role == "result" else arrays[positions[out.target]] for out in graph.outputs]


@pytest.mark.parametrize(("net", "launch", "kind"), CASES)
def test_steps_are_right_and_clean(net: str, launch: str, kind: tuple, tmp_path: Path) -> None:
    program = Program(net, launch, kind, tmp_path)
    done = program.run()
    assert done.returncode == 0, done.stdout + done.stderr[:6000]
    compare(run_graph(program.traced.graph, program.traced.arrays), program.outputs(), net, rtol=2e-5)


def test_a_barrier_that_an_emitted_step_lacks_is_a_race(tmp_path: Path) -> None:
    program = Program("perceptron", "cooperative", THREAD, tmp_path)
    done = program.run(lambda text: text.replace("pg_grid_barrier(barrier);", ""))
    assert done.returncode == 66, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert done.stderr.count("step.cu:") >= 2
