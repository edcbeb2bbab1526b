"""Where results and updates go: in place where that is right, through a copy where it is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pequegrad import targets
from pequegrad.codegen.interpret import allocate, reach, run_plan
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Index
from pequegrad.codegen.schedule import domain, reads_and_writes
from pequegrad.dtypes import int64
from pequegrad.errors import IndexOutOfRange, NotCompilable
from pequegrad.ops.registry import REGISTRY
from pequegrad.trace.graph import GraphBuilder, Location, Output
from tests.codegen.random_graphs import updates_in_parts
from tests.codegen.tracing import MATRIX, Program, check_plan

RANDOM = np.random.default_rng(1)


def test_two_states_can_be_exchanged():
    p = Program()
    a, b = p.input("state"), p.input("state")
    p.update(a, b)
    p.update(b, a)
    check_plan(p.traced())


def test_three_states_can_go_round_with_arithmetic_on_the_way():
    p = Program()
    a, b, c = p.input("state"), p.input("state"), p.input("state")
    p.update(a, p.apply("add", b, c))
    p.update(b, p.apply("mul", c, a))
    p.update(c, p.apply("sub", a, b))
    check_plan(p.traced())


def test_a_state_can_become_its_own_transpose():
    p = Program()
    a = p.input("state")
    p.update(a, p.apply("permute", a, dims=(1, 0)))
    check_plan(p.traced())


def test_a_product_may_overwrite_neither_of_its_own_operands():
    p = Program()
    a = p.input("state")
    p.update(a, p.apply("matmul", a, a))
    check_plan(p.traced())


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind", ["product", "row", "pointwise"])
def test_a_state_may_keep_the_old_value_of_another_that_is_written_in_place(kind, is_first):
    # The copy of the old value, made after its state had its writer, stood in one phase with that writer.
    p = Program()
    a, b, x = p.input("state"), p.input("state"), p.input("argument")
    new = p.apply("matmul", x, x)
    if kind == "row":
        new = p.apply("sub", x, p.apply("expand", p.apply("sum", x, dims=(1,), keepdim=True), shape=(3, 3)))
    elif kind == "pointwise":
        new = p.apply("sub", x, a)
    for state, value in ((b, a), (a, new))[:: 1 if is_first else -1]:
        p.update(state, value)
    check_plan(p.traced())


def test_a_pointwise_update_is_written_in_place_by_one_kernel():
    p = Program()
    a, g = p.input("state"), p.input("argument")
    p.update(a, p.apply("sub", a, p.apply("mul", g, g)))
    plan = check_plan(p.traced())
    assert len(plan.kernels) == 1
    assert plan.arena_bytes == 0


def test_an_update_waits_for_the_readers_of_the_old_value():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    new = p.apply("add", a, x)
    p.update(a, new)
    p.result(p.apply("matmul", p.apply("permute", a, dims=(1, 0)), x))
    plan = check_plan(p.traced())
    assert isinstance(plan.phases[0].kernels[0], Contract)
    assert len(plan.phases) == 2


def test_a_reader_of_both_old_and_new_value_makes_the_update_go_through_memory_of_its_own():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    new = p.apply("matmul", x, x)
    p.update(a, new)
    p.result(p.apply("matmul", new, a))
    check_plan(p.traced())


def test_results_that_are_inputs_states_views_constants_or_given_twice_are_copies():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    y = p.apply("exp", x)
    full = p.apply("full", shape=(3, 3), value=2.5, dtype=MATRIX.dtype)
    for value in (
        a,
        x,
        y,
        y,
        p.apply("permute", y, dims=(1, 0)),
        full,
        p.apply("slice", y, starts=(1, 0), sizes=(2, 2), steps=(1, 1)),
    ):
        p.result(value)
    p.update(a, y)
    check_plan(p.traced())


def test_an_update_in_a_row_that_reads_the_old_value_in_every_sweep_is_written_in_the_last():
    p = Program()
    a = p.input("state")
    shifted = p.apply("sub", a, p.apply("amax", a, dims=(1,), keepdim=True))
    powers = p.apply("exp", shifted)
    p.update(a, p.apply("mul", a, p.apply("div", powers, p.apply("sum", powers, dims=(1,), keepdim=True))))
    plan = check_plan(p.traced())
    assert len(plan.kernels) == 1


def gathering(index):
    p = Program()
    table, state = p.input("state"), p.input("state")
    indices = p.input("argument", np.array(index))
    rows = p.apply("gather", p.apply("exp", table), indices, dim=0, aligned=False)
    p.update(state, p.apply("add", state, p.apply("sum", rows, dims=(0,), keepdim=False)))
    p.update(table, p.apply("neg", table))
    return p


def test_states_are_written_after_every_kernel_that_may_fail():
    plan = check_plan(gathering([0, 2]).traced())
    failing = next(i for i, phase in enumerate(plan.phases) if any(isinstance(k, Index) for k in phase.kernels))
    written = {i for i, buffer in enumerate(plan.buffers) if buffer.is_written and buffer.scope == "state"}
    assert len(written) == 2
    for phase in plan.phases[: failing + 1]:
        for kernel in phase.kernels:
            assert not written & {access.buffer for access in reads_and_writes(kernel)[1]}


def assert_kernels_read_what_they_write_at_the_same_place(plan):
    """A plan's workers share a kernel: none may read what another one writes in it."""
    for kernel in plan.kernels:
        reads, writes = reads_and_writes(kernel)
        for read, write in itertools.product(reads, writes):
            if read.buffer == write.buffer and (read.strides, read.offset) != (write.strides, write.offset):
                (low, high), (first, last) = reach(read, kernel), reach(write, kernel)
                assert high < first or last < low, kernel.name


def stores(plan):
    """Return the numbers of elements that the kernels of a plan store."""
    return [[math.prod(domain(kernel)) for kernel in phase.kernels] for phase in plan.phases]


def test_rows_of_a_state_are_written_where_it_lies_and_the_others_stay():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    first = p.with_rows(a, 1, 2, p.apply("exp", p.rows(x, 0, 2)))
    p.update(a, p.with_rows(first, 0, 1, p.rows(x, 2, 1)))
    plan = check_plan(p.traced())
    assert plan.arena_bytes == 0
    assert stores(plan) == [[6], [3]]


def test_rows_of_a_state_change_by_what_they_are_themselves_in_one_kernel():
    p = Program()
    a = p.input("state")
    p.update(a, p.with_rows(a, 1, 2, p.apply("exp", p.rows(a, 1, 2))))
    assert stores(check_plan(p.traced())) == [[6]]


def test_rows_that_get_their_old_value_back_have_it():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    first = p.with_rows(a, 0, 2, p.rows(x, 0, 2))
    p.update(a, p.with_rows(first, 1, 1, p.rows(a, 1, 1)))
    check_plan(p.traced())


def test_rows_made_of_others_of_the_same_state_go_through_memory_of_their_own():
    p = Program()
    a = p.input("state")
    p.update(a, p.with_rows(a, 1, 2, p.apply("exp", p.rows(a, 0, 2))))
    assert_kernels_read_what_they_write_at_the_same_place(check_plan(p.traced()))


def test_rows_that_move_within_what_the_step_makes_go_through_memory_of_their_own():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    first = p.with_rows(a, 0, 1, p.rows(x, 0, 1))
    p.update(a, p.with_rows(first, 1, 2, p.rows(first, 0, 2)))
    assert_kernels_read_what_they_write_at_the_same_place(check_plan(p.traced()))


def replay(index):
    p = Program()
    buffer, ready = p.input("state"), p.input("state")
    x = p.input("argument", RANDOM.standard_normal((2, 3)))
    indices = p.input("argument", np.array(index))
    p.update(buffer, p.apply("scatter", buffer, x, indices, dim=0, aligned=False))
    p.update(ready, p.apply("neg", ready))
    return p


def test_rows_at_indices_are_written_where_the_state_lies_once_the_indices_are_checked():
    for index in ([2, 0], [1, 1]):
        plan = check_plan(replay(index).traced())
        check, scatter = (next(k for k in phase.kernels if isinstance(k, Index)) for phase in plan.phases)
        assert (check.kind, scatter.kind) == ("check", "scatter")
        assert plan.buffers[scatter.out.buffer].scope == "state"


@pytest.mark.parametrize("make", [gathering, replay])
def test_an_index_out_of_range_leaves_every_state_as_it_was(make):
    p = make([1, 3])
    plan = lower(p.builder.build(), targets.get("cpp"))
    passed = allocate(plan, p.arrays)
    with pytest.raises(IndexOutOfRange, match="index 3 is out of range"):
        run_plan(plan, passed)
    for before, after in zip(p.arrays, passed, strict=False):
        np.testing.assert_array_equal(after, before)


def test_indices_made_of_what_the_step_has_written_are_no_reason_to_write_a_state_early():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    first = p.with_rows(a, 0, 1, p.rows(x, 0, 1))
    index = p.apply(
        "cast", p.apply("relu", p.apply("sign", p.apply("sum", first, dims=(1,), keepdim=False))), dtype=int64
    )
    p.update(a, p.apply("scatter", first, x, index, dim=0, aligned=False))
    check_plan(p.traced())


@pytest.mark.parametrize("seed", range(60))
def test_states_written_in_parts_in_any_order_become_what_they_should(seed):
    assert_kernels_read_what_they_write_at_the_same_place(check_plan(updates_in_parts(seed)))


def test_an_op_without_a_kernel_is_refused_with_its_name_and_the_users_line(monkeypatch):
    monkeypatch.setattr(REGISTRY["sort"], "lowering", NotCompilable("it has no kernel"))
    builder = GraphBuilder()
    x = builder.add_input(MATRIX, "argument", "x")
    values = builder.apply(REGISTRY["sort"], [x], {"dim": 0, "descending": False}, Location("train.py", 12, "f"))
    builder.outputs.append(Output(values[0], "result", "y"))
    with pytest.raises(NotCompilable, match=r"train.py:12: sort: "):
        lower(builder.build(), targets.get("cpp"))
