"""Which library an array belongs to, and where it lies: NumPy's on the CPU, CuPy's on a GPU.

A device's name is "cpu", "cuda" (the first GPU), or "cuda:1" and so on.

Invariant: CuPy is imported when somebody first asks for a GPU or brings an array that lies on one; until then
`device_types` is empty, and no array is looked at twice.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DeviceError, DTypeError

CPU = "cpu"

device_types: tuple[Any, ...] = ()
"""The types of device arrays, once there can be any."""

_LOADED: dict[str, Any] = {}


def cupy() -> Any:
    """Return the CuPy module. Raises DeviceError where it is not installed or finds no GPU."""
    found = _LOADED.get("cupy")
    return _load() if found is None else found


def _load() -> Any:
    global device_types
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs CuPy, which cannot be imported ({error}). Run: pip install 'pequegrad[cuda]', or stay on "
            "the CPU."
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        reason = "CUDA counts none"
    except RuntimeError as error:  # what CuPy's errors of the CUDA runtime are
        count, reason = 0, str(error)
    if not count:
        raise DeviceError(
            f"device 'cuda': no GPU was found ({reason}). Stay on the CPU; there, target=\"cuda-sim\" runs the CUDA text of a "
            "compiled step, slowly."
        )
    _LOADED["cupy"] = cupy
    device_types = (cupy.ndarray,)
    return cupy


def is_device_array(value: Any) -> bool:
    """Whether ``value`` is an array on a GPU that pequegrad computes with."""
    return isinstance(value, device_types)


def has_device_memory(value: Any) -> bool:
    """Whether ``value``, of whatever library, says that its memory lies on a GPU."""
    return hasattr(value, "__cuda_array_interface__")


def as_device_array(value: Any) -> Any:
    """Return what has ``__cuda_array_interface__`` as a device array of the same memory."""
    if isinstance(value, device_types):
        return value
    # CuPy's own array may come before anything has asked for CuPy; then importing it costs nothing.
    return cupy().asarray(value)


def own_device_array(payload: Any) -> Any:
    """Return ``payload`` if it is a device array, else None."""
    return payload if isinstance(payload, device_types) else None


def device_of(array: Any) -> str:
    """Return the name of the device that an array lies on."""
    if isinstance(array, np.ndarray | np.generic):
        return CPU
    number = int(array.device.id)
    return f"cuda:{number}" if number else "cuda"


def kind_of(device: str) -> str:
    """Return "cpu" or "cuda" for a device's name."""
    return device.partition(":")[0]


def namespace_of(array: Any) -> Any:
    """Return the module whose functions compute with ``array``: NumPy or CuPy."""
    return np if isinstance(array, np.ndarray | np.generic) else cupy()


def is_device_name(text: Any) -> bool:
    """Whether a string reads as a device rather than as a dtype."""
    return isinstance(text, str) and kind_of(text) in (CPU, "cuda")


def checked_device(device: Any) -> str:
    """Return the name of a device that is there, for a string or for what prints as one (a torch.device).

    Raises DeviceError for a name that is none, without CuPy, without a GPU, and for a number that no GPU has.
    """
    text = str(device)
    kind, colon, number = text.partition(":")
    if kind not in (CPU, "cuda") or (colon and not number.isdecimal()) or (kind == CPU and number not in ("", "0")):
        raise DeviceError(f"device {text!r} is not known; expected 'cpu', 'cuda', or 'cuda:1' for the second GPU.")
    if kind == CPU:
        return CPU
    count = cupy().cuda.runtime.getDeviceCount()
    index = int(number or 0)
    if index >= count:
        raise DeviceError(f"device {text!r}: there {'is' if count == 1 else 'are'} {count} here, counted from 0.")
    return f"cuda:{index}" if index else "cuda"


def working_on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which CuPy makes arrays and launches on ``device``; on the CPU, none."""
    if device == CPU:
        return contextlib.nullcontext()
    return cupy().cuda.Device(int(device.partition(":")[2] or 0))


def to_host(array: Any) -> np.ndarray:
    """Return a NumPy array with the contents of ``array``: itself, or a copy of what lies on a device."""
    return array.get() if isinstance(array, device_types) else array


def moved(array: Any, device: str) -> Any:
    """Return ``array`` on a device of that name: itself if it lies there, else a copy."""
    if device_of(array) == device:
        return array
    if device == CPU:
        return to_host(array)
    with working_on(device):
        try:
            return array.copy() if isinstance(array, device_types) else cupy().asarray(array)
        except (TypeError, ValueError) as error:  # a dtype, such as bfloat16, that this CuPy does not have
            raise DTypeError(
                f"CuPy cannot hold {array.dtype} on {device!r} ({error}). Use float32 there; a compiled step takes "
                "bfloat16 from the CPU."
            ) from None


def is_writeable(array: Any) -> bool:
    """Whether elements may be assigned; CuPy has no read-only arrays."""
    return isinstance(array, device_types) or bool(array.flags.writeable)


def copy_into(target: Any, source: Any) -> None:
    """Copy elements of ``source``, of the same shape and dtype, to ``target``; each may lie on any device."""
    place = device_of(target)
    if device_of(source) == place:
        with working_on(place):
            target[...] = source
    elif place == CPU:
        target[...] = source.get()
    elif not any(source.strides) and source.size:  # one number, broadcast: no need to send it many times
        with working_on(place):
            target[...] = source[(0,) * source.ndim].item() if source.dtype.kind in "biuf" else moved(source, place)
    else:
        with working_on(place):
            target[...] = moved(source, place)


def address_of(array: Any) -> int:
    """Return the address of an array's first element, in the memory of its device."""
    return int(array.data.ptr if isinstance(array, device_types) else array.__array_interface__["data"][0])


def may_overlap(first: Any, second: Any) -> bool:
    """Whether two arrays share an element; those on different devices never do."""
    is_device = isinstance(first, device_types)
    if is_device != isinstance(second, device_types):
        return False
    if not is_device:
        return bool(np.may_share_memory(first, second) and np.shares_memory(first, second))
    return device_of(first) == device_of(second) and bool(cupy().shares_memory(first, second))


class Held:
    """A device array for compiled steps, which ask for its address at each call: asked for once, and kept alive."""

    __slots__ = ("__cuda_array_interface__", "array")

    def __init__(self, array: Any) -> None:
        self.array = array
        words = array.view("uint16") if array.dtype.name == "bfloat16" else array
        self.__cuda_array_interface__ = words.__cuda_array_interface__

    def view(self, dtype: Any) -> Held:
        """Return this: a step is given bytes."""
        return self


def unheld(array: Any) -> Any:
    """Return the array behind what a step is given."""
    return array.array if type(array) is Held else array


ALIGNMENT = 16
"""Bytes: a kernel on a device loads so many at once."""


def addressable_types(device: str) -> tuple[Any, ...]:
    """Return the types of arrays whose memory a step on ``device`` can be given: the host's, and for a GPU its own."""
    return (np.ndarray, *device_types) if device == "cuda" else (np.ndarray,)


def is_ready(array: Any) -> bool:
    """Whether a compiled step can use an array's memory as it is."""
    if not array.flags.c_contiguous:
        return False
    return not isinstance(array, device_types) or not array.size or array.data.ptr % ALIGNMENT == 0


def owner_of(array: Any) -> Any:
    """Return what owns an array's memory: itself, or the array that it is a view of."""
    return array if array.base is None else array.base


LINE = 64
"""Bytes of a line of cache, and of the widest vector: one that crosses the end of a line is read and written as two."""
_LEAST_ON_LINES = 1024


def on_lines(make: Callable[..., Any], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a NumPy array of what ``make`` gives as bytes, np.empty or np.zeros, that begins at the beginning of a line
    unless it is small. Steps of nets whose parameters all do take 1 to 3 % less."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _LEAST_ON_LINES:
        return make(shape, dtype)
    raw = make(nbytes + LINE, np.uint8)
    start = -address_of(raw) % LINE
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def new_like(array: Any, is_on_host: bool) -> Any:
    """Return an array of the same shape and dtype with contiguous memory, where ``array`` lies or on the host."""
    if is_on_host or not isinstance(array, device_types):
        return on_lines(np.empty, array.shape, array.dtype)
    with working_on(device_of(array)):
        return cupy().empty(array.shape, array.dtype)


def host_copy(array: Any) -> np.ndarray:
    """Return a new NumPy array, contiguous, with the contents of ``array``."""
    copy: np.ndarray = new_like(array, is_on_host=True)
    copy_into(copy, array)
    return copy


def forget() -> None:
    """Act as if no GPU had been asked for yet. For tests, which put another module in CuPy's place."""
    global device_types
    _LOADED.clear()
    device_types = ()
