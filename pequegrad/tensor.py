"""The eager Tensor: a view of some storage, with a gradient and a link to the tape.

Invariant: `array` is this tensor's memory for as long as it lives; writes go through `assign`, which keeps the
version of the storage, the tape, and (while tracing) the functional form in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import arrays, autodiff
from .arrays import CPU
from .dtypes import DTYPES, DType, as_dtype, float32, float64, int64
from .errors import AutogradError, DeviceError, DTypeError, ShapeError, TraceError
from .formatting import format_html, format_tensor
from .ops import composite, indexing, movement
from .ops.core import REGISTRY, Op, TensorSpec, as_tensor, bind, context, grad_mode, record, set_tensor_type
from .ops.elementwise import Cast
from .ops.movement import Copy, expand
from .ops.placement import to_device
from .records import Frozen
from .storage import Storage


class ViewOf(Frozen):
    """How a view arises from its base: ``op(base, **params)``."""

    __slots__ = ("base", "is_differentiable", "is_leaf", "op", "params")
    base: Any
    op: type[Op]
    params: dict[str, Any]
    is_differentiable: bool
    """False where it was made under no_grad, by detach, or became a leaf: no history comes through the base."""
    is_leaf: bool
    """Whether the user made the view a leaf, by setting its requires_grad."""

    def __init__(
        self, base: Any, op: type[Op], params: dict[str, Any], is_differentiable: bool, is_leaf: bool = False
    ) -> None:
        self.set_fields(base=base, op=op, params=params, is_differentiable=is_differentiable, is_leaf=is_leaf)

    def as_leaf(self) -> ViewOf:
        """Return the same view, made a leaf by the user."""
        return ViewOf(self.base, self.op, self.params, is_differentiable=False, is_leaf=True)


class _FusedGradient:
    """What `.grad` holds after a compiled step fused it away."""


FUSED_GRADIENT = _FusedGradient()


class Tensor:
    """An n-dimensional array with gradients.

    ``data``: nested lists, numbers, arrays or a Tensor; the data are copied (`from_numpy` shares). Python floats become
    float32, ints int64, and float32 where ``requires_grad``. ``device``: "cpu" or "cuda"; by default, where the data lie.
    Raises DTypeError for data that are no numbers, DeviceError for a device that is not there.
    """

    __slots__ = (
        "__weakref__", "_array", "_edge", "_edge_version", "_grad", "_payload", "_payload_version", "_requires_grad",
        "_view", "spec", "storage",
    )  # fmt: skip
    __array_priority__ = 1000

    if TYPE_CHECKING:
        # Given by `install_methods`, from the ops' own records.
        __add__: Any
        _edge: Any

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> None:
        place = None if device is None else arrays.checked_device(device)
        array = data.array.copy() if isinstance(data, Tensor) else _to_array(data, copy=True)
        if dtype is not None:
            array = array.astype(as_dtype(dtype).numpy, copy=False)
        elif requires_grad and not as_dtype(array.dtype).is_floating_point:
            array = array.astype(np.float32)
        if place is not None:
            array = arrays.moved(array, place)
        payload = context.interpreter.constant(array)
        self._init(Storage(payload), TensorSpec(array.shape, as_dtype(array.dtype)), payload)
        if requires_grad:
            self.requires_grad = True

    def _init(self, storage: Storage, spec: TensorSpec, payload: Any, view: ViewOf | None = None) -> None:
        self.storage = storage
        self.spec = spec
        self._array = payload if isinstance(payload, np.ndarray) else None
        if arrays.device_types and self._array is None:
            self._array = arrays.own_device_array(payload)
        self._payload = payload
        self._payload_version = context.interpreter.version(storage)
        self._view = view
        self._requires_grad = False
        self._grad = None
        self._edge = None
        self._edge_version = self._payload_version

    # --- made by bind -------------------------------------------------------------------------------------

    @classmethod
    def _wrap(cls, payload: Any, spec: TensorSpec) -> Tensor:
        self = Tensor.__new__(Tensor)
        self._init(Storage(payload), spec, payload)
        return self

    @classmethod
    def _view_of(cls, base: Tensor, op: type[Op], params: dict[str, Any], payload: Any, spec: TensorSpec) -> Tensor:
        self = Tensor.__new__(Tensor)
        is_differentiable = op.vjp is not None and context.is_grad_enabled
        self._init(base.storage, spec, payload, ViewOf(base, op, params, is_differentiable))
        return self

    @classmethod
    def _from_data(cls, data: Any, dtype: DType | None = None) -> Tensor:
        array = _to_array(data, copy=False, dtype=dtype)
        payload = context.interpreter.constant(array)
        return cls._wrap(payload, TensorSpec(array.shape, as_dtype(array.dtype)))

    def saved_alias(self) -> Tensor:
        """Return a tensor of the same storage and payload, without a link to the tape."""
        alias = Tensor.__new__(Tensor)
        alias._init(self.storage, self.spec, self._payload, self._view)
        alias._array = self._array
        return alias

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def array(self) -> Any:
        """The memory itself, NumPy's or CuPy's. TraceError on a traced tensor, which has none, and on any tensor while tracing."""
        if self._array is None or not context.interpreter.has_data:
            raise TraceError(context.interpreter.no_data(self))
        return self._array

    @property
    def is_traced(self) -> bool:
        """Whether this tensor exists only inside a trace."""
        return self._array is None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> DType:
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)

    @property
    def device(self) -> str:
        """Where the elements lie: "cpu", "cuda" (the first GPU), "cuda:1" …; of a traced tensor, as far as is known."""
        if isinstance(self._array, np.ndarray):
            return CPU
        return context.interpreter.device if self._array is None else arrays.device_of(self._array)

    @property
    def T(self) -> Tensor:
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> Tensor:
        return self.transpose(-2, -1)

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the extent of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        """Return the number of elements."""
        return self.spec.size

    def element_size(self) -> int:
        """Return the bytes of one element."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_contiguous(self) -> bool:
        """Whether the elements lie in memory in row-major order, without gaps."""
        if self._array is not None:
            return bool(self._array.flags.c_contiguous)
        return bool(self._phantom().flags.c_contiguous)

    def strides(self) -> tuple[int, ...]:
        """Return the distance in memory, in bytes, between neighbours along each dimension."""
        return self._phantom().strides

    def _phantom(self) -> np.ndarray:
        """An untouched array with this traced tensor's strides, to ask about its layout."""
        if self._array is not None:
            return self._array
        if self._view is None:
            return np.empty(self.shape, np.bool_)
        return self._view.op.numpy(np, self._view.base._phantom(), **self._view.params)

    # --- gradients ----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Renew a view's link to the tape after a write to its storage through another tensor."""
        view = self._view
        if view is None or not view.is_differentiable:
            return
        version = context.interpreter.version(self.storage)
        if self._edge_version == version:
            return
        self._edge_version = version
        self._edge = None
        self._requires_grad = view.base.requires_grad
        if self._requires_grad:
            record(view.op, (view.base,), view.params, (self,))

    @property
    def requires_grad(self) -> bool:
        self._refresh()
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not self.dtype.is_floating_point:
            raise DTypeError(
                f"only floating-point tensors can require gradients. Got {self.dtype.name}. Use .to(float32)."
            )
        if not self.is_leaf:
            raise AutogradError(
                "requires_grad can be set on leaf tensors only. Use .detach() for a tensor without history."
            )
        if self._view is not None and self._view.is_differentiable:
            # A view of a tensor without history becomes a leaf of its own; a write through another must not undo it.
            self._view = self._view.as_leaf()
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set ``requires_grad`` and return this tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was made by the user, not by a recorded op."""
        return not self.requires_grad or not isinstance(self.edge(), tuple)

    def edge(self) -> Any:
        """Where a gradient that arrives here goes: (TapeNode, index), this leaf itself, or None."""
        if not self.requires_grad:
            return None
        return self._edge if self._edge is not None else self

    def link(self, node: Any, index: int) -> None:
        """Make this tensor the ``index``-th result of ``node``."""
        self._edge = (node, index)
        self._edge_version = context.interpreter.version(self.storage)
        self._requires_grad = True

    @property
    def grad(self) -> Tensor | None:
        grad = context.interpreter.get_grad(self)
        if grad is FUSED_GRADIENT:
            raise AutogradError(
                "this gradient was fused into the update of a compiled step and does not exist. "
                "Compile with keep_grads=True to read it."
            )
        return grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise DTypeError(f"grad must be a Tensor or None. Got {type(value).__name__}.")
            if value.shape != self.shape:
                raise ShapeError(f"grad must have the tensor's shape {self.shape}. Got {value.shape}.")
        context.interpreter.set_grad(self, value)

    def _accumulate(self, gradient: Tensor, create_graph: bool, is_shared: bool) -> None:
        present = self.grad
        if arrays.device_types and gradient.device != self.device:
            # This is a single number on the CPU that met tensors on a GPU.
            gradient = to_device(gradient, self.device)
        if present is None:
            self.grad = gradient.clone() if is_shared or gradient._view is not None else gradient
        elif create_graph:
            self.grad = present + gradient
        else:
            with grad_mode(False):
                present.assign(present + gradient)

    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Accumulate gradients of this tensor into the ``.grad`` of the leaves it was made from.

        ``gradient``: of this tensor's shape; may be left out for a single element. Raises AutogradError.
        """
        start = as_tensor(gradient) if gradient is not None else None
        start = autodiff.initial_gradient(self, start, "backward")
        autodiff.backward([self], [start], retain_graph=retain_graph, create_graph=create_graph)

    def ones_like_spec(self) -> Tensor:
        """Return ones of this tensor's shape and dtype."""
        return movement.full(self.shape, 1, dtype=self.dtype, device=self.device)

    def detach(self) -> Tensor:
        """Return a tensor that shares this memory and has no gradient history."""
        return bind(movement.Detach, self)

    def detach_(self) -> Tensor:
        """Forget this tensor's gradient history. Raises AutogradError for a view, whose history is its base's."""
        if self._view is not None and self._view.is_differentiable and self.requires_grad:
            raise AutogradError("detach_() of a view: its history is its base's. Use .detach() instead.")
        self._edge = None
        self._requires_grad = False
        return self

    def zero_grad(self) -> None:
        """Drop the gradient."""
        self.grad = None

    def retain_grad(self) -> None:
        """Raise: gradients of non-leaf tensors are asked for with ``pequegrad.grad``."""
        if not self.is_leaf:
            raise AutogradError("gradients of non-leaf tensors are not kept. Use pequegrad.grad(outputs, inputs).")

    # --- data in and out ----------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """Return the memory as an ndarray, shared; of a tensor on a GPU, a copy that cannot be written to.

        Raises AutogradError if gradients flow here: detach first.
        """
        if self.requires_grad and not (self.is_leaf and not context.is_grad_enabled):
            raise AutogradError("numpy() on a tensor that requires grad. Use .detach().numpy().")
        array = arrays.to_host(self.array)
        if array is not self._array:
            array.flags.writeable = False  # what is written to it would be lost
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = arrays.to_host(self.array)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy and array is self._array else array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The memory for other libraries of the GPU, shared. AttributeError where it does not lie on one."""
        if not arrays.is_device_array(self._array):
            raise AttributeError(f"__cuda_array_interface__: this tensor lies on {self.device!r}. Use .cuda().")
        if self.requires_grad:
            raise AutogradError("__cuda_array_interface__ of a tensor that requires grad. Use .detach().")
        return dict(self.array.__cuda_array_interface__)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.detach().array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def item(self) -> Any:
        """Return the single element as a Python number."""
        if self.spec.size != 1:
            raise ShapeError(f"item() needs a tensor of one element. Got shape {self.shape}.")
        number = arrays.to_host(self.array).reshape(())
        return number.item() if self.dtype.name != "bfloat16" else float(number)

    def tolist(self) -> Any:
        """Return the elements as nested lists of Python numbers."""
        array = arrays.to_host(self.array)
        return (array.astype(np.float32) if self.dtype.name == "bfloat16" else array).tolist()

    def __bool__(self) -> bool:
        if self.spec.size != 1:
            raise ShapeError(f"the truth value of a tensor of shape {self.shape} is ambiguous. Use .any() or .all().")
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        if self.dtype.is_floating_point:
            raise DTypeError(f"only integer tensors can be an index. Got {self.dtype.name}.")
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("len() of a 0-dimensional tensor.")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise ShapeError("iteration over a 0-dimensional tensor.")
        return (self[i] for i in range(self.shape[0]))

    def __contains__(self, element: Any) -> bool:
        return bool((self == element).any())

    def __hash__(self) -> int:
        return id(self)

    def __str__(self) -> str:
        return format_tensor(self)

    def __repr__(self) -> str:
        if self.is_traced:
            return f"Tensor(traced, {self.spec})"
        extra = ", requires_grad=True" if self.requires_grad else ""
        if self.device != CPU:
            extra = f", device={self.device!r}{extra}"
        return f"Tensor({format_tensor(self)}, dtype={self.dtype.name}{extra})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and self.spec.size == 1 else str(self)

    def _repr_html_(self) -> str:
        return format_html(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise AutogradError("only leaf tensors can be deep-copied. Use .detach() first.")
        clone = type(self).__new__(type(self))
        array = self.array.copy()
        clone._init(Storage(array), self.spec, array)
        clone._requires_grad = self._requires_grad
        memo[id(self)] = clone
        if isinstance(self._grad, Tensor):
            clone._grad = self._grad.__deepcopy__(memo)
        return clone

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), np.array(self.__array__(), order="C"), self.requires_grad, self.device)

    # --- conversion ---------------------------------------------------------------------------------------

    def to(self, *targets: Any, device: Any = None, dtype: Any = None, non_blocking: Any = False) -> Tensor:
        """Return this tensor in another dtype or on another device ("cpu", "cuda"), or in those of a tensor.

        Itself if nothing changes; else gradients flow through. ``non_blocking`` changes nothing. Inside a compiled
        function a device changes nothing: the step decides where values lie. Raises DeviceError for one that is not there.
        """
        for target in targets:
            if isinstance(target, Tensor):
                dtype, device = target.dtype, target.device
            elif arrays.is_device_name(target):
                device = target
            else:
                dtype = target
        place = None if device is None else arrays.checked_device(device)
        result = self if dtype is None or as_dtype(dtype) is self.dtype else bind(Cast, self, dtype=as_dtype(dtype))
        return result if place is None else to_device(result, place)

    def type(self, dtype: Any) -> Tensor:
        return self.to(as_dtype(dtype))

    def float(self) -> Tensor:
        return self.to(float32)

    def double(self) -> Tensor:
        return self.to(as_dtype("float64"))

    def half(self) -> Tensor:
        return self.to(as_dtype("float16"))

    def bfloat16(self) -> Tensor:
        return self.to(as_dtype("bfloat16"))

    def long(self) -> Tensor:
        return self.to(int64)

    def int(self) -> Tensor:
        return self.to(as_dtype("int32"))

    def bool(self) -> Tensor:
        return self.to(as_dtype("bool"))

    def cpu(self) -> Tensor:
        """Return this tensor on the CPU: itself, or a copy."""
        return to_device(self, CPU)

    def cuda(self, device: Any = None) -> Tensor:
        """Return this tensor on a GPU, the first or that of a number; DeviceError where there is none."""
        return self.to(device=_cuda_name(device))

    def clone(self) -> Tensor:
        """Return a copy with memory of its own; gradients flow through."""
        return bind(Copy, self)

    def contiguous(self) -> Tensor:
        """Return this tensor if it is contiguous, else a copy that is."""
        return self if self.is_contiguous() else bind(Copy, self)

    @property
    def data(self) -> Tensor:
        """This memory without history; assignment makes this tensor share another's memory."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if self.is_traced or value.is_traced:
            raise TraceError("`.data = …` on a traced tensor. Use .copy_() under no_grad.")
        self.storage, self.spec, self._array, self._payload = value.storage, value.spec, value.array, value._payload
        self._view, self._payload_version = value._view, value._payload_version
        if self._view is not None and self._view.is_differentiable:
            self._view = self._view.as_leaf()
        self._edge_version = value._edge_version

    # --- in place -----------------------------------------------------------------------------------------

    def assign(self, new: Any) -> Tensor:
        """Replace the contents by ``new``, broadcast and cast; the base of every in-place method.

        Raises AutogradError on a leaf that requires grad (outside no_grad), ShapeError if ``new`` does not fit.
        """
        new = new if isinstance(new, Tensor) else as_tensor(new, self.dtype)
        if new.dtype is not self.dtype:
            new = new.to(self.dtype)
        if new.shape != self.shape:
            new = expand(new, self.shape)
        is_tracked = context.is_grad_enabled and (self.requires_grad or new.requires_grad)
        if context.is_grad_enabled:
            self._refuse_blind_write(is_tracked)
        if is_tracked:
            root = self
            while root._view is not None and root._view.is_differentiable:
                root = root._view.base
            if root.requires_grad and root.edge() is root:
                raise AutogradError(
                    f"in-place change of a leaf tensor {root.spec} that requires grad. Do it under pequegrad.no_grad() "
                    "or on a .clone()."
                )
            view = self._view
            if view is not None and view.is_differentiable:
                view.base.assign(view.op.put(view.base, new, **view.params))
                return self
            if new.edge() is new:
                new = bind(Copy, new)
        edge = new.edge() if is_tracked else None
        context.interpreter.write(self, new)
        if isinstance(edge, tuple):
            self.link(*edge)
        elif is_tracked:
            self._edge = None
            self._requires_grad = False
        return self

    def _refuse_blind_write(self, is_tracked: Any) -> None:
        """Raise AutogradError where a write through a view that was made under no_grad would be lost to its base."""
        view = self._view
        if view is None or view.is_differentiable or view.is_leaf or view.op.vjp is None:
            return
        if is_tracked or view.base.requires_grad:
            raise AutogradError(
                f"in-place change, outside no_grad, of a view {self.spec} that was made under no_grad: the gradient "
                "of its base would not know of it. Make the view outside no_grad, or change it inside."
            )

    def copy_(self, source: Any) -> Tensor:
        """Copy ``source`` into this tensor's memory."""
        return self.assign(source)

    def fill_(self, value: Any) -> Tensor:
        return self.assign(value)

    def zero_(self) -> Tensor:
        return self.assign(0)

    def __getitem__(self, key: Any) -> Tensor:
        return indexing.getitem(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        indexing.setitem(self, key, value)


def tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Return a Tensor with a copy of ``data``: numbers, nested lists, an array or a Tensor."""
    return Tensor(data, dtype=dtype, device=device, requires_grad=requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """Return a Tensor that shares the memory of ``array``. Raises DTypeError for a dtype that pequegrad lacks."""
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"from_numpy: expected an ndarray. Got {type(array).__name__}. Use pequegrad.tensor().")
    as_dtype(array.dtype)
    return Tensor._from_data(array)


def from_dlpack(source: Any) -> Tensor:
    """Return a Tensor that shares the memory of ``source``, any array on the CPU or on a GPU with ``__dlpack__``.

    Raises DTypeError for what has none or has a dtype that pequegrad lacks, DeviceError for another kind of device.
    """
    if not hasattr(source, "__dlpack__"):
        raise DTypeError(f"from_dlpack: expected an array with __dlpack__. Got {type(source).__name__}.")
    kind, number = source.__dlpack_device__()
    if kind in _DLPACK_HOST:
        return from_numpy(np.from_dlpack(source))
    if kind not in _DLPACK_CUDA:
        raise DeviceError(
            f"from_dlpack: the array lies on a device of DLPack's kind {kind}. Bring it to the CPU first."
        )
    with arrays.working_on(arrays.checked_device(f"cuda:{number}")):
        return Tensor._from_data(arrays.cupy().from_dlpack(source))


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a Tensor."""
    return isinstance(value, Tensor)


_DLPACK_HOST = (1, 3)  # the CPU's memory, and what CUDA has pinned of it
_DLPACK_CUDA = (2, 13)  # a GPU's memory, and what both sides see


def _cuda_name(device: Any) -> str:
    return "cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else str(device)


def _rebuild(kind: type[Tensor], array: Any, requires_grad: bool, device: str = CPU) -> Tensor:
    if device != CPU:
        array = arrays.moved(array, arrays.checked_device(device))
    tensor = kind.__new__(kind)
    tensor._init(Storage(array), TensorSpec(array.shape, as_dtype(array.dtype)), array)
    tensor._requires_grad = requires_grad
    return tensor


def _to_array(data: Any, copy: bool, dtype: DType | None = None) -> Any:
    """Return data as an array of one of our dtypes: Python floats as float32, ints as int64."""
    if type(data) in _NUMBERS and (dtype is float64 or dtype is float32) and abs(data) < _SMALL:
        return np.array(data, dtype.numpy)
    if isinstance(data, list | tuple) and any(isinstance(part, Tensor) for part in data):
        data = [part.detach().__array__() if isinstance(part, Tensor) else part for part in data]
    elif not isinstance(data, _ON_HOST) and arrays.has_device_memory(data):
        return _to_device_array(data, copy, dtype)
    try:
        array = np.array(data) if copy else np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"Tensor: the nested lists are ragged: {error}. Every row needs the same length.") from None
    except OverflowError:
        raise DTypeError("Tensor: an integer does not fit into int64. Use a float.") from None
    is_python = not isinstance(data, np.ndarray | np.generic)
    if is_python and array.dtype == object and isinstance(data, int):
        raise DTypeError(f"Tensor: the integer {data} does not fit into int64. Use a float.")
    if dtype is not None:
        with np.errstate(all="ignore"):  # a number too large for the dtype becomes inf, or wraps, as in torch
            return array.astype(dtype.numpy, copy=False)
    if array.dtype.kind not in "biuf" and array.dtype not in [d.numpy for d in DTYPES]:
        raise DTypeError(f"Tensor: data must be real numbers. Got {type(data).__name__} of dtype {array.dtype}.")
    if is_python and array.dtype == np.float64 and not _has_numpy_float64(data):
        return array.astype(np.float32)
    widened = _WIDENED.get(array.dtype.name)
    return array if widened is None else array.astype(widened)


# Integers below this are exact in every dtype that the quick way is for, and floats no special case.
_SMALL = 2**24
_NUMBERS = (float, int)
_ON_HOST = (np.ndarray, np.generic, float, int, list, tuple)
_WIDENED = {"int8": np.int32, "int16": np.int32, "uint16": np.int32, "uint32": np.int64}


def _to_device_array(data: Any, copy: bool, dtype: DType | None) -> Any:
    """Return what has ``__cuda_array_interface__`` as a device array of one of our dtypes, which shares its memory."""
    array = arrays.as_device_array(data)
    wanted = _WIDENED.get(array.dtype.name) if dtype is None else dtype.numpy
    if wanted is not None and array.dtype != wanted:
        return array.astype(wanted)
    as_dtype(array.dtype)
    return array.copy() if copy else array


def _has_numpy_float64(data: Any) -> bool:
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return isinstance(data, np.ndarray | np.generic) and data.dtype == np.float64


def install_methods() -> None:
    """Give Tensor the methods that ops and composites name. Called once, when this module is imported."""
    for op in list(REGISTRY.values()):
        for name in op.methods:
            setattr(Tensor, name, op.call)
    for name, function in (composite.METHODS | composite.IN_PLACE).items():
        setattr(Tensor, name, function)
    for name, (function, is_reflected) in composite.OPERATORS.items():
        setattr(Tensor, f"__{name}__", function)
        if is_reflected:
            setattr(Tensor, f"__r{name}__", _reflected(f"__r{name}__", function))


def _reflected(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, other: Any) -> Any:
        return function(other, self)

    method.__name__ = name
    method.__doc__ = function.__doc__
    return method


set_tensor_type(Tensor)
install_methods()
