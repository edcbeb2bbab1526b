"""How measurements are shown: a table of text, and a picture.

Invariant: reads rows, measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .workloads import Workload

PANELS_A_ROW = 3
COLUMNS = (
    "",
    "µs/step",
    "quartiles",
    "× best peer",
    "GFLOP/s",
    "% of peak",
    "cold s",
    "warm s",
    "peak MiB",
    "settings",
)


def format_table(workload: Workload, rows: Sequence[Any], ours: Sequence[str], peak: float = math.nan) -> str:
    """Return the table of one workload. "× best peer" is time over the fastest framework that is not ours; ``peak`` is in
    operations a second."""
    best = best_peer_seconds(rows, ours)
    flops = workload.flops()
    lines = [
        f"{workload.name}: {workload.title}, batch {workload.batch}, {flops / 1e6:.4g} MFLOP a step",
    ]
    cells = [COLUMNS]
    for row in rows:
        low, high = row.quartiles
        cells.append(
            (
                row.peer,
                number(row.seconds * 1e6),
                f"{number(low * 1e6)}-{number(high * 1e6)}" if row.rounds else "-",
                number(row.seconds / best, 3),
                number(flops / row.seconds / 1e9, 3),
                number(100 * flops / row.seconds / peak, 3),
                number(row.cold_seconds, 3),
                number(row.warm_seconds, 3),
                number(row.peak_mib, 4),
                row.variant,
            )
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    for line in cells:
        columns = [
            cell.ljust(width) if i in (0, len(COLUMNS) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ]
        lines.append("  ".join(columns).rstrip())
    lines += [f"  {row.peer}: {row.note}" for row in rows if row.note]
    return "\n".join(lines)


def best_peer_seconds(rows: Sequence[Any], ours: Sequence[str]) -> float:
    """Return the fastest median among frameworks that are not ours, or NaN."""
    return min((row.seconds for row in rows if row.rounds and row.peer not in ours), default=math.nan)


def number(value: float, digits: int = 4) -> str:
    """Return ``value`` with ``digits`` significant digits and no exponent; '-' for NaN."""
    if math.isnan(value):
        return "-"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}"


def draw(results: Mapping[Workload, Sequence[Any]], path: Path, facts: Mapping[str, str]) -> None:
    """Write a PNG: one panel a workload, one bar a framework, quartiles as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(PANELS_A_ROW, len(results))
    lines = math.ceil(len(results) / columns)
    size = (4.2 * columns, 2.8 * lines + 0.4)
    figure, grid = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in grid.flat[len(results) :]:
        panel.set_visible(False)
    for panel, (workload, rows) in zip(grid.flat, results.items()):
        measured = [row for row in rows if row.rounds]
        names = [row.peer for row in measured]
        times = [row.seconds * 1e6 for row in measured]
        low = [(row.seconds - row.quartiles[0]) * 1e6 for row in measured]
        high = [(row.quartiles[1] - row.seconds) * 1e6 for row in measured]
        colors = ["tab:red" if name.startswith("pequegrad") else "tab:gray" for name in names]
        bars = panel.barh(names, times, xerr=[low, high], color=colors, capsize=3)
        panel.bar_label(bars, [number(time, 3) for time in times], padding=6)
        panel.margins(x=0.3)
        panel.invert_yaxis()
        panel.set_title(f"{workload.name}, batch {workload.batch}")
        panel.set_xlabel("µs a training step (less is better)")
    figure.suptitle(facts.get("processor", ""), fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
