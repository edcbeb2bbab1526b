"""Arithmetic on single numbers in parts: what a kernel does over and over, such as each parameter's step count, is found.

Invariant: parts share no result, and none reads what another writes, so that they may run in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..dtypes import DType
from .expressions import is_literal
from .plan import Compute, Load, Statement, Store

LEAST_ALIKE = 3
"""Parts that are alike, from which on they are written once."""

LEAST_COMPUTED = 1
"""Ops for each number loaded or stored, above which results are kept for a part that loads the same numbers."""

Part = tuple[Statement, ...]


def parted(body: Part, dtypes: Sequence[DType]) -> tuple[Part, list[list[Part]]]:
    """Return the statements that stand alone, and the parts of ``body`` that are alike, each with its own loads.

    ``dtypes``: of the plan's buffers."""
    stored = {s.access.buffer for s in body if isinstance(s, Store)}
    loaded = Counter(s.access.buffer for s in body if isinstance(s, Load))
    groups: dict[Any, list[Part]] = {}
    for part in _parts(body):
        groups.setdefault(_shape(part, dtypes), []).append(part)
    alike = [parts for parts in groups.values() if len(parts) >= LEAST_ALIKE]
    for parts in alike:
        for part in parts:
            own = {s.access.buffer for s in part if isinstance(s, Load)}
            written = {s.access.buffer for s in part if isinstance(s, Store)}
            readers = sum(loaded[buffer] for buffer in written)
            if readers > len(own & written) or (own & stored) - written:
                return body, []
    taken = {s.access.buffer for parts in alike for part in parts for s in part if isinstance(s, Store)}
    rest = [s for s in body if not (isinstance(s, Store) and s.access.buffer in taken)]
    return _needed(rest), alike


def _parts(body: Part) -> list[Part]:
    """Return the statements of each result, or of several that share arithmetic."""
    place = {s.dst: at for at, s in enumerate(body) if not isinstance(s, Store)}
    owner: dict[int, int] = {}
    members: dict[int, set[int]] = {}
    for number, store in enumerate(body):
        if not isinstance(store, Store):
            continue
        reached, computed, waiting = {number}, set(), [store.src]
        while waiting:
            at = place[waiting.pop()]
            statement = body[at]
            if at not in reached and isinstance(statement, Compute):
                waiting += statement.arguments
                if not is_literal(statement):
                    computed.add(at)
            reached.add(at)
        # Loads and literals may be had by several parts, what is computed may not.
        for home in {owner[at] for at in computed if at in owner}:
            reached |= members.pop(home)
        members[number] = reached
        owner.update(dict.fromkeys(reached, number))
    return [_in_order([body[at] for at in sorted(part)]) for part in members.values()]


def _in_order(part: Sequence[Statement]) -> Part:
    """Return a part's statements in an order that follows from its arithmetic alone, stores behind all else: alike parts are
    so wherever in the kernel their statements stood."""
    by_variable = {s.dst: s for s in part if not isinstance(s, Store)}
    stores = [s for s in part if isinstance(s, Store)]
    found: dict[int, Statement] = {}
    waiting = [s.src for s in reversed(stores)]
    while waiting:
        variable = waiting[-1]
        statement = by_variable[variable]
        arguments = statement.arguments if isinstance(statement, Compute) else ()
        missing = [a for a in arguments if a not in found]
        if missing:
            waiting.append(missing[0])
        else:
            found[variable] = statement
            waiting.pop()
    return (*found.values(), *stores)


def is_worth_keeping(part: Part) -> bool:
    """Whether it is less work to compare what a part loads, and to copy what it stores, than to do its arithmetic again. Not where
    it changes what it loads."""
    loaded, stored = ([s for s in part if isinstance(s, kind)] for kind in (Load, Store))
    is_pure = not {s.access.buffer for s in loaded} & {s.access.buffer for s in stored}
    computed = [s for s in part if isinstance(s, Compute) and not is_literal(s)]
    return is_pure and len(computed) > LEAST_COMPUTED * (len(loaded) + len(stored))


def _needed(statements: Sequence[Statement]) -> Part:
    """Return the statements without those whose variables nobody uses."""
    wanted: set[int] = set()
    kept: list[Statement] = []
    for statement in reversed(statements):
        if isinstance(statement, Store):
            wanted.add(statement.src)
        elif statement.dst not in wanted:
            continue
        elif isinstance(statement, Compute):
            wanted.update(statement.arguments)
        kept.append(statement)
    return tuple(reversed(kept))


def _shape(part: Part, dtypes: Sequence[DType]) -> tuple[Any, ...]:
    """Return what parts that are alike have in common: all but which variables and buffers they name."""
    variables: dict[int, int] = {}
    buffers: dict[int, int] = {}
    found: list[Any] = []
    for s in part:
        if isinstance(s, Compute):
            arguments = tuple(variables[a] for a in s.arguments)
            place = None if s.index is None else (s.index.strides, s.index.offset)
            found.append((s.op, s.dtype, arguments, s.argument_dtypes, repr(s.params), s.expression, place))
        else:
            number = buffers.setdefault(s.access.buffer, len(buffers))
            what = (type(s), number, dtypes[s.access.buffer], s.access.strides, s.access.offset)
            found.append((*what, variables[s.src] if isinstance(s, Store) else s.dtype))
        if not isinstance(s, Store):
            variables[s.dst] = len(variables)
    return tuple(found)
