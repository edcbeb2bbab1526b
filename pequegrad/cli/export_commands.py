"""``pequegrad inspect``: what a saved step is, and whether it is whole and runs here.

Invariant: nothing of the folder is loaded or run.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..export import loading, machine
from ..export.manifest import Manifest
from .output import Printer, readable_bytes


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    inspect = commands.add_parser("inspect", help="print what a saved step is; non-zero if it is damaged")
    inspect.add_argument("folder", help="a folder that an artifact's save wrote")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace, printer: Printer) -> int:
    manifest = loading.read_manifest(arguments.folder)
    loading.read_contents(arguments.folder, manifest)
    problem = machine.find_problem(manifest)
    if arguments.json:
        printer.json({**dataclasses.asdict(manifest), "runs_here": problem is None, "problem": problem})
        return 0
    _print(manifest, problem, printer)
    return 0


def _print(manifest: Manifest, problem: str | None, printer: Printer) -> None:
    needs, made_by = manifest.requires, manifest.made_by
    made_for = f"{needs.machine}, {needs.instruction_set}" + (f", CUDA {needs.toolkit}" if needs.toolkit else "")
    printer.line(manifest.signature())
    printer.line(f"target    {needs.target} ({made_for})")
    printer.line(f"python    modules *{needs.python}")
    printer.line(f"made by   pequegrad {made_by.pequegrad}, {made_by.compiler_version}")
    printer.line(f"runs here {'yes' if problem is None else f'no: {problem}'}")
    printer.line("files     all whole")
    for file in (manifest.module, manifest.state, manifest.source):
        printer.line(f"  {file.name}  {readable_bytes(file.bytes)}")
    written = sum(slot.bytes for slot in manifest.slots if slot.is_written and slot.role not in ("argument", "result"))
    printer.line(
        f"memory    {readable_bytes(written)} of state that it changes, {readable_bytes(manifest.arena_bytes)} of arena"
    )
    printer.line("slots")
    for slot in manifest.slots:
        mark = "w" if slot.is_written else " "
        printer.line(f"  {slot.role:9} {mark} {slot.dtype}[{','.join(map(str, slot.shape))}]  {slot.name}")
    printer.line("built in")
    for line in manifest.frozen:
        printer.line(f"  {line}")
