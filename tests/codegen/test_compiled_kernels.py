"""Kernel families on shapes that are hard for them: epilogues of convolutions, products of every small size, sums of
a million numbers, indices out of range, counters of random draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pequegrad.codegen.emit import render
from pequegrad.codegen.interpret import allocate
from pequegrad.codegen.lower import lower
from pequegrad.dtypes import bool_, float32, float64, int64
from pequegrad.errors import IndexOutOfRange
from pequegrad.trace.graph import Value
from tests.codegen.compiling import TARGETS, Batch, Compiled, assert_no_failures, target_for

SETS = pytest.mark.parametrize("instruction_set", TARGETS)
NEAR = {np.float32: 3e-6, np.float64: 1e-13}


def normal(shape, dtype=np.float32, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- products -----------------------------------------------------------------------------------------------------


def swapped(batch: Batch, value: Value) -> Value:
    n = len(value.shape)
    return batch.apply("permute", [value], dims=(*range(n - 2), n - 1, n - 2))[0]


@SETS
def test_products_of_all_small_sizes_and_operands_in_any_order(instruction_set):
    batch = Batch("products")
    sizes = (0, 1, 2, 7, 33)
    cases = list(itertools.product(sizes, sizes, sizes))
    for number, (m, n, k) in enumerate(cases):
        dtype = np.float32 if number % 3 else np.float64
        x, y = batch.input(normal((m, k), dtype, 1)), batch.input(normal((k, n), dtype, 2))
        if number % 2:
            x = swapped(batch, batch.input(normal((k, m), dtype, 3)))
        if number % 4 > 1:
            y = swapped(batch, batch.input(normal((n, k), dtype, 4)))
        batch.expect(f"{m} {n} {k}", batch.apply("matmul", [x, y]), None, NEAR[dtype])
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
def test_batches_of_products_with_broadcast_and_strided_operands(instruction_set):
    batch = Batch("batched_products")
    for number, (a, b) in enumerate(
        [((3,), (3,)), ((2, 3), (1, 3)), ((2, 1), (1, 3)), ((), (4,)), ((20,), (20,)), ((0,), (0,))]
    ):
        x, y = batch.input(normal((*a, 5, 9), seed=number)), batch.input(normal((*b, 6, 9), seed=number + 9))
        product = batch.apply("matmul", [x, swapped(batch, y)])
        bias = batch.input(normal((6,)))
        total = batch.apply("add", [product[0], bias])
        batch.expect(f"{a} {b}", [*total, *batch.apply("relu", total)], None, 3e-6)
        batch.expect(f"{a} {b} swapped", [swapped(batch, batch.apply("matmul", [x, swapped(batch, y)])[0])], None, 3e-6)
    parts = batch.apply("slice", [batch.input(normal((6, 40)))], starts=(0, 3), sizes=(6, 12), steps=(1, 3))[0]
    batch.expect("strided", batch.apply("matmul", [parts, swapped(batch, parts)]), None, 3e-6)
    for dtype in (np.int32, np.int64, np.uint8):
        x = batch.input(np.arange(35).reshape(5, 7).astype(dtype))
        y = batch.input(np.arange(21).reshape(7, 3).astype(dtype))
        batch.expect(f"whole numbers {dtype.__name__}", batch.apply("matmul", [x, y]))
    assert_no_failures(batch.failures(target_for(instruction_set)))


# --- pointwise kernels --------------------------------------------------------------------------------------------


@SETS
def test_operands_that_lie_across_the_lanes_are_read_by_squares(instruction_set):
    batch = Batch("squares")
    # What is narrower than four bytes is read lane by lane.
    cases = [(np.float32, 1024), (np.int64, 512), (np.float16, 2048), (np.float32, 150)]
    for dtype, extent in cases:
        x = batch.input((100 * normal((2, 37, extent))).astype(dtype))
        part = batch.apply("slice", [x], starts=(0, 1, 3), sizes=(2, 35, extent - 9), steps=(1, 1, 1))[0]
        turned = swapped(batch, part)
        other = batch.input((100 * normal(turned.shape, seed=9)).astype(dtype))
        batch.expect(f"{dtype.__name__} {extent}", batch.apply("maximum", [turned, other]))
    target = target_for(instruction_set)
    text = render(lower(batch.graph(), target, 2), target)
    assert text.count("pg::transpose_lanes") == (3 if target.lanes > 1 and target.has_clock else 0)
    assert_no_failures(batch.failures(target))


@SETS
def test_an_epilogue_reads_what_lies_across_its_rows_by_squares(instruction_set):
    batch = Batch("across rows")
    # The last has too few rows; what is narrower than four bytes is read lane by lane.
    cases = [
        (200, 70, np.float32),
        (45, 1100, np.float32),
        (130, 96, np.float64),
        (64, 64, np.float16),
        (3, 96, np.float32),
    ]
    for rows, columns, dtype in cases:
        x, y = (batch.input(np.rint(4 * normal(shape))) for shape in ((rows, 200), (200, columns)))  # Sums are exact.
        z = batch.input(normal((columns, rows)).astype(dtype))
        turned = batch.apply("cast", [swapped(batch, z)], dtype=x.dtype)[0]
        product = batch.apply("matmul", [x, y])[0]
        batch.expect(f"{rows} {columns} {dtype.__name__}", batch.apply("add", [product, turned]))
    target = target_for(instruction_set)
    text = render(lower(batch.graph(), target, 2), target)
    assert text.count("pg::gemm_turned_rows") == (3 if target.lanes > 1 and target.has_clock else 0)
    assert_no_failures(batch.failures(target))


# --- convolution and pooling --------------------------------------------------------------------------------------

# N, C, H, W, O, kernel, stride, padding, dilation, groups
CONVOLUTIONS = [
    (2, 1, 9, 9, 4, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (3, 4, 8, 7, 6, (3, 2), (2, 1), (1, 1, 0, 1), (1, 2), 2),
    (1, 3, 20, 19, 5, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 1),
    (2, 4, 6, 6, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    (2, 2, 5, 5, 3, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (1, 2, 4, 4, 2, (4, 4), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (17, 1, 5, 6, 1, (2, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


def out_size(shape) -> tuple[int, int]:
    _, _, H, W, _, kernel, stride, padding, dilation, _ = shape
    return tuple(
        (size + low + high - step * (k - 1) - 1) // move + 1
        for size, low, high, step, k, move in zip(
            (H, W), padding[::2], padding[1::2], dilation, kernel, stride, strict=True
        )
    )  # type: ignore[return-value]


@SETS
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_convolutions_and_their_gradients_with_epilogues(instruction_set, dtype):
    batch = Batch(f"convolutions_{np.dtype(dtype).name}")
    for number, shape in enumerate(CONVOLUTIONS):
        N, C, H, W, O, kernel, stride, padding, dilation, groups = shape  # noqa: E741 - the field's letter
        params = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x = batch.input(normal((N, C, H, W), dtype, number))
        weight = batch.input(normal((O, C // groups, *kernel), dtype, number + 50), "state")
        bias = batch.input(normal((O, 1, 1), dtype, number + 60))
        (y,) = batch.apply("conv2d", [x, weight], **params)
        (biased,) = batch.apply("add", [y, bias])
        (active,) = batch.apply("relu", [biased])
        batch.expect(f"{number} forward", [biased, active], None, NEAR[dtype] * 3)
        dy = batch.input(normal((N, O, *out_size(shape)), dtype, number + 70))
        (dx,) = batch.apply("conv2d_grad_input", [dy, weight], size=(H, W), **params)
        (mask,) = batch.apply("gt", [x, batch.apply("full", [], shape=(), value=0.0, dtype=x.dtype)[0]])
        (zero,) = batch.apply("full", [], shape=(), value=0.0, dtype=x.dtype)
        batch.expect(f"{number} grad_input masked", batch.apply("where", [mask, dx, zero]), None, NEAR[dtype] * 3)
        (dw,) = batch.apply("conv2d_grad_weight", [x, dy], kernel=kernel, **params)
        (rate,) = batch.apply("full", [], shape=(), value=0.125, dtype=x.dtype)
        (step,) = batch.apply("mul", [rate, dw])
        # One rate per output channel: the epilogue must know the row that an element is in.
        (per_row,) = batch.apply("mul", [dw, batch.input(normal((O, 1, 1, 1), dtype, number + 80))])
        (turned,) = batch.apply("copy", batch.apply("permute", [dw], dims=(1, 0, 3, 2)))
        batch.expect(f"{number} grad_weight per row", [per_row, turned], None, NEAR[dtype] * 10)
        batch.update(f"{number} update", weight, batch.apply("sub", [weight, step])[0], None, NEAR[dtype] * 10)
    assert_no_failures(batch.failures(target_for(instruction_set)))


# kernel, stride, padding, dilation
POOLS = [
    ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((3, 2), (1, 2), (1, 0, 1, 0), (2, 1)),
    ((2, 2), (1, 1), (0, 0, 0, 0), (1, 1)),
]


@SETS
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64], ids=lambda dtype: dtype.__name__)
def test_pools_and_their_gradients_with_ties_and_nan(instruction_set, dtype):
    batch = Batch(f"pools_{np.dtype(dtype).name}")
    for number, (kernel, stride, padding, dilation) in enumerate(POOLS):
        for size in ((6, 8), (7, 35), (5, 5)):
            rng = np.random.default_rng(number)
            image = rng.integers(0, 3, (2, 3, *size)).astype(dtype)
            if dtype is not np.int64:
                image[rng.random(image.shape) < 0.1] = np.nan
            x = batch.input(image)
            params = {"kernel": kernel, "stride": stride, "padding": padding}
            y, index = batch.apply("max_pool2d", [x], dilation=dilation, **params)
            batch.expect(f"max {number} {size}", [y, index])
            dy = batch.input(rng.integers(-3, 4, y.shape).astype(dtype))
            (dx,) = batch.apply("window_put", [dy, index], size=size, dilation=dilation, **params)
            batch.expect(
                f"put, take {number} {size}",
                [dx, *batch.apply("window_take", [dx, index], dilation=dilation, **params)],
            )
            if dtype is np.int64 or dilation != (1, 1):
                continue
            for include in (True, False):
                (mean,) = batch.apply(
                    "avg_pool2d", [batch.input(normal((2, 3, *size), dtype))], count_include_pad=include, **params
                )
                (back,) = batch.apply("avg_pool2d_grad", [mean], size=size, count_include_pad=include, **params)
                batch.expect(f"mean {number} {size} {include}", [mean, back], None, NEAR[dtype])
    assert_no_failures(batch.failures(target_for(instruction_set)))


# --- sums and extremes --------------------------------------------------------------------------------------------


@SETS
def test_a_sum_of_a_million_numbers_is_as_near_as_numpys(instruction_set):
    """Lanes that each added 60,000 numbers in a row were off by a hundred times what NumPy's pairwise sum is."""
    numbers = np.random.default_rng(3).random(1_000_000).astype(np.float32) + np.float32(0.5)
    batch = Batch("long_sums")
    x, columns = batch.input(numbers), batch.input(numbers.reshape(-1, 20))
    batch.expect("sum", batch.apply("sum", [x], dims=(0,), keepdim=False))
    batch.expect("columns", batch.apply("sum", [columns], dims=(0,), keepdim=False))
    batch.expect("rows", batch.apply("sum", [batch.input(numbers.reshape(2, -1))], dims=(1,), keepdim=False))
    compiled = Compiled(batch.graph(), target_for(instruction_set))
    whole, by_column, by_row = compiled.run(batch.arrays, 2)
    exact = numbers.astype(np.float64)
    assert abs(float(whole) - exact.sum()) <= 4 * max(abs(float(numbers.sum()) - exact.sum()), exact.sum() * 2.0**-24)
    np.testing.assert_allclose(by_row, exact.reshape(2, -1).sum(1), rtol=4e-7)
    np.testing.assert_allclose(by_column, exact.reshape(-1, 20).sum(0), rtol=4e-7)


@SETS
def test_sums_of_many_short_rows_are_finished_side_by_side(instruction_set):
    batch = Batch("short_rows")
    for dtype, shape in ((np.float32, (37, 5)), (np.float64, (3, 33, 20)), (np.float16, (16, 40))):
        x, scale = (batch.input(normal(extents, seed=5).astype(dtype)) for extents in (shape, shape[:-1]))
        total = batch.apply("sum", [x], dims=(len(shape) - 1,), keepdim=False)
        tolerance = 2e-2 if dtype is np.float16 else 1e-5
        batch.expect(f"{dtype.__name__} {shape}", batch.apply("mul", [*total, scale]), None, tolerance)
    # One row after another: too few of them, or too long ones.
    for shape in ((3, 50), (40, 3000)):
        batch.expect(f"{shape}", batch.apply("sum", [batch.input(normal(shape))], dims=(1,), keepdim=False), None, 1e-4)
    target = target_for(instruction_set)
    text = render(lower(batch.graph(), target, 2), target)
    assert text.count("pg::reduce_add_rows") == (3 if target.lanes > 1 and target.has_clock else 0)
    assert_no_failures(batch.failures(target))


# --- places -------------------------------------------------------------------------------------------------------


@SETS
def test_moves_of_every_kind(instruction_set):
    batch = Batch("moves")
    rng = np.random.default_rng(2)
    for dtype in (np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_):
        name = np.dtype(dtype).name
        table = batch.input(rng.integers(0, 2 if dtype is np.bool_ else 9, (5, 7)).astype(dtype))
        number = batch.input(np.array(1, dtype))
        batch.expect(f"concat {name}", batch.apply("concat", [table, table, table], dim=1, sizes=(7, 7, 7)))
        (turned,) = batch.apply("permute", [table], dims=(1, 0))
        batch.expect(f"concat turned {name}", batch.apply("concat", [turned, turned], dim=0, sizes=(7, 7)))
        batch.expect(f"pad {name}", batch.apply("pad", [turned], lo=(2, 0), hi=(0, 3), value=dtype(1).item()))
        small = batch.apply("slice", [table], starts=(4, 6), sizes=(2, 3), steps=(-1, -2))[0]
        for starts, steps in (((1, 1), (1, 1)), ((3, 6), (-1, -2)), ((0, 0), (2, 3))):
            params = {"starts": starts, "sizes": (2, 3), "steps": steps}
            batch.expect(f"slice_update {name} {steps}", batch.apply("slice_update", [table, small], **params))
        for kind in (np.int64, np.int32):
            index = batch.input(rng.integers(0, 5, 11).astype(kind))
            batch.expect(f"gather {name}", batch.apply("gather", [table, index], dim=0, aligned=False))
            aligned = batch.input(rng.integers(0, 7, (4, 3)).astype(kind))
            batch.expect(f"gather aligned {name}", batch.apply("gather", [table, aligned], dim=1, aligned=True))
            source = batch.input(rng.integers(0, 9, (11, 7)).astype(dtype))
            batch.expect(f"scatter {name}", batch.apply("scatter", [table, source, index], dim=0, aligned=False))
            # Indices that name a place twice, and reach a part of the table alone.
            few = batch.input(rng.integers(0, 9, (4, 3)).astype(dtype))
            params = {"dim": 1, "aligned": True}
            batch.expect(f"scatter aligned {name}", batch.apply("scatter", [table, few, aligned], **params))
            if dtype is not np.bool_:
                params = {"dim": 0, "aligned": False, "shape": (5, 7)}
                batch.expect(f"scatter_add {name}", batch.apply("scatter_add", [source, index], **params))
        batch.expect(f"number {name}", batch.apply("expand", batch.apply("copy", [number]), shape=(2, 2)))
        for dim, descending in ((0, False), (1, True)):
            values = batch.apply("sort", [table], dim=dim, descending=descending)
            batch.expect(f"sort {name}", values)
        if dtype is not np.bool_:
            for dim, reverse in ((0, False), (1, True)):
                batch.expect(f"cumsum {name}", batch.apply("cumsum", [table], dim=dim, reverse=reverse))
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
def test_sorting_is_stable_in_any_order_that_the_elements_come_in(instruction_set):
    rng = np.random.default_rng(13)
    batch = Batch("sorting")
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1.0, -2.5, np.nan], np.float32)
    for extent in (1, 2, 24, 25, 32, 33, 64, 65, 300):
        for columns in ((extent,), (3, extent), (extent, 2), (2, extent, 5)):
            array = batch.input(rng.choice(special, columns) if extent % 2 else rng.integers(0, 40, columns))
            for descending in (False, True):
                dim = columns.index(extent)
                batch.expect(f"sort {columns}", batch.apply("sort", [array], dim=dim, descending=descending))
    for what, array in orders(3000 if instruction_set != "cuda-sim" else 600).items():
        given = batch.input(array.astype(np.float64))
        for descending in (False, True):
            batch.expect(f"sort {what}", batch.apply("sort", [given], dim=0, descending=descending))
    assert_no_failures(batch.failures(target_for(instruction_set)))


def orders(count):
    """Return elements in orders that a quicksort may part badly; the last of them so badly that it needs another way."""
    up = np.arange(count)
    odd = np.arange(1, count // 2, 2)
    killer = up.copy()
    killer[odd - 1], killer[odd] = odd, count // 2 + odd - 1
    killer[count // 2 :] = 2 * np.arange(count - count // 2) + 2
    return {
        "rising": up, "falling": up[::-1], "equal": up * 0, "up and down": np.minimum(up, up[::-1]),
        "two": up % 2, "median of three": killer,
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["gather", "scatter", "scatter_add"])
def test_an_index_out_of_range_stops_the_step_and_leaves_its_states_alone(name, workers):
    batch = Batch(f"range_{name}")
    state = batch.input(np.arange(4, dtype=np.float32), "state")
    index = batch.input(np.array([0, 2, 4]))
    if name == "gather":
        (moved,) = batch.apply("gather", [state, index], dim=0, aligned=False)
    else:
        source = batch.input(np.ones(3, np.float32))
        if name == "scatter":
            (moved,) = batch.apply("scatter", [state, source, index], dim=0, aligned=False)
        else:
            (moved,) = batch.apply("scatter_add", [source, index], dim=0, aligned=False, shape=(4,))
    batch.expect("moved", [moved])
    (one,) = batch.apply("full", [], shape=(), value=1.0, dtype=float32)
    batch.update("state", state, batch.apply("add", [state, one])[0])
    compiled = Compiled(batch.graph(), target_for("native"))
    good = [array.copy() if array.dtype != np.int64 else np.array([0, 2, 3]) for array in batch.arrays]
    np.testing.assert_array_equal(compiled.run(good, workers)[1], np.arange(4) + 1)
    passed = allocate(compiled.plan, batch.arrays)
    with pytest.raises(IndexOutOfRange, match="index 4 is outside a dimension of size 4"):
        compiled.module.run(passed, workers)
    np.testing.assert_array_equal(passed[0], np.arange(4, dtype=np.float32))


@SETS
def test_random_draws_follow_numpys_counters_for_any_length(instruction_set):
    batch = Batch("draws")
    for seed, stream in ((7, 3), (2**40 + 5, 2**33 + 1), (-1, 0)):
        state = batch.input(np.array([seed, stream]))
        for shape in ((0,), (1,), (3,), (65,), (5, 7), (2, 3, 17), ()):
            for dtype in (float32, float64):
                batch.expect(f"uniform {shape}", batch.apply("random_uniform", [state], shape=shape, dtype=dtype))
                batch.expect(
                    f"normal {shape}",
                    batch.apply("random_normal", [state], shape=shape, dtype=dtype),
                    None,
                    NEAR[dtype.numpy.type],
                )
            params = {"shape": shape, "dtype": int64, "low": -2, "range": 1000}
            batch.expect(f"whole {shape}", batch.apply("random_int", [state], **params))
        (mask,) = batch.apply("random_uniform", [state], shape=(4, 9), dtype=float32)
        (half,) = batch.apply("full", [], shape=(), value=0.5, dtype=float32)
        (kept,) = batch.apply("lt", batch.apply("permute", [mask], dims=(1, 0)) + (half,))
        batch.expect("turned mask", [kept, *batch.apply("cast", [kept], dtype=bool_)])
    assert_no_failures(batch.failures(target_for(instruction_set)))


@SETS
@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 40), 1), ((3, 3000), 1), ((400, 7), 0), ((100, 50), 0), ((9, 70), 0), ((50,), 0)]
)
def test_a_state_that_changes_with_its_rows_sum_is_read_by_all_before(instruction_set, shape, dim):
    """On a device the one thread that stored a row's new state was not waited for by those that had yet to read the old."""
    batch = Batch("counted_rows")
    x = batch.input(normal(shape))
    per_row = tuple(1 if axis == dim else extent for axis, extent in enumerate(shape))
    state = batch.input(normal(per_row, seed=1), role="state")
    (total,) = batch.apply("sum", [x], dims=(dim,), keepdim=True)
    (changed,) = batch.apply("add", [state, total])
    (near,) = batch.apply("sub", [x, batch.apply("expand", [changed], shape=shape)[0]])
    batch.expect("near", [near], None, 1e-5)
    batch.update("state", state, changed, None, 1e-5)
    target = target_for(instruction_set)
    families = [kernel.family for kernel in Compiled(batch.graph(), target).plan.kernels]
    assert families == ["row"], "in one kernel, else this tests nothing"
    assert_no_failures(batch.failures(target))
