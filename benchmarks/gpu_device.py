"""What a CUDA device could do at best, from its own attributes.

Invariant: asks the driver alone. A rate that this file does not know is NaN, and so is every percentage of it.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

from pequegrad.targets.device import find_device

# Of CUdevice_attribute in the CUDA driver API.
_CLOCK_KHZ, _PROCESSORS, _MEMORY_KHZ, _BUS_BITS = 13, 16, 36, 37

# Per multiprocessor and clock, by compute capability (CUDA C++ Programming Guide, "arithmetic instructions"; the
# architectures' whitepapers): float32 multiply-adds, and dense bfloat16 multiply-adds of the tensor cores.
_FLOAT32 = {(8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (12, 0): 128}
_BFLOAT16 = {(8, 0): 1024, (9, 0): 2048, (10, 0): 4096}


@dataclass(frozen=True)
class Limits:
    """A device's name, and its best rates: operations a second in float32 and in bfloat16, bytes a second."""

    name: str
    architecture: str
    fp32: float
    bf16: float
    bytes: float

    def seconds(self, operations: float, moved: float, precision: str) -> float:
        """Return the least seconds for so many operations and bytes, whichever takes longer."""
        rate = self.bf16 if precision == "bf16" else self.fp32
        return max(operations / rate, moved / self.bytes)


def find_limits() -> Limits | str:
    """Return the limits of the first CUDA device, or why there is none."""
    device = find_device()
    if isinstance(device, str):
        return device
    driver = ctypes.CDLL("libcuda.so.1")
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), 0)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, 0)
        return value.value

    cycles = attribute(_PROCESSORS) * attribute(_CLOCK_KHZ) * 1e3
    # Memory moves bits at both edges of its clock.
    moved = 2 * attribute(_MEMORY_KHZ) * 1e3 * attribute(_BUS_BITS) / 8
    return Limits(
        name.value.decode(),
        device.architecture,
        2 * cycles * _FLOAT32.get(device.capability, math.nan),
        2 * cycles * _BFLOAT16.get(device.capability, math.nan),
        moved or math.nan,
    )
