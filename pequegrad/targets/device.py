"""The CUDA device of this machine, and whether machine code can run on it.

Invariant: asks the driver alone, makes no context, and starts no process.
"""

from __future__ import annotations

import ctypes
import functools
import re

from ..records import record

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@record
class Device:
    """A CUDA device: its compute capability, such as (9, 0), and the newest CUDA that its driver knows."""

    capability: tuple[int, int]
    driver: tuple[int, int]

    @property
    def architecture(self) -> str:
        """The architecture's name, such as "sm_90"."""
        return "sm_{}{}".format(*self.capability)

    @property
    def driver_version(self) -> str:
        """The newest CUDA that the driver knows, such as "13.0"."""
        return "{}.{}".format(*self.driver)


@functools.lru_cache(maxsize=1)
def find_device() -> Device | str:
    """Return the first CUDA device, or a text that says why there is none."""
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


def device_problem(device: Device, architecture: str, toolkit: str) -> str | None:
    """Return why a device cannot run machine code for an architecture such as "sm_90", made by a toolkit such as "13.0",
    or None. ``toolkit`` may be "" where it is not yet known.
    """
    wanted = re.fullmatch(r"sm_(\d+)(\d)", architecture)
    made_by = re.fullmatch(r"(\d+)\.(\d+)", toolkit or "0.0")
    if wanted is None or made_by is None:
        return f"it names no CUDA architecture and toolkit, but {architecture!r:.80} and {toolkit!r:.80}"
    # Machine code runs on its own generation, of this or a later minor version.
    if device.capability[0] != int(wanted[1]) or device.capability[1] < int(wanted[2]):
        return f"it was built for {architecture}, and this device is {device.architecture}"
    # A driver runs what any toolkit of its major version has made, and of older ones.
    if device.driver[0] < int(made_by[1]):
        return f"it was built with CUDA {toolkit}, and this machine's driver is for CUDA {device.driver_version}: update the driver"
    return None
