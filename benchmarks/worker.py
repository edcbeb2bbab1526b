"""One framework in a process of its own, commanded through pipes: ``python -m benchmarks.worker``.

Invariant: between commands the process does nothing, so that rounds of several frameworks can take turns.
Replies are single JSON lines on the original standard output; whatever a framework prints goes to standard
error.

Commands, each a JSON list: ["prepare", peer, workload, threads, cache folder] · ["build_once"] ·
["start", variant] · ["losses", n] · ["calibrate", seconds] · ["round", steps] · ["memory"] · ["quit"].
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .gpu_peers import GPU_PEERS
from .peers import CPU_PEERS
from .workloads import find

# Batches that a timed loop goes through in turn: more than one, so that nobody profits from a constant.
BATCHES = 8


class Worker:
    """Answers commands about one peer and one workload."""

    def __init__(self) -> None:
        self.peer: Any = None
        self.step: Callable[[int], Any] | None = None
        self.count = 0

    def prepare(self, peer: str, workload: str, threads: int, cache_dir: str) -> dict[str, Any]:
        """Import the framework; reply with the seconds that took and the variants to try."""
        if hasattr(os, "sched_setaffinity"):  # JAX takes as many threads as it sees cores, whatever it is told
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        start = time.perf_counter()
        self.peer = {**CPU_PEERS, **GPU_PEERS}[peer](threads, cache_dir)
        seconds = time.perf_counter() - start
        self.workload = find(workload)
        self.batches = self.workload.batches(BATCHES)
        return {"import_seconds": seconds, "variants": self.peer.variants(self.workload)}

    def build_once(self) -> dict[str, Any]:
        """Let the framework build what all its programs share; for a process that does nothing else."""
        self.peer.build_once()
        return {}

    def start(self, variant: str) -> dict[str, Any]:
        """Build the step from the initial weights; reply with the seconds until its first loss was there."""
        self.step = None  # with all that it holds: memory is measured
        self.step = self.peer.make_step(self.workload, self.batches, variant)
        self.count = 0
        start = time.perf_counter()
        loss = self._run(1)
        return {"first_step_seconds": time.perf_counter() - start, "loss": loss}

    def losses(self, count: int) -> dict[str, Any]:
        """Run ``count`` more steps, reading each loss."""
        return {"losses": [self._run(1) for _ in range(count)]}

    def calibrate(self, seconds: float) -> dict[str, Any]:
        """Warm up, and reply with how many steps take about ``seconds``."""
        steps, elapsed = 1, 0.0
        while elapsed < seconds:
            start = time.perf_counter()
            self._run(steps)
            elapsed = time.perf_counter() - start
            if elapsed < seconds:
                steps = max(steps + 1, min(4 * steps, int(1.2 * steps * seconds / max(elapsed, 1e-9))))
        return {"steps": steps}

    def round(self, steps: int) -> dict[str, Any]:
        """Run ``steps`` steps, reading the loss once at the end."""
        start = time.perf_counter()
        loss = self._run(steps)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    def memory(self) -> dict[str, Any]:
        """Reply with the peak of the process's resident memory, in MiB."""
        status = Path("/proc/self/status")
        if status.exists():  # unlike getrusage's number, this one does not count the parent before exec
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return {"peak_mib": int(line.split()[1]) / 1024}
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}

    def _run(self, steps: int) -> float:
        step, first = self.step, self.count
        assert step is not None, "start comes before running"
        for i in range(first, first + steps):
            loss = step(i % BATCHES)
        self.count = first + steps
        return self.peer.read(loss)


def main() -> None:
    """Serve until "quit" or the end of standard input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "quit":
            break
        try:
            reply = getattr(worker, name)(*arguments)
        except Exception as error:
            # The parent shows it in the peer's row; the traceback goes to standard error.
            sys.excepthook(type(error), error, error.__traceback__)
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
