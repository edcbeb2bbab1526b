"""Time training steps on the CPU beside other frameworks: ``python -m benchmarks.cpu --only mlp,conv,tiny``.

Each framework runs in a process of its own, from the same weights and batches, and their first losses are
compared, so that all do the same work. Timed rounds take turns, so that a drift of the machine meets all
alike; the loss is read once a round by all. Shown are the median of the rounds and their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .peers import OURS, PEERS
from .report import draw, format_table
from .workloads import BY_NAME, WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
COMPARED_LOSSES = 10
# Float32 rounding grows along a trajectory; in the first ten steps it stays far below this, and a wrong
# gradient or another learning rate far above.
LOSS_TOLERANCE = 1e-3
TRIAL_SECONDS = 0.3


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

    def __init__(self, environment: dict[str, str], is_verbose: bool) -> None:
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
        """Return the reply to ``command``, or raise PeerFailed with the worker's error."""
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
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
        "JAX_PLATFORMS": "cpu",
    }


@contextlib.contextmanager
def prepared(
    row: Row, workload: Workload, threads: int, cache_dir: str, is_verbose: bool
) -> Iterator[tuple[Connection, list[str]]]:
    """Yield a fresh worker whose framework is imported, and the variants that it offers."""
    worker = Connection(worker_environment(threads, cache_dir), is_verbose)
    try:
        reply = worker.ask("prepare", row.peer, workload.name, threads, cache_dir)
        row.import_seconds = reply["import_seconds"]
        yield worker, reply["variants"]
    finally:
        worker.close()


def measure(workload: Workload, peers: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Return one row a framework: compile times, then timed rounds in turn."""
    rows = [Row(peer) for peer in peers]
    with contextlib.ExitStack() as stack:
        ready: list[tuple[Row, Connection, int]] = []
        for row in rows:
            say(f"{workload.name}: {row.peer}: setting up")
            cache_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-cache-"))
            where = (row, workload, options.threads, cache_dir, options.verbose)
            try:
                with prepared(*where) as (worker, variants):
                    row.cold_seconds = worker.ask("start", variants[0])["first_step_seconds"]
                worker, variants = stack.enter_context(prepared(*where))
                steps = set_up(row, worker, variants, options.seconds)
            except PeerFailed as failure:
                row.note = str(failure).splitlines()[0]
                continue
            ready.append((row, worker, steps))

        note_differing_losses([row for row, _, _ in ready])
        for number in range(options.rounds):
            say(f"{workload.name}: round {number + 1} of {options.rounds}")
            turn = number % len(ready) if ready else 0
            for row, worker, steps in ready[turn:] + ready[:turn]:
                row.rounds.append(worker.ask("round", steps)["seconds"] / steps)
        for row, worker, _ in ready:
            row.peak_mib = worker.ask("memory")["peak_mib"]
    return rows


def set_up(row: Row, worker: Connection, variants: list[str], seconds: float) -> int:
    """Choose the fastest variant, take its first losses from the start; return the steps of a round."""
    row.warm_seconds = worker.ask("start", variants[0])["first_step_seconds"]
    row.variant = variants[0]
    if len(variants) > 1:
        trials = {}
        for variant in variants:
            worker.ask("start", variant)
            trials[variant] = worker.ask("calibrate", TRIAL_SECONDS)["seconds_per_step"]
        row.variant = min(trials, key=lambda variant: trials[variant])
    first = worker.ask("start", row.variant)["loss"]
    row.losses = [first, *worker.ask("losses", COMPARED_LOSSES - 1)["losses"]]
    return worker.ask("calibrate", seconds)["steps"]


def note_differing_losses(rows: Sequence[Row]) -> None:
    """Mark each row whose first losses are not those of the reference: torch if it runs, else the first."""
    if not rows:
        return
    reference = next((row for row in rows if row.peer == "torch"), rows[0])
    for row in rows:
        gaps = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(row.losses, reference.losses, strict=True)]
        if not max(gaps) <= LOSS_TOLERANCE:  # also catches NaN
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


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    workloads = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: names_in(text, workloads, "workload"),
        default=workloads,
        help=f"workloads, a comma list of {', '.join(workloads)} (all)",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: names_in(text, list(PEERS), "peer"),
        default=["pequegrad", "torch", "jax"],
        help=f"frameworks, a comma list of {', '.join(PEERS)} (pequegrad,torch,jax)",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each framework (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a round (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and picture (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show what the frameworks print")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 1 if any framework did not do the same work or failed."""
    options = make_parser().parse_args(arguments)
    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()), f"threads {options.threads}", sep=", ")
    results: dict[str, list[Row]] = {}
    for name in options.only:
        results[name] = measure(BY_NAME[name], options.peers, options)
        say("")
        print(f"\n{format_table(BY_NAME[name], results[name], OURS)}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"cpu-{options.threads}threads.json"
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts,
        "threads": options.threads,
        "workloads": {name: [asdict(row) | {"seconds": row.seconds} for row in rows] for name, rows in results.items()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw({BY_NAME[name]: rows for name, rows in results.items()}, path.with_suffix(".png"), facts)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")
    return int(any(row.note for rows in results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
