"""Run the C++ compiler: source to object, objects to a shared module.

Invariant: the only file that starts processes. Whatever ends this process's wait for a compiler ends the
compiler too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ToolchainError
from ..records import record
from .programs import CXX_HINT, Compiler

_QUOTED_LINES = 12
_FULL_DISK = ("No space left on device", "Read-only file system", "Disk quota exceeded", "File too large")


@record
class CommandResult:
    """What a compiler did: its command line, exit status, everything it printed, and the seconds it took."""

    command: tuple[str, ...]
    status: int
    output: str
    seconds: float

    @property
    def is_full_disk(self) -> bool:
        """Whether it failed because it could not write, which is no fault of the source."""
        return self.status != 0 and any(text in self.output for text in _FULL_DISK)

    def log(self) -> str:
        """Return the text that a build log holds for it."""
        ending = "" if self.output.endswith("\n") or not self.output else "\n"
        summary = f"[exit status {self.status}, {self.seconds:.2f} s]"
        return f"$ {shlex.join(self.command)}\n{self.output}{ending}{summary}\n"


def probe_version(command: Sequence[str]) -> str:
    """Return the first line of the compiler's --version. Raises ToolchainError when it does not run."""
    result = run_command([*command, "--version"])
    if result.status != 0 or not result.output.strip():
        raise ToolchainError(
            f"the C++ compiler does not run: {shlex.join(result.command)} said:\n{quote(result.output)}"
        )
    return result.output.strip().splitlines()[0]


def python_include_folders() -> tuple[Path, ...]:
    """Return the folders with pybind11's and Python's headers. Raises ToolchainError when either is missing."""
    try:
        import pybind11
    except ImportError:
        raise ToolchainError("pybind11 is not installed. Run: python -m pip install pybind11") from None
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        raise ToolchainError(
            f"Python's headers are missing: there is no {python / 'Python.h'}. "
            f"Install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )
    return (Path(pybind11.get_include()), python)


def object_count(source: str) -> int:
    """Return how many objects a step's source is to be compiled to, each at the same time as the others: one, or as many as it
    says in lines ``#if PG_IN_OBJECT(number)``."""
    return max(1, len(re.findall(r"^#if PG_IN_OBJECT\(\d+\)$", source, re.MULTILINE)))


def compile_object(
    compiler: Compiler, flags: Sequence[str], include_folders: Sequence[Path], source: Path, output: Path
) -> CommandResult:
    """Compile one source file to an object file; the user's CXXFLAGS come last and so win."""
    return compile_objects(compiler, flags, include_folders, source, [output])[0]


def compile_objects(
    compiler: Compiler, flags: Sequence[str], include_folders: Sequence[Path], source: Path, outputs: Sequence[Path]
) -> list[CommandResult]:
    """Compile one source file to an object file or, with PG_OBJECT defined as 1, 2 …, to several at the same time."""
    includes = [f"-I{folder}" for folder in include_folders]
    commands = []
    for number, output in enumerate(outputs, 1):
        chosen = [f"-DPG_OBJECT={number}"] if len(outputs) > 1 else []
        rest = [*compiler.extra_flags, "-pipe", "-c", str(source), "-o", str(output)]
        commands.append([*compiler.command, *flags, *chosen, *includes, *rest])
    return run_commands(commands)


def link_shared(compiler: Compiler, flags: Sequence[str], objects: Sequence[Path], output: Path) -> CommandResult:
    """Link object files to a shared module."""
    return run_command([*compiler.command, *map(str, objects), *flags, *compiler.extra_flags, "-o", str(output)])


def compile_failure(result: CommandResult, source: Path, log: Path, cure: str = "") -> ToolchainError:
    """Return the error that tells the user what the compiler said and where to look, and the cure where it is known."""
    at_fault = "If the source is at fault, this is a bug of pequegrad: please report it with both files."
    program = "nvcc" if os.path.basename(result.command[0]) == "nvcc" else "the C++ compiler"
    return ToolchainError(
        f"{program} failed with exit status {result.status}:\n{quote(result.output)}\n"
        f"command: {shlex.join(result.command)}\nsource:  {source}\nlog:     {log}\n{cure or at_fault}"
    )


def run_command(command: Sequence[str], variables: Mapping[str, str] | None = None) -> CommandResult:
    """Run a command to its end and return what it did; kill it, and what it started, if the wait is
    interrupted. ``variables``: its environment; None: this process's.
    """
    return run_commands([command], variables)[0]


def run_commands(commands: Sequence[Sequence[str]], variables: Mapping[str, str] | None = None) -> list[CommandResult]:
    """Run commands at the same time, all to their ends, and return what they did; see `run_command`."""
    import subprocess

    start = time.perf_counter()
    running: list[subprocess.Popen[str]] = []
    results = []
    try:
        for command in commands:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    # A group of its own, so that the compiler proper dies with its driver.
                    start_new_session=True,
                    text=True,
                    errors="replace",
                    env=variables,
                )
            except OSError as error:
                raise ToolchainError(f"cannot start {command[0]}: {error.strerror}. {CXX_HINT}") from error
            running.append(process)
        for command, process in zip(commands, running, strict=True):
            output, _ = process.communicate()
            results.append(CommandResult(tuple(command), process.returncode, output, time.perf_counter() - start))
    except BaseException:
        for process in running[len(results) :]:
            with contextlib.suppress(ProcessLookupError):  # it had ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
    return results


def quote(output: str) -> str:
    """Return the lines of a compiler's output that a message shows."""
    lines = output.strip().splitlines()
    # Errors first: a template's notes and warnings can fill the page before them.
    first = next(
        (index for index, line in enumerate(lines) if "error:" in line or "error " in line or "fatal" in line), 0
    )
    shown = lines[first : first + _QUOTED_LINES]
    if len(lines) > len(shown):
        shown.append(f"... ({len(lines) - len(shown)} more lines in the log)")
    return "\n".join(f"  {line}" for line in shown) or "  (it printed nothing)"
