"""What `import pequegrad` loads beside NumPy, read from sys.modules of a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OURS_LATE = (
    "compiler",
    "codegen",
    "trace",
    "passes",
    "targets",
    "build",
    "nn",
    "optim",
    "data",
    "serialization",
    "export",
    "cli",
)
THEIRS_LATE = (
    "dataclasses", "filelock", "heapq", "importlib.metadata", "jinja2", "ml_dtypes", "pathlib", "platformdirs",
    "pybind11", "safetensors", "string", "subprocess", "tempfile", "threading", "tqdm",
)  # fmt: skip


def modules_after(code: str) -> set[str]:
    """Return the names of the modules that ``code`` loads on top of NumPy."""
    report = f"import sys, json, numpy; before = set(sys.modules)\n{code}\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return modules_after("import pequegrad")


def test_import_loads_no_module_of_others_that_only_some_programs_use(imported):
    """ml_dtypes, and dataclasses with the code that they generate, once made half of the import."""
    assert not imported.intersection(THEIRS_LATE)


def test_import_leaves_the_compiler_and_the_layers_for_later(imported):
    assert "pequegrad.ops.core" in imported
    assert not [name for name in OURS_LATE if f"pequegrad.{name}" in imported]


def test_what_the_import_leaves_for_later_gives_no_method_and_no_view():
    """Tensor gets its methods, and a saved step finds the views that it names, when the package is imported."""
    modules_after(
        "import pequegrad\n"
        "from pequegrad.ops.core import REGISTRY\n"
        "early = set(REGISTRY)\n"
        "import pequegrad.ops.registry\n"
        "late = [op for name, op in REGISTRY.items() if name not in early]\n"
        "assert 'conv2d' in {op.name for op in late} and not [op for op in late if op.methods or op.view]"
    )


def test_a_step_without_layers_is_lowered_by_passes_that_know_the_ops_of_layers():
    loaded = modules_after("import pequegrad as pg\npg.compile(lambda x: (x * x).sum()).lower(pg.ones(3))")
    assert "pequegrad.nn" not in loaded


def test_all_public_names_are_in_dir_and_can_be_read():
    modules_after(
        "import pequegrad\n"
        "missing = [name for name in pequegrad.__all__ if name not in dir(pequegrad) or not hasattr(pequegrad, name)]\n"
        "assert not missing, missing"
    )


def test_only_bfloat16_loads_ml_dtypes():
    work = "import pequegrad as pg\nx = pg.{}\nprint(x.to('{}') + 1, repr(pg.bfloat16), pg.bfloat16 is x.dtype)"
    assert "ml_dtypes" not in modules_after(work.format("ones(3)", "float64"))
    assert "ml_dtypes" in modules_after(work.format("ones(3)", "bfloat16"))
