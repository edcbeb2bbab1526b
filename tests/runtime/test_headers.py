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


def test_a_step_compiles_of_the_shared_parts_what_knows_its_epilogue_alone(tmp_path: Path) -> None:
    """Convolutions' and poolings' own code is in binding/parts.cpp: compiling it with each step took a third of the time."""
    source, compiled = tmp_path / "step.cpp", tmp_path / "step.o"
    sums = "".join(
        f"  pg::{form}_{kind}(s, x, w, scratch, worker, workers, [=](long, long channel, long at, pg::vec<float> v, long count) {{\n"
        f"    pg::store(y + channel * 8 + at, v, count);\n  }});\n"
        f"  scratch += pg::{form}_{kind}_scratch<float>(s);\n"
        for form in ("conv2d_vectors", "conv2d_winograd")
        for kind in ("forward", "grad_input")
    )
    weights = "".join(
        f"  pg::{form}_grad_weight<float>(s, x, w, y, scratch, worker, workers);\n"
        for form in ("conv2d", "conv2d_vectors", "conv2d_winograd")
    )
    source.write_text(
        '#include "pequegrad/step.h"\n#include "pequegrad/conv_winograd.h"\n'
        "void step(const pg::conv2d_shape& s, const pg::pool2d_shape& p, const float* x, const float* w, float* y, pg::u8* index,\n"
        f"    float* scratch, int worker, int workers) {{\n{sums}{weights}"
        "  pg::max_pool2d(p, x, y, index, worker, workers);\n"
        "  pg::max_pool2d_grad(p, x, index, y, worker, workers);\n"
        "  pg::avg_pool2d(p, true, x, y, worker, workers);\n"
        "  pg::avg_pool2d_grad(p, true, x, y, worker, workers);\n}\n"
    )
    compile_cpp(
        ["-std=c++17", "-O2", "-DPG_PARTS_APART", "-Wno-psabi", f"-I{INCLUDE}", "-c", str(source), "-o", str(compiled)]
    )
    listing = subprocess.run(["nm", "-C", "--defined-only", str(compiled)], capture_output=True, text=True, check=True)
    names = [line.split(" ", 2)[2] for line in listing.stdout.splitlines()]
    assert any("lambda" in name for name in names)
    assert [name for name in names if "<float" in name and "lambda" not in name] == []
