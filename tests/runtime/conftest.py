"""Build the C++ probes of this folder, once per vector width, and hand them over as ctypes libraries."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

import pytest

from tests.runtime.native import FLAGS, HERE, INCLUDE, WIDTHS, compile_cpp, cpu_features


@pytest.fixture(params=sorted(WIDTHS, reverse=True), ids=lambda lanes: f"lanes{lanes}", scope="session")
def lanes(request: pytest.FixtureRequest) -> int:
    march, features = WIDTHS[request.param]
    if request.param > 1 and platform.machine() not in ("x86_64", "AMD64"):
        if request.param != 4:
            pytest.skip(f"{march} is for x86-64")
    elif not features <= cpu_features():
        pytest.skip(f"this CPU lacks {sorted(features - cpu_features())}")
    return int(request.param)


@pytest.fixture(scope="session")
def build(lanes: int, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """Return a function that compiles `<name>.cpp` of this folder for `lanes`, with more flags if given, and loads it."""
    folder = tmp_path_factory.mktemp(f"lanes{lanes}")
    march = WIDTHS[lanes][0] if platform.machine() in ("x86_64", "AMD64") else "-O2"
    loaded: dict[tuple[str, ...], ctypes.CDLL] = {}

    def load(name: str, *flags: str) -> ctypes.CDLL:
        if (name, *flags) not in loaded:
            library = folder / f"{name}{len(loaded)}.so"
            compile_cpp(
                [
                    *FLAGS,
                    march,
                    *flags,
                    f"-DPG_LANES={lanes}",
                    f"-I{INCLUDE}",
                    "-shared",
                    str(HERE / f"{name}.cpp"),
                    "-o",
                    str(library),
                ]
            )
            loaded[(name, *flags)] = ctypes.CDLL(str(library))
        return loaded[(name, *flags)]

    return load
