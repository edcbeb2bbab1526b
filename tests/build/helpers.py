"""What the build tests share: step sources, and Python processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from pequegrad import targets
from pequegrad.build import BuiltStep, cache

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = Path(__file__).parent / "steps"


def step_source(name: str, **defines: int) -> str:
    """The text of a step of tests/build/steps, after some #define lines."""
    lines = [f"#define {define} {value}\n" for define, value in defines.items()]
    return "".join(lines) + (STEPS / f"{name}.cpp").read_text(encoding="utf-8")


def build(source: str, *, name: str = "step", target: targets.Target | None = None) -> BuiltStep:
    """Get a step whose plan is its source."""
    target = target or targets.get("cpp")
    return cache.get_or_build(cache.make_key(source, target, name=name), lambda: source, target)


def run_affine(built: BuiltStep, scale: int, workers: int = 1) -> None:
    """Run a step of affine.cpp and check what it wrote."""
    a, out = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    built.module.configure([(1024, False), (1024, True)], 1024)
    built.module.run([a, out], workers)
    np.testing.assert_array_equal(out, a * scale + 1)


def start_python(code: str) -> subprocess.Popen[str]:
    """Start a Python process that sees the package, these helpers and this environment."""
    preamble = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str) -> str:
    """Run Python code in a process of its own to its end and return what it printed."""
    process = start_python(code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
    return out
