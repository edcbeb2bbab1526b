"""What an op is, and the one door through which every op is applied.

Invariant: `bind` is the only place where an op meets its inputs. What happens there (NumPy now, a node of a
graph while tracing) is up to the interpreter of the thread-local context, so that neither ops nor nn nor optim
know that tracing exists.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from _thread import _local as ThreadLocal  # as in config.py
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import arrays as devices
from ..config import config
from ..dtypes import DType, as_dtype, bool_, float32, int64, result_type
from ..errors import (
    AutogradError,
    CompilerBug,
    DeviceError,
    DTypeError,
    NotANumberError,
    NotCompilable,
    ShapeError,
)
from ..records import Record
from .sharding import Sharding


class TensorSpec(Record):
    """Shape and element type of a value; all that an op's rule may depend on."""

    __slots__ = ("shape", "dtype")  # noqa: RUF023 (the order of __init__)
    shape: tuple[int, ...]
    dtype: DType

    # Made, compared and hashed for every op that runs: without the loops of the base class.

    def __init__(self, shape: tuple[int, ...], dtype: DType) -> None:
        _set_shape(self, shape)
        _set_dtype(self, dtype)

    def __eq__(self, other: Any) -> bool:
        return type(other) is TensorSpec and self.shape == other.shape and self.dtype is other.dtype

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


_set_shape = vars(TensorSpec)["shape"].__set__
_set_dtype = vars(TensorSpec)["dtype"].__set__

# --- how an op reaches machine code: data, read by codegen/lower.py -------------------------------------------


class Expression(Record):
    """Elementwise: one C expression, valid for scalars and for SIMD lanes alike.

    Placeholders: ``{0}``, ``{1}`` … are the operands (already of the op's input dtypes), ``{name}`` a parameter
    rendered as a C literal, ``{T}`` the C type name of the result (pg::f32 …), ``{T0}`` that of operand 0,
    ``{index}`` the linear row-major index of the element in the node's result (int64 lanes), ``{first}`` that of the
    first lane (a scalar), and ``{coordinate}`` index / inner % extent, for parameters of those names.
    """

    __slots__ = ("text",)
    text: str

    def __init__(self, text: str) -> None:
        self.set_fields(text=text)


class Reduction(Record):
    """A reduction over the dimensions ``params["dims"]`` with a monoid: sum, prod, max, min, any, all,
    argmax or argmin (index within the reduced dimensions, row-major, lowest on ties, NaN wins)."""

    __slots__ = ("monoid",)
    monoid: str

    def __init__(self, monoid: str) -> None:
        self.set_fields(monoid=monoid)


class View(Record):
    """No arithmetic: a re-reading of the input through `Op.access` (strides), or a predicated copy (pad)."""

    __slots__ = ()


class Family(Record):
    """A kernel family of its own in codegen/plan.py, such as contract, conv2d, pool, gather."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        self.set_fields(name=name)


Lowering = Expression | Reduction | View | Family | NotCompilable


class Sample(Record):
    """Arguments for the automatic tests of an op: arrays, parameters, and the name torch has for it.

    ``torch`` is a callable ``(torch, *tensors) -> tensor(s)``, or None where torch has no such thing.
    ``differentiable`` names the inputs whose gradients are compared.
    """

    __slots__ = ("arrays", "params", "torch", "differentiable")  # noqa: RUF023 (the order of __init__)
    arrays: tuple[np.ndarray, ...]
    params: tuple[tuple[str, Any], ...]
    torch: Callable[..., Any] | None
    differentiable: tuple[int, ...]

    def __init__(
        self,
        arrays: tuple[np.ndarray, ...],
        params: tuple[tuple[str, Any], ...] = (),
        torch: Callable[..., Any] | None = None,
        differentiable: tuple[int, ...] = (),
    ) -> None:
        self.set_fields(arrays=arrays, params=params, torch=torch, differentiable=differentiable)


REGISTRY: dict[str, type[Op]] = {}
"""The ops that are imported so far, by name; registry.py has them all."""


class Op:
    """Base of all ops. A subclass is the op's whole record; it is never instantiated.

    A concrete subclass states: ``name``, a docstring, ``infer`` (the shape and dtype rule), ``numpy`` (evaluation,
    array namespace given), ``vjp`` (written in ops; or None: not differentiable), ``lowering``, ``shard`` (the
    sharding rule), ``call`` (the public function, with torch's signature), and ``samples``.
    Parameters are hashable: ints, floats, strings, DTypes, and tuples of them.
    """

    name: ClassVar[str] = ""
    lowering: ClassVar[Any] = None
    call: ClassVar[Callable[..., Any]]
    """The public function, with torch's signature."""
    methods: ClassVar[tuple[str, ...]] = ()
    """Names under which ``call`` is also a Tensor method."""

    # Traits, which generic passes read instead of names.
    pure: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    commutative: ClassVar[bool] = False
    view: ClassVar[bool] = False
    reduction: ClassVar[bool] = False
    is_constant: ClassVar[bool] = False
    """True for ops without inputs whose result depends on parameters alone."""
    planes: ClassVar[tuple[str, ...]] = ()
    """For ops of windows: what the last two of four dimensions are of each operand, then of each result: "image", "windows"
    or "kernel". Where a result is "image" or "kernel", the first operand that is "windows" is the gradient; without it, zero."""
    has_positions: ClassVar[bool] = False
    """Whether an operand or a result says which element of a window it was."""

    @staticmethod
    def infer(*specs: TensorSpec, **params: Any) -> TensorSpec | tuple[TensorSpec, ...]:
        """Return the result's spec (a tuple for several results); raise ShapeError or DTypeError."""
        raise NotImplementedError

    @staticmethod
    def numpy(xp: Any, *arrays: Any, **params: Any) -> Any:
        """Evaluate with the array namespace ``xp`` (NumPy or CuPy). A view op returns a view."""
        raise NotImplementedError

    vjp: ClassVar[Callable[..., Any] | None] = None
    """``vjp(saved, *grads) -> tuple``: one gradient (or None) per input, any shape that broadcasts from it."""

    @staticmethod
    def shard(inputs: tuple[Sharding, ...], specs: tuple[TensorSpec, ...], **params: Any) -> Sharding | None:
        """Return the result's sharding for the inputs', or None: the op needs the whole value."""
        return None

    @staticmethod
    def put(base: Any, new: Any, **params: Any) -> Any:
        """For view ops, in ops: ``base`` with the elements that the view shows replaced by ``new``."""
        raise NotImplementedError

    @staticmethod
    def access(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, /, **params: Any) -> Any:
        """For view ops: (shape, strides, offset) of the result in the input's buffer, in elements; or None."""
        raise NotImplementedError

    @staticmethod
    def refusal(specs: tuple[TensorSpec, ...], literals: tuple[Any, ...]) -> str | None:
        """Return why a kernel could not do what `numpy` does for these operands, or None.

        ``literals``: for each operand that is a constant of one number, that number; else None.
        """
        return None

    @staticmethod
    def samples() -> list[Sample]:
        """Arguments for the automatic tests; at least one."""
        return []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("name"):
            return  # an abstract family of ops
        missing = [part for part in ("infer", "numpy", "shard") if getattr(cls, part) is getattr(Op, part)]
        if cls.lowering is None:
            missing.append("lowering")
        if not cls.__doc__:
            missing.append("docstring")
        if getattr(cls, "call", None) is None:
            missing.append("call")
        if getattr(cls, "samples", None) is Op.samples:
            missing.append("samples")
        if cls.view and (cls.put is Op.put or (cls.access is Op.access)):
            missing.append("put and access (it is a view)")
        if missing:
            raise CompilerBug(f"op {cls.name!r} ({cls.__module__}.{cls.__qualname__}) lacks {', '.join(missing)}")
        if cls.name in REGISTRY:
            raise CompilerBug(f"two ops are named {cls.name!r}: {REGISTRY[cls.name]} and {cls}")
        REGISTRY[cls.name] = cls


# --- the ambient context --------------------------------------------------------------------------------------


_NOTHING = contextlib.nullcontext()


class Interpreter:
    """What `bind` asks; the base class is NumPy, now. The tracer overrides all of it."""

    has_data: ClassVar[bool] = True
    """False while tracing: then even a tensor that has elements must not be read, for its value would be frozen."""

    def evaluate(
        self, op: type[Op], inputs: tuple[Any, ...], params: dict[str, Any], specs: tuple[TensorSpec, ...]
    ) -> Sequence[Any]:
        """Return one payload (ndarray or graph value) per result."""
        arrays = [tensor.array for tensor in inputs]
        if devices.device_types:
            device = context.device if not arrays else common_device(op, inputs)
            if device != devices.CPU:
                return self._evaluate_on(device, op, inputs, params, specs)
        with np.errstate(all="ignore"):
            result = op.numpy(np, *arrays, **params)
        results = result if isinstance(result, tuple) else (result,)
        outputs = [
            out if isinstance(out, np.ndarray) and out.dtype == spec.dtype.numpy else _as_array(out, spec.dtype.numpy)
            for out, spec in zip(results, specs, strict=True)
        ]
        if config.debug_nans:
            refuse_nans(op, inputs, outputs)
        return outputs

    def _evaluate_on(
        self, device: str, op: type[Op], inputs: tuple[Any, ...], params: dict[str, Any], specs: tuple[TensorSpec, ...]
    ) -> Sequence[Any]:
        """Return the results of ``op`` computed on a GPU; single numbers on the CPU come along."""
        with devices.working_on(device), np.errstate(all="ignore"):
            result = op.numpy(devices.cupy(), *[devices.moved(tensor.array, device) for tensor in inputs], **params)
            results = result if isinstance(result, tuple) else (result,)
            outputs = [_as_device_array(out, spec.dtype.numpy) for out, spec in zip(results, specs, strict=True)]
        if config.debug_nans:
            refuse_nans(op, inputs, outputs)
        return outputs

    def constant(self, array: Any) -> Any:
        """Return the payload of an array that enters as data (not as a traced argument)."""
        return array

    def version(self, storage: Any) -> int:
        """Return how often ``storage`` was written in place."""
        return storage.version

    def write(self, target: Any, new: Any) -> None:
        """Replace the contents of ``target`` (and of every view of it) by ``new``, of the same spec."""
        array = target.array
        if not devices.is_writeable(array):
            raise AutogradError("this tensor shares memory with a read-only array. Use .clone() before writing.")
        if devices.device_types:
            devices.copy_into(array, new.array)
        else:
            np.copyto(array, new.array)
        target.storage.version += 1

    def get_grad(self, tensor: Any) -> Any:
        return tensor._grad

    def set_grad(self, tensor: Any, grad: Any) -> None:
        tensor._grad = grad

    def scalar(self, owner: Any, key: Any, value: Any) -> Any:
        """Return ``owner[key]``, a Python number that may change between calls (learning rate, momentum …).

        A key (name, index) stands for ``owner[name][index]``, where the tuple ``owner[name]`` may be replaced.
        """
        return value

    def module_called(self, module: Any) -> None:
        """Take note that ``module`` is about to compute: whatever its attributes say now is read."""

    def optimizer_stepped(self, optimizer: Any) -> None:
        """Take note that ``optimizer`` is about to update its parameters: its groups and its state are read."""

    def updated(
        self, update: Callable[..., Any], parameter: Any, gradient: Any, state: Any, group: Any, rates: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return what an optimizer's ``update`` makes of a parameter, its gradient and its state. It is pure, and of tensors
        it knows what their specs say: so what is known of it for one parameter holds for others like it."""
        return update(parameter, gradient, state, group, rates)

    @property
    def device(self) -> str:
        """Where a tensor without data is taken to lie."""
        return devices.CPU

    def may_move(self, tensor: Any) -> bool:
        """Whether ``tensor`` may get other memory now: no trace has read it yet."""
        return True

    def no_data(self, tensor: Any) -> str:
        """Return the message for reading the elements of a tensor that has none: it escaped from a trace."""
        return (
            f"this tensor, {tensor.spec}, escaped from a traced function: it exists only inside the compiled step. "
            "Return it from the function instead of storing it."
        )

    def location(self) -> Any:
        """Return the line of user code that is running, or None where nobody will ask."""
        return None

    def at(self, location: Any) -> contextlib.AbstractContextManager[None]:
        """Attribute what runs inside to ``location``: the forward line that a gradient belongs to."""
        return _NOTHING

    def unwatched(self, *functions: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
        """Say that nothing but ours runs inside as long as ``functions`` are ours: then nobody need look for the user's."""
        return _NOTHING

    def watched(self, function: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
        """Inside `unwatched`, let look again while ``function`` runs, if it is the user's."""
        return _NOTHING


def refuse_nans(op: type[Op], inputs: tuple[Any, ...], outputs: Sequence[Any]) -> None:
    """Raise NotANumberError if a result has NaN, and say whether it came in with an input."""
    for output in outputs:
        if output.dtype.kind in "biu" or not (count := int(np.isnan(output).sum())):
            continue
        guilty = [i for i, x in enumerate(inputs) if x.dtype.is_floating_point and np.isnan(x.array).any()]
        origin = f"NaN came in with input {guilty[0]}" if guilty else "no input has NaN"
        raise NotANumberError(
            f"{op.name} of ({', '.join(str(x.spec) for x in inputs)}) gave NaN in {count} of {output.size} elements; "
            f"{origin}. config.debug_nans is on."
        )


EAGER = Interpreter()


def common_device(op: type[Op], inputs: tuple[Any, ...]) -> str:
    """Return the device that ``op`` computes on: that of its inputs. Single numbers may lie on the CPU all the same.

    Raises DeviceError where the inputs lie on different devices.
    """
    found = [devices.device_of(tensor.array) for tensor in inputs]
    chosen = next((device for device in found if device != devices.CPU), devices.CPU)
    for i, (tensor, device) in enumerate(zip(inputs, found, strict=True)):
        if device != chosen and (tensor.ndim or device != devices.CPU):
            other = found.index(chosen)
            raise DeviceError(
                f"{op.name}: input {other}, {inputs[other].spec}, lies on {chosen!r} and input {i}, {tensor.spec}, on "
                f"{device!r}. Bring one to the other, for example by .to({chosen!r})."
            )
    return chosen


def _as_array(out: Any, dtype: np.dtype) -> Any:
    """Return a result as an array of ``dtype``, where it lies: a move to another device may have been the op."""
    return out.astype(dtype, copy=False) if devices.is_device_array(out) else np.asarray(out, dtype)


def _as_device_array(out: Any, dtype: np.dtype) -> Any:
    # A bare number, which a reduction may give, is to be an array there; what was moved to the CPU is not.
    is_number = not isinstance(out, np.ndarray) and not devices.is_device_array(out)
    return devices.cupy().asarray(out, dtype) if is_number else _as_array(out, dtype)


class Context(ThreadLocal):
    """The ambient state of a thread: interpreter, gradient mode, and where ops without inputs put their results."""

    def __init__(self) -> None:
        self.interpreter: Interpreter = EAGER
        self.is_grad_enabled = True
        self.device = devices.CPU


context = Context()

_tensor_type: Any = None


def set_tensor_type(tensor_type: Any) -> None:
    """Tell bind what to wrap results in. Called once, by tensor.py, which this module may not import."""
    global _tensor_type
    _tensor_type = tensor_type


class grad_mode:
    """Record for backward (or do not) inside the block."""

    __slots__ = ("_before", "_enabled")

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def __enter__(self) -> None:
        self._before = context.is_grad_enabled
        context.is_grad_enabled = self._enabled

    def __exit__(self, *_: object) -> None:
        context.is_grad_enabled = self._before


class use_interpreter:
    """Send every op of this thread to ``interpreter`` inside the block."""

    __slots__ = ("_before", "_interpreter")

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def __enter__(self) -> None:
        self._before = context.interpreter
        context.interpreter = self._interpreter

    def __exit__(self, *_: object) -> None:
        context.interpreter = self._before


# --- the tape -------------------------------------------------------------------------------------------------

_order = itertools.count()


class TapeNode:
    """One recorded application: what backward needs to go through it, in the order of recording.

    Per input, ``storages`` tells whose version ``versions`` has, for assigning to ``.data`` gives a tensor another
    storage; and ``edges`` has the (TapeNode, result index) it came from, the leaf tensor itself, or None.
    """

    __slots__ = (
        "edges", "input_specs", "inputs", "location", "op", "order", "output_specs", "output_versions", "outputs",
        "params", "storages", "versions",
    )  # fmt: skip

    def __init__(
        self,
        *,
        op: type[Op],
        params: dict[str, Any],
        inputs: tuple[Any, ...],
        input_specs: tuple[TensorSpec, ...],
        versions: tuple[int, ...],
        storages: tuple[Any, ...],
        edges: tuple[Any, ...],
        output_specs: tuple[TensorSpec, ...],
        location: Any,
    ) -> None:
        self.op = op
        self.params = params
        self.inputs: tuple[Any, ...] | None = inputs
        self.input_specs = input_specs
        self.versions = versions
        self.storages = storages
        self.edges = edges
        self.output_specs = output_specs
        self.outputs: tuple[Any, ...] | None = None
        self.output_versions: tuple[int, ...] = ()
        self.location = location
        self.order = next(_order)

    def free(self) -> None:
        """Drop the saved tensors; a second backward through here is then an error."""
        self.inputs = self.outputs = None
        self.storages = ()


class Saved:
    """What a vjp may look at: parameters and specs freely, tensors only if nobody wrote to them since."""

    __slots__ = ("_node", "params")

    def __init__(self, node: TapeNode) -> None:
        self._node = node
        self.params = node.params

    def input(self, i: int = 0) -> Any:
        """The i-th input as it was; AutogradError if it was changed in place or freed."""
        tensor = self._checked(self._node.inputs, self._node.versions, i, "input")
        if tensor.storage is not self._node.storages[i]:
            raise AutogradError(
                f"input {i} of {self._node.op.name}, {tensor.spec}, is needed for its gradient but its .data was "
                "replaced afterwards. Replace it before the forward pass or after backward."
            )
        return tensor

    def output(self, i: int = 0) -> Any:
        """The i-th result as it was; AutogradError if it was changed in place or freed."""
        output = self._checked(self._node.outputs, self._node.output_versions, i, "result")
        if context.is_grad_enabled and output.dtype.is_floating_point:
            # Linked only now: a saved result that kept its own node alive would be a reference cycle.
            output = output.saved_alias()
            output.link(self._node, i)
        return output

    def spec(self, i: int = 0) -> TensorSpec:
        """Spec of the i-th input."""
        return self._node.input_specs[i]

    def output_spec(self, i: int = 0) -> TensorSpec:
        """Spec of the i-th result."""
        return self._node.output_specs[i]

    def needs(self, i: int) -> bool:
        """Whether the gradient of the i-th input is wanted."""
        return self._node.edges[i] is not None

    def _checked(self, tensors: tuple[Any, ...] | None, versions: tuple[int, ...], i: int, what: str) -> Any:
        if tensors is None:
            raise AutogradError(
                f"backward through {self._node.op.name} a second time: its saved tensors were freed. "
                "Pass retain_graph=True to the first backward."
            )
        tensor = tensors[i]
        now = context.interpreter.version(tensor.storage)
        if now != versions[i]:
            raise AutogradError(
                f"{what} {i} of {self._node.op.name}, {tensor.spec}, is needed for its gradient but was changed in "
                f"place afterwards (version {now}, expected {versions[i]}). Use the out-of-place form, or .clone() first."
            )
        return tensor


# --- the door -------------------------------------------------------------------------------------------------


def bind(op: type[Op], *inputs: Any, **params: Any) -> Any:
    """Apply ``op`` to Tensors and return a Tensor, or a tuple of them where the op has several results."""
    interpreter = context.interpreter
    if not interpreter.has_data and sys.gettrace() is not None:
        unwatched = interpreter.unwatched(op.infer)
        if unwatched is not _NOTHING:
            with unwatched:
                return bind(op, *inputs, **params)
    inferred = op.infer(*[tensor.spec for tensor in inputs], **params)
    is_single = isinstance(inferred, TensorSpec)
    out_specs: tuple[TensorSpec, ...] = (inferred,) if isinstance(inferred, TensorSpec) else inferred
    payloads = interpreter.evaluate(op, inputs, params, out_specs)
    if op.view:
        outputs = (_tensor_type._view_of(inputs[0], op, params, payloads[0], out_specs[0]),)
    elif is_single:
        outputs = (_tensor_type._wrap(payloads[0], inferred),)
    else:
        outputs = tuple([_tensor_type._wrap(payload, spec) for payload, spec in zip(payloads, out_specs, strict=True)])
    if context.is_grad_enabled and op.vjp is not None and True in [tensor.requires_grad for tensor in inputs]:
        record(op, inputs, params, outputs)
    return outputs[0] if is_single else outputs


def make(op: type[Op], device: str | None, **params: Any) -> Any:
    """Apply an op without inputs whose result is to lie on ``device``; None: where the context says."""
    if device is None or device == context.device:
        return bind(op, **params)
    before = context.device
    context.device = device
    try:
        return bind(op, **params)
    finally:
        context.device = before


def record(op: type[Op], inputs: tuple[Any, ...], params: dict[str, Any], outputs: tuple[Any, ...]) -> None:
    """Put an application on the tape, and link its floating-point results to it."""
    interpreter = context.interpreter
    node = TapeNode(
        op=op,
        params=params,
        inputs=inputs,
        input_specs=tuple([tensor.spec for tensor in inputs]),
        versions=tuple([interpreter.version(tensor.storage) for tensor in inputs]),
        storages=tuple([tensor.storage for tensor in inputs]),
        edges=tuple([tensor.edge() for tensor in inputs]),
        output_specs=tuple([tensor.spec for tensor in outputs]),
        location=interpreter.location(),
    )
    for i, output in enumerate(outputs):
        if output.dtype.is_floating_point:
            output.link(node, i)
    # The saved results must not keep the tape alive through themselves: they are light aliases.
    node.outputs = tuple([output.saved_alias() for output in outputs])
    node.output_versions = tuple([interpreter.version(output.storage) for output in outputs])


# --- arguments ------------------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a pequegrad Tensor."""
    return isinstance(value, _tensor_type)


def as_tensor(value: Any, dtype: DType | None = None) -> Any:
    """Return ``value`` (Tensor, array, number, nested list) as a Tensor; arrays share memory."""
    if isinstance(value, _tensor_type):
        return value
    return _tensor_type._from_data(value, dtype)


def operands(*values: Any, kind: str = "any", who: str = "") -> tuple[Any, ...]:
    """Promote numbers, arrays and Tensors to Tensors of one dtype, as torch does for arithmetic.

    ``kind="float"`` promotes integers on to float32, for functions like exp and true division.
    """
    dtypes = {value.spec.dtype if isinstance(value, _tensor_type) else None for value in values}
    only = dtypes.pop() if len(dtypes) == 1 else None
    if only is not None and (kind != "float" or only.is_floating_point):
        return values  # what most applications are given: there is nothing to promote
    standings: list[tuple[DType, int | None]] = []
    for value in values:
        if isinstance(value, _tensor_type):
            standings.append((value.dtype, value.ndim))
        elif isinstance(value, bool):
            standings.append((bool_, None))
        elif isinstance(value, int):
            standings.append((int64, None))
        elif isinstance(value, float):
            standings.append((float32, None))
        elif isinstance(value, np.generic | np.ndarray):
            standings.append((as_dtype(value.dtype), value.ndim))
        elif devices.has_device_memory(value):
            value = devices.as_device_array(value)
            standings.append((as_dtype(value.dtype), value.ndim))
        else:
            raise DTypeError(
                f"{who or 'operand'}: expected a Tensor, array or number. Got {type(value).__name__}: {value!r}."
            )
    dtype = result_type(standings)
    if kind == "float" and not dtype.is_floating_point:
        dtype = float32
    return tuple([_promoted(value, dtype) for value in values])


def _promoted(value: Any, dtype: DType) -> Any:
    if isinstance(value, bool | int | float):
        return _tensor_type._from_data(value, dtype)
    tensor = as_tensor(value)
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def broadcast_shapes(*shapes: tuple[int, ...], who: str = "broadcast") -> tuple[int, ...]:
    """Return the common shape, or raise ShapeError that names both."""
    if shapes and shapes.count(shapes[0]) == len(shapes):
        return tuple(shapes[0])
    if len(shapes) == 2 and not all(shapes):
        return tuple(shapes[0] or shapes[1])
    result: list[int] = []
    for shape in shapes:
        if len(shape) > len(result):
            result = [1] * (len(shape) - len(result)) + result
    for shape in shapes:
        for i, extent in enumerate(shape, start=len(result) - len(shape)):
            if result[i] == 1:
                result[i] = extent
            elif extent not in (1, result[i]):
                raise ShapeError(
                    f"{who}: shapes {' and '.join(map(str, shapes))} do not broadcast: dimension {i - len(result)} "
                    f"is {result[i]} in one and {extent} in another. Dimensions must be equal or 1."
                )
    return tuple(result)


def normalize_dim(dim: int, ndim: int, who: str) -> int:
    """Return ``dim`` as a non-negative dimension of an ``ndim``-dimensional tensor, or raise."""
    limit = max(ndim, 1)
    if not isinstance(dim, int | np.integer) or isinstance(dim, bool):
        raise DTypeError(f"{who}: dim must be an int. Got {type(dim).__name__}: {dim!r}.")
    if not -limit <= dim < limit:
        raise ShapeError(f"{who}: dim must be in [{-limit}, {limit - 1}] for a {ndim}-dimensional tensor. Got {dim}.")
    return int(dim) % limit


def normalize_dims(dim: Any, ndim: int, who: str) -> tuple[int, ...]:
    """Return ``dim`` (None: all; an int; a sequence) as sorted non-negative dimensions."""
    if dim is None:
        return tuple(range(ndim))
    wanted = dim if isinstance(dim, tuple | list) else (dim,)
    dims = tuple(sorted(normalize_dim(d, ndim, who) for d in wanted))
    if len(set(dims)) != len(dims):
        raise ShapeError(f"{who}: a dim is named twice in {dim}.")
    return tuple(d for d in dims if d < ndim)
