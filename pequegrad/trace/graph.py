"""The traced program: frozen static single assignment, with a text form and a verifier.

Invariant: a Graph is immutable; nodes stand in an order in which every value is defined before it is used; a value's
spec is what its op's rule says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..dtypes import DType
from ..errors import CompilerBug
from ..locations import Location
from ..ops.core import Op, TensorSpec
from ..records import entity, record

_OUR_OPS = f"{Op.__module__.rpartition('.')[0]}."

Params = tuple[tuple[str, Any], ...]


@entity
class Value:
    """One tensor of the program: an input, or a result of a node. Compared by identity."""

    spec: TensorSpec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> DType:
        return self.spec.dtype


@entity
class Node:
    """One application of an op."""

    op: type[Op]
    inputs: tuple[Value, ...]
    params: Params
    outputs: tuple[Value, ...]
    location: Location | None = None
    is_backward: bool = False
    """Whether a gradient sweep recorded it; ``location`` is then the forward line it belongs to."""
    is_recomputed: bool = False
    """Whether it does once more what an earlier node did: to be run as late as its users allow."""

    def reading(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...] | None = None) -> Node:
        """Return the same application to other operands, with new results where ``outputs`` are given; itself where nothing is new."""
        made = self.outputs if outputs is None else outputs
        if inputs == self.inputs and made == self.outputs:
            return self
        return Node(self.op, inputs, self.params, made, self.location, self.is_backward, self.is_recomputed)

    def broken_rule(self) -> str | None:
        """Return how the results are not what the op's rule says, or None."""
        inferred = self.op.infer(*[value.spec for value in self.inputs], **dict(self.params))
        specs = (inferred,) if isinstance(inferred, TensorSpec) else tuple(inferred)
        got = tuple([value.spec for value in self.outputs])
        if specs == got:
            return None
        return f"results are {list(map(str, got))}, its rule says {list(map(str, specs))}"


@entity
class Input:
    """Where a value comes from at each call. ``role`` is "argument" (of the call), "state" (a captured tensor),
    "scalar" (a Python number read at each call, float64, 0-d) or "constant" (an array that entered while tracing)."""

    value: Value
    role: str
    name: str


@entity
class Output:
    """A value that leaves: ``role`` is "result" (a new array) or "update" (written over the state input ``target``)."""

    value: Value
    role: str
    name: str
    target: Value | None = None


@record
class Graph:
    """A whole step."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    name: str = "step"

    def verify(self, before: Graph | None = None) -> Graph:
        """Return this graph, or raise CompilerBug naming the node that breaks the invariant.

        ``before``: a verified graph; nodes that are also in it are not asked for their rule again."""
        if self is before:
            return self
        known = frozenset() if before is None else frozenset(before.nodes)
        defined = {item.value for item in self.inputs}
        if len(defined) != len(self.inputs):
            raise CompilerBug("graph: an input value stands twice")
        count = len(defined) + sum([len(node.outputs) for node in self.nodes])
        for node in self.nodes:
            if not defined.issuperset(node.inputs):
                missing = next(value for value in node.inputs if value not in defined)
                raise CompilerBug(f"{self._where(node)}: an input {missing.spec} is not defined before it")
            defined.update(node.outputs)
        if len(defined) != count:
            made = Counter([item.value for item in self.inputs] + [v for node in self.nodes for v in node.outputs])
            node = next(node for node in self.nodes if any(made[value] > 1 for value in node.outputs))
            specs = ", ".join(str(value.spec) for value in node.outputs)
            raise CompilerBug(f"{self._where(node)}: a result, of {specs}, is defined twice")
        for node in [node for node in self.nodes if node not in known]:
            wrong = node.broken_rule()
            if wrong is not None:
                raise CompilerBug(f"{self._where(node)}: {wrong}")
        states = {item.value for item in self.inputs if item.role == "state"}
        updated: set[Value] = set()
        for output in self.outputs:
            if output.value not in defined:
                raise CompilerBug(f"graph: output {output.name} is not defined")
            if output.role == "update":
                if output.target not in states or output.target in updated:
                    raise CompilerBug(f"graph: update {output.name} has no state of its own to write to")
                if output.target.spec != output.value.spec:
                    raise CompilerBug(
                        f"graph: update {output.name} is {output.value.spec}, its state {output.target.spec}"
                    )
                updated.add(output.target)
        return self

    def _where(self, node: Node) -> str:
        return f"graph: node {self.nodes.index(node)} {node.op.name}"

    def __str__(self) -> str:
        return format_graph(self)


def format_graph(graph: Graph, *, locations: bool = False) -> str:
    """Return the readable, deterministic text of a graph; equal programs have equal text (locations apart)."""
    names: dict[Value, str] = {}

    def name(value: Value) -> str:
        return names.setdefault(value, f"%{len(names)}")

    lines = [f"graph {graph.name}"]
    for item in graph.inputs:
        lines.append(f"  {name(item.value)}: {item.value.spec} = {item.role} {item.name}")
    for node in graph.nodes:
        params = "".join(f" {key}={format_param(value)}" for key, value in node.params)
        left = ", ".join(f"{name(value)}: {value.spec}" for value in node.outputs)
        right = ", ".join(name(value) for value in node.inputs)
        suffix = " (again)" if node.is_recomputed else ""
        if locations and node.location:
            suffix += f"  # {node.location}{' (backward)' if node.is_backward else ''}"
        lines.append(f"  {left} = {node.op.name}({right}){params}{suffix}")
    for output in graph.outputs:
        target = f" -> {names[output.target]}" if output.target is not None else ""
        lines.append(f"  {output.role} {output.name} {names[output.value]}{target}")
    return "\n".join(lines)


def identify(graph: Graph) -> str | None:
    """Return a text that two graphs share only if they are the same program from the same lines, in any process; None where
    an op is not of this package, so that its rules may change unseen. Quicker than `format_graph`, and for no one to read."""
    numbers: dict[Value, int] = {}
    specs: dict[TensorSpec, str] = {}

    def define(value: Value) -> str:
        numbers[value] = len(numbers)
        spec = value.spec
        text = specs.get(spec)
        if text is None:
            text = specs[spec] = str(spec)
        return text

    lines = [graph.name]
    lines += [f"{define(item.value)} {item.role} {item.name!r}" for item in graph.inputs]
    for node in graph.nodes:
        op, place = node.op, node.location
        if not op.__module__.startswith(_OUR_OPS):
            return None
        read = [numbers[value] for value in node.inputs]
        made = [define(value) for value in node.outputs]
        where = "" if place is None else f"{place.file}:{place.line}:{place.function}"
        lines.append(f"{op.name}{read}{node.params!r}{made}{node.is_backward}{node.is_recomputed} {where}")
    for output in graph.outputs:
        target = "" if output.target is None else numbers[output.target]
        lines.append(f"{output.role} {output.name!r} {numbers[output.value]} {target}")
    return "\n".join(lines)


def format_param(value: Any) -> str:
    """Return a parameter's text, dtypes by name and tuples as [a,b]."""
    if isinstance(value, DType):
        return value.name
    if isinstance(value, tuple):
        return "[" + ",".join(format_param(part) for part in value) + "]"
    return repr(value)


class GraphBuilder:
    """Builds one Graph, from nothing (the tracer) or from another one (passes): the only mutable stage."""

    __slots__ = ("inputs", "name", "nodes", "outputs")

    def __init__(self, name: str = "step") -> None:
        self.name = name
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: list[Output] = []

    def add_input(self, spec: TensorSpec, role: str, name: str) -> Value:
        """Add an input and return its value."""
        value = Value(spec)
        self.inputs.append(Input(value, role, name))
        return value

    def apply(
        self,
        op: type[Op],
        inputs: Iterable[Value],
        params: dict[str, Any],
        location: Location | None = None,
        is_backward: bool = False,
    ) -> tuple[Value, ...]:
        """Add a node and return its results; the specs come from the op's rule."""
        operands = tuple(inputs)
        inferred = op.infer(*(value.spec for value in operands), **params)
        specs = (inferred,) if isinstance(inferred, TensorSpec) else tuple(inferred)
        outputs = tuple(Value(spec) for spec in specs)
        self.nodes.append(Node(op, operands, tuple(sorted(params.items())), outputs, location, is_backward))
        return outputs

    def build(self) -> Graph:
        """Return the finished, verified graph."""
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(self.outputs), self.name).verify()


def users(graph: Graph) -> dict[Value, list[Node]]:
    """Return, for every value, the nodes that read it, in order."""
    found: dict[Value, list[Node]] = {item.value: [] for item in graph.inputs}
    for node in graph.nodes:
        for value in node.outputs:
            found[value] = []
    for node in graph.nodes:
        for value in dict.fromkeys(node.inputs):
            found[value].append(node)
    return found
