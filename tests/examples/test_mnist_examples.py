"""The examples as a user runs them: a process, its output and its exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pequegrad as pg
from pequegrad.errors import DeviceError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("mlp_mnist", "conv_mnist")


def run(example: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{example}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def accuracy(output: str) -> float:
    return float(re.search(r"test accuracy: ([\d.]+) % of 10,000 images", output)[1])


@pytest.mark.parametrize(("example", "least"), [("mlp_mnist", 92.0), ("conv_mnist", 96.0)])
@pytest.mark.parametrize("seed", ["0", "1"])
def test_default_run_reaches_its_accuracy_and_reports_the_first_90_percent(example, least, seed):
    done = run(example, "--seed", seed)
    assert done.returncode == 0, done.stderr
    assert accuracy(done.stdout) >= least
    assert re.search(r"first 90 %: \d+ steps in [\d.]+ s of training", done.stdout), done.stdout
    assert re.search(r"loss \d\.\d{4}, \d+ steps/s", done.stderr), done.stderr
    # Both were compiled, or taken from the cache; a fallback to eager would name its reason instead.
    assert re.findall(r"pequegrad: (\w+): \d+ ops → \d+ kernels", done.stderr) == ["predict", "train_step"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_eager_and_compiled_take_the_same_road(example):
    runs = [run(example, "--steps", "10", "--batch-size", "64", *mode) for mode in ([], ["--eager"])]
    assert [done.returncode for done in runs] == [0, 0], runs
    assert "compiled" in runs[0].stdout and "eager" in runs[1].stdout
    # Rounding may tip a few of the 10,000 images after ten steps, not more.
    assert accuracy(runs[0].stdout) == pytest.approx(accuracy(runs[1].stdout), abs=0.3)


def has_gpu():
    try:
        pg.zeros(1, device="cuda")
    except DeviceError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("example", EXAMPLES)
def test_cuda_without_a_gpu_is_refused_with_what_is_missing_and_the_way_on(example):
    done = run(example, "--cuda")
    assert done.returncode == 1 and re.search(r"--cuda: .*(CuPy|no GPU was found)", done.stderr), done.stderr
    assert "--cuda-sim" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not has_gpu(), reason="there is no GPU")
@pytest.mark.parametrize(("example", "least"), [("mlp_mnist", 92.0), ("conv_mnist", 96.0)])
def test_cuda_with_a_gpu_reaches_the_accuracy_of_the_cpu(example, least):
    done = run(example, "--cuda")
    assert done.returncode == 0 and "on a GPU" in done.stdout, done.stderr
    assert accuracy(done.stdout) >= least


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_simulator_takes_the_same_road_as_the_processor(example):
    options = ("--steps", "3", "--batch-size", "16")
    simulated, compiled = run(example, "--cuda-sim", *options), run(example, *options)
    assert (simulated.returncode, compiled.returncode) == (0, 0), simulated.stderr
    assert "runs in the simulator" in simulated.stdout and "CUDA in the simulator" in simulated.stdout
    assert re.search(r"pequegrad: train_step: \d+ ops → \d+ kernels", simulated.stderr), simulated.stderr
    assert accuracy(simulated.stdout) == pytest.approx(accuracy(compiled.stdout), abs=0.3)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize(("options", "steps"), [(("--steps", "2"), 2), ((), 5)], ids=["asked for", "few"])
def test_cuda_goes_on_in_the_simulator_where_both_are_asked_for(options, steps):
    done = run("mlp_mnist", "--cuda", "--cuda-sim", "--batch-size", "8", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"--cuda: .*(CuPy|no GPU was found)", done.stdout) and "simulator" in done.stdout
    assert f"in all: {steps} steps" in done.stdout
    assert ("5 steps, unless --steps says otherwise" in done.stdout) == (not options)


def test_missing_data_is_an_error_that_names_the_file(tmp_path):
    done = run("mlp_mnist", "--data", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path / 'train-images-idx3-ubyte.gz'}: no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_steps_must_be_a_positive_integer(steps):
    done = run("mlp_mnist", "--steps", steps)
    assert done.returncode == 2 and "--steps" in done.stderr
