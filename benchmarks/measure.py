"""Frameworks timed beside each other: one process each, the same weights and batches, rounds in turn.

Invariant: a framework that fails, is not there or takes too long leaves a row with a note, and all others are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .workloads import Workload

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
COMPARED_LOSSES = 10
# Float32 rounding grows along a trajectory; in the first ten steps it stays far below this, and a wrong
# gradient or another learning rate far above.
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
TRIAL_SECONDS, TRIAL_ROUNDS = 0.15, 3


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure: threads of each framework, timed rounds and their length, when to stop (time.monotonic)."""

    threads: int
    rounds: int
    seconds: float
    verbose: bool = False
    deadline: float = math.inf


class PeerFailed(Exception):
    """A framework is not installed, or its worker reported an error."""


@dataclass
class Row:
    """What is known about one framework on one workload."""

    peer: str
    variant: str = ""
    losses: list[float] = field(default_factory=list)
    cold_seconds: float = float("nan")
    warm_seconds: float = float("nan")
    import_seconds: float = float("nan")
    peak_mib: float = float("nan")
    rounds: list[float] = field(default_factory=list)
    """Seconds a step, one entry a timed round."""
    trials: dict[str, float] = field(default_factory=dict)
    """Seconds a step of each variant that was tried."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a variant could not be tried."""
    note: str = ""

    @property
    def seconds(self) -> float:
        """Median seconds a step."""
        return statistics.median(self.rounds) if self.rounds else float("nan")

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the rounds, in seconds a step."""
        if len(self.rounds) < 2:
            return self.seconds, self.seconds
        first, _, third = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return first, third


class Connection:
    """The parent's end of a worker: sends a command, waits for its reply."""

    def __init__(self, environment: dict[str, str], is_verbose: bool, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, *command: Any) -> dict[str, Any]:
        """Return the reply to ``command``; raise PeerFailed with the worker's error, or when the deadline has passed."""
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            left = max(0.0, self.deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left if left < math.inf else None)[0]:
                self._process.kill()
                raise PeerFailed(f"stopped in {command[0]!r}: no time left")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerFailed(f"the worker died with exit code {self._process.wait()}; see it by --verbose")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(["quit"]), file=self._process.stdin, flush=True)
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def worker_environment(threads: int, cache_dir: str) -> dict[str, str]:
    """Return the environment that gives every framework ``threads`` threads and a cache folder of its own."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PEQUEGRAD_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "PEQUEGRAD_CACHE_DIR": cache_dir,
        "TORCHINDUCTOR_CACHE_DIR": cache_dir,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # on a GPU, there are others beside it
    }


@contextlib.contextmanager
def prepared(
    row: Row, workload: Workload, cache_dir: str, options: Options, deadline: float
) -> Iterator[tuple[Connection, list[str]]]:
    """Yield a fresh worker whose framework is imported, and the variants that it offers."""
    worker = Connection(worker_environment(options.threads, cache_dir), options.verbose, deadline)
    try:
        reply = worker.ask("prepare", row.peer, workload.name, options.threads, cache_dir)
        row.import_seconds = reply["import_seconds"]
        yield worker, reply["variants"]
    finally:
        worker.close()


def measure(workload: Workload, peers: Sequence[str], options: Options) -> list[Row]:
    """Return one row a framework: compile times, then timed rounds in turn."""
    rows = [Row(peer) for peer in peers]
    with contextlib.ExitStack() as stack:
        ready: list[tuple[Row, Connection, int]] = []
        for row in rows:
            say(f"{workload.name}: {row.peer}: setting up")
            cache_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-cache-"))
            left = len(rows) - rows.index(row)
            where = (row, workload, cache_dir, options, set_up_deadline(options, len(rows), left))
            try:
                with prepared(*where) as (worker, _):
                    worker.ask("build_once")
                with prepared(*where) as (worker, variants):
                    row.cold_seconds = worker.ask("start", variants[0])["first_step_seconds"]
                    choose_variant(row, worker, variants)
                # What the others have left in memory is not its own: the chosen one has a fresh process.
                worker, _ = stack.enter_context(prepared(*where))
                steps = set_up(row, worker, options.seconds)
                worker.deadline = options.deadline
            except PeerFailed as failure:
                row.note = str(failure).splitlines()[0]
                continue
            ready.append((row, worker, steps))

        note_differing_losses([row for row, _, _ in ready], LOSS_TOLERANCE[workload.precision])
        for number in range(options.rounds):
            say(f"{workload.name}: round {number + 1} of {options.rounds}")
            turn = number % len(ready) if ready else 0
            for row, worker, steps in ready[turn:] + ready[:turn]:
                with noted(row):
                    row.rounds.append(worker.ask("round", steps)["seconds"] / steps)
        for row, worker, _ in ready:
            with noted(row):
                row.peak_mib = worker.ask("memory")["peak_mib"]
    return rows


def set_up_deadline(options: Options, peers: int, left: int) -> float:
    """Return when the next of ``left`` frameworks must be ready: one that compiles for long takes no time from the others,
    nor from the rounds of all ``peers``."""
    now = time.monotonic()
    rounds = 2 * peers * options.rounds * options.seconds
    return now + max(0.0, options.deadline - rounds - now) / left


@contextlib.contextmanager
def noted(row: Row) -> Iterator[None]:
    """Turn a failure inside the block into the row's note."""
    try:
        yield
    except PeerFailed as failure:
        row.note = str(failure).splitlines()[0]


def choose_variant(row: Row, worker: Connection, variants: list[str]) -> None:
    """Try each variant, and note the fastest."""
    row.variant = variants[0]
    if len(variants) == 1:
        return
    for variant in variants:
        try:
            worker.ask("start", variant)
            steps = worker.ask("calibrate", TRIAL_SECONDS)["steps"]
            rounds = [worker.ask("round", steps)["seconds"] for _ in range(TRIAL_ROUNDS)]
            row.trials[variant] = min(rounds) / steps
        except PeerFailed as failure:
            row.failed[variant] = str(failure).splitlines()[0]
    if not row.trials:
        raise PeerFailed(row.failed[variants[0]])
    row.variant = min(row.trials, key=lambda variant: row.trials[variant])


def set_up(row: Row, worker: Connection, seconds: float) -> int:
    """Start the chosen variant and take its first losses; return the steps of a round."""
    first = worker.ask("start", row.variant)
    row.warm_seconds = first["first_step_seconds"]
    row.losses = [first["loss"], *worker.ask("losses", COMPARED_LOSSES - 1)["losses"]]
    return worker.ask("calibrate", seconds)["steps"]


def note_differing_losses(rows: Sequence[Row], tolerance: float) -> None:
    """Mark each row whose first losses are not those of the reference: torch's if it runs, else the first's."""
    if not rows:
        return
    reference = next((row for row in rows if row.peer.startswith("torch")), rows[0])
    for row in rows:
        gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(row.losses, reference.losses, strict=True)]
        if not max(gaps) <= tolerance:  # also catches NaN
            row.note = f"NOT THE SAME WORK: losses differ from {reference.peer}'s by {max(gaps):.1e}"


def machine() -> dict[str, str]:
    """Return what a reader needs to judge the numbers: processor, system, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    facts = {"processor": processor, "cores": str(os.cpu_count()), "python": platform.python_version()}
    for package in ("numpy", "torch", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts


def say(text: str) -> None:
    """Show progress on standard error: standard output is the report."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def names_in(text: str, known: Sequence[str], what: str) -> list[str]:
    """Parse a comma list for argparse, refusing unknown names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown {what} {', '.join(unknown)}; expected {', '.join(known)}")
    return names
