"""Time training steps on the CPU beside other frameworks: ``python -m benchmarks.cpu --only mlp,conv,tiny``.

Each framework runs in a process of its own, from the same weights and batches, and their first losses are
compared, so that all do the same work. Timed rounds take turns, so that a drift of the machine meets all
alike; the loss is read once a round by all. Shown are the median of the rounds and their quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from .measure import RESULTS, Options, Row, machine, measure, names_in, say
from .peak import measure_peak
from .peers import CPU_PEERS, OURS
from .report import draw, format_table, number
from .workloads import WORKLOADS, find


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
        type=lambda text: names_in(text, list(CPU_PEERS), "peer"),
        default=["pequegrad", "torch", "torch-compile", "jax"],
        help=f"frameworks, a comma list of {', '.join(CPU_PEERS)} (all but pequegrad-eager)",
    )
    parser.add_argument("--random", type=int, metavar="N", help="instead: N nets drawn at random, from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="of the first random net (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each framework (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a round (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and picture (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show what the frameworks print")
    return parser


def chosen_names(options: argparse.Namespace) -> list[str]:
    """Return the names of the workloads that the command line asks for."""
    if options.random is None:
        return options.only
    return [f"random-{seed}" for seed in range(options.seed, options.seed + options.random)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 1 if any framework did not do the same work or failed."""
    options = make_parser().parse_args(arguments)
    facts = machine()
    how = Options(options.threads, options.rounds, options.seconds, options.verbose)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), f"threads {options.threads}", sep=", ")
    peak = measure_peak(options.threads).flops
    print(f"measured peak {number(peak / 1e9, 3)} GFLOP/s")
    results: dict[str, list[Row]] = {}
    for name in chosen_names(options):
        workload = find(name)
        results[name] = measure(workload, options.peers, how)
        say("")
        print(f"\n{format_table(workload, results[name], OURS, peak)}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    kind = "cpu" if options.random is None else "random"
    path = options.out / f"{kind}-{options.threads}threads.json"
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts,
        "threads": options.threads,
        "peak_flops": peak,
        "workloads": {name: [asdict(row) | {"seconds": row.seconds} for row in rows] for name, rows in results.items()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw({find(name): rows for name, rows in results.items()}, path.with_suffix(".png"), facts)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")
    return int(any(row.note for rows in results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
