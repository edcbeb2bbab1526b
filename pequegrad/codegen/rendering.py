"""What a template is given: typed records of strings and numbers, made from a kernel's statements.

Invariant: everything is decided here (which variable is a scalar, which a vector, how a load walks); a template only
loops, includes, and calls macros.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..dtypes import DType, int64
from ..errors import CompilerBug
from ..records import record, replace
from .expressions import computed_as, is_literal, render_expression, rounded, scalar_type, vector_type
from .plan import Access, Accumulate, Compute, Load, Statement


@record
class Term:
    """One addend of an address or index: loop variable times stride."""

    variable: str
    stride: int


@record
class Address:
    """``pointer + offset + Σ terms`` for the first lane, and the stride from lane to lane."""

    pointer: str
    offset: int
    terms: tuple[Term, ...]
    lane_stride: int


@record
class Line:
    """One emitted statement. ``form``: "load", "load_splat", "load_strided", "load_square" (of the array that ``text``
    names), "load_scalar", "let" (``type`` name = text), "keep" (name = text), "splat", "store", "store_strided", "store_scalar".
    ``type`` of a splat is what lanes are made of."""

    form: str
    name: str = ""
    type: str = ""
    text: str = ""
    address: Address | None = None

    @property
    def is_partial(self) -> bool:
        """Whether the statement asks how many lanes there are."""
        return self.form in ("load", "load_strided", "load_square", "store", "store_strided")

    @property
    def is_store(self) -> bool:
        """Whether the statement writes to memory."""
        return self.form in ("store", "store_strided", "store_scalar")

    def reads(self, name: str) -> bool:
        """Whether the statement reads a loop variable or another one of that name."""
        if self.is_partial and name == "count":
            return True
        if self.address is not None and any(term.variable == name for term in self.address.terms):
            return True
        return re.search(rf"\b{name}\b", self.text) is not None


@record
class Pointer:
    """A parameter of an emitted kernel: a buffer of the plan or, with an ``offset``, the kernel's own place in the arena."""

    name: str
    type: str
    buffer: int
    is_written: bool
    offset: int = -1


@dataclass(slots=True)
class Variable:
    """A plan variable in emitted code: under which names its scalar and its vector form are known."""

    dtype: DType
    scalar: str | None = None
    vector: str | None = None


def _is_same_everywhere(statement: Compute) -> bool:
    """Whether a statement asks for no place, or for the same one throughout the kernel."""
    return statement.index is None or (statement.index.is_scalar and "{first}" not in statement.expression)


@dataclass(slots=True)
class KernelWriter:
    """Turns the statements of one kernel into lines. ``indices`` are the loop variables of its domain's
    axes, ``extents`` their extents (0: no such axis here)."""

    buffer_dtypes: Sequence[DType]
    indices: tuple[str, ...]
    extents: tuple[int, ...]
    lane_axis: int | None
    pointers: dict[int, Pointer] = field(default_factory=dict)
    variables: dict[int, Variable] = field(default_factory=dict)
    hoisted: list[Line] = field(default_factory=list)
    letter: str = "p"
    """What the names of pointers begin with."""

    def pointer(self, buffer: int, is_written: bool = False) -> str:
        """Return the parameter name of a buffer, adding the parameter at its first use."""
        known = self.pointers.get(buffer)
        if known is None:
            name = f"{self.letter}{len(self.pointers)}"
            known = Pointer(name, f"pg::{self.buffer_dtypes[buffer].c_name}", buffer, is_written)
            self.pointers[buffer] = known
        elif is_written and not known.is_written:
            self.pointers[buffer] = replace(known, is_written=True)
        return known.name

    def scratch(self, offset: int, element: str, is_written: bool, name: str = "scratch") -> None:
        """Add a parameter, the kernel's own place in the arena; ``element``: its C type's name."""
        self.pointers[-1] = Pointer(name, f"pg::{element}", -1, is_written, offset)

    def address(self, access: Access, is_written: bool = False, lane_axis: int | None = None) -> Address:
        """Return the address of an access, with the lane axis' own stride apart."""
        terms = tuple(
            Term(name, stride)
            for axis, (name, stride, extent) in enumerate(zip(self.indices, access.strides, self.extents, strict=True))
            if stride and (extent > 1 or axis == self.lane_axis)
        )
        lane_stride = access.strides[lane_axis] if lane_axis is not None else 0
        return Address(self.pointer(access.buffer, is_written), access.offset, terms, lane_stride)

    def vector_name(self, number: int, into: list[Line]) -> str:
        """Return the vector form of a variable, spreading its scalar form by a line added to ``into``."""
        variable = self.variables[number]
        if variable.vector is None:
            variable.vector = f"v{number}"
            into.append(Line("splat", variable.vector, f"pg::{computed_as(variable.dtype)}", str(variable.scalar)))
        return variable.vector

    def hoist(self, statements: Sequence[Statement]) -> None:
        """Emit what does not depend on the position as scalars, once, at the head of the kernel."""
        for statement in statements:
            if isinstance(statement, Load) and statement.access.is_scalar:
                self._scalar_load(statement, self.hoisted)
            elif (
                isinstance(statement, Compute)
                and _is_same_everywhere(statement)
                and statement.dst not in self.variables
            ):
                arguments = [self.variables.get(a) for a in statement.arguments]
                if all(variable is not None and variable.scalar is not None for variable in arguments):
                    self._scalar_compute(statement, self.hoisted)

    def scalar_lines(self, statements: Sequence[Statement]) -> list[Line]:
        """Emit statements once per row, as scalars."""
        lines: list[Line] = []
        for statement in statements:
            if isinstance(statement, Load):
                if statement.dst not in self.variables:
                    self._scalar_load(statement, lines)
            elif isinstance(statement, Compute):
                if statement.dst not in self.variables:
                    self._scalar_compute(statement, lines)
            else:
                source = self.variables[statement.src].scalar
                if source is None:
                    raise CompilerBug("a row-level store of a vector")
                lines.append(Line("store_scalar", text=source, address=self.address(statement.access, True)))
        return lines

    def vector_lines(self, statements: Sequence[Statement], before: list[Line] | None = None) -> list[Line]:
        """Emit statements for a vector of lanes along the lane axis; scalars are spread in ``before``."""
        spread = self.hoisted if before is None else before
        lines: list[Line] = []
        for statement in statements:
            if isinstance(statement, Load):
                if statement.dst not in self.variables:
                    self._vector_load(statement, lines)
            elif isinstance(statement, Compute):
                if statement.dst not in self.variables:
                    self._vector_compute(statement, lines, spread)
            else:
                address = self.address(statement.access, True, self.lane_axis)
                form = "store" if address.lane_stride == 1 else "store_strided"
                lines.append(Line(form, text=self.vector_name(statement.src, spread), address=address))
        return lines

    def forget(self, statements: Sequence[Statement | Accumulate]) -> None:
        """End the scope of a sweep's own variables."""
        for statement in statements:
            if isinstance(statement, Load | Compute) and statement.dst in self.variables:
                variable = self.variables[statement.dst]
                if variable.scalar is None:
                    del self.variables[statement.dst]

    def _scalar_load(self, statement: Load, lines: list[Line]) -> None:
        name = f"s{statement.dst}"
        self.variables[statement.dst] = Variable(statement.dtype, scalar=name)
        lines.append(Line("load_scalar", name, scalar_type(statement.dtype), address=self.address(statement.access)))

    def _scalar_compute(self, statement: Compute, lines: list[Line]) -> None:
        if is_literal(statement):
            text = render_expression(statement, [], str)
            # In parentheses a negative number may follow a minus.
            number = f"({text})" if text.startswith("-") else text
            self.variables[statement.dst] = Variable(statement.dtype, scalar=number)
            return
        name = f"s{statement.dst}"
        arguments = [str(self.variables[a].scalar) for a in statement.arguments]
        text = render_expression(statement, arguments, lambda what: self._scalar_position(statement, what))
        self.variables[statement.dst] = Variable(statement.dtype, scalar=name)
        lines.append(Line("let", name, scalar_type(statement.dtype), rounded(text, statement.dtype)))

    def _vector_load(self, statement: Load, lines: list[Line]) -> None:
        name = f"v{statement.dst}"
        address = self.address(statement.access, lane_axis=self.lane_axis)
        form = {0: "load_splat", 1: "load"}.get(address.lane_stride, "load_strided")
        self.variables[statement.dst] = Variable(statement.dtype, vector=name)
        lines.append(Line(form, name, f"pg::{computed_as(statement.dtype)}", address=address))

    def _vector_compute(self, statement: Compute, lines: list[Line], spread: list[Line]) -> None:
        name = f"v{statement.dst}"
        if "{first}" in statement.expression:
            # A generator of whole vectors: its operands are scalars, its lanes follow each other.
            arguments = [str(self.variables[a].scalar) for a in statement.arguments]
            if statement.index is None or self.lane_axis is None or statement.index.strides[self.lane_axis] != 1:
                raise CompilerBug(f"{statement.op.name} needs lanes along its own last axis")
        else:
            arguments = [self.vector_name(a, spread) for a in statement.arguments]
        text = render_expression(statement, arguments, lambda what: self._lane_position(statement, what))
        self.variables[statement.dst] = Variable(statement.dtype, vector=name)
        lines.append(Line("let", name, vector_type(statement.dtype), rounded(text, statement.dtype)))

    def _scalar_position(self, statement: Compute, what: str) -> str:
        index = self._index(statement)
        if what != "coordinate":
            return self._sum(index)
        simple = self._simple_coordinate(statement)
        if simple is not None:
            return self._sum(simple)
        params = dict(statement.params)
        return f"{self._sum(index)} / {params['inner']} % {params['extent']}"

    def _lane_position(self, statement: Compute, what: str) -> str:
        index = self._index(statement)
        if what == "first":
            return self._sum(index)
        if what == "index":
            return self._lanes(index)
        simple = self._simple_coordinate(statement)
        if simple is not None:
            return self._lanes(simple)
        params = dict(statement.params)
        return f"pg::coordinate({self._lanes(index)}, {params['inner']}, {params['extent']})"

    def _simple_coordinate(self, statement: Compute) -> Access | None:
        """Return (index / inner) % extent as an affine form, where no division is left to do."""
        index = self._index(statement)
        params = dict(statement.params)
        inner, extent = params["inner"], params["extent"]
        below = index.offset % inner
        above = index.offset // inner % extent
        strides = []
        for axis_extent, stride in zip(self.extents, index.strides, strict=True):
            reach = max(axis_extent - 1, 0)
            if stride % (inner * extent) == 0:
                strides.append(0)
            elif stride % inner == 0:
                strides.append(stride // inner)
                above += reach * (stride // inner)
            else:
                strides.append(0)
                below += reach * stride
        is_plain = all(stride >= 0 for stride in index.strides) and below < inner and above < extent
        return Access(-1, tuple(strides), index.offset // inner % extent) if is_plain else None

    @staticmethod
    def _index(statement: Compute) -> Access:
        if statement.index is None:
            raise CompilerBug(f"{statement.op.name} asks for its place, and has none")
        return statement.index

    def _sum(self, index: Access) -> str:
        terms = [
            name if stride == 1 else f"{name} * {stride}"
            for axis, (name, stride, extent) in enumerate(zip(self.indices, index.strides, self.extents, strict=True))
            if stride and (extent > 1 or axis == self.lane_axis)
        ]
        if index.offset or not terms:
            terms.append(str(index.offset))
        return "pg::i64(" + " + ".join(terms) + ")"

    def _lanes(self, index: Access) -> str:
        assert self.lane_axis is not None
        stride = index.strides[self.lane_axis]
        if stride == 0:
            return f"pg::splat<pg::{int64.c_name}>({self._sum(index)})"
        if stride == 1:
            return f"pg::iota<pg::{int64.c_name}>({self._sum(index)})"
        return f"(pg::iota<pg::{int64.c_name}>(0) * {stride} + {self._sum(index)})"
