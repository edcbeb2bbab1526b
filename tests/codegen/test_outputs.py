"""Where results and updates go: in place where that is right, through a copy where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad import targets
from pequegrad.codegen.interpret import allocate, run_plan
from pequegrad.codegen.lower import lower
from pequegrad.codegen.plan import Contract, Index
from pequegrad.codegen.schedule import reads_and_writes
from pequegrad.dtypes import float64, int64
from pequegrad.errors import IndexOutOfRange, NotCompilable
from pequegrad.ops.core import REGISTRY, TensorSpec
from pequegrad.trace.graph import GraphBuilder, Location, Output
from tests.codegen.tracing import Traced, check_plan

RANDOM = np.random.default_rng(1)
MATRIX = TensorSpec((3, 3), float64)


class Program:
    """A graph built by hand."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.arrays: list[np.ndarray] = []

    def input(self, role, array=None, spec=MATRIX):
        self.arrays.append(RANDOM.standard_normal(spec.shape) if array is None else array)
        return self.builder.add_input(spec, role, f"{role}{len(self.arrays)}")

    def apply(self, name, *inputs, **params):
        return self.builder.apply(REGISTRY[name], inputs, params)[0]

    def result(self, value):
        self.builder.outputs.append(Output(value, "result", f"result{len(self.builder.outputs)}"))

    def update(self, state, value):
        self.builder.outputs.append(Output(value, "update", f"update{len(self.builder.outputs)}", state))

    def check(self):
        return check_plan(Traced(self.builder.build(), self.arrays))


def test_two_states_can_be_exchanged():
    p = Program()
    a, b = p.input("state"), p.input("state")
    p.update(a, b)
    p.update(b, a)
    p.check()


def test_three_states_can_go_round_with_arithmetic_on_the_way():
    p = Program()
    a, b, c = p.input("state"), p.input("state"), p.input("state")
    p.update(a, p.apply("add", b, c))
    p.update(b, p.apply("mul", c, a))
    p.update(c, p.apply("sub", a, b))
    p.check()


def test_a_state_can_become_its_own_transpose():
    p = Program()
    a = p.input("state")
    p.update(a, p.apply("permute", a, dims=(1, 0)))
    p.check()


def test_a_product_may_overwrite_neither_of_its_own_operands():
    p = Program()
    a = p.input("state")
    p.update(a, p.apply("matmul", a, a))
    p.check()


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind", ["product", "row", "pointwise"])
def test_a_state_may_keep_the_old_value_of_another_that_is_written_in_place(kind, is_first):
    # The copy of the old value, made after its state had its writer, stood in one phase with that writer.
    p = Program()
    a, b, x = p.input("state"), p.input("state"), p.input("argument")
    if kind == "product":
        new = p.apply("matmul", x, x)
    else:
        new = p.apply("sub", x, a if kind == "pointwise" else p.apply("expand", p.apply("sum", x, dims=(1,), keepdim=True), shape=(3, 3)))
    for state, value in ((b, a), (a, new))[:: 1 if is_first else -1]:
        p.update(state, value)
    p.check()


def test_a_pointwise_update_is_written_in_place_by_one_kernel():
    p = Program()
    a, g = p.input("state"), p.input("argument")
    p.update(a, p.apply("sub", a, p.apply("mul", g, g)))
    plan = p.check()
    assert len(plan.kernels) == 1
    assert plan.arena_bytes == 0


def test_an_update_waits_for_the_readers_of_the_old_value():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    new = p.apply("add", a, x)
    p.update(a, new)
    p.result(p.apply("matmul", p.apply("permute", a, dims=(1, 0)), x))
    plan = p.check()
    assert isinstance(plan.phases[0].kernels[0], Contract)
    assert len(plan.phases) == 2


def test_a_reader_of_both_old_and_new_value_makes_the_update_go_through_memory_of_its_own():
    p = Program()
    a, x = p.input("state"), p.input("argument")
    new = p.apply("matmul", x, x)
    p.update(a, new)
    p.result(p.apply("matmul", new, a))
    p.check()


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
    p.check()


def test_an_update_in_a_row_that_reads_the_old_value_in_every_sweep_is_written_in_the_last():
    p = Program()
    a = p.input("state")
    shifted = p.apply("sub", a, p.apply("amax", a, dims=(1,), keepdim=True))
    powers = p.apply("exp", shifted)
    p.update(a, p.apply("mul", a, p.apply("div", powers, p.apply("sum", powers, dims=(1,), keepdim=True))))
    plan = p.check()
    assert len(plan.kernels) == 1


def gathering(index):
    p = Program()
    table, state = p.input("state"), p.input("state")
    indices = p.input("argument", np.array(index), TensorSpec((2,), int64))
    rows = p.apply("gather", p.apply("exp", table), indices, dim=0, aligned=False)
    p.update(state, p.apply("add", state, p.apply("sum", rows, dims=(0,), keepdim=False)))
    p.update(table, p.apply("neg", table))
    return p


def test_states_are_written_after_every_kernel_that_may_fail():
    plan = gathering([0, 2]).check()
    failing = next(i for i, phase in enumerate(plan.phases) if any(isinstance(k, Index) for k in phase.kernels))
    written = {i for i, buffer in enumerate(plan.buffers) if buffer.is_written and buffer.scope == "state"}
    assert len(written) == 2
    for phase in plan.phases[: failing + 1]:
        for kernel in phase.kernels:
            assert not written & {access.buffer for access in reads_and_writes(kernel)[1]}


def test_an_index_out_of_range_leaves_every_state_as_it_was():
    p = gathering([0, 3])
    plan = lower(p.builder.build(), targets.get("cpp"))
    passed = allocate(plan, p.arrays)
    with pytest.raises(IndexOutOfRange, match="index 3 is out of range"):
        run_plan(plan, passed)
    for before, after in zip(p.arrays, passed, strict=False):
        np.testing.assert_array_equal(after, before)


def test_an_op_without_a_kernel_is_refused_with_its_name_and_the_users_line():
    builder = GraphBuilder()
    x = builder.add_input(MATRIX, "argument", "x")
    values = builder.apply(REGISTRY["sort"], [x], {"dim": 0, "descending": False}, Location("train.py", 12, "f"))
    builder.outputs.append(Output(values[0], "result", "y"))
    with pytest.raises(NotCompilable, match=r"train.py:12: sort: "):
        lower(builder.build(), targets.get("cpp"))
