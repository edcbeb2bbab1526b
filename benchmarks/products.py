"""The matrix products of training steps, each alone, against the measured peak: ``python -m benchmarks.products``.

Takes the products out of the workloads' plans: those of at least 20 MFLOP, with operands that lie as they do there, and those of
attention, batched. Each is compiled several times over in one step, on operands of their own, as many as no longer are near. They take
turns, in rounds: memory is slower in some minutes than in others, and that is not to decide which of them looks slow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pequegrad as pg
from pequegrad.codegen.plan import Access, Attention, Contract, StepPlan

from .measure import RESULTS, machine, names_in
from .peak import Peak, peak_meter
from .report import number
from .where import compiled_step
from .workloads import WORKLOADS, find

LEAST_FLOPS = 20e6
COPIES_BYTES = 12 << 20
"""Operands and results of all copies of a product together, about: more than a core's own caches."""
MOST_COPIES = 8
ROUNDS = 9
SECONDS = 0.2
"""Of a profile, about as long as measuring the peak beside it."""


@dataclass(frozen=True)
class Product:
    """C[batch, m, n] = A B, of float32. ``a`` and ``b``: "n" where rows of an operand are dense, "t" where its columns are."""

    m: int
    n: int
    k: int
    a: str
    b: str
    batch: int = 1
    is_attention: bool = False

    @property
    def flops(self) -> float:
        """Operations, two for each multiply-add."""
        return 2.0 * self.batch * self.m * self.n * self.k

    @property
    def nbytes(self) -> int:
        """Bytes of operands and result."""
        return 4 * self.batch * (self.m * self.k + self.k * self.n + self.m * self.n)

    def __str__(self) -> str:
        batch = f"{self.batch} × " if self.batch > 1 else ""
        a, b = (f"{name}{'ᵀ' if order == 't' else ''}" for name, order in (("A", self.a), ("B", self.b)))
        return f"{batch}{self.m} × {self.n} × {self.k}  {a} {b}"


def products_of(plan: StepPlan) -> Iterable[Product]:
    """Yield the products of a plan that are worth a look, and those that attention consists of."""
    for kernel in plan.kernels:
        if isinstance(kernel, Contract):
            batch = math.prod(kernel.batch)
            found = Product(kernel.m, kernel.n, kernel.k, _order(kernel.a), _order(kernel.b), batch)
            if found.flops >= LEAST_FLOPS:
                yield found
        elif isinstance(kernel, Attention):
            batch = math.prod(kernel.batch)
            yield Product(kernel.L, kernel.S, kernel.E, "n", "t", batch, is_attention=True)
            yield Product(kernel.L, kernel.F, kernel.S, "n", "n", batch, is_attention=True)


def _order(access: Access) -> str:
    return "n" if access.strides[-1] == 1 else "t"


def operands(product: Product, random: np.random.Generator) -> tuple[Any, Any]:
    """Return A and B; what lies transposed is given as its transpose."""
    batch = (product.batch,) if product.batch > 1 else ()

    def drawn(rows: int, columns: int, order: str) -> Any:
        shape = (rows, columns) if order == "n" else (columns, rows)
        return pg.from_numpy(random.standard_normal((*batch, *shape), dtype=np.float32))

    return drawn(product.m, product.k, product.a), drawn(product.k, product.n, product.b)


class Measurement:
    """A product's step on operands of several copies, and what has been measured of it."""

    def __init__(self, product: Product, workloads: Sequence[str]) -> None:
        self.product, self.workloads = product, workloads
        copies = max(2, min(MOST_COPIES, COPIES_BYTES // product.nbytes))
        random = np.random.default_rng(0)
        self._pairs = [operands(product, random) for _ in range(copies)]
        self._step = pg.compile(self._all_of_them, strict=True)
        self._rates: list[float] = []
        self._shares: list[float] = []

    def _all_of_them(self, pairs: Any) -> Any:
        def natural(x: Any, order: str) -> Any:
            return x if order == "n" else x.transpose(-1, -2)

        return [natural(a, self.product.a) @ natural(b, self.product.b) for a, b in pairs]

    def measure(self, measure_peak: Callable[[], Peak]) -> None:
        """Profile the step once, the peak before and after. A product takes as long as the slowest thread."""
        before = measure_peak().flops
        kernels = self._step.profile(self._pairs, seconds=SECONDS).kernels
        after = measure_peak().flops
        self._rates.append(statistics.median(kernel.gflops for kernel in kernels if kernel.multiply_adds))
        self._shares.append(self._rates[-1] * 2e9 / (before + after))

    def row(self) -> dict[str, Any]:
        """Return what the report says: GFLOP/s, and the share of the peak, medians of all rounds."""
        return {"product": str(self.product), "mflop": self.product.flops / 1e6, "workloads": self.workloads,
                "attention": self.product.is_attention, "gflops": statistics.median(self._rates),
                "share_of_peak": statistics.median(self._shares)}  # fmt: skip


def measure_products(names: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """Return a row for each product, the largest first: in which workloads it is, GFLOP/s, and its share of the peak."""
    found: dict[Product, list[str]] = {}
    for name in names:
        step, batch = compiled_step(find(name))
        for product in dict.fromkeys(products_of(step.lower(*batch).plan)):
            found.setdefault(product, []).append(name)
    ordered = sorted(found, key=lambda product: (product.is_attention, -product.flops))
    measurements = [Measurement(product, found[product]) for product in ordered]
    with peak_meter(threads) as measure_peak:
        for number_of_round in range(ROUNDS):
            print(f"round {number_of_round + 1} of {ROUNDS} …", file=sys.stderr, flush=True)
            for measurement in measurements:
                measurement.measure(measure_peak)
    return [measurement.row() for measurement in measurements]


def row_text(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    numbers = f"{number(row['mflop'], 3):>8} {number(row['gflops'], 3):>8} {100 * row['share_of_peak']:8.1f}"
    what = " (attention)" if row["attention"] else ""
    return f"{row['product']:<34}{numbers}  {', '.join(row['workloads'])}{what}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write JSON."""
    names = [workload.name for workload in WORKLOADS]
    usual = ["mlp", "vae", "gpt", "wide", "gpt2"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=lambda text: names_in(text, names, "workload"),
        default=usual,
        help=f"a comma list of {', '.join(names)} ({','.join(usual)})",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (%(default)s)")
    options = parser.parse_args(arguments)
    with pg.config(num_threads=options.threads, quiet=True):
        rows = measure_products(options.only, options.threads)
    print(f"{'m × n × k':<34}{'MFLOP':>8} {'GFLOP/s':>8} {'% peak':>8}  in")
    for row in rows:
        print(row_text(row))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"products-{options.threads}threads.json"
    text = json.dumps({**machine(), "threads": options.threads, "rows": rows}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
