"""What the processor could do at best, measured: float32 operations a second from registers alone.

Invariant: every percentage in a report is of a peak measured in the same run, with as many threads.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from pathlib import Path

from pequegrad import targets
from pequegrad.build.toolchain import locate_command

SOURCE = Path(__file__).parent / "peak.cpp"


def measure_peak(threads: int) -> float:
    """Return float32 operations a second of ``threads`` threads together; NaN where there is no compiler."""
    lanes = targets.get("cpp").lanes
    with tempfile.TemporaryDirectory(prefix="benchmark-peak-") as folder:
        program = str(Path(folder) / "peak")
        flags = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=fast", f"-DLANES={lanes}", "-pthread"]
        try:
            command = [*locate_command(), *flags, str(SOURCE), "-o", program]
            subprocess.run(command, check=True, capture_output=True)
            return float(subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout)
        except (OSError, subprocess.CalledProcessError):
            return math.nan
