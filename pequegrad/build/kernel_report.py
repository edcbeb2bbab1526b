"""What each kernel of a step takes on a device, as ptxas reports it: registers, shared memory, stack, spills.

Invariant: a step whose compiler reported nothing has no report, and its folder no file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "kernels.json"
_PLAIN_NAME = re.compile(r"_ZL?(\d+)")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One kernel: registers of a thread, bytes of static shared memory of a block, and of a thread's stack in slow
    local memory; ``spill_stores``, ``spill_loads``: bytes that lack of registers sends there and back.
    """

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def parse(output: str) -> tuple[KernelReport, ...]:
    """Return the kernels that the output of ``nvcc -Xptxas=-v`` reports, by name."""
    # ptxas reports the properties of functions that a kernel calls too: only what is about the kernel itself counts.
    parts = re.split(r"Compiling entry function '([^']+)' for '([^']+)'", output)
    found = []
    for mangled, architecture, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        own = re.search(rf"Function properties for {re.escape(mangled)}\n(.*)", text)
        used = re.search(r"Used (\d+) registers.*", text)
        if used is None:
            continue
        found.append(
            KernelReport(
                name=_plain(mangled),
                architecture=architecture,
                registers=int(used[1]),
                shared=_bytes(r"(\d+) bytes smem", used[0]),
                stack=max(
                    _bytes(r"(\d+) bytes stack frame", own[1] if own else ""),
                    _bytes(r"(\d+) bytes cumulative stack", used[0]),
                ),
                spill_stores=_bytes(r"(\d+) bytes spill stores", text),
                spill_loads=_bytes(r"(\d+) bytes spill loads", text),
            )
        )
    return tuple(
        sorted(found, key=lambda kernel: [int(part) if part.isdigit() else part for part in _parts(kernel.name)])
    )


def write(folder: Path, kernels: Sequence[KernelReport]) -> None:
    """Write the report beside a module."""
    if kernels:
        records = [dataclasses.asdict(kernel) for kernel in kernels]
        (folder / FILE_NAME).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[KernelReport, ...]:
    """Return the report beside a module; empty where there is none."""
    try:
        records = json.loads((folder / FILE_NAME).read_bytes())
        return tuple(KernelReport(**record) for record in records)
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def _parts(name: str) -> list[str]:
    # Names and numbers take turns, so that phase10 comes after phase9.
    return re.split(r"(\d+)", name)


def _plain(mangled: str) -> str:
    found = _PLAIN_NAME.match(mangled)
    return mangled[found.end() : found.end() + int(found[1])] if found else mangled


def _bytes(pattern: str, text: str) -> int:
    """Return the sum over all that the pattern finds."""
    return sum(map(int, re.findall(pattern, text)))
