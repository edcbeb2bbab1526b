"""How often kernels of a device touch its memory, counted by the simulator: warps' accesses in sectors of 32 bytes."""

from __future__ import annotations

import math

import numpy as np

from tests.codegen.compiling import Batch, Compiled, configure_simulator, target_for
from tests.simulator.simulating import Simulated

F32_PER_SECTOR = 8


def counted_in(batch: Batch) -> dict[str, int]:
    """Return what a run of the batch counts."""
    compiled = Compiled(batch.graph(), target_for("cuda-sim"))
    compiled.run(batch.arrays, 1)
    configure_simulator(compiled.module.path, seed=1, counts_traffic=True)
    simulated = Simulated(compiled.module.path)
    simulated.configure(1, traffic=True)
    compiled.module.run(compiled.allocated(batch.arrays), 1)
    counted = simulated.statistics()
    simulated.configure(1)
    return counted


def sectors_of(batch: Batch) -> tuple[int, int]:
    """Return the sectors that a run loads and stores, those of arguments' copies apart."""
    counted = counted_in(batch)
    return counted["load_sectors"], counted["store_sectors"]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_pointwise_work_reads_and_writes_each_sector_once():
    batch = Batch("traffic_map")
    x, y = batch.input(normal(64, 80)), batch.input(normal(64, 80) + 1)
    batch.expect("sum", batch.apply("exp", batch.apply("add", [x, y])), 4)
    sectors = 64 * 80 // F32_PER_SECTOR
    assert sectors_of(batch) == (2 * sectors, sectors)


def test_large_pointwise_work_moves_16_bytes_a_thread():
    batch = Batch("traffic_packed")
    rows, columns = 300, 400
    x, bias = batch.input(normal(rows, columns)), batch.input(normal(columns))
    spread = batch.apply("expand", [bias], shape=(rows, columns))[0]
    batch.expect("sum", batch.apply("exp", batch.apply("add", [x, spread])), 4)
    counted = counted_in(batch)
    warps = math.ceil(rows * columns / 4 / 32)
    assert (counted["loads"], counted["stores"]) == (2 * warps, warps)
    assert counted["store_sectors"] == rows * columns // F32_PER_SECTOR
    assert batch.failures(target_for("cuda-sim")) == []


def test_softmax_reads_its_rows_once_and_keeps_them_in_registers():
    batch = Batch("traffic_softmax")
    x = batch.input(normal(40, 96))
    (top,) = batch.apply("amax", [x], dims=(1,), keepdim=True)
    (shifted,) = batch.apply("sub", [x, batch.apply("expand", [top], shape=(40, 96))[0]])
    (power,) = batch.apply("exp", [shifted])
    (total,) = batch.apply("sum", [power], dims=(1,), keepdim=True)
    batch.expect("softmax", batch.apply("div", [power, batch.apply("expand", [total], shape=(40, 96))[0]]), 4)
    sectors = 40 * 96 // F32_PER_SECTOR
    assert sectors_of(batch) == (sectors, sectors)


def test_sums_of_columns_read_neighbours_on_neighbouring_threads():
    batch = Batch("traffic_columns")
    x = batch.input(normal(48, 64))
    batch.expect("sum", batch.apply("sum", [x], dims=(0,), keepdim=False), None, 3e-6)
    assert sectors_of(batch) == (48 * 64 // F32_PER_SECTOR, 64 // F32_PER_SECTOR)


def test_a_product_reads_each_operand_once_for_each_row_or_column_of_tiles():
    batch = Batch("traffic_product")
    m, n, k = 64, 96, 64
    x, y = batch.input(normal(m, k)), batch.input(normal(k, n))
    batch.expect("product", batch.apply("matmul", [x, y]), None, 3e-6)
    tile = 32
    wanted = m * k * math.ceil(n / tile) + k * n * math.ceil(m / tile)
    assert sectors_of(batch) == (wanted // F32_PER_SECTOR, m * n // F32_PER_SECTOR)
