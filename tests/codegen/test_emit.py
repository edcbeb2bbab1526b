"""The emitted text of three training steps: right, free of warnings, deterministic, and made to be read."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pequegrad import from_numpy, nn, optim, targets
from pequegrad.codegen import emit
from pequegrad.codegen.emit import WIDTH, render, view
from pequegrad.codegen.lower import lower
from pequegrad.nn import functional
from pequegrad.ops.random import manual_seed
from pequegrad.ops.registry import REGISTRY
from pequegrad.passes import run_pipeline
from pequegrad.trace.graph import GraphBuilder, Location, Output
from pequegrad.trace.interpreter import run_graph
from tests.codegen import nets
from tests.codegen.compiling import INSTRUCTION_SETS, Batch, Compiled, target_for
from tests.codegen.tracing import Traced, compare, trace
from tests.runtime.native import INCLUDE, compile_cpp

NETS = {
    "mlp": functools.partial(nets.mlp, 32),
    "convnet": functools.partial(nets.convnet, 8),
    "transformer": functools.partial(nets.transformer, 1, 2, 16, 32),
}
per_net = pytest.mark.parametrize("name", NETS)


@functools.cache
def optimized(name: str) -> Traced:
    traced = NETS[name]()
    return Traced(run_pipeline(traced.graph), traced.arrays)


def text_of(name: str) -> str:
    target = targets.get("cpp")
    return render(lower(optimized(name).graph, target, 2), target)


@per_net
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_training_step_gives_what_its_graph_gives(name, instruction_set):
    traced = optimized(name)
    compiled = Compiled(traced.graph, target_for(instruction_set))
    expected = run_graph(traced.graph, traced.arrays)
    for workers in (1, 2):
        got = compiled.run(traced.arrays, workers)
        if name == "transformer":
            # Softmax does not see the keys' bias: its gradient is rounding noise, which Adam scales to a full step.
            for i, array in enumerate(expected):
                if array.shape == (96,):
                    got[i][32:64] = array[32:64]
        # Adam also scales what is left of a gradient that nearly cancels: 6e-8 beside others of 2e-2, right to 1e-9.
        compare(expected, got, f"{name}, {workers} workers", rtol=1e-4 if name == "transformer" else 2e-5)


@per_net
def test_emitted_text_compiles_without_warnings(name, tmp_path):
    source = tmp_path / f"{name}.cpp"
    source.write_text(text_of(name), encoding="utf-8")
    flags = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{INCLUDE}"]
    compile_cpp([*target_for("native").compile_flags, *flags, "-c", str(source), "-o", str(tmp_path / "step.o")])


@per_net
def test_lines_are_short_and_each_kernel_says_where_it_comes_from(name):
    lines = text_of(name).splitlines()
    assert [line for line in lines if len(line) > WIDTH or line != line.rstrip()] == []
    kernels = [i for i, line in enumerate(lines) if re.match(r"(static )?void (?!run\()", line)]
    kernels = [i for i in kernels if not next(part for part in lines[i:] if part.endswith((";", "{"))).endswith(";")]
    assert kernels
    for i in kernels:
        above = lines[i - 1]
        assert above.startswith("//") and "->" in above, (above, lines[i])
        assert any(re.match(r"// \w+\.py:\d+", line) for line in lines[max(0, i - 8) : i]), lines[i]


@per_net
def test_every_variable_of_the_text_is_read(name):
    """An assignment that nothing reads is a line that a reader follows for nothing."""
    for function in re.split(r"\n(?=// )", text_of(name)):
        for variable in set(re.findall(r"const \S+(?: const)? ([svi]\d+) =", function)):
            assert len(re.findall(rf"\b{variable}\b", function)) > 1, f"{variable} is written once:\n{function}"


def test_the_text_is_the_same_in_another_process():
    code = "from tests.codegen.test_emit import text_of; import sys; sys.stdout.write(text_of('transformer'))"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text_of("transformer")


def test_the_text_knows_no_path_and_no_name_of_the_machine():
    text = text_of("mlp")
    assert str(Path(__file__).parent) not in text and "/home" not in text and "0x" not in text.replace("0x1", "")


def test_kernels_with_equal_bodies_share_a_function():
    batch = Batch("twins")
    first, second = batch.input(_array([[1.0, 2.0]])), batch.input(_array([[3.0, 4.0]]))
    for value in (first, second):
        (product,) = batch.apply("matmul", [value, batch.apply("permute", [value], dims=(1, 0))[0]])
        batch.expect("product", [product])
    target = targets.get("cpp")
    text = render(lower(batch.graph(), target, 1), target)
    assert len(re.findall(r"^static void contract", text, re.M)) == 1
    assert len(re.findall(r"^  contract\w+\(", text, re.M)) == 2


def test_a_step_of_much_text_is_compiled_as_objects_that_are_one_program():
    """As many as the step has workers; each kernel stands once, in its order, and which object it is in is all that differs."""
    graph, target = optimized("transformer").graph, targets.get("cpp")
    one, two = (lower(graph, target, workers) for workers in (1, 2))
    assert [len(view(plan, target).objects) for plan in (one, two)] == [1, 2]
    text = render(two, target)
    assert re.findall(r"^#(?:if|endif).*", text, re.M) == [
        "#if PG_IN_OBJECT(1)",
        "#endif",
        "#if PG_IN_OBJECT(2)",
        "#endif",
    ]
    assert "PG_IN_OBJECT" not in render(one, target)
    names = [function.name for function in view(two, target).functions]
    assert re.findall(r"^void (\w+)\(", text, re.M) == names + names  # declared, and then defined


def layered(count: int) -> Traced:
    """A training step of equal layers between two that differ."""
    manual_seed(0)
    layers = [nn.Linear(8, 24), *(nn.Sequential(nn.Tanh(), nn.Linear(24, 24)) for _ in range(count)), nn.Linear(24, 3)]
    model = nn.Sequential(*layers)
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((64, extent)).astype(np.float32) for extent in (8, 3))
    traced = nets.training_step(model, optim.SGD(model.parameters(), lr=0.1), x, y, functional.mse_loss)
    return Traced(run_pipeline(traced.graph), traced.arrays)


@pytest.mark.parametrize("name", ["cpp", "cuda"])
def test_equal_layers_share_their_functions_and_each_call_is_a_kernel(name):
    """More of the same layers are more calls, and not one more function."""
    target = targets.get(name, architecture="sm_80") if name == "cuda" else targets.get(name)
    seen = []
    for count in (4, 6):
        plan = lower(layered(count).graph, target, 1)
        step = view(plan, target)
        calls = [call for phase in step.phases for call in phase.calls]
        assert {call.kernel for call in calls} == set(range(len(plan.kernels)))
        seen.append((len(calls), len(step.functions)))
    (fewer_calls, functions), (more_calls, functions_of_more) = seen
    assert more_calls >= fewer_calls + 4 and functions == functions_of_more < fewer_calls


@pytest.mark.parametrize("workers", [1, 2])
def test_equal_layers_give_what_their_graph_gives(workers):
    traced = layered(4)
    got = Compiled(traced.graph, target_for("native")).run(traced.arrays, workers)
    compare(run_graph(traced.graph, traced.arrays), got, f"equal layers, {workers} workers", rtol=2e-5)


def test_a_shared_function_names_the_lines_of_its_uses():
    batch = Batch("lines")
    x, value = (batch.input(_array(rows)) for rows in ([[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.0], [0.0, 0.5]]))
    for line in range(1, 7):
        (value,) = batch.builder.apply(REGISTRY["matmul"], [value, x], {}, Location("net.py", line, "forward"))
    batch.expect("power", [value])
    target = targets.get("cpp")
    text = render(lower(batch.graph(), target, 1), target)
    comment = text[: text.index("static void contract")].split("\n\n")[-1]
    assert comment.splitlines() == [
        "// net.py:1",
        "// also net.py:2",
        "// also net.py:3",
        "// also net.py:4",
        "// and 2 more",
        "// matmul -> float32[2,2]",
    ]


def _array(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_a_step_without_kernels_is_still_a_step():
    builder = GraphBuilder("empty")
    spec = Batch("shape").input(_array([[]])).spec
    builder.outputs.append(Output(builder.add_input(spec, "argument", "x"), "result", "y"))
    compiled = Compiled(builder.build(), target_for("native"))
    assert compiled.run([_array([[]])], 2)[0].shape == (1, 0)


def test_a_negative_number_after_a_minus_stays_one():
    """`-` in front of `-1.5f` is `--`, which is no expression of a number."""
    batch = Batch("signs")
    x = batch.input(_array([[2.0, 3.0]]))
    number = batch.apply("full", [], shape=(), value=-1.5, dtype=x.dtype)
    batch.expect("negated", batch.apply("mul", [x, *batch.apply("neg", number)]))
    assert batch.failures(target_for("native")) == []


def two_layers(width: int) -> Traced:
    """Weights of width by 512 and 512 by width, with a momentum beside each; another matrix adds to the first one's gradient."""
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(width, 512), nn.Tanh(), nn.Linear(512, width))
    x, y = (random.standard_normal((16, width)).astype(np.float32) for _ in range(2))
    slope = from_numpy(random.standard_normal((512, width)).astype(np.float32))

    def loss(z: Any, y: Any) -> Any:
        return functional.mse_loss(z, y) + (model[0].weight * slope).mean()

    return nets.training_step(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y, loss)


def test_large_matrices_that_an_epilogue_changes_are_asked_for_ahead_and_what_it_reads_beside_them():
    target = targets.get("cpp")
    for width, is_asked in ((64, False), (768, True)):
        traced = two_layers(width)
        graph = run_pipeline(traced.graph)
        text = render(lower(graph, target, 2), target)
        # A weight and a momentum of 768 by 512 are 3 MiB.
        found = re.findall(r"gemm_update updates\[\] = \{(.*)\};", text)
        calls = re.findall(r"^  \}, updates, (\d)[,)]", text, re.MULTILINE)
        assert [str(row.count(", 4}")) for row in found] == calls
        assert sorted(calls) == (["2", "3"] if is_asked else [])
        got = Compiled(graph, target).run(traced.arrays, 2)
        compare(run_graph(graph, traced.arrays), got, f"width {width}")


def test_each_large_product_has_queues_of_its_own_that_are_cleared_and_a_small_one_has_none():
    """A step may be run by no more workers than have queues: it once waited for ever for what lay behind them."""
    target = targets.get("cpp")
    for width, workers in ((16, 2), (768, 2), (768, 3)):
        traced = two_layers(width)
        graph = run_pipeline(traced.graph)
        text = render(lower(graph, target, workers), target)
        begins = [int(offset) for offset in re.findall(r"step\.at<pg::gemm_queue>\((\d+)\)", text)]
        cleared = re.findall(r"memset\(arena \+ (\d+), 0, (\d+)\)", text)
        if width == 16:
            assert not begins and not cleared
            continue
        assert len(begins) == len(re.findall(r"^  \}, .*, team[,)]", text, re.MULTILINE)) > 2
        assert sorted(begins) == [begins[0] + 64 * workers * i for i in range(len(begins))]
        assert cleared == [(str(min(begins)), str(64 * workers * len(begins)))]
        assert f"pg::at_most(workers, {workers})" in text
    compiled = Compiled(graph, target)  # for two workers
    for running in (1, 2, 3, 5):
        compare(run_graph(graph, traced.arrays), compiled.run(traced.arrays, running), f"{running} workers")


def test_chunks_of_samples_are_taken_where_there_are_more_than_workers():
    target = targets.get("cpp")
    graph = run_pipeline(nets.convnet(256).graph)
    texts = [render(lower(graph, target, workers), target) for workers in (1, 2)]
    assert ["pg::take_unit(" in text for text in texts] == [False, True]


def two_narrow_layers(samples: int) -> Traced:
    manual_seed(0)
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(6, 44), nn.Tanh(), nn.Linear(44, 5))
    x, y = (random.standard_normal((samples, extent)).astype(np.float32) for extent in (6, 5))
    traced = nets.training_step(model, optim.Adam(model.parameters()), x, y, functional.mse_loss)
    return Traced(run_pipeline(traced.graph), traced.arrays)


def test_rows_that_are_no_whole_vectors_run_on_where_the_epilogue_does():
    target = targets.get("cpp")
    traced = two_narrow_layers(131)
    found = re.findall(r"pg::gemm<(.*?)>\((\d+), (\d+),", render(lower(traced.graph, target, 2), target))
    forms = {(int(m), int(n)): "runs_on" in form for form, m, n in found}
    # The forward pass adds a bias to each column; a weight's gradient only meets what lies as the weight does.
    assert forms[44, 6] and forms[5, 44] and not forms[131, 5]
    got = Compiled(traced.graph, target).run(traced.arrays, 2)
    compare(run_graph(traced.graph, traced.arrays), got, "rows that run on")


def test_products_that_are_only_stored_are_stored_by_their_micro_kernels():
    target = targets.get("cpp", instruction_set="x86-64-v4")
    random = np.random.default_rng(0)
    a, b, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((192, 160), (160, 320), (320,)))

    def stored_and_more(a, b, bias):
        return a @ b, (a @ b[:, :304] + bias[:304]).relu(), a @ b[:, :300]

    traced = trace(stored_and_more, a, b, bias)
    graph = run_pipeline(traced.graph)
    text = render(lower(graph, target, 2), target)
    # With a bias, or of rows that are no whole vectors, they go through an epilogue.
    assert re.findall(r"pg::gemm_into<pg::f32>\(p\d+, (\d+), (\d+), (\d+), (\d+),", text) == [
        ("320", "192", "320", "160")
    ]
    assert text.count("pg::gemm<") == 2
    got = Compiled(graph, targets.get("cpp")).run(traced.arrays, 2)
    compare(run_graph(graph, traced.arrays), got, "two workers, who take each other's tiles")


def test_products_whose_operands_stay_in_caches_are_of_constant_sizes():
    target = targets.get("cpp", instruction_set="x86-64-v4")
    small = {}
    for samples in (9, 131):
        traced = two_narrow_layers(samples)
        text = render(lower(traced.graph, target, 2), target)
        small[samples] = set(re.findall(r"pg::gemm_small<pg::f32, (\d+, \d+), ", text))
    assert {"44, 6", "5, 44"} <= small[9] and not {"44, 6", "5, 44"} & small[131]


@pytest.mark.parametrize(
    ("rows", "name", "form"),
    [
        (1, "x86-64-v4", "gemm_dots"), (8, "x86-64-v4", "gemm_dots"), (9, "x86-64-v4", "gemm<"),
        (16, "x86-64-v4", "gemm_turned"), (48, "x86-64-v4", "gemm_turned"), (49, "x86-64-v4", "gemm<"), (64, "x86-64-v4", "gemm<"),
        (7, "x86-64-v3", "gemm_dots"), (16, "x86-64-v3", "gemm_turned"), (1, "scalar", "gemm_small"), (16, "scalar", "gemm_small"),
    ],
)  # fmt: skip
def test_few_rows_read_a_layers_weight_where_it_lies(rows, name, form):
    """They turned all of the weight for few multiplications: for one row that took four times as long."""
    layer = nn.Linear(300, 250)
    x = np.random.default_rng(rows).standard_normal((rows, 300)).astype(np.float32)
    traced = trace(layer, x)
    traced = Traced(run_pipeline(traced.graph), traced.arrays)
    target = targets.get("cpp", instruction_set=name)
    assert f"pg::{form}" in render(lower(traced.graph, target, 2), target)
    got = Compiled(traced.graph, target_for(name)).run(traced.arrays, 2)
    compare(run_graph(traced.graph, traced.arrays), got, "few rows")


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "form"),
    [
        (128, 768, 768, "gemm_turned"), (144, 2048, 768, "gemm_turned"), (160, 2048, 768, "gemm<"),
        (128, 256, 768, "gemm<"), (64, 128, 784, "gemm<"), (16, 128, 784, "gemm_turned"), (128, 1024, 200, "gemm<"),
    ],
)  # fmt: skip
def test_results_are_turned_only_where_that_takes_less_than_turning_the_weight(rows, inputs, outputs, form):
    """Of 64 rows and sums of 128 it took 1.19 times as long."""
    traced = trace(nn.Linear(inputs, outputs), np.zeros((rows, inputs), np.float32))
    target = targets.get("cpp", instruction_set="x86-64-v4")
    assert f"pg::{form}" in render(lower(run_pipeline(traced.graph), target, 2), target)


@pytest.mark.parametrize("seed", range(6))
def test_small_products_of_any_size_give_what_their_graph_gives(seed):
    random = np.random.default_rng(seed)
    extents = [1, 2, 3, 5, 8, 16, 17, 31, 48, 64]
    samples, inputs, hidden, outputs = (int(extent) for extent in random.choice(extents, 4))
    manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    x, y = (random.standard_normal((samples, extent)).astype(np.float32) for extent in (inputs, outputs))
    traced = nets.training_step(model, optim.SGD(model.parameters(), lr=0.1), x, y, functional.mse_loss)
    graph = run_pipeline(traced.graph)
    expected = run_graph(graph, traced.arrays)
    sizes = (samples, inputs, hidden, outputs)
    compiled = Compiled(graph, target_for("native"))
    for workers in (1, 3):
        compare(expected, compiled.run(traced.arrays, workers), f"{sizes}, {workers} workers")


@pytest.mark.parametrize(
    ("samples", "outputs", "form", "asked"),
    [(600, 600, "gemm<", 0), (600, 1024, "gemm<", 1), (16, 40000, "gemm_small<", 0), (1, 600000, "gemm_dots<", 0)],
)
def test_a_large_result_of_a_product_is_asked_for_ahead_where_tiles_are_walked(samples, outputs, form, asked):
    """A result of 16 MiB was stored line by line as memory gave the lines: 5 % of its product."""
    layer = nn.Linear(20, outputs)
    x = np.random.default_rng(samples).standard_normal((samples, 20)).astype(np.float32)
    traced = trace(layer, x)
    graph, target = run_pipeline(traced.graph), targets.get("cpp", instruction_set="x86-64-v4")
    text = render(lower(graph, target, 2), target)
    assert f"pg::{form}" in text
    assert re.findall(r"gemm_update updates\[\] = \{\{p\d, (\d+), 4\}\};", text) == [str(4 * outputs)] * asked
    compare(run_graph(graph, traced.arrays), Compiled(graph, target_for("native")).run(traced.arrays, 2), form)


def test_large_results_of_a_convolution_are_asked_for_ahead():
    target = targets.get("cpp")
    for extent, is_asked in ((6, False), (26, True)):
        manual_seed(0)
        random = np.random.default_rng(0)
        layers = nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 18, 3, padding=1)
        model = nn.Sequential(*layers, nn.BatchNorm2d(18), nn.Flatten(), nn.Linear(18 * extent * extent, 3))
        x, y = random.standard_normal((48, 3, extent, extent)).astype(np.float32), random.integers(0, 3, 48)
        traced = nets.training_step(model, optim.SGD(model.parameters(), lr=0.1), x, y, functional.cross_entropy)
        graph = run_pipeline(traced.graph)
        text = render(lower(graph, target, 2), target)
        assert text.count("pg::conv2d_vectors_") > 3
        # 48 samples of 20 channels of 26 by 26 are 2.5 MiB; the gradient of the second convolution reads a mask, too.
        found = re.findall(r"conv2d_array arrays\[\] = \{(.*)\};", text)
        calls = re.findall(r"^  \}, arrays, (\d)\);$", text, re.MULTILINE)
        assert [row.count("{") for row in found] == [int(count) for count in calls]
        assert sorted(calls) == (["1", "1", "2"] if is_asked else [])
        got = Compiled(graph, target).run(traced.arrays, 2)
        compare(run_graph(graph, traced.arrays), got, f"{extent} by {extent}", rtol=1e-5)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_dense_convolutions_of_enough_channels_are_made_of_tiles(instruction_set):
    target = target_for(instruction_set)
    manual_seed(0)
    random = np.random.default_rng(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 9, 3), nn.ReLU(), nn.Conv2d(9, 8, 3, stride=2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 3))
    x, y = random.standard_normal((48, 3, 11, 11)).astype(np.float32), random.integers(0, 3, 48)
    traced = nets.training_step(model, optim.SGD(model.parameters(), lr=0.1), x, y, functional.cross_entropy)
    graph = run_pipeline(traced.graph)
    text = render(lower(graph, target, 2), target)
    for kind in ("forward", "grad_input", "grad_weight"):
        # The second convolution alone: the first has three channels, the last moves by two.
        assert len(re.findall(rf"pg::conv2d_winograd_{kind}<", text)) == int("pg::conv2d_vectors_forward<" in text)
    got = Compiled(graph, target).run(traced.arrays, 2)
    compare(run_graph(graph, traced.arrays), got, instruction_set, rtol=1e-5)


class Codes:
    """A store of templates' code in memory."""

    def __init__(self):
        self.kept = {}
        self.recall, self.keep = self.kept.get, self.kept.__setitem__


def test_a_later_process_finds_the_code_of_templates_and_compiles_none(monkeypatch):
    """Compiling them was 0.07 s of each process that compiled a step."""
    target, codes = targets.get("cpp", instruction_set="x86-64-v3"), Codes()
    plan = lower(run_pipeline(nets.mlp().graph), target, 2)
    text = render(plan, target, codes=codes)
    assert codes.kept and text == render(plan, target)
    emit._environment.cache_clear()
    monkeypatch.setattr("jinja2.Environment.compile", None)
    assert render(plan, target, codes=codes) == text
