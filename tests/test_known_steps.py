"""A step whose traced graph the cache knows: found without planning, and never when it could be another one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import making
from pequegrad.build import cache, folder
from pequegrad.locations import Location
from pequegrad.native import StepFacts
from pequegrad.ops.core import Expression, Sample, bind
from pequegrad.ops.elementwise import Elementwise
from pequegrad.ops.movement import Full
from pequegrad.trace.graph import GraphBuilder, identify

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import json, sys
import numpy as np
import pequegrad as pg
from pequegrad import nn, optim

pg.manual_seed(3)
table = pg.Tensor(np.arange(8, dtype=np.float32))
model = nn.Linear(4, 2)
optimizer = optim.Adam(model.parameters(), lr=0.1)

@pg.compile(strict=True)
def step(x, rows):
    optimizer.zero_grad()
    loss = (model(x) ** 2).mean() {scale}
    loss.backward()
    optimizer.step()
    return loss + table[rows].sum()

x = pg.Tensor(np.ones((3, 4), np.float32))
losses = [step(x, pg.Tensor(np.array([1, 7]))).item() for _ in range(3)]
message = ""
try:
    step(x, pg.Tensor(np.array([1, 8])))
except IndexError as error:
    message = str(error)
late = [name for name in sys.modules if name.startswith(("pequegrad.codegen.", "pequegrad.passes", "pequegrad.making",
        "pequegrad.export", "pequegrad.build.cache", "pequegrad.build.toolchain", "jinja2", "dataclasses", "heapq", "pathlib",
        "platformdirs", "shutil", "subprocess"))]
print(json.dumps(dict(losses=losses, message=message, late=late)))
"""


@pytest.fixture
def own_cache(tmp_path):
    """An empty cache but for the binding, which takes seconds: that comes from the cache that all tests share."""
    with pg.config(quiet=True):
        pg.compile(lambda x: x + 1, strict=True)(pg.ones(2))
    own = tmp_path / "cache"
    own.mkdir(mode=0o700)
    shutil.copytree(Path(os.environ["PEQUEGRAD_CACHE_DIR"]) / folder.BINDINGS, own / folder.BINDINGS)
    return own


@pytest.fixture
def run(tmp_path, own_cache):
    """``run(scale)``: the program in a process of its own; the cache of this test stays from one to the next."""
    program = tmp_path / "program.py"

    def run_program(scale=""):
        program.write_text(PROGRAM.replace("{scale}", scale))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PEQUEGRAD_CACHE_DIR": str(own_cache)}
        done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        how = "compiled" if " compiled" in done.stderr else "cached"
        return {**json.loads(done.stdout), "how": how}

    return run_program


def test_a_later_process_finds_its_step_by_the_graph_and_loads_nothing_that_makes_steps(run):
    """Passes, plan and the import of what makes them once were 0.14 s of a warm start."""
    first, second = run(), run()
    assert first["how"] == "compiled" and first["late"]
    assert second["how"] == "cached" and not second["late"]
    assert second["losses"] == first["losses"]
    assert "program.py:18" in second["message"] and second["message"] == first["message"]


def test_another_program_is_planned_anew(run):
    first, other = run(), run("* 3.0")
    assert other["how"] == "compiled"
    assert np.allclose(other["losses"][0] - 8, 3 * (first["losses"][0] - 8), atol=1e-4)


@pytest.fixture
def cached(own_cache, monkeypatch):
    """A cache of this test's own, with one step in it; gives the file about its graph, and how to get the step again."""
    made = []
    real = making.plan_of
    monkeypatch.setattr(making, "plan_of", lambda *args: made.append(1) or real(*args))

    def step_again():
        cache.forget_loaded()
        made.clear()
        result = pg.compile(lambda x: (x * 3).exp().sum(), strict=True)(pg.ones(4)).item()
        assert result == pytest.approx(4 * np.exp(3), rel=1e-6)
        return len(made)

    with pg.config(cache_dir=str(own_cache), quiet=True):
        assert step_again() == 1
        (known,) = (own_cache / folder.GRAPHS).glob("*/*.json")
        assert step_again() == 0
        yield known, step_again


@pytest.mark.parametrize("damage", ["cut", "altered facts", "another key", "another step"])
def test_a_file_about_a_graph_is_believed_only_while_it_is_whole(cached, damage):
    known, step_again = cached
    record = json.loads(known.read_text())
    if damage == "cut":
        known.write_text(known.read_text()[:-40])
    else:
        key = {"altered facts": "facts", "another key": "key", "another step": "step"}[damage]
        record[key] = {} if damage == "another key" else record[key][:-1] + chr(ord(record[key][-1]) ^ 1)
        known.write_text(json.dumps(record))
    assert step_again() == 1
    assert step_again() == 0  # mended


def test_a_graph_whose_step_was_evicted_is_planned_and_built_again(cached):
    known, step_again = cached
    for step in (known.parents[2] / folder.STEPS).glob("*/*"):
        folder.remove_tree(step)
    assert step_again() == 1
    assert step_again() == 0


def test_a_step_that_was_altered_is_not_loaded_by_its_graph(cached):
    known, step_again = cached
    (module,) = (known.parents[2] / folder.STEPS).glob("*/*/pg_step*")
    content = module.read_bytes() + b"\0"
    module.unlink()  # what is loaded stays as it is
    module.write_bytes(content)
    assert step_again() == 1


def test_clearing_the_cache_forgets_graphs(cached):
    known, _ = cached
    cache.clear()
    assert not known.exists()


def test_what_measurements_decide_is_not_found_by_the_graph(cached):
    known, _ = cached
    before = set(known.parents[1].glob("*/*"))
    pg.compile(lambda x: (x * 5).exp().sum(), strict=True, mode="autotune")(pg.ones(4))
    assert set(known.parents[1].glob("*/*")) == before


def graph_of(value, location=None, op=None):
    builder = GraphBuilder()
    (made,) = builder.apply(Full, (), {"shape": (2,), "value": value, "dtype": pg.float32}, location)
    if op is not None:
        builder.apply(op, (made,), {})
    return builder.build()


def test_the_identity_of_a_graph_tells_types_of_numbers_and_lines_apart():
    graphs = [graph_of(1), graph_of(1.0), graph_of(-0.0), graph_of(0.0), graph_of(1.0, Location("a.py", 1, "f"))]
    graphs += [graph_of(1.0, Location("a.py", 2, "f")), graph_of(1.0, Location("b/a.py", 1, "f"))]
    assert len({identify(graph) for graph in graphs}) == len(graphs)
    assert identify(graph_of(1.0)) == identify(graph_of(1.0))


class Thrice(Elementwise):
    """3 x."""

    name = "thrice_of_known_steps"
    lowering = Expression("{0} * {T}(3)")

    @staticmethod
    def call(x):
        """Return 3 x."""
        return bind(Thrice, x)

    @staticmethod
    def numpy(xp, x):
        return x * x.dtype.type(3)

    @staticmethod
    def samples():
        return [Sample((np.ones(2, np.float32),))]


def test_a_graph_with_an_op_of_the_users_has_no_identity():
    """Its C expression may change, and the graph with it not."""
    assert identify(graph_of(1.0, op=Thrice)) is None


def test_facts_come_back_as_they_were():
    facts = StepFacts("s", 2, 64, ((8, True, "float32"),), (("add mul", Location("a.py", 3, "f")), ("sum", None)), "m")
    assert StepFacts.from_text(facts.to_text()) == facts
