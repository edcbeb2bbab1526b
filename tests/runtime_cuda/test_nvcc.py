"""nvcc as a checker: the device headers compile for real architectures, and nothing spills at real sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime_cuda.native import compile_with_nvcc


@pytest.mark.parametrize("arch", ["80", "90"])
def test_no_body_spills_at_full_tiles(tmp_path: Path, arch: str) -> None:
    uses = compile_with_nvcc("full_tiles", arch, tmp_path)
    assert len(uses) == 25, [use.name for use in uses]
    assert [use for use in uses if use.spilled_bytes] == []
