"""Targets as data: what pequegrad can emit code for.

Invariant: imports nothing of pequegrad but its errors.
"""

from __future__ import annotations

from ..errors import DeviceError
from .cpp import INSTRUCTION_SETS, host_features, host_machine, host_processor, native_target
from .target import InstructionSet, Target

__all__ = [
    "INSTRUCTION_SETS",
    "InstructionSet",
    "Target",
    "get",
    "host_features",
    "host_machine",
    "host_processor",
    "names",
]

_MAKERS = {"cpp": native_target}
_PLANNED = ("cuda", "cuda-sim")


def names() -> tuple[str, ...]:
    """Names that ``get`` knows."""
    return tuple(_MAKERS)


def get(name: str, *, instruction_set: str | None = None) -> Target:
    """Return the target of that name, for this machine's processor or for a named instruction set.

    ``instruction_set`` is one of "x86-64-v4", "x86-64-v3", "x86-64-v2", "neon", "scalar"; the result may then
    be emitted and compiled, but not run, on a machine that lacks it. Raises DeviceError for an unknown name.
    """
    if name in _PLANNED:
        raise DeviceError(f'there is no target {name!r} yet in this version of pequegrad. Use target="cpp".')
    if name not in _MAKERS:
        raise DeviceError(f"unknown target {name!r}; expected one of {', '.join(_MAKERS)}.")
    target = _MAKERS[name]()
    if instruction_set is None:
        return target
    for candidate in INSTRUCTION_SETS:
        if candidate.name == instruction_set:
            return target.with_instruction_set(candidate)
    known = ", ".join(candidate.name for candidate in INSTRUCTION_SETS)
    raise DeviceError(f"unknown instruction set {instruction_set!r}; expected one of {known}.")
