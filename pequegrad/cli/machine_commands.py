"""``pequegrad doctor`` and ``pequegrad env``: what this machine has, and whether a step compiles and runs on
it.

Invariant: all that they leave behind is in the cache: the self-test step, and the compiler's version.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from ..build import cache
from ..config import config
from ..errors import PequegradError
from .output import Printer, readable_bytes


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    doctor = commands.add_parser("doctor", help="check compiler, cache and a compiled step; non-zero if one fails")
    doctor.set_defaults(run=_doctor)
    environment = commands.add_parser("env", help="print versions, processor and settings, for a bug report")
    environment.add_argument("--json", action="store_true", help="print JSON")
    environment.set_defaults(run=_environment)


def _doctor(arguments: argparse.Namespace, printer: Printer) -> int:
    machine = cache.describe_machine()
    stats = cache.stats()
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    printer.check(True, "python", f"{machine['python']} on {machine['platform']}; {packages}")
    printer.check(True, "processor", _processor_line(machine))
    compiler_problem = machine["compiler_problem"]
    compiler = f"{shlex.join(machine['compiler'] or [])} ({machine['compiler_version']})"
    printer.check(compiler_problem is None, "compiler", compiler_problem or compiler)
    _say_cuda(machine, printer)
    used = f"{readable_bytes(stats.bytes)} of {readable_bytes(stats.limit_bytes)}"
    cache_detail = f"{stats.path}, {stats.mode}, {stats.entries} steps, {used}"
    printer.check(stats.problem is None, "cache", f"{stats.path}: {stats.problem}" if stats.problem else cache_detail)
    step_problem = None
    if compiler_problem is None:
        try:
            built = cache.self_test()
            detail = f"{built.origin} in {built.seconds:.2f} s, right on 1 and {machine['workers']} workers"
        except PequegradError as error:
            step_problem = detail = str(error)
        printer.check(step_problem is None, "compiled step", detail)
    else:
        printer.check(False, "compiled step", "not tried without a compiler; pequegrad runs eagerly")
    return 0 if compiler_problem is None and step_problem is None and stats.problem is None else 1


def _environment(arguments: argparse.Namespace, printer: Printer) -> int:
    machine = cache.describe_machine()
    settings = {name: getattr(config, name) for name in config.fields()}
    settings["logs"] = sorted(settings["logs"])
    if arguments.json:
        printer.json({**machine, "cache_path": cache.stats().path, "settings": settings})
        return 0
    printer.line(f"python         {machine['python']} on {machine['platform']}")
    for name, version in machine["packages"].items():
        printer.line(f"{name:<13}  {version}")
    printer.line(f"compiler       {machine['compiler_version'] or machine['compiler_problem']}")
    printer.line(f"nvcc           {machine['nvcc_version'] or machine['nvcc_problem']}")
    printer.line(f"device         {_device_line(machine)}")
    printer.line(f"processor      {_processor_line(machine)}")
    printer.line(f"cache          {cache.stats().path}")
    for name, value in settings.items():
        printer.line(f"config.{name} = {value!r}")
    return 0


def _say_cuda(machine: dict[str, Any], printer: Printer) -> None:
    """Say what there is for CUDA; nobody needs it for the rest, so nothing of it is a failure."""
    nvcc = f"{machine['nvcc']} ({machine['nvcc_version']})"
    printer.note(machine["nvcc_problem"] is None, "nvcc", machine["nvcc_problem"] or nvcc)
    printer.note(machine["device_problem"] is None, "CUDA device", _device_line(machine))


def _device_line(machine: dict[str, Any]) -> str:
    if machine["device"] is None:
        return f"none: {machine['device_problem']}"
    return f"{machine['device']}, driver for CUDA {machine['device_driver']}"


def _processor_line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['machine']}, {machine['instruction_set']} ({machine['lanes']} float32 lanes), "
        f"{machine['workers']} workers"
    )
