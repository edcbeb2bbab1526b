"""The page of where the time goes: every kernel is on it, with its limit, and the longest with their code."""

import pytest

from benchmarks import where
from benchmarks.peak import Peak
from benchmarks.workloads import find
from pequegrad.profiling import KernelTime

PEAK = Peak(flops=1e11, bytes=1e10)


def test_the_limit_of_a_kernel_is_the_slower_of_its_operations_and_its_bytes():
    busy = KernelTime(0, "contract", "", 9.0, 9.0, multiply_adds=500_000, bytes=100)
    moving = KernelTime(0, "map", "", 9.0, 9.0, multiply_adds=0, bytes=20_000)
    assert where.limit_of(busy, PEAK) == pytest.approx(10.0)
    assert where.limit_of(moving, PEAK) == pytest.approx(2.0)


def test_the_page_has_each_kernel_and_the_code_of_the_longest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(where, "measure_peak", lambda threads, memory: PEAK)
    out = tmp_path / "docs" / "page.md"
    assert where.main(["--only", "tiny", "--threads", "1", "--out", str(out)]) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    step, batch = where.compiled_step(find("tiny"))
    kernels = step.lower(*batch).plan.kernels
    rows = [line for line in text.splitlines() if line.startswith("| ") and "phase" not in line]
    assert len(rows) == len(kernels) + 2  # barriers, and the call
    assert text.count("```cpp") == where.LONGEST
    assert text.count("static void ") == where.LONGEST


def test_a_kernel_whose_code_is_not_there_has_none():
    kernel = KernelTime(0, "map", "net.py:1: add -> float32[3]", 1.0, 1.0, 0, 12)
    code = "// net.py:1\n// add -> float32[3]\nstatic void map0() {\n}"
    assert where.code_of(kernel, f"#include\n\n{code}\n\nend") == code
    assert where.code_of(kernel, "#include\n\nend") is None
