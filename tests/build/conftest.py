"""Fixtures of the build tests: cache folders with what steps share already in them, a compiler that can be
watched.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from pequegrad.build import cache, folder, keys

COMPILER = shutil.which("g++")


@pytest.fixture(scope="session", autouse=True)
def binding(cache_dir: Path) -> Path:
    """The session's cache folder with the binding compiled: a fresh folder copies it instead of compiling for
    4 s.
    """
    if COMPILER is None:
        pytest.skip("there is no g++ on this machine")
    if not Path(keys.runtime_folder(), "include", "pequegrad", "pool.h").exists():
        pytest.skip("the runtime has no pool.h")
    cache.self_test()
    return cache_dir


@pytest.fixture
def root(binding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with the binding and no step, and no step in memory."""
    fresh = tmp_path / "cache"
    fresh.mkdir(mode=0o700)
    shutil.copytree(binding / folder.BINDINGS, fresh / folder.BINDINGS)
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", str(fresh))
    cache.forget_loaded()
    yield fresh
    cache.forget_loaded()


@dataclass
class WatchedCompiler:
    """A script in front of g++ that notes each call, can be told to stop at one, and takes what
    steps share ready-made.
    """

    script: Path

    @property
    def calls(self) -> list[str]:
        """The arguments of each compilation of a step so far."""
        log = self.script.with_suffix(".calls")
        return log.read_text().splitlines() if log.exists() else []

    @property
    def pause(self) -> Path:
        """While this file exists, compiling a step waits."""
        return self.script.with_suffix(".pause")

    @property
    def waiting(self) -> Path:
        """This file appears when a compilation waits; it holds the process's id."""
        return self.script.with_suffix(".waiting")

    def set_version(self, version: str) -> None:
        """Change what --version prints."""
        self.script.with_suffix(".version").write_text(version)
        os.utime(self.script)


@pytest.fixture
def compiler(binding: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WatchedCompiler:
    """A watched compiler, set as CXX."""
    ready, parts = (next((binding / folder.BINDINGS).glob(f"*/*/{name}.o")) for name in ("binding", "parts"))
    script = tmp_path / "watched-g++"
    script.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        here="{script}"
        case "$*" in
          *--version*) cat "$here.version" 2>/dev/null || echo "watched g++ 1.0"; exit 0 ;;
          *binding.cpp*) for last; do :; done; exec cp "{ready}" "$last" ;;
          *parts.cpp*) for last; do :; done; exec cp "{parts}" "$last" ;;
          *" -c "*)
            echo "$*" >> "$here.calls"
            if [ -e "$here.pause" ]; then echo $$ > "$here.waiting"; fi
            while [ -e "$here.pause" ]; do sleep 0.02; done ;;
        esac
        exec {COMPILER} "$@"
        """)
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return WatchedCompiler(script)
