"""``pequegrad cache``: what the disk cache holds, whether it is whole, and how to empty it.

Invariant: ``stats``, ``ls``, ``show`` and ``verify`` change nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..build import cache
from .output import Printer, readable_age, readable_bytes


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("cache", help="look at the disk cache of compiled steps, or empty it")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, text in (
        ("stats", _stats, "print place, size and number of steps"),
        ("ls", _list, "list the steps, most recently used first"),
        ("show", _show, "print the key and files of one step"),
        ("verify", _verify, "check every module against its sums; non-zero if one is broken"),
        ("clear", _clear, "remove all steps and bindings"),
    ):
        action = actions.add_parser(name, help=text)
        action.set_defaults(run=run)
        if name == "show":
            action.add_argument("digest", help="the step's digest, or the beginning of it, as ls prints it")
        if name != "clear":
            action.add_argument("--json", action="store_true", help="print JSON")


def _stats(arguments: argparse.Namespace, printer: Printer) -> int:
    stats = cache.stats()
    if arguments.json:
        printer.json(dataclasses.asdict(stats))
        return 0
    printer.line(f"folder             {stats.path}")
    printer.line(f"mode               {stats.mode}")
    printer.line(f"steps              {stats.entries}")
    printer.line(f"bindings           {stats.bindings}")
    printer.line(f"size               {readable_bytes(stats.bytes)} of {readable_bytes(stats.limit_bytes)}")
    printer.line(f"failed builds      {stats.failed_builds}")
    printer.line(f"unfinished builds  {stats.unfinished_builds}")
    if stats.problem:
        printer.line(f"not used: {stats.problem}")
    return 0


def _list(arguments: argparse.Namespace, printer: Printer) -> int:
    found = cache.entries()
    if arguments.json:
        printer.json([dataclasses.asdict(info) for info in found])
        return 0
    for info in found:
        printer.line(
            f"{info.digest[:12]}  {info.target:<8} {readable_bytes(info.bytes):>10}  "
            f"{info.build_seconds:6.2f} s  {readable_age(info.last_used):>10}  {info.name}"
        )
    return 0


def _show(arguments: argparse.Namespace, printer: Printer) -> int:
    info, record = cache.show(arguments.digest)
    if arguments.json:
        printer.json({"folder": info.folder, **record})
        return 0
    printer.line(f"{info.name}: {info.folder}")
    printer.line(f"source  {info.folder / str(record.get('source', '?'))}")
    printer.line(f"built in {info.build_seconds:.2f} s, {readable_age(info.created)}")
    printer.line(f"last used {readable_age(info.last_used)}")
    for name, value in record.get("key", {}).items():
        printer.line(f"  {name:<16}  {' '.join(value) if isinstance(value, list) else value}")
    return 0


def _verify(arguments: argparse.Namespace, printer: Printer) -> int:
    checked = cache.verify()
    broken = [info for info in checked if info.problem is not None]
    if arguments.json:
        printer.json([dataclasses.asdict(info) for info in checked])
    else:
        for info in broken:
            printer.line(f"{info.digest[:12]}  {info.name} {info.problem}")
        printer.line(f"{len(checked) - len(broken)} of {len(checked)} steps are whole")
        if broken:
            printer.line("A broken step is built again when it is next needed.")
    return 1 if broken else 0


def _clear(arguments: argparse.Namespace, printer: Printer) -> int:
    freed = cache.clear()
    printer.line(f"freed {readable_bytes(freed)}")
    return 0
