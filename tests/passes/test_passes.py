"""Graph text before and after each pass; what NaN and -0.0 would tell apart stays."""

from __future__ import annotations

import numpy as np
import pytest

from pequegrad.dtypes import bool_, float32, float64, int64
from pequegrad.errors import CompilerBug
from pequegrad.ops.core import TensorSpec
from pequegrad.ops.registry import REGISTRY
from pequegrad.passes import PIPELINE, Pass, run_passes, run_pipeline
from pequegrad.passes.fold_constants import fold_constants
from pequegrad.passes.merge_common_subexpressions import merge_common_subexpressions
from pequegrad.passes.remove_dead_code import remove_dead_code
from pequegrad.passes.simplify_algebra import simplify_algebra
from pequegrad.trace.graph import Graph, GraphBuilder, Output, Value


class Builder(GraphBuilder):
    """A builder with the shorthand that these tests need."""

    def do(self, name, *inputs, **params):
        return self.apply(REGISTRY[name], inputs, params)[0]

    def number(self, value, dtype=float32, shape=()):
        return self.do("full", shape=shape, value=value, dtype=dtype)

    def done(self, *values):
        self.outputs += [Output(value, "result", f"y{i}") for i, value in enumerate(values)]
        return self.build()


@pytest.fixture
def b():
    return Builder()


@pytest.fixture
def x(b):
    return b.add_input(TensorSpec((2, 3), float32), "argument", "x")


def text(graph):
    """The lines of the nodes and outputs."""
    return [line.strip() for line in str(remove_dead_code(graph)).splitlines()[2:]]


def test_remove_dead_code_drops_what_no_output_needs_and_keeps_inputs(b, x):
    b.add_input(TensorSpec((), float64), "scalar", "lr")
    b.do("exp", b.do("neg", x))
    after = remove_dead_code(b.done(b.do("tanh", x)))
    assert str(after).splitlines() == [
        "graph step",
        "  %0: float32[2,3] = argument x",
        "  %1: float64[] = scalar lr",
        "  %2: float32[2,3] = tanh(%0)",
        "  result y0 %2",
    ]


def test_merge_common_subexpressions_knows_commutative_ops_and_tells_zeros_apart(b, x):
    y = b.do("exp", x)
    first, second = b.do("add", x, y), b.do("add", b.do("exp", x), x)
    other = b.do("sub", b.do("sub", x, y), b.do("sub", y, x))
    zero, minus_zero = b.number(0.0), b.number(-0.0)
    result = b.do("mul", b.do("add", first, zero), b.do("add", second, minus_zero))
    assert text(merge_common_subexpressions(b.done(b.do("mul", result, other)))) == [
        "%1: float32[2,3] = exp(%0)",
        "%2: float32[2,3] = add(%0, %1)",
        "%3: float32[2,3] = sub(%0, %1)",
        "%4: float32[2,3] = sub(%1, %0)",
        "%5: float32[2,3] = sub(%3, %4)",
        "%6: float32[] = full() dtype=float32 shape=[] value=0.0",
        "%7: float32[] = full() dtype=float32 shape=[] value=-0.0",
        "%8: float32[2,3] = add(%2, %6)",
        "%9: float32[2,3] = add(%2, %7)",
        "%10: float32[2,3] = mul(%8, %9)",
        "%11: float32[2,3] = mul(%10, %5)",
        "result y0 %11",
    ]


def test_fold_constants_computes_chains_of_numbers_and_views_of_them(b, x):
    wide = b.do("expand", b.do("sub", b.number(1.0), b.number(0.25)), shape=(2, 3))
    assert text(fold_constants(b.done(b.do("mul", x, wide)))) == [
        "%1: float32[2,3] = full() dtype=float32 shape=[2,3] value=0.75",
        "%2: float32[2,3] = mul(%0, %1)",
        "result y0 %2",
    ]


def test_fold_constants_rounds_as_the_dtype_does(b):
    third = b.do("div", b.number(1.0), b.number(3.0))
    graph = fold_constants(b.done(third))
    (node,) = remove_dead_code(graph).nodes
    assert dict(node.params)["value"] == float(np.float32(1) / np.float32(3))


def gives_back(b, x, value):
    return simplify_algebra(b.done(value)).outputs[0].value is x


IDENTITIES = {
    "x * 1": lambda b, x: b.do("mul", x, b.number(1.0)),
    "1 * x": lambda b, x: b.do("mul", b.number(1.0), x),
    "x / 1": lambda b, x: b.do("div", x, b.number(1.0)),
    "x - 0": lambda b, x: b.do("sub", x, b.number(0.0)),
    "x + -0": lambda b, x: b.do("add", x, b.number(-0.0)),
    "max(x, -inf)": lambda b, x: b.do("maximum", x, b.number(-np.inf)),
    "where(True, x, 3)": lambda b, x: b.do("where", b.number(True, bool_), x, b.number(3.0)),
    "cast to the same dtype": lambda b, x: b.do("cast", x, dtype=float32),
    "cast there and back": lambda b, x: b.do("cast", b.do("cast", x, dtype=float64), dtype=float32),
    "--x": lambda b, x: b.do("neg", b.do("neg", x)),
    "copy": lambda b, x: b.do("copy", x),
    "detach": lambda b, x: b.do("detach", x),
    "permute there and back": lambda b, x: b.do("permute", b.do("permute", x, dims=(1, 0)), dims=(1, 0)),
    "reshape there and back": lambda b, x: b.do("reshape", b.do("reshape", x, shape=(6,)), shape=(2, 3)),
}

NO_IDENTITIES = {
    "x + 0": lambda b, x: b.do("add", x, b.number(0.0)),
    "0 - x twice": lambda b, x: b.do("sub", b.number(0.0), b.do("sub", b.number(0.0), x)),
    "x * 0": lambda b, x: b.do("mul", x, b.number(0.0)),
    "1 / (1 / x)": lambda b, x: b.do("reciprocal", b.do("reciprocal", x)),
    "sqrt(x * x)": lambda b, x: b.do("sqrt", b.do("square", x)),
    "log(exp(x))": lambda b, x: b.do("log", b.do("exp", x)),
    "cast to int and back": lambda b, x: b.do("cast", b.do("cast", x, dtype=int64), dtype=float32),
    "min(x, greatest)": lambda b, x: b.do("minimum", x, b.number(float(np.finfo(np.float32).max))),
    "permute": lambda b, x: b.do("permute", b.do("permute", x, dims=(1, 0)), dims=(0, 1)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_simplify_algebra_drops_what_changes_nothing(b, x, name):
    assert gives_back(b, x, IDENTITIES[name](b, x))


@pytest.mark.parametrize("name", NO_IDENTITIES)
def test_simplify_algebra_keeps_what_changes_one_number(b, x, name):
    assert not gives_back(b, x, NO_IDENTITIES[name](b, x))


def test_simplify_algebra_keeps_widening_integers_beyond_the_mantissa(b):
    i = b.add_input(TensorSpec((4,), int64), "argument", "i")
    assert not gives_back(b, i, b.do("cast", b.do("cast", i, dtype=float64), dtype=int64))


def test_simplify_algebra_spreads_an_operand_that_was_broadcast(b, x):
    row = b.add_input(TensorSpec((3,), float32), "argument", "row")
    ones = b.number(1.0, shape=(2, 3))
    after = simplify_algebra(b.done(b.do("mul", row, ones)))
    assert text(after)[1:] == ["%2: float32[2,3] = expand(%1) shape=[2,3]", "result y0 %2"]


def test_simplify_algebra_makes_one_view_of_several(b, x):
    flat = b.do("reshape", b.do("reshape", b.do("reshape", x, shape=(1, 6)), shape=(6, 1)), shape=(3, 2))
    assert text(simplify_algebra(b.done(flat))) == ["%1: float32[3,2] = reshape(%0) shape=[3,2]", "result y0 %1"]


def test_the_pipeline_keeps_inputs_and_outputs_and_shrinks_a_program(b, x):
    twice = b.do("add", b.do("exp", b.do("detach", x)), b.do("exp", b.do("mul", x, b.number(1.0))))
    graph = b.done(twice, b.do("copy", x))
    heard = []
    after = run_pipeline(graph, lambda name, result, seconds: heard.append((name, len(result.nodes), seconds >= 0)))
    assert [name for name, _, _ in heard] == [step.name for step in PIPELINE]
    assert [item.name for item in after.inputs] == ["x"]
    assert text(after) == [
        "%1: float32[2,3] = exp(%0)",
        "%2: float32[2,3] = add(%1, %1)",
        "result y0 %2",
        "result y1 %0",
    ]


@pytest.mark.parametrize("step", PIPELINE, ids=lambda step: step.name)
def test_a_pass_that_finds_nothing_gives_the_graph_that_it_got(b, x, step):
    graph = b.done(b.do("exp", x))
    assert step.run(graph) is graph


def test_a_pass_that_replaces_what_leaves_gives_another_graph(b, x):
    graph = b.done(b.do("exp", b.do("mul", x, b.number(1.0))), b.do("copy", x))
    after = simplify_algebra(graph)
    assert after is not graph and after.outputs[1].value is x


def test_a_pass_that_breaks_the_graph_is_found_out_at_once(b, x):
    graph = b.done(b.do("exp", x))
    strange = Graph(graph.inputs, (), (Output(Value(x.spec), "result", "y0"),))
    with pytest.raises(CompilerBug, match="not defined"):
        run_passes(graph, (Pass("break_it", lambda _: strange, "for this test"),))


def test_every_pass_says_why_it_stands_where_it_stands():
    assert all(step.reason for step in PIPELINE)
    assert len({step.name for step in PIPELINE}) == len(PIPELINE)
