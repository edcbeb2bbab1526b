"""Follows the batch axis through a graph by the ops' own sharding rules: what is mapped, replicated, or a share.

Invariant: a record only. It says where a step could be cut into blocks of samples; nothing is scheduled by it yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..ops.core import Op
from ..ops.sharding import REPLICATED, Mapped, Partial, Replicated, Sharding
from ..records import entity, replace
from ..trace.graph import Graph, Node, Value
from .plan import Attention, Axis, Contract, Conv2d, Kernel, Map, Phase, Row, StepPlan, Window


@entity
class ShardedGraph:
    """How each value is spread over the blocks of one axis, and before which nodes blocks must be combined."""

    extent: int
    shardings: Mapping[Value, Sharding]
    cuts: tuple[Node, ...]


def shard_graph(graph: Graph, extent: int | None = None) -> ShardedGraph:
    """Return the shardings of ``graph`` over the leading axis of its arguments, the batch.

    ``extent``: the batch size; None: the leading extent that most arguments have. States and numbers are replicated.
    An operand that a rule cannot take as it is stands behind a cut: it is combined, and replicated from there on.
    """
    if extent is None:
        extent = batch_extent(graph)
    shardings: dict[Value, Sharding] = {}
    for item in graph.inputs:
        is_batch = item.role == "argument" and extent > 1 and item.value.shape[:1] == (extent,)
        shardings[item.value] = Mapped(0) if is_batch else REPLICATED
    cuts = []
    for node in graph.nodes:
        inputs = tuple(shardings[value] for value in node.inputs)
        found = ruled(node.op, node, inputs)
        if found is None:
            cuts.append(node)
            found = REPLICATED
        for value in node.outputs:
            shardings[value] = found
    return ShardedGraph(extent, shardings, tuple(cuts))


def ruled(op: type[Op], node: Node, inputs: tuple[Sharding, ...]) -> Sharding | None:
    """Return what the op's rule says of its results; None: it needs whole values."""
    if all(isinstance(sharding, Replicated) for sharding in inputs):
        return REPLICATED
    return op.shard(inputs, tuple(value.spec for value in node.inputs), **dict(node.params))


def batch_extent(graph: Graph) -> int:
    """Return the leading extent that most arguments share; 1 where there is none."""
    counts: dict[int, int] = {}
    for item in graph.inputs:
        if item.role == "argument" and item.value.shape:
            counts[item.value.shape[0]] = counts.get(item.value.shape[0], 0) + 1
    return max(counts, key=lambda extent: (counts[extent], extent), default=1)


def partial_values(sharded: ShardedGraph) -> tuple[Value, ...]:
    """Return the values of which every block makes a share, such as the weights' gradients."""
    return tuple(value for value, sharding in sharded.shardings.items() if isinstance(sharding, Partial))


def annotate_grids(plan: StepPlan) -> StepPlan:
    """Return the plan with each phase's ``grid``: the outermost axis of its heaviest kernel, which workers share."""
    return replace(plan, phases=tuple(_annotated(phase) for phase in plan.phases))


def _annotated(phase: Phase) -> Phase:
    widest = max((_outermost(kernel) for kernel in phase.kernels), key=lambda axis: axis[1], default=("", 1))
    name, extent = widest
    return replace(phase, grid=(Axis(name, extent, "outer"),) if extent > 1 else ())


def _outermost(kernel: Kernel) -> tuple[str, int]:
    """Return the name and extent of the axis along which a kernel's work is split."""
    if isinstance(kernel, Map):
        return "elements", kernel.extents[0]
    if isinstance(kernel, Row):
        return "rows", max(kernel.outer)
    if isinstance(kernel, Contract):
        return "rows", max(kernel.m, *kernel.batch, 1)
    if isinstance(kernel, Conv2d):
        return "batch", kernel.shape.N
    if isinstance(kernel, Window):
        return "planes", kernel.shape.planes
    if isinstance(kernel, Attention):
        return "matrices", math.prod(kernel.batch)
    return "outer", kernel.outer
