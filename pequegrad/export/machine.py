"""Whether a saved module can run here: Python, processor, and for CUDA the device and its driver.

Invariant: nothing of the module is loaded to find out; each refusal names what the module is for and what is here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES

from .. import targets
from ..errors import ArtifactError
from ..targets import Target, device_problem, find_device
from .manifest import Manifest, Requirements

CUDA = "cuda"
# Of what /proc/cpuinfo lists for x86-64, the names of instructions that a compiler may use; the rest are facts about
# the machine, such as "hypervisor", which may differ.
_INSTRUCTIONS = re.compile(
    r"(avx|sse|ssse|bmi|amx_|fma|xop|vaes|vpclmul|sha|gfni|adx|aes$|f16c|movbe|movdir|popcnt|abm|pclmulqdq|rdrand|rdseed|"
    r"clflushopt|clwb|xsave|fsgsbase|lahf_lm|cx16|prfchw|tbm|3dnow|serialize|waitpkg|cldemote|enqcmd|ptwrite|rdpid|clzero|mwaitx)"
)
_NOT_INSTRUCTIONS = ("evtstrm", "cpuid")  # aarch64's list has these beside its instructions


def requirements(target: Target, python: str, toolkit: str) -> Requirements:
    """Return what a module built on this machine for ``target`` needs."""
    is_on_device = target.device == CUDA
    features = instruction_features() if target.is_native else target.instruction_set.features
    return Requirements(
        target=target.name,
        device=target.device,
        python=python,
        machine=targets.host_machine(),
        instruction_set=f"{target.instruction_set.name}, as this processor"
        if target.is_native
        else target.instruction_set.name,
        features=tuple(sorted(features)),
        architecture=target.instruction_set.name if is_on_device else "",
        toolkit=toolkit if is_on_device else "",
    )


def toolkit_version(texts: Iterable[str]) -> str:
    """Return CUDA's version from what nvcc says of itself, which is among some texts; "" where it is not."""
    found = [match for text in texts if (match := re.search(r"\brelease (\d+\.\d+)", text))]
    return found[0][1] if found else ""


def instruction_features() -> frozenset[str]:
    """Return the features of this processor that a compiler's machine code may depend on."""
    found = targets.host_features()
    if targets.host_machine() == "x86_64":
        return frozenset(name for name in found if _INSTRUCTIONS.match(name))
    return found - frozenset(_NOT_INSTRUCTIONS)


def find_problem(manifest: Manifest) -> str | None:
    """Return why the module cannot run here, or None."""
    needs = manifest.requires
    if needs.machine != targets.host_machine():
        return f"it was built for {needs.machine}, and this machine is {targets.host_machine()}"
    if needs.python != EXTENSION_SUFFIXES[0]:
        return f"it was built for a Python of modules *{needs.python}, and this one's are *{EXTENSION_SUFFIXES[0]}"
    missing = sorted(set(needs.features) - targets.host_features())
    if missing:
        return f"it was built for the instruction set {needs.instruction_set}, and this processor lacks {', '.join(missing)}"
    if needs.device == CUDA:
        return _find_device_problem(needs)
    return _find_memory_problem(manifest)


def check(manifest: Manifest, where: str) -> None:
    """Raise ArtifactError where the module cannot run here."""
    problem = find_problem(manifest)
    if problem is not None:
        raise ArtifactError(
            f"{where} cannot run here: {problem}. Save the step on a machine like this one, or for this one: "
            "step.compile(…, arch=…).save(path)."
        )


def _find_device_problem(needs: Requirements) -> str | None:
    if not needs.toolkit:
        return f"it names no CUDA toolkit that it was built with for {needs.architecture!r:.80}"
    device = find_device()
    if isinstance(device, str):
        return f"it was built for {needs.architecture}, and {device}"
    return device_problem(device, needs.architecture, needs.toolkit)


def _find_memory_problem(manifest: Manifest) -> str | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    needed = manifest.arena_bytes + sum(slot.bytes for slot in manifest.slots)
    return f"it needs {needed} bytes of memory, and this machine has {total}" if needed > total else None
