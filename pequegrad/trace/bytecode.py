"""Which outside values a line of user code may read or write: chains such as ``cfg.optimizer["lr"]``, from bytecode.

Invariant: a chain starts at a global, a free variable or a local, and goes on only through attributes and constant
items, so that following it runs no user code.
"""

from __future__ import annotations

import dis
import functools
from types import CodeType

from ..records import record

GLOBAL, FREE, LOCAL = "global", "free", "local"
_REFLECTIVE = frozenset({"getattr", "vars", "asdict", "astuple", "__dict__", "attrgetter", "hasattr"})
_NAMES_GLOBALS = "globals"
_KEEPS_TOP = frozenset({"COPY", "DUP_TOP", "NOP", "CACHE", "EXTENDED_ARG", "PUSH_NULL", "PRECALL", "NOT_TAKEN"})


@record
class Chain:
    """A value and the way to it: ``steps`` are (True, attribute name) or (False, constant key)."""

    kind: str
    name: str
    steps: tuple[tuple[bool, object], ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f".{key}" if is_attribute else f"[{key!r}]" for is_attribute, key in self.steps)


@record
class Line:
    """What one line does. ``stores`` are the chains that it assigns to. ``is_reflective``: it uses getattr or the like,
    so it may read any attribute of what it names."""

    reads: tuple[Chain, ...]
    stores: tuple[Chain, ...]
    is_reflective: bool


@functools.lru_cache(maxsize=4096)
def lines_of(code: CodeType) -> dict[int, Line]:
    """Return what each line of a code object reads and stores."""
    line_at: dict[int, int] = {}
    for start, end, line in code.co_lines():
        if line is not None:
            line_at.update(dict.fromkeys(range(start, end), line))
    reads: dict[int, dict[Chain, None]] = {}
    stores: dict[int, dict[Chain, None]] = {}
    names: dict[int, set[str]] = {}
    constants: dict[int, set[str]] = {}
    chain: Chain | None = None
    constant: tuple[object] | None = None
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        line = line_at.get(instruction.offset, code.co_firstlineno)
        here = reads.setdefault(line, {})
        if isinstance(value, str):
            (constants if name == "LOAD_CONST" else names).setdefault(line, set()).add(value)
        if name in _KEEPS_TOP:
            continue
        if name in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
            here.pop(chain, None)
            chain = Chain(chain.kind, chain.name, (*chain.steps, (True, value)))
            here[chain] = None
            constant = None
        elif (name == "BINARY_SUBSCR" or (name == "BINARY_OP" and instruction.argrepr == "[]")) and chain and constant:
            here.pop(chain, None)
            chain = Chain(chain.kind, chain.name, (*chain.steps, (False, constant[0])))
            here[chain] = None
            constant = None
        elif name.startswith(("LOAD_CONST", "LOAD_SMALL_INT")) and chain is not None and isinstance(value, str | int):
            constant = (value,)
        elif name == "STORE_ATTR" and chain is not None:
            stores.setdefault(line, {})[Chain(chain.kind, chain.name, (*chain.steps, (True, value)))] = None
            chain = constant = None
        elif (stored := _stored(code, name, value)) is not None:
            stores.setdefault(line, {})[stored] = None
            chain = constant = None
        else:
            chain = constant = None
            for root in _roots(code, name, value):
                chain = root
                here[root] = None
    for line, used in names.items():
        if _NAMES_GLOBALS in used:  # globals()["name"], under whichever constants stand there
            reads.setdefault(line, {}).update({Chain(GLOBAL, key): None for key in constants.get(line, ())})
    return {
        line: Line(tuple(found), tuple(stores.get(line, ())), bool(names.get(line, set()) & _REFLECTIVE))
        for line, found in reads.items()
    }


def _stored(code: CodeType, name: str, value: object) -> Chain | None:
    """Return the variable of an outer scope that an instruction stores to; a cell that inner functions read is none."""
    if name == "STORE_GLOBAL" or (name == "STORE_NAME" and code.co_name == "<module>"):
        return Chain(GLOBAL, str(value))
    return Chain(FREE, str(value)) if name == "STORE_DEREF" and value in code.co_freevars else None


def _roots(code: CodeType, name: str, value: object) -> list[Chain]:
    if name in ("LOAD_GLOBAL", "LOAD_NAME"):
        return [Chain(GLOBAL, str(value))]
    if name.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_FROM_DICT_OR_DEREF")):
        found = value if isinstance(value, tuple) else (value,)
        return [Chain(FREE if one in code.co_freevars else LOCAL, str(one)) for one in found if one is not None]
    if name.startswith("STORE_FAST_LOAD_FAST") and isinstance(value, tuple):
        return [Chain(LOCAL, str(value[-1]))]
    return []
