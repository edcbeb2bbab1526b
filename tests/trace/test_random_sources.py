"""Random generators that are not there when a trace begins: a process that draws nothing loads none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import numpy
import pequegrad as pg
from pequegrad.compiler import CompiledFunction, Options
from pequegrad.trace.step import interpret

def step(x):
    {line}
    return x * {factor}

{before}
compiled = CompiledFunction(step, Options(strict=True), interpret)
try:
    print(compiled(pg.ones(2)).tolist())
except pg.errors.TraceError as error:
    print(error)
print([name for name in ("random", "numpy.random") if name in sys.modules])
"""


def run(line="pass", factor="2", before=""):
    """Return the two lines that a fresh process prints: what the step gave or raised, and the modules that are loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(line=line, factor=factor, before=before)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_trace_loads_no_random_generators():
    assert run() == ["[2.0, 2.0]", "[]"]


@pytest.mark.parametrize("module", ["random", "numpy.random"])
def test_a_generator_that_the_step_itself_imports_draws_nothing_by_that(module):
    result, loaded = run(f"import {module}")
    assert result == "[2.0, 2.0]"
    assert repr(module) in loaded


@pytest.mark.parametrize("line", ["import random; y = random.random()", "import numpy.random; y = numpy.random.rand()"])
def test_a_draw_on_the_line_that_imports_its_generator_is_refused(line):
    """There is no state before the line that the one after it could be compared with."""
    result, _ = run(line, factor="y")
    assert "<string>:" in result
    assert "draws random numbers" in result


def test_a_generator_of_the_systems_bytes_is_refused():
    result, _ = run("y = source.random()", factor="y", before="import random; source = random.SystemRandom()")
    assert "the system's random bytes" in result
