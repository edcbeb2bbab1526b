"""The built wheel: what it holds, and that it compiles a step in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STEP = """
import sys
import pequegrad as pg
from pequegrad import nn, optim
import pequegrad.nn.functional as F

assert not pg.__file__.startswith(sys.argv[1]), pg.__file__
pg.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = optim.SGD(model.parameters(), lr=0.5)

@pg.compile(strict=True)
def train_step(x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

x, y = pg.rand(6, 4), pg.Tensor([0, 1, 2, 0, 1, 2])
losses = [train_step(x, y).item() for _ in range(20)]
assert losses[-1] < losses[0], losses
print("trained", losses[0], losses[-1])
"""


def run(*command: str | Path, **settings: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=280, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout by the hatchling of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT)
    (built,) = folder.glob("pequegrad-*.whl")
    return built


def test_wheel_holds_all_sources_templates_and_runtime_files(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {
        f"pequegrad/{path.relative_to(ROOT / 'pequegrad').as_posix()}"
        for pattern in ("*.py", "*.j2")
        for path in (ROOT / "pequegrad").rglob(pattern)
    }
    runtime = {
        f"pequegrad/_runtime/{path.relative_to(ROOT / 'runtime').as_posix()}"
        for path in (ROOT / "runtime").rglob("*")
        if path.suffix in (".h", ".cuh", ".cpp", ".cu")
    }
    assert any(name.endswith(".j2") for name in package) and any(name.endswith(".h") for name in runtime)
    assert sorted((package | runtime) - held) == []


def test_wheel_holds_nothing_but_the_package_its_metadata_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    strange = [name for name in names if not name.startswith(("pequegrad/", "pequegrad-"))]
    built = [name for name in names if name.endswith((".so", ".o", ".pyc", ".gz"))]
    assert strange == [] and built == []
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_wheel_compiles_a_step_in_an_empty_environment(wheel, tmp_path):
    """With only what the metadata asks for: no torch, no checkout on the path, a cache of its own."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)

    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PEQUEGRAD_", "PYTHON"))}
    environment = clean | {"PEQUEGRAD_CACHE_DIR": str(tmp_path / "cache")}
    done = run(python, "-c", STEP, ROOT, cwd=tmp_path, env=environment)
    assert done.stdout.splitlines()[-1].startswith("trained")

    command = tmp_path / "venv" / "bin" / "pequegrad"
    assert "cache" in run(command, "--help", env=environment).stdout
