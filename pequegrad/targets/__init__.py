"""Targets as data: what pequegrad can emit code for.

Invariant: imports nothing of pequegrad but its errors and its settings.
"""

from __future__ import annotations

from ..config import config
from ..errors import DeviceError
from .cpp import INSTRUCTION_SETS, host_features, host_machine, host_processor, native_target
from .cuda import ARCHITECTURES, cuda_target, simulator_target
from .device import Device, device_problem, find_device
from .target import InstructionSet, Target

__all__ = [
    "ARCHITECTURES",
    "INSTRUCTION_SETS",
    "Device",
    "InstructionSet",
    "Target",
    "device_problem",
    "find_device",
    "get",
    "host_features",
    "host_machine",
    "host_processor",
    "names",
    "no_device",
]

_NAMES = ("cpp", "cuda", "cuda-sim")


def names() -> tuple[str, ...]:
    """Names that ``get`` knows."""
    return _NAMES


def get(name: str, *, instruction_set: str | None = None, architecture: str | None = None) -> Target:
    """Return the target of that name, for this machine's processor or for a named instruction set or architecture.

    ``instruction_set``, for "cpp", is one of "x86-64-v4", "x86-64-v3", "x86-64-v2", "neon", "scalar"; the result may then
    be emitted and compiled, but not run, on a machine that lacks it. ``architecture``, for "cuda", is one such as "sm_90";
    None: PEQUEGRAD_CUDA_ARCH, else what this machine's device is. Raises DeviceError for an unknown name, and where there
    is neither an architecture nor a device.
    """
    if architecture is not None and name != "cuda":
        raise DeviceError(f'an architecture, {architecture!r}, is for target="cuda"; this target is {name!r}.')
    if name == "cuda":
        return cuda_target(architecture or config.cuda_arch or _device_architecture())
    if name == "cuda-sim":
        return simulator_target()
    if name != "cpp":
        raise DeviceError(f"unknown target {name!r}; expected one of {', '.join(_NAMES)}.")
    target = native_target()
    if instruction_set is None:
        return target
    for candidate in INSTRUCTION_SETS:
        if candidate.name == instruction_set:
            return target.with_instruction_set(candidate)
    known = ", ".join(candidate.name for candidate in INSTRUCTION_SETS)
    raise DeviceError(f"unknown instruction set {instruction_set!r}; expected one of {known}.")


def _device_architecture() -> str:
    device = find_device()
    if isinstance(device, str):
        raise DeviceError(
            f"{no_device(device)} To build for another machine, pass its architecture to .compile, such as "
            'arch="sm_90" for an H100, or set PEQUEGRAD_CUDA_ARCH.'
        )
    return device.architecture


def no_device(reason: str) -> str:
    """Return the message for a machine without a CUDA device."""
    return f'no CUDA device: {reason}; target="cuda-sim" runs the same kernels on the processor.'
