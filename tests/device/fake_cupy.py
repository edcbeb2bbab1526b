"""A stand-in for CuPy without a GPU: arrays that hide NumPy ones, and are as unforgiving as CuPy's.

What computes with them must go through the array protocols or through this module's functions; a NumPy array among
operands and an implicit conversion raise TypeError. Only names that CuPy 13 has are here. Two devices are simulated.

Invariant: no NumPy array gets out but by ``get()``, ``item()`` and ``tolist()``.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

FUNCTIONS = frozenset(
    [
        "abs",
        "absolute",
        "add",
        "all",
        "any",
        "arange",
        "argmax",
        "argmin",
        "argsort",
        "array_equal",
        "asarray",
        "ascontiguousarray",
        "atleast_1d",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "broadcast_to",
        "ceil",
        "clip",
        "concatenate",
        "copysign",
        "copyto",
        "cos",
        "cumsum",
        "divide",
        "einsum",
        "empty",
        "empty_like",
        "equal",
        "exp",
        "expm1",
        "eye",
        "flip",
        "floor",
        "floor_divide",
        "fmod",
        "full",
        "full_like",
        "greater",
        "greater_equal",
        "invert",
        "isfinite",
        "isinf",
        "isnan",
        "left_shift",
        "less",
        "less_equal",
        "linspace",
        "log",
        "log1p",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "matmul",
        "max",
        "maximum",
        "may_share_memory",
        "mean",
        "min",
        "minimum",
        "mod",
        "moveaxis",
        "multiply",
        "negative",
        "nonzero",
        "not_equal",
        "ones",
        "ones_like",
        "power",
        "prod",
        "ravel",
        "remainder",
        "reshape",
        "right_shift",
        "rint",
        "shares_memory",
        "sign",
        "sin",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "subtract",
        "sum",
        "swapaxes",
        "take",
        "take_along_axis",
        "tan",
        "tanh",
        "tensordot",
        "transpose",
        "tri",
        "tril",
        "triu",
        "true_divide",
        "trunc",
        "where",
        "zeros",
        "zeros_like",
        "dot",
        "array",
        "bitwise_not",
    ]
)
CONSTANTS = frozenset(
    [
        "inf",
        "nan",
        "pi",
        "e",
        "newaxis",
        "iinfo",
        "finfo",
        "dtype",
        "bool_",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "errstate",
    ]
)
ADD_AT = frozenset("iIQLefdFD")
"""Types that CuPy's ``add.at`` takes: its atomics have no int64."""

_current = [0]


class Flags:
    """What CuPy tells of memory: no ``writeable``."""

    def __init__(self, flags: Any) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on a simulated device."""

    __array_priority__ = 100

    def __init__(self, host: np.ndarray, number: int, base: Any = None) -> None:
        self._host = host
        self._number = number
        self.base = base

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _require(ufunc.__name__)
        if method == "at":
            assert ufunc is np.add and inputs[0].dtype.char in ADD_AT, f"cupy.{ufunc.__name__}.at of {inputs[0].dtype}"
        elif method != "__call__":
            return NotImplemented
        return _wrap(getattr(ufunc, method)(*_unwrap(inputs), **_unwrap(kwargs)))

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        _require(function.__name__)
        return _wrap(function(*_unwrap(args), **_unwrap(kwargs)))

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags))
    device = property(lambda self: Device(self._number))
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.__array_interface__["data"][0]))
    T = property(lambda self: self._view(self._host.T))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self._host.__array_interface__
        return {
            "shape": self.shape,
            "typestr": interface["typestr"],
            "descr": interface["descr"],
            "data": (interface["data"][0], False),
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": 1,
        }

    def __dlpack__(self, *, max_version: Any = None, **_: Any) -> Any:
        return self._host.__dlpack__(max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._number

    def _view(self, host: np.ndarray) -> ndarray:
        return ndarray(host, self._number, self if self.base is None else self.base)

    def get(self) -> np.ndarray:
        return self._host.copy()

    def item(self) -> Any:
        return self._host.item()

    def tolist(self) -> Any:
        return self._host.tolist()

    def copy(self, order: str = "C") -> ndarray:
        return ndarray(self._host.copy(order), _current[0])

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        host = self._host.astype(dtype, order=order, copy=copy)
        return self if host is self._host else ndarray(host, self._number)

    def view(self, dtype: Any = None) -> ndarray:
        return self._view(self._host.view() if dtype is None else self._host.view(dtype))

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return self._view(self._host.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._host.transpose(*axes))

    def ravel(self) -> ndarray:
        return self._view(self._host.ravel())

    def __getitem__(self, key: Any) -> ndarray:
        found = self._host[_unwrap(key)]
        return self._view(np.asarray(found)) if isinstance(found, np.generic) else self._view(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_unwrap(key)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __index__(self) -> int:
        return self._host.__index__()

    def __repr__(self) -> str:
        return f"fake_cupy.{self._host!r}"

    def __hash__(self) -> int:
        raise TypeError("unhashable type: 'ndarray'")


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return _wrap(getattr(self._host, name)(*_unwrap(args), **_unwrap(kwargs)))

    return method


for _name in ("sum", "prod", "min", "max", "any", "all", "argmax", "argmin", "mean", "cumsum", "take", "squeeze"):
    setattr(ndarray, _name, _method(_name))


def _unwrap(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(map(_unwrap, value))
    return {key: _unwrap(part) for key, part in value.items()} if isinstance(value, dict) else value


def _wrap(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_wrap, value))
    # The functions of CuPy give arrays without dimensions where NumPy's give numbers.
    return ndarray(np.asarray(value), _current[0]) if isinstance(value, np.ndarray | np.generic) else value


def _require(name: str) -> None:
    if name not in FUNCTIONS:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")


def asarray(value: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    if isinstance(value, ndarray):
        return value if dtype is None else value.astype(dtype, copy=False)
    return ndarray(np.array(value, dtype=dtype, order=order or "K"), _current[0])


def array(value: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> ndarray:
    host = value._host if isinstance(value, ndarray) else value
    return ndarray(np.array(host, dtype=dtype, copy=copy, order=order), _current[0])


class _Capsule:
    def __init__(self, source: Any) -> None:
        self._source = source

    def __dlpack__(self, *, max_version: Any = None, **_: Any) -> Any:
        return self._source.__dlpack__(max_version=max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def from_dlpack(source: Any) -> ndarray:
    """Take a device array over; the capsule says CPU, for that is where this memory really lies."""
    number = source.__dlpack_device__()[1]
    return ndarray(np.from_dlpack(_Capsule(source)), number, source)


class Device:
    """A simulated device; as a context, the current one."""

    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> Device:
        self._before = _current[0]
        _current[0] = self.id
        return self

    def __exit__(self, *_: object) -> None:
        _current[0] = self._before


class CUDARuntimeError(RuntimeError):
    """What a call of the CUDA runtime raises."""


devices = [2]
"""How many there are; a test may set another number, or an error to raise."""


def _count() -> int:
    if isinstance(devices[0], Exception):
        raise devices[0]
    return devices[0]


cuda = types.SimpleNamespace(Device=Device, runtime=types.SimpleNamespace(getDeviceCount=_count))


class _Add:
    """cupy.add, with its ``at``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _wrap(np.add(*_unwrap(args), **_unwrap(kwargs)))

    def at(self, target: ndarray, indices: Any, values: Any) -> None:
        np.add.at(target, indices, values)


add = _Add()


def __getattr__(name: str) -> Any:
    if name in CONSTANTS:
        return getattr(np, name)
    _require(name)
    function = getattr(np, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return _wrap(function(*_unwrap(args), **_unwrap(kwargs)))

    return call
