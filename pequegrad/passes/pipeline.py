"""The passes in their order."""

from __future__ import annotations

from ..trace.graph import Graph
from .base import Observer, Pass, run_passes
from .crop_to_what_is_read import crop_to_what_is_read
from .fold_constants import fold_constants
from .merge_common_subexpressions import merge_common_subexpressions
from .number_taps import number_taps
from .pool_before_relu import pool_before_relu
from .remove_dead_code import remove_dead_code
from .simplify_algebra import simplify_algebra
from .sum_before_put import sum_before_put

PIPELINE = (
    Pass(
        "remove_dead_code", remove_dead_code, "first: a trace records much that nobody reads, and the rest is spared it"
    ),
    Pass("fold_constants", fold_constants, "before simplify_algebra, which knows operands that are constants"),
    Pass("simplify_algebra", simplify_algebra, "before the merging of equals: it makes more of them equal"),
    Pass("merge_common_subexpressions", merge_common_subexpressions, "after all that rewrites operands"),
    Pass("remove_dead_code_again", remove_dead_code, "the others leave nodes that nobody reads any more"),
    Pass("pool_before_relu", pool_before_relu, "after merging: one mask, and no reader that is not read himself"),
    Pass("sum_before_put", sum_before_put, "after pool_before_relu, which takes masks off what is put"),
    Pass("number_taps", number_taps, "late: nobody may be left who reads positions and is not read himself"),
    Pass(
        "crop_to_what_is_read",
        crop_to_what_is_read,
        "after number_taps: positions in a plane would hold its width fast",
    ),
)


def run_pipeline(graph: Graph, observer: Observer | None = None) -> Graph:
    """Return ``graph`` after all passes, verified after each.

    ``observer(name, graph, seconds)`` hears of each pass. Raises CompilerBug where a pass breaks the graph.
    """
    return run_passes(graph, PIPELINE, observer)
