"""What the processor could do at best, measured: float32 operations a second from registers, bytes a second of copies.

Invariant: every percentage in a report is of a peak measured in the same run, with as many threads.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pequegrad import targets
from pequegrad.build.programs import locate_command
from pequegrad.errors import ToolchainError

SOURCE = Path(__file__).parent / "peak.cpp"


@dataclass(frozen=True)
class Peak:
    """Operations a second, and bytes read and written a second within some memory; NaN where there is no compiler."""

    flops: float
    bytes: float

    def seconds(self, operations: float, moved: float) -> float:
        """Return the least seconds for so many operations and bytes, whichever takes longer."""
        return max(operations / self.flops, moved / self.bytes)


@contextlib.contextmanager
def peak_meter(threads: int, memory: int = 1 << 20) -> Iterator[Callable[[], Peak]]:
    """Give a function that measures what ``threads`` threads reach together, in 0.2 s; copies are made within ``memory``
    bytes, as caches decide."""
    lanes = targets.get("cpp").lanes
    with tempfile.TemporaryDirectory(prefix="benchmark-peak-") as folder:
        program = str(Path(folder) / "peak")
        flags = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", f"-DLANES={lanes}", "-pthread"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError, ToolchainError):
            command = [*locate_command(), *flags, str(SOURCE), "-o", program]
            subprocess.run(command, check=True, capture_output=True)

        def measure() -> Peak:
            try:
                done = subprocess.run([program, str(threads), str(memory)], check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError):
                return Peak(math.nan, math.nan)
            return Peak(*map(float, done.stdout.split()))

        yield measure


def measure_peak(threads: int, memory: int = 1 << 20) -> Peak:
    """Return what `peak_meter` measures, once."""
    with peak_meter(threads, memory) as measure:
        return measure()
