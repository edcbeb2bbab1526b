"""Where each microsecond of a training step goes, against the limit: ``python -m benchmarks.where``.

Writes a page: for each workload its kernels with their times, what they would take at the measured peak of
operations and of copies, and the emitted code of the longest ones.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pequegrad as pg
from pequegrad.making import Lowered
from pequegrad.profiling import KernelTime, Profile

from .measure import ROOT, machine, names_in
from .peak import Peak, measure_peak
from .peers import make_function, make_model
from .report import number
from .workloads import WORKLOADS, Workload, find

PAGE = ROOT / "docs" / "where-the-time-goes.md"
LONGEST = 2
"""Kernels of each workload whose code is shown."""


def compiled_step(workload: Workload) -> tuple[Any, tuple[Any, ...]]:
    """Return the compiled step and a batch for it."""
    function = make_function(pg, workload, make_model(pg, workload))
    return pg.compile(function, strict=True), tuple(pg.from_numpy(part) for part in workload.batches(1)[0])


def limit_of(kernel: KernelTime, peak: Peak) -> float:
    """Return the microseconds that a kernel would take at the peak."""
    return 1e6 * peak.seconds(2 * kernel.multiply_adds, kernel.bytes)


def table(profile: Profile, peak: Peak) -> list[str]:
    """Return the lines of a table, the longest kernel first."""
    lines = [
        "| µs | of the step | at the peak | GFLOP/s | GB/s | phase | kernel |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for kernel in longest_first(profile):
        cells = [
            number(kernel.microseconds),
            f"{100 * kernel.microseconds / profile.microseconds:.1f} %",
            number(limit_of(kernel, peak), 3),
            number(kernel.gflops, 3) if kernel.multiply_adds else "",
            number(kernel.gigabytes, 3),
            str(kernel.phase),
            f"{kernel.family}: {kernel.origin.split(': ', 1)[-1]}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        f"| {number(profile.waiting)} | {100 * profile.waiting / profile.microseconds:.1f} % | | | | | barriers |"
    )
    rest = profile.microseconds - profile.waiting - sum(kernel.microseconds for kernel in profile.kernels)
    lines.append(f"| {number(max(rest, 0.0))} | {100 * max(rest, 0.0) / profile.microseconds:.1f} % | | | | | call |")
    return lines


def longest_first(profile: Profile) -> list[KernelTime]:
    """Return the kernels by the time they take."""
    return sorted(profile.kernels, key=lambda kernel: -kernel.microseconds)


def code_of(kernel: KernelTime, source: str) -> str | None:
    """Return the emitted function whose comment names the kernel's origin, as its first use or as another, or None."""
    place, _, what = kernel.origin.partition(": ")
    for block in re.split(r"\n\n", source):
        comment = [line.removeprefix("// ") for line in block.splitlines() if line.startswith("// ")]
        is_alike = comment[-1:] == [what] and (comment[0] == place or f"also {place}" in comment)
        if is_alike or f"also {kernel.origin}" in comment:
            return block
    return None


def section(workload: Workload, profile: Profile, lowered: Lowered, peak: Peak) -> list[str]:
    """Return the page's lines about one workload."""
    operations = 2 * sum(kernel.multiply_adds for kernel in profile.kernels)
    limits = sum(limit_of(kernel, peak) for kernel in profile.kernels)
    lines = [
        f"## {workload.name}: {workload.title}, batch {workload.batch}",
        "",
        f"{number(profile.microseconds)} µs a step, by {profile.workers} threads, median of {profile.runs}. Its "
        f"{operations / 1e6:,.1f} MFLOP of products take {number(1e6 * operations / peak.flops)} µs at the peak; all kernels, one "
        f"after the other, each at the peak of operations or of copies within {memory_of(lowered) / 2**20:.1f} MiB "
        f"({number(peak.bytes / 1e9, 3)} GB/s), {number(limits)} µs.",
        "",
        *table(profile, peak),
        "",
    ]
    for kernel in longest_first(profile)[:LONGEST]:
        code = code_of(kernel, lowered.source)
        if code is not None:
            lines += ["```cpp", *code.strip().splitlines(), "```", ""]
    return lines


def memory_of(lowered: Lowered) -> int:
    """Return the bytes that a step works in: its arena, arguments and state."""
    return lowered.plan.arena_bytes + sum(lowered.plan.buffers[i].nbytes for i in lowered.plan.slots)


def page(workloads: Sequence[Workload], threads: int) -> str:
    """Measure, and return the page."""
    facts = machine()
    sections: list[str] = []
    for workload in workloads:
        step, batch = compiled_step(workload)
        lowered = step.lower(*batch)
        peak = measure_peak(threads, memory_of(lowered))
        sections += section(workload, step.profile(*batch), lowered, peak)
    head = [
        "# Where the time goes",
        "",
        f"Written by `python -m benchmarks.where` on {datetime.datetime.now(datetime.timezone.utc).date().isoformat()}: "
        f"{facts['processor']}, {threads} threads, measured peak {number(peak.flops / 1e9, 3)} GFLOP/s.",
        "",
        "Times are of a step with a clock between its kernels, so a little above a plain one's; each is the mean over the "
        "threads. GFLOP/s and GB/s are of the slowest thread, all threads together.",
        "",
    ]
    return "\n".join([*head, *sections]).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the page."""
    names = [workload.name for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: names_in(text, names, "workload"),
        default=["mlp", "conv"],
        help=f"a comma list of {', '.join(names)} (mlp,conv)",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (%(default)s)")
    options = parser.parse_args(arguments)
    with pg.config(num_threads=options.threads):
        text = page([find(name) for name in options.only], options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
