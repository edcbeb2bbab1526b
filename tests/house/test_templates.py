"""Templates: each names on its first line the typed record that it takes, and uses only fields of records.

The fields are followed by type: from the template's one variable through attributes, loops and indexing.
Where the type is not known (a macro's parameter, the result of a filter), the field must exist on some record
of codegen.
"""

from __future__ import annotations

import importlib
import re
import types
import typing
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2 import meta, nodes

from pequegrad import records
from pequegrad.codegen.plan import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "pequegrad" / "templates").rglob("*.j2"))
RECORD_MODULES = tuple(path.stem for path in (ROOT / "pequegrad" / "codegen").glob("[!_]*.py"))
FIRST_LINE = re.compile(r"\{#- record: ([a-z_.]+)\.([A-Za-z0-9]+) -#\}")

per_template = pytest.mark.parametrize(
    "path", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "pequegrad" / "templates"))
)


def record_of(text: str) -> Any:
    """Return the record, or the union of records, that the first line of a template names."""
    match = FIRST_LINE.fullmatch(text.splitlines()[0].strip())
    assert match, f"the first line must be {{#- record: module.Class -#}}. Got {text[:80]!r}."
    module, name = match.groups()
    return getattr(importlib.import_module(module), name)


def is_record(kind: Any) -> bool:
    """Whether a class is one of frozen records."""
    return isinstance(kind, type) and issubclass(kind, records.Record)


def known_names() -> set[str]:
    """Return every public attribute of every record of codegen."""
    names: set[str] = set()
    for module_name in RECORD_MODULES:
        module = importlib.import_module(f"pequegrad.codegen.{module_name}")
        for value in vars(module).values():
            if is_record(value):
                names |= {name for name in dir(value) if not name.startswith("_")}
    return names


def members(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type: of ``A | None``, A."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(part for part in typing.get_args(kind) if part is not type(None))
    return (kind,)


def attribute_type(kind: Any, name: str) -> Any:
    """Return the type of field ``name`` of a record or None if unknown; AttributeError if it lacks."""
    owners = [part for part in members(kind) if is_record(part)]
    if not owners:
        return None
    for record in owners:
        hints = typing.get_type_hints(record)
        if name in hints:
            return hints[name]
        if hasattr(record, name):
            return None
    raise AttributeError(f"{' | '.join(record.__name__ for record in owners)} has no field {name!r}")


def element_type(kind: Any) -> Any:
    """Return the type of an element of a sequence type, or None if it is not known."""
    for part in members(kind):
        if typing.get_origin(part) in (tuple, list) or getattr(part, "__name__", "") == "Sequence":
            arguments = typing.get_args(part)
            return arguments[0] if arguments else None
    return None


class FieldCheck:
    """Walks a template with the types of its variables, and collects the fields that no record has."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.wrong: list[str] = []

    def type_of(self, node: nodes.Node, scope: dict[str, Any]) -> Any:
        """Return the type of an expression, or None; checks every attribute on the way."""
        if isinstance(node, nodes.Name):
            return scope.get(node.name)
        if isinstance(node, nodes.Getattr):
            owner = self.type_of(node.node, scope)
            if isinstance(node.node, nodes.Name) and node.node.name == "loop":
                return None
            try:
                found = attribute_type(owner, node.attr)
            except AttributeError as error:
                self.wrong.append(f"line {node.lineno}: {error}")
                return None
            if found is None and node.attr not in self.known and not hasattr(str, node.attr):
                self.wrong.append(f"line {node.lineno}: no record has a field {node.attr!r}")
            return found
        if isinstance(node, nodes.Getitem):
            self.type_of(node.arg, scope)
            return element_type(self.type_of(node.node, scope))
        for child in node.iter_child_nodes():
            self.type_of(child, scope)
        return None

    def walk(self, body: list[nodes.Node], scope: dict[str, Any]) -> None:
        for node in body:
            if isinstance(node, nodes.For):
                inner = dict(scope)
                element = element_type(self.type_of(node.iter, scope))
                if isinstance(node.target, nodes.Name):
                    inner[node.target.name] = element
                else:  # a tuple of names: their types are not followed
                    inner |= {name.name: None for name in node.target.find_all(nodes.Name)}
                if node.test is not None:
                    self.type_of(node.test, inner)
                self.walk(node.body + node.else_, inner)
            elif isinstance(node, nodes.Macro):
                self.walk(node.body, scope | {argument.name: None for argument in node.args})
            elif isinstance(node, nodes.If):
                self.type_of(node.test, scope)
                for branch in (node.body, node.elif_, node.else_):
                    self.walk(branch, scope)
            elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
                scope[node.target.name] = self.type_of(node.node, scope)
            elif hasattr(node, "body"):
                self.walk(node.body, scope)
            else:
                self.type_of(node, scope)


def wrong_fields(text: str, record: Any, is_macros: bool) -> list[str]:
    """Return complaints about a template; a file of macros has no variable of its own."""
    tree = jinja2.Environment().parse(text)
    variables = sorted(meta.find_undeclared_variables(tree))
    if is_macros:
        assert variables == [], f"macros must take all they use as parameters. They read {variables}."
    else:
        assert len(variables) == 1, f"a template takes one record, as one variable. It reads {variables}."
    check = FieldCheck(known_names())
    check.walk(tree.body, dict.fromkeys(variables, record))
    return check.wrong


def test_every_target_has_the_same_templates():
    folders = {path.parent.name for path in TEMPLATES} - {"macros"}
    names = {folder: {path.name for path in TEMPLATES if path.parent.name == folder} for folder in folders}
    assert folders == {"cpp", "cuda"}
    assert names["cpp"] == names["cuda"] == {f"{family}.j2" for family in (*FAMILIES, "step")}


@per_template
def test_first_line_names_a_frozen_typed_record(path):
    record = record_of(path.read_text(encoding="utf-8"))
    assert all(is_record(part) for part in members(record)), record


@per_template
def test_template_uses_only_fields_that_its_record_has(path):
    text = path.read_text(encoding="utf-8")
    wrong = wrong_fields(text, record_of(text), is_macros=path.parent.name == "macros")
    assert not wrong, "\n".join(f"{path.relative_to(ROOT)}: {complaint}" for complaint in wrong)


@records.record
class Leaf:
    extent: int


@records.record
class Root:
    leaves: tuple[Leaf, ...]
    first: Leaf | None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{% for leaf in k.leaves %}{{ leaf.extent }}{{ loop.index }}{% endfor %}{{ k.first.extent }}", None),
        ("{{ k.twigs }}", "Root has no field 'twigs'"),
        ("{% for leaf in k.leaves %}{{ leaf.width }}{% endfor %}", "Leaf has no field 'width'"),
        ("{% if k.first.width > 1 %}x{% endif %}", "Leaf has no field 'width'"),
        ("{{ k.leaves[0].width }}", "Leaf has no field 'width'"),
        ("{% set leaf = k.first %}{{ leaf.width }}", "Leaf has no field 'width'"),
        ("{% macro m(leaf) %}{{ leaf.no_record_has_this }}{% endmacro %}{{ m(k) }}", "no record has a field"),
    ],
)
def test_the_reader_finds_planted_mistakes(text, complaint):
    wrong = wrong_fields(text, Root, is_macros=False)
    assert (wrong == []) if complaint is None else (len(wrong) == 1 and complaint in wrong[0]), wrong


def test_a_second_variable_is_refused():
    with pytest.raises(AssertionError, match="one record"):
        wrong_fields("{{ k.first }}{{ other }}", Root, is_macros=False)
