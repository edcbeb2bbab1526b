"""What the headers of a step may include."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.runtime.native import INCLUDE, compile_cpp


def test_a_step_reaches_no_standard_header(tmp_path: Path) -> None:
    source, listing = tmp_path / "step.cpp", tmp_path / "step.d"
    source.write_text('#include "pequegrad/step.h"\n')
    compile_cpp(["-std=c++17", f"-I{INCLUDE}", "-M", str(source), "-o", str(listing)])
    files = listing.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    foreign = [name for name in files[1:] if INCLUDE not in Path(name).parents and "stdc-predef" not in name]
    assert foreign == []


def test_every_header_compiles_alone(tmp_path: Path) -> None:
    headers = sorted((INCLUDE / "pequegrad").glob("*.h"))
    assert headers
    for header in headers:
        source = tmp_path / f"{header.stem}.cpp"
        source.write_text(f'#include "pequegrad/{header.name}"\n')
        compile_cpp(
            ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{INCLUDE}", "-fsyntax-only", str(source)]
        )


def test_the_widths_of_the_documentation_are_the_only_ones(tmp_path: Path) -> None:
    source = tmp_path / "step.cpp"
    source.write_text('#include "pequegrad/step.h"\n')
    compile_cpp(["-std=c++17", f"-I{INCLUDE}", "-DPG_LANES=4", "-fsyntax-only", str(source)])
    refused = subprocess.run(
        ["g++", "-std=c++17", f"-I{INCLUDE}", "-DPG_LANES=3", "-fsyntax-only", str(source)],
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0 and "PG_LANES must be" in refused.stderr
