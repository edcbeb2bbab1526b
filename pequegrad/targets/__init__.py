"""Targets as data: what pequegrad can emit code for.

Invariant: imports nothing of pequegrad but its errors.
"""

from __future__ import annotations

from ..errors import DeviceError
from .cpp import INSTRUCTION_SETS, host_features, host_machine, host_processor, native_target
from .cuda import ARCHITECTURES, cuda_target, simulator_target
from .target import InstructionSet, Target

__all__ = [
    "ARCHITECTURES",
    "INSTRUCTION_SETS",
    "InstructionSet",
    "Target",
    "get",
    "host_features",
    "host_machine",
    "host_processor",
    "names",
]

_NAMES = ("cpp", "cuda", "cuda-sim")


def names() -> tuple[str, ...]:
    """Names that ``get`` knows."""
    return _NAMES


def get(name: str, *, instruction_set: str | None = None, architecture: str | None = None) -> Target:
    """Return the target of that name, for this machine's processor or for a named instruction set or architecture.

    ``instruction_set``, for "cpp", is one of "x86-64-v4", "x86-64-v3", "x86-64-v2", "neon", "scalar"; the result may then
    be emitted and compiled, but not run, on a machine that lacks it. ``architecture``, for "cuda", is one such as "sm_90".
    Raises DeviceError for an unknown name.
    """
    if name == "cuda":
        if architecture is None:
            raise DeviceError(
                'target "cuda" needs an architecture where there is no device to ask: set PEQUEGRAD_CUDA_ARCH, or '
                'pass arch="sm_90" for an H100.'
            )
        return cuda_target(architecture)
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
