"""Whether a saved module can run here: Python, processor, and for CUDA the device and its driver.

Invariant: nothing of the module is loaded to find out; each refusal names what the module is for and what is here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES

from .. import targets
from ..errors import ArtifactError
from ..targets import Target
from .manifest import Manifest, Requirements

CUDA = "cuda"
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
# Of what /proc/cpuinfo lists for x86-64, the names of instructions that a compiler may use; the rest are facts about
# the machine, such as "hypervisor", which may differ.
_INSTRUCTIONS = re.compile(
    r"(avx|sse|ssse|bmi|amx_|fma|xop|vaes|vpclmul|sha|gfni|adx|aes$|f16c|movbe|movdir|popcnt|abm|pclmulqdq|rdrand|rdseed|"
    r"clflushopt|clwb|xsave|fsgsbase|lahf_lm|cx16|prfchw|tbm|3dnow|serialize|waitpkg|cldemote|enqcmd|ptwrite|rdpid|clzero|mwaitx)"
)
_NOT_INSTRUCTIONS = ("evtstrm", "cpuid")  # aarch64's list has these beside its instructions


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device: its compute capability, such as (9, 0), and the newest CUDA that its driver knows."""

    capability: tuple[int, int]
    driver: tuple[int, int]


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
    wanted = re.fullmatch(r"sm_(\d+)(\d)", needs.architecture)
    toolkit = re.fullmatch(r"(\d+)\.(\d+)", needs.toolkit)
    if wanted is None or toolkit is None:
        return f"it names no CUDA architecture and toolkit, but {needs.architecture!r:.80} and {needs.toolkit!r:.80}"
    device = find_device()
    if isinstance(device, str):
        return f"it was built for {needs.architecture}, and {device}"
    major, minor = int(wanted[1]), int(wanted[2])
    # Machine code runs on its own generation, of this or a later minor version.
    if device.capability[0] != major or device.capability[1] < minor:
        here = "sm_{}{}".format(*device.capability)
        return f"it was built for {needs.architecture}, and this device is {here}"
    # A driver runs what any toolkit of its major version has made, and of older ones.
    if device.driver[0] < int(toolkit[1]):
        driver = "{}.{}".format(*device.driver)
        return (
            f"it was built with CUDA {needs.toolkit}, and this machine's driver is for CUDA {driver}: update the driver"
        )
    return None


def _find_memory_problem(manifest: Manifest) -> str | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    needed = manifest.arena_bytes + sum(slot.bytes for slot in manifest.slots)
    return f"it needs {needed} bytes of memory, and this machine has {total}" if needed > total else None


@functools.lru_cache(maxsize=1)
def find_device() -> Device | str:
    """Return the first CUDA device, or a text that says why there is none. Asks the driver alone, and makes no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no CUDA driver (libcuda.so.1)"
    status = driver.cuInit(0)
    if status != 0:
        return f"its CUDA driver does not start (error {status})"
    version, device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    for result in (
        driver.cuDriverGetVersion(ctypes.byref(version)),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device),
    ):
        if result != 0:
            return f"its CUDA driver finds no device (error {result})"
    return Device((major.value, minor.value), (version.value // 1000, version.value % 1000 // 10))
