"""Build the CUDA probes of this folder against the simulator, once, and hand them over as libraries."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.runtime_cuda.native import INCLUDE, compile_probe


class Probe:
    """One probe in the simulator. A call must return 0; what the simulator says is the failure's text."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.pg_sim_last_report.restype = ctypes.c_char_p
        library.pg_sim_configure.argtypes = [ctypes.c_ulong, ctypes.c_int, ctypes.c_long]

    def call(self, name: str, *arguments: Any, seed: int = 0, counts: bool = False) -> None:
        """Call a C function; arrays pass as pointer, sequences of int as array of long, integers as long."""
        self.library.pg_sim_configure(seed, counts, 0)
        kept = [_c(argument) for argument in arguments]
        status = getattr(self.library, name)(*kept)
        assert status == 0, f"{name} returned {status}: {self.library.pg_sim_last_report().decode()}"

    def statistics(self) -> dict[str, int]:
        """Return the simulator's counts since the last call of this, by their names in the C enum."""
        names = re.findall(r"^  PG_SIM_(\w+),", (INCLUDE / "pequegrad/cuda/simulator_machine.h").read_text(), re.M)
        values = (ctypes.c_long * len(names))()
        self.library.pg_sim_statistics(values, len(names), 1)
        return dict(zip(names, values, strict=True))


def _c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, Sequence):
        return (ctypes.c_long * len(argument))(*argument)
    return ctypes.c_long(argument)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Probe]:
    """Return a function that compiles `<name>.cu` of this folder and loads it."""
    folder = tmp_path_factory.mktemp("cuda_probes")
    loaded: dict[str, Probe] = {}

    def load(name: str) -> Probe:
        if name not in loaded:
            compile_probe(name, folder / f"{name}.so")
            loaded[name] = Probe(ctypes.CDLL(str(folder / f"{name}.so")))
        return loaded[name]

    return load
