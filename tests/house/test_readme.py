"""The README is true: its paths exist, its settings are the settings, its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.ops.core import Op, TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.trace.graph import GraphBuilder, Output

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES: list[str] = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
MAP = README.split("## Map of the code")[1].split("\n## ")[0]


def example_with(word: str) -> str:
    """Return the first example of the README that has a word."""
    return next(example for example in EXAMPLES if word in example)


def mapped_paths() -> list[str]:
    """Return the paths of the map's first column; a name without a folder lies beside the one before it."""
    paths: list[str] = []
    for row in re.findall(r"^\| (`.*?) \|", MAP, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        folder = "pequegrad/" if names[0].startswith("pequegrad/") else ""
        paths += [name if name.startswith(folder) else folder + name for name in names]
    return paths


@pytest.mark.parametrize("path", mapped_paths())
def test_each_path_on_the_map_exists(path):
    assert (ROOT / path).exists()


def test_each_room_is_on_the_map():
    def rooms(folder: Path) -> set[str]:
        return {
            path.relative_to(ROOT).as_posix()
            for path in folder.iterdir()
            if path.suffix == ".py" or any(path.glob("*.py"))
        }

    missing = rooms(ROOT / "pequegrad") - {path.rstrip("/") for path in mapped_paths()}
    assert missing <= {"pequegrad/__init__.py", "pequegrad/__main__.py"}


def test_each_setting_is_in_the_table():
    settings = [vars(type(pg.config))[name] for name in pg.config.fields()]
    missing = [setting.variable for setting in settings if f"`{setting.variable}`" not in README]
    assert missing == []


def test_the_first_example_has_about_twenty_lines_and_trains():
    code = example_with("zero_grad")
    assert len(code.splitlines()) <= 22
    # One epoch is more than a test needs: the same text over the first thousand images.
    shorter = code.replace("*mnist()", "*(part[:1024] for part in mnist())")
    assert shorter != code
    names: dict[str, object] = {}
    exec(compile(shorter, "README.md", "exec"), names)
    assert names["step"] == 7 and np.isfinite(names["loss"].item()) and names["loss"].item() < 2.3


def test_the_example_of_saved_steps_goes_on_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[0].replace("*mnist()", "*(part[:256] for part in mnist())")
    names: dict[str, object] = {}
    exec(compile(code + example_with("load_step"), "README.md", "exec"), names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["later", "step"]
    batch = names["images"], names["labels"]
    # The example has put the loaded step's parameters back into the model: both go on from the same place.
    again = names["step"](*batch).item()
    assert again == names["train_step"](*batch).item() and again < names["loss"].item()


def test_the_op_example_is_a_whole_op():
    names: dict[str, object] = {}
    try:
        exec(compile(example_with("Elementwise"), "README.md", "exec"), names)
        softsign = names["Softsign"]
        x = pg.Tensor(np.linspace(-2, 2, 9), requires_grad=True)
        softsign.call(x).sum().backward()
        assert np.allclose(x.grad.numpy(), 1 / (1 + np.abs(x.detach().numpy())) ** 2)

        compiled = pg.compile(softsign.call, strict=True)
        with pg.no_grad():
            assert np.allclose(compiled(x).numpy(), softsign.call(x).numpy())
    finally:
        REGISTRY.pop("softsign", None)


def test_the_pass_example_is_a_whole_pass(monkeypatch):
    names: dict[str, object] = {}
    exec(compile(example_with("Rewriter"), "README.md", "exec"), names)
    monkeypatch.setattr(Op, "idempotent", False, raising=False)
    monkeypatch.setattr(REGISTRY["floor"], "idempotent", True, raising=False)

    builder = GraphBuilder()
    value = builder.add_input(TensorSpec((2,), pg.float32), "argument", "x")
    for name in ("neg", "neg", "floor", "floor"):
        (value,) = builder.apply(REGISTRY[name], (value,), {})
    builder.outputs.append(Output(value, "result", "y"))

    after = names["drop_repeated_applications"](builder.build()).verify()
    assert [node.op.name for node in after.nodes] == ["neg", "neg", "floor"]
    assert after.outputs[0].value is after.nodes[-1].outputs[0]


# The map has its test above, and names in its prose a folder that only an installed package has.
PATH_IN_TEXT = re.compile(r"`((?:pequegrad|runtime|tests)/[\w/.]+)`")


@pytest.mark.parametrize("path", sorted(set(PATH_IN_TEXT.findall(README.replace(MAP, "")))))
def test_each_path_in_the_text_exists(path):
    assert (ROOT / path).exists()
