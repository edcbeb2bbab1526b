"""Time how fast pequegrad starts: ``python -m benchmarks.startup``.

Four questions, each answered by the median of several fresh processes: what `import pequegrad` takes beside
`import numpy`; how long the first step takes with an empty cache, and with one that holds only the binding;
how soon a later process has its first loss, counted from the moment that numpy is there; and how long it takes to trace,
plan and write out the step of a transformer of many layers, before any compiler runs.

Every timed process finds its bytecode cached, as an installed package's is: an environment that forbids
writing it (PYTHONDONTWRITEBYTECODE) is overruled, and the first process of a kind is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .cpu import make_parser
from .measure import RESULTS, ROOT, machine, names_in, worker_environment
from .workloads import WORKLOADS

IMPORT_TIMER = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"

# Prints the seconds from "numpy is there" to "pequegrad is imported" and to "the first loss is read". The
# batch is made before the clock starts: loading data is not what is asked.
FIRST_LOSS_TIMER = """
import sys, time
import numpy
from benchmarks.peers import PequegradPeer
from benchmarks.workloads import find
workload = find(sys.argv[1])
batches = workload.batches(1)
list(workload.weights())
start = time.perf_counter()
peer = PequegradPeer(int(sys.argv[2]), sys.argv[3])
imported = time.perf_counter()
step = peer.make_step(workload, batches, "default")
peer.read(step(0))
print(imported - start, time.perf_counter() - start)
"""


# Prints the seconds from a call's arguments to the step's source.
LOWERING_TIMER = """
import dataclasses, sys, time
import pequegrad
from benchmarks.peers import make_function
from benchmarks.workloads import GPT
workload = dataclasses.replace(GPT, depth=int(sys.argv[1]))
train_step = pequegrad.compile(make_function(pequegrad, workload, workload.module(pequegrad)))
batch = [pequegrad.from_numpy(part) for part in workload.batches(1)[0]]
start = time.perf_counter()
train_step.lower(*batch)
print(time.perf_counter() - start)
"""
DEPTHS = (12, 48)


def run_python(code: str, *arguments: str, threads: int = 1, cache_dir: str = "") -> list[float]:
    """Run ``code`` in a fresh interpreter; return the numbers of the last line that it prints."""
    environment = worker_environment(threads, cache_dir) if cache_dir else dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"a timed process failed:\n{done.stderr}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def import_seconds(repeats: int) -> dict[str, list[float]]:
    """Return the seconds of ``import numpy`` and of ``import pequegrad``, in turn, less a first warm-up."""
    seconds: dict[str, list[float]] = {"numpy": [], "pequegrad": []}
    for _ in range(repeats + 1):
        for module, values in seconds.items():
            values += run_python(IMPORT_TIMER.format(module=module))
    return {module: values[1:] for module, values in seconds.items()}


def first_loss_seconds(workload: str, threads: int, repeats: int) -> dict[str, list[float]]:
    """Return seconds to the first loss: "empty cache" (one value), "binding cached" and "warm"."""
    other = next(other.name for other in WORKLOADS if other.name != workload)

    def first_loss(name: str, cache_dir: str) -> float:
        return run_python(FIRST_LOSS_TIMER, name, str(threads), cache_dir, threads=threads, cache_dir=cache_dir)[1]

    seconds: dict[str, list[float]] = {"empty cache": [], "binding cached": [], "warm": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as cache_dir:
        first_loss(workload, cache_dir)  # writes the bytecode of all that a cold step imports
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as cache_dir:
        seconds["empty cache"].append(first_loss(workload, cache_dir))
        seconds["warm"] += [first_loss(workload, cache_dir) for _ in range(repeats)]
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as cache_dir:
        first_loss(other, cache_dir)  # builds the binding, which no step's text changes
        seconds["binding cached"].append(first_loss(workload, cache_dir))
    return seconds


def lowering_seconds(repeats: int) -> dict[int, list[float]]:
    """Return the seconds from a call to the source of a transformer's step, by its layers."""
    timed = {depth: [run_python(LOWERING_TIMER, str(depth))[0] for _ in range(repeats + 1)] for depth in DEPTHS}
    return {depth: values[1:] for depth, values in timed.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    options = parse(arguments)
    imports = import_seconds(options.repeats)
    medians = {module: statistics.median(values) for module, values in imports.items()}
    ratio = medians["pequegrad"] / medians["numpy"]
    for module, values in imports.items():
        print(f"import {module:<10} {show(values)}")
    print(f"ratio             {ratio:.3f}")

    lowering = lowering_seconds(options.repeats)
    print("\nseconds to the source of a transformer's training step, before any compiler runs")
    for depth, values in lowering.items():
        print(f"{depth} layers  {show(values)}")

    losses = {name: first_loss_seconds(name, options.threads, options.repeats) for name in options.only}
    print("\nseconds from numpy's import to the first loss")
    for name, columns in losses.items():
        print(f"{name:<6}", "   ".join(f"{label}: {show(values)}" for label, values in columns.items()))

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "startup.json"
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": options.threads,
        "import_seconds": imports,
        "lowering_seconds": lowering,
        "first_loss_seconds": losses,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwrote {path}")


def show(values: Sequence[float]) -> str:
    """Return the median in seconds, and the range where there are several values."""
    spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f} s{spread}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; workloads are named as in benchmarks.cpu."""
    workloads = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: names_in(text, workloads, "workload"), default=workloads)
    parser.add_argument("--threads", type=int, default=make_parser().get_default("threads"))
    parser.add_argument("--repeats", type=int, default=7, help="fresh processes a number (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
