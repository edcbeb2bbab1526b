"""Compilers with which a sanitizer works, and programs built with it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# clang's ThreadSanitizer starts a thread several times faster than g++'s, which matters where each is one of a kernel's.
THREAD = (("-fsanitize=thread",), ("clang++", "g++"))
ADDRESS = (("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("g++", "clang++"))


@dataclass(frozen=True)
class Sanitizer:
    """A compiler, and the flags of a sanitizer that works with it."""

    compiler: str
    flags: tuple[str, ...]

    def build(self, program: Path, arguments: Sequence[str]) -> Path:
        """Compile and link a program."""
        command = [self.compiler, *self.flags, *arguments, "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        return program


def find_sanitizer(kind: tuple[tuple[str, ...], tuple[str, ...]], folder: Path) -> Sanitizer:
    """Return the first compiler whose empty program runs with the sanitizer; skip the test where there is none."""
    flags, compilers = kind
    empty, program = folder / "empty.cpp", folder / "empty"
    empty.write_text("int main() { return 0; }\n")
    for compiler in filter(shutil.which, compilers):
        try:
            subprocess.run([compiler, *flags, str(empty), "-o", str(program)], check=True, capture_output=True)
            subprocess.run([str(program)], check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            continue
        return Sanitizer(compiler, flags)
    pytest.skip(f"{flags[0]} does not work here with any of {', '.join(compilers)}")
