"""The matrix products of training steps, each alone, against the measured peak: ``python -m benchmarks.products``.

Takes the products out of the workloads' plans: those of at least 20 MFLOP, with operands that lie as they do there, and those of
attention, batched. Each is compiled several times over in one step, on operands of their own, as many as no longer are near.
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
PROFILES = 9
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


def measure_product(product: Product, measure_peak: Callable[[], Peak]) -> tuple[float, float]:
    """Return GFLOP/s, the median over copies and profiles, and its share of the peak, the median over profiles of that beside
    each. A product takes as long as the slowest thread."""
    copies = max(2, min(MOST_COPIES, COPIES_BYTES // product.nbytes))
    random = np.random.default_rng(0)
    pairs = [operands(product, random) for _ in range(copies)]

    def natural(x: Any, order: str) -> Any:
        return x if order == "n" else x.transpose(-1, -2)

    def all_of_them(pairs: Any) -> Any:
        return [natural(a, product.a) @ natural(b, product.b) for a, b in pairs]

    step = pg.compile(all_of_them, strict=True)
    step(pairs)
    found, shares = [], []
    before = measure_peak().flops
    for _ in range(PROFILES):
        kernels = step.profile(pairs, seconds=SECONDS).kernels
        after = measure_peak().flops
        found.append(statistics.median(kernel.gflops for kernel in kernels if kernel.multiply_adds))
        shares.append(found[-1] * 2e9 / (before + after))
        before = after
    return statistics.median(found), statistics.median(shares)


def measure_products(names: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """Return a row for each product, the largest first: in which workloads it is, GFLOP/s, and its share of the peak."""
    found: dict[Product, list[str]] = {}
    for name in names:
        step, batch = compiled_step(find(name))
        for product in dict.fromkeys(products_of(step.lower(*batch).plan)):
            found.setdefault(product, []).append(name)
    rows = []
    with peak_meter(threads) as measure_peak:
        for product in sorted(found, key=lambda product: (product.is_attention, -product.flops)):
            gflops, share = measure_product(product, measure_peak)
            rows.append({"product": str(product), "mflop": product.flops / 1e6, "workloads": found[product],
                         "attention": product.is_attention, "gflops": gflops, "share_of_peak": share})  # fmt: skip
            print(row_text(rows[-1]), flush=True)
    return rows


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
    print(f"{'m × n × k':<34}{'MFLOP':>8} {'GFLOP/s':>8} {'% peak':>8}  in")
    with pg.config(num_threads=options.threads, quiet=True):
        rows = measure_products(options.only, options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"products-{options.threads}threads.json"
    text = json.dumps({**machine(), "threads": options.threads, "rows": rows}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
