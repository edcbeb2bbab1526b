"""Files: none too long, none that knows a benchmark."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".py", ".j2", ".h", ".cuh", ".cpp", ".cu")
LONGEST = 800


def sources(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()
    )


def words_of_python(text: str) -> set[str]:
    """Return the parts of identifiers and the whole string literals of a Python source; not its comments."""
    words: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            words.update(token.string.lower().split("_"))
        elif token.type == tokenize.STRING:
            words.add(token.string.strip("\"'").lower())
    return words


# "conv" and "tiny" are also plain words of the trade (an op, a small float); "convnet" stands for the first.
WORKLOAD_NAMES = {workload.name for workload in WORKLOADS} - {"conv", "tiny", "wide"} | {"convnet"}


@pytest.mark.parametrize(
    "path",
    sources("pequegrad", "runtime", "tests", "benchmarks", "examples"),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_file_has_one_responsibility_by_its_length(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines, more than {LONGEST}. Split it by job."


@pytest.mark.parametrize("path", sources("pequegrad", "runtime"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_knows_a_benchmark_workload(path):
    text = path.read_text(encoding="utf-8")
    words = words_of_python(text) if path.suffix == ".py" else set(re.findall(r"[a-z0-9]+", text.lower()))
    assert not words & WORKLOAD_NAMES


def test_the_reader_of_words_sees_identifiers_and_strings():
    words = words_of_python("def fuse_mlp(x):  # tiny\n    return 'gpt'\n")
    assert {"fuse", "mlp", "gpt"} <= words and "tiny" not in words
