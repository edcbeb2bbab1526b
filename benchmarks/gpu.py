"""All that a GPU can tell about the CUDA target, in one command and under nine minutes: ``python -m benchmarks.gpu``.

First whether it is right: every op and some training, held against PyTorch and our CPU target; then the times of
training steps beside other frameworks, with their share of the device's limit; then whether compute-sanitizer finds
anything. What could not be done is named. ``--simulate`` checks, without a GPU, that the script itself works.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .gpu_device import Limits, find_limits
from .gpu_peers import GPU_PEERS, OURS_ON_GPU
from .measure import RESULTS, ROOT, Options, Row, machine, measure, names_in
from .report import format_table, number
from .workloads import GPU_WORKLOADS, Workload

MINUTES = 8.5
CHECK_SECONDS, SANITIZER_SECONDS = 110, 30
SANITIZED = [(tool, launch) for tool in ("memcheck", "racecheck") for launch in ("graph", "cooperative")]


@dataclass
class Section:
    """One part of the run: "passed", "failed" or "skipped", and why; ``facts`` go to the result file."""

    name: str
    state: str = "passed"
    text: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Session:
    """Runs sections, says how they went, and writes the file after each, so that nothing is lost."""

    def __init__(self, path: Path | None, record: dict[str, Any], minutes: float) -> None:
        self.path = path
        self.record = record
        self.sections: list[Section] = []
        self.deadline = time.monotonic() + 60 * minutes

    def run(self, name: str, work: Callable[[Section], None]) -> None:
        """Do ``work`` as a section; an exception fails that section alone."""
        print(f"{name} …", file=sys.stderr, flush=True)
        section, start = Section(name), time.monotonic()
        try:
            work(section)
        except Exception as error:
            # A run on a lent device must bring home what the other sections find.
            section.state, section.text = "failed", f"{type(error).__name__}: {error}"
        section.seconds = time.monotonic() - start
        self.sections.append(section)
        print(f"{section.state:8}{section.name}, {section.seconds:.0f} s{': ' if section.text else ''}{section.text}")
        if self.path is not None:
            self.record["sections"] = [asdict(part) for part in self.sections]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.record, indent=1) + "\n")

    def deadline_of_part(self, parts: int, reserved: float) -> float:
        """Return when the next of ``parts`` parts must end, so that all have as long and ``reserved`` seconds stay."""
        now = time.monotonic()
        return now + max(0.0, self.deadline - reserved - now) / parts

    def seconds_left(self, at_most: float = math.inf) -> float:
        """Return the seconds that a part may still take."""
        return max(1.0, min(at_most, self.deadline - time.monotonic()))

    @property
    def has_failed(self) -> bool:
        """Whether any section failed."""
        return any(section.state == "failed" for section in self.sections)


def run_check(section: Section, arguments: Sequence[str], seconds: float, prefix: Sequence[str] = ()) -> None:
    """Run `benchmarks.gpu_check` in a process of its own, and take its report."""
    command = [*prefix, sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        section.state, section.text = "failed", f"stopped after {seconds:.0f} s"
        return
    reports = [line for line in done.stdout.splitlines() if line.startswith("{")]
    section.facts = json.loads(reports[-1]) if reports else {}
    differing = section.facts.get("differing", [])
    counts = ", ".join(f"{count} with {kind}" for kind, count in section.facts.get("compared", {}).items())
    section.text = f"compared {counts}" if counts else ""
    if done.returncode != 0 or not reports:
        section.state = "failed"
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        section.text = "; ".join(differing[:5]) or f"exit code {done.returncode}: {last}"
        section.facts["output"] = (done.stdout + done.stderr)[-4000:]


def sanitize(session: Session, tool: str, launch: str) -> None:
    """Train a few small steps under one tool of compute-sanitizer."""

    def work(section: Section) -> None:
        sanitizer = shutil.which("compute-sanitizer")
        if sanitizer is None:
            section.state, section.text = "skipped", "compute-sanitizer is not installed"
            return
        prefix = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        arguments = ["--ops", "none", "--nets", "tiny,gpt", "--small", "--steps", "2", "--launch", launch]
        run_check(section, arguments, session.seconds_left(SANITIZER_SECONDS), prefix)

    session.run(f"{tool}, {launch} launch", work)


def add_limits(workload: Workload, rows: Sequence[Row], limits: Limits) -> list[dict[str, Any]]:
    """Return the rows for the file, with bandwidth and percent of the limit, and print both."""
    operations, moved = workload.flops(), workload.least_bytes()
    least = limits.seconds(operations, moved, workload.precision)
    print(f"  limit {number(1e6 * least)} µs: {operations / 1e6:.4g} MFLOP, {moved / 1e6:.4g} MB at least")
    records = []
    for row in rows:
        share, rate = least / row.seconds, moved / row.seconds
        print(f"  {row.peer}: {number(100 * share, 3)} % of the limit, {number(rate / 1e9, 3)} GB/s at least")
        for variant, seconds in row.trials.items():
            print(f"    {variant}: {number(1e6 * seconds)} µs")
        for variant, reason in row.failed.items():
            print(f"    {variant}: failed, {reason}")
        records.append(asdict(row) | {"seconds": row.seconds, "share_of_limit": share, "bytes_per_second": rate})
    return records


def time_steps(
    session: Session, workload: Workload, peers: Sequence[str], limits: Limits, rounds: int, deadline: float
) -> None:
    """Time one workload with each framework."""

    def work(section: Section) -> None:
        options = Options(threads=4, rounds=rounds, seconds=0.2, deadline=deadline)
        rows = measure(workload, peers, options)
        print(f"\n{format_table(workload, rows, OURS_ON_GPU)}")
        section.facts["rows"] = add_limits(workload, rows, limits)
        ours = [row.note for row in rows if row.peer in OURS_ON_GPU and row.note]
        if ours:
            section.state, section.text = "failed", ours[0]

    session.run(f"times of {workload.name}", work)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    names = [workload.name for workload in GPU_WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: names_in(text, names, "workload"),
        default=names,
        help=f"of {', '.join(names)} (all)",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: names_in(text, list(GPU_PEERS), "peer"),
        default=list(GPU_PEERS),
        help=f"of {', '.join(GPU_PEERS)} (all)",
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each framework (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything (%(default)s)")
    parser.add_argument("--ops", default="", help="a comma list: check these ops alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file (%(default)s)")
    parser.add_argument(
        "--simulate", action="store_true", help="without a GPU: the checks alone, on the simulator; writes no file"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Check, time, write; return 1 if anything failed, 2 where there is no GPU."""
    options = make_parser().parse_args(arguments)
    ops = ["--ops", options.ops] if options.ops else []
    if options.simulate:
        session = Session(None, {}, options.minutes)
        check = ["--target", "cuda-sim", "--small"]
        session.run("ops", lambda part: run_check(part, [*check, "--nets", "none", *ops], session.seconds_left()))
        nets = [*check, "--ops", "none", "--steps", "3"]
        session.run("training", lambda part: run_check(part, nets, session.seconds_left()))
        return int(session.has_failed)
    limits = find_limits()
    if isinstance(limits, str):
        print(f"benchmarks.gpu needs a GPU, but {limits}. Try --simulate.", file=sys.stderr)
        return 2
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    path = options.out / f"{re.sub('[^a-z0-9]+', '-', limits.name.lower()).strip('-')}-{date}.json"
    session = Session(path, {"date": date, "device": asdict(limits), "machine": machine()}, options.minutes)
    print(f"{limits.name} ({limits.architecture})")
    session.run("ops", lambda part: run_check(part, ["--nets", "none", *ops], session.seconds_left(CHECK_SECONDS)))
    session.run("training", lambda part: run_check(part, ["--ops", "none"], session.seconds_left(CHECK_SECONDS)))
    reserved = len(SANITIZED) * SANITIZER_SECONDS
    chosen = [workload for workload in GPU_WORKLOADS if workload.name in options.only]
    for number_done, workload in enumerate(chosen):
        deadline = session.deadline_of_part(len(chosen) - number_done, reserved)
        time_steps(session, workload, options.peers, limits, options.rounds, deadline)
    for tool, launch in SANITIZED:
        sanitize(session, tool, launch)
    print(f"\nwrote {path}")
    return int(session.has_failed)


if __name__ == "__main__":
    sys.exit(main())
