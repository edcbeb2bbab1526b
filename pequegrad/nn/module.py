"""Module: state and behaviour of a layer, as torch lays it out.

Invariant: a module's whole state lies in its ``__dict__`` (with ``_parameters``, ``_buffers`` and ``_modules`` in it),
and every change of it that goes through the module is counted in ``Module.changes``: while that number stands still, a
snapshot of any module taken earlier is still true.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import arrays
from ..dtypes import DType, as_dtype
from ..errors import DTypeError, StateDictError, TraceError
from ..ops.core import EAGER, as_tensor, context, grad_mode, use_interpreter
from ..records import RecordTuple
from ..tensor import Tensor
from .members import Changes, Members, changes
from .parameter import Parameter

if TYPE_CHECKING:
    from typing_extensions import Self


class IncompatibleKeys(RecordTuple):
    """What `load_state_dict(strict=False)` could not match."""

    __slots__ = ()
    missing_keys: list[str]
    unexpected_keys: list[str]


class RemovableHandle:
    """Takes a hook away again."""

    _ids = itertools.count()

    def __init__(self, hooks: dict[int, Callable[..., Any]]) -> None:
        self._hooks = hooks
        self.id = next(self._ids)

    def remove(self) -> None:
        """Remove the hook; a second time is harmless."""
        self._hooks.pop(self.id, None)


class Module:
    """Base of all layers and models. Subclasses call ``super().__init__()`` first and define ``forward``."""

    changes: ClassVar[Changes] = changes
    """``changes.count`` differs from its former value whenever any module may have changed."""

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers: set[str]
    _forward_hooks: dict[int, Callable[..., Any]]
    _forward_pre_hooks: dict[int, Callable[..., Any]]

    def __init__(self) -> None:
        self.__dict__.update(
            training=True,
            _parameters=Members(),
            _buffers=Members(),
            _modules=Members(),
            _non_persistent_buffers=set(),
            _forward_hooks=Members(),
            _forward_pre_hooks=Members(),
        )

    # --- running ------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result; each subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward. Define forward(self, …) in the class.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        context.interpreter.module_called(self)
        for pre_hook in tuple(self._forward_pre_hooks.values()):
            changed = pre_hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        if self._modules:
            result = self.forward(*args, **kwargs)
        else:
            with context.interpreter.unwatched(self.forward):
                result = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks.values()):
            changed = hook(self, args, result)
            if changed is not None:
                result = changed
        return result

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, args)`` before each forward; what it returns, if not None, replaces the arguments."""
        return self._add_hook(self._forward_pre_hooks, hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, args, result)`` after each forward; what it returns, if not None, replaces the result."""
        return self._add_hook(self._forward_hooks, hook)

    def _add_hook(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> RemovableHandle:
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    # --- attributes ---------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            members = self.__dict__.get(table)
            if members is not None and name in members:
                return members[name]
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}.{name}: call super().__init__() first in __init__.")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_traced(name, value)
        table = self._table_for(name, value)
        if table is None:
            prop = getattr(type(self), name, None)
            if isinstance(prop, property):
                object.__setattr__(self, name, value)
                return
            members: dict[str, Any] = self.__dict__
        else:
            members = self.__dict__[table]
            self._forget(name, keep=table)
        if name in members and members[name] is value:
            return
        members[name] = value
        Module.changes.bump()

    def _table_for(self, name: str, value: Any) -> str | None:
        """Return which of the three tables ``value`` belongs into under ``name``; None: a plain attribute."""
        state = self.__dict__
        if isinstance(value, Parameter | Module) and "_parameters" not in state:
            raise AttributeError(
                f"{type(self).__name__}.{name}: call super().__init__() before assigning parameters or modules."
            )
        if isinstance(value, Parameter):
            return "_parameters"
        if name in state.get("_parameters", ()):
            if value is not None:
                raise DTypeError(
                    f"{type(self).__name__}.{name} is a parameter: expected a Parameter or None. "
                    f"Got {type(value).__name__}. Wrap it in nn.Parameter, or write into it under no_grad: .copy_(…)."
                )
            return "_parameters"
        if isinstance(value, Module):
            return "_modules"
        if name in state.get("_modules", ()):
            if value is not None:
                raise DTypeError(
                    f"{type(self).__name__}.{name} is a module: expected a Module or None. Got {type(value).__name__}."
                )
            return "_modules"
        if name in state.get("_buffers", ()):
            if value is not None and not isinstance(value, Tensor):
                raise DTypeError(
                    f"{type(self).__name__}.{name} is a buffer: expected a Tensor or None. Got {type(value).__name__}."
                )
            return "_buffers"
        return None

    def _refuse_traced(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            parts: Any = (value,)
        elif isinstance(value, list | tuple):
            parts = value
        elif isinstance(value, dict):
            parts = value.values()
        else:
            return
        if any(isinstance(part, Tensor) and part.is_traced for part in parts):
            update = f"self.{name}.copy_(…)" if name in self._buffers else "register_buffer and .copy_(…)"
            raise TraceError.kept(f"{type(self).__name__}.{name}", context.interpreter.location(), update)

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            object.__delattr__(self, name)
        Module.changes.bump()

    def _forget(self, name: str, keep: str | None = None) -> bool:
        """Remove ``name`` wherever it stands but in table ``keep``; say whether it stood in one of the tables."""
        is_found = False
        for table in ("_parameters", "_buffers", "_modules"):
            if table != keep and name in self.__dict__[table]:
                del self.__dict__[table][name]
                is_found = True
        if keep is not None:
            self.__dict__.pop(name, None)
        self._non_persistent_buffers.discard(name) if keep != "_buffers" else None
        return is_found

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter (None: a place for one, which state_dict leaves out)."""
        self._check_new(name, self._parameters)
        if param is not None and not isinstance(param, Parameter):
            raise DTypeError(f"register_parameter({name!r}): expected a Parameter or None. Got {type(param).__name__}.")
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but not trained. ``persistent=False`` keeps it out of state_dict."""
        self._check_new(name, self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise DTypeError(f"register_buffer({name!r}): expected a Tensor or None. Got {type(tensor).__name__}.")
        self._refuse_traced(name, tensor)
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers.discard(name)
        else:
            self._non_persistent_buffers.add(name)
        Module.changes.bump()

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child under ``name``, then also an attribute."""
        if module is not None and not isinstance(module, Module):
            raise DTypeError(f"add_module({name!r}): expected a Module or None. Got {type(module).__name__}.")
        self._check_new(name, self._modules)
        self._modules[name] = module

    register_module = add_module

    def _check_new(self, name: str, table: Mapping[str, Any]) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise KeyError(f"{type(self).__name__}: a name must be a non-empty string without a dot. Got {name!r}.")
        if hasattr(self, name) and name not in table:
            raise KeyError(f"{type(self).__name__}: attribute {name!r} exists already.")

    # --- what is inside -----------------------------------------------------------------------------------

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) for this module and all below it, each once."""
        seen = set() if memo is None else memo
        if self in seen:
            return
        if remove_duplicate:
            seen.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(seen, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for the direct children, each once."""
        seen: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """Yield the direct children."""
        return (module for _, module in self.named_children())

    def _named_members(
        self, table: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        modules = self.named_modules(None, prefix, remove_duplicate) if recurse else iter([(prefix, self)])
        for path, module in modules:
            for name, member in module.__dict__[table].items():
                if member is None or id(member) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(member))
                yield f"{path}.{name}" if path else name, member

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter), tied parameters once."""
        return self._named_members("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters, tied ones once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, buffer)."""
        return self._named_members("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """Return the module with a dotted name; AttributeError if there is none."""
        module: Module = self
        for name in target.split(".") if target else ():
            child = module._modules.get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__} has no submodule {name!r} (looking for {target!r}).")
            module = child
        return module

    def get_parameter(self, target: str) -> Parameter:
        """Return the parameter with a dotted name; AttributeError if there is none."""
        path, _, name = target.rpartition(".")
        parameter = self.get_submodule(path)._parameters.get(name)
        if parameter is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}.")
        return parameter

    # --- changing all of it -------------------------------------------------------------------------------

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call ``function`` on every module below and on this one, children first."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below: Dropout drops, BatchNorm uses the batch's statistics."""
        if not isinstance(mode, bool):
            raise DTypeError(f"train: mode must be a bool. Got {type(mode).__name__}: {mode!r}.")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode here and below."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set ``requires_grad`` of all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        Module.changes.bump()
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.detach().zero_()

    def to(self, *targets: Any, device: Any = None, dtype: Any = None, non_blocking: Any = False) -> Self:
        """Move to a device or convert floating-point parameters and buffers to a dtype, in place.

        Parameters and buffers stay the objects they are, and their ``.grad`` comes along; so do optimizers' states, at the
        next step. Raises DeviceError for a device that is not there, DTypeError for a dtype that is not floating-point.
        """
        for target in targets:
            if isinstance(target, Tensor):
                dtype, device = target.dtype, target.device
            elif arrays.is_device_name(target):
                device = target
            elif target is not None:
                dtype = target
        kind = None if dtype is None else as_dtype(dtype)
        if kind is not None and not kind.is_floating_point:
            raise DTypeError(f"{type(self).__name__}.to: dtype must be floating-point. Got {kind.name}.")
        self._convert(kind, None if device is None else arrays.checked_device(device))
        return self

    def _convert(self, dtype: DType | None, device: str | None) -> None:
        with use_interpreter(EAGER), grad_mode(False):
            for tensor in itertools.chain(self.parameters(), self.buffers()):
                kind = dtype if tensor.dtype.is_floating_point else None
                if (kind or tensor.dtype) is tensor.dtype and (device or tensor.device) == tensor.device:
                    continue
                tensor.data = tensor.detach().to(device=device, dtype=kind)
                # Not .grad, which raises for one that was fused into a compiled step.
                if isinstance(tensor._grad, Tensor):
                    tensor._grad = tensor._grad.to(device=device, dtype=kind)
        Module.changes.bump()

    def float(self) -> Self:
        """Convert floating-point parameters and buffers to float32."""
        return self.to("float32")

    def double(self) -> Self:
        """Convert floating-point parameters and buffers to float64."""
        return self.to("float64")

    def half(self) -> Self:
        """Convert floating-point parameters and buffers to float16."""
        return self.to("float16")

    def bfloat16(self) -> Self:
        """Convert floating-point parameters and buffers to bfloat16."""
        return self.to("bfloat16")

    def cuda(self, device: int | None = None) -> Self:
        """Move to a GPU; DeviceError where there is none."""
        return self.to(device="cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to(device="cpu")

    # --- saving and loading -------------------------------------------------------------------------------

    def _named_state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, tensor) of what state_dict holds, in torch's order."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._non_persistent_buffers:
                yield prefix + name, buffer
        for name, module in self._modules.items():
            if module is not None:
                yield from module._named_state(f"{prefix}{name}.")

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by dotted name; they share memory with the module's."""
        return {name: tensor if keep_vars else tensor.detach() for name, tensor in self._named_state(prefix)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy ``state_dict`` (Tensors, arrays or torch tensors) into this module's own memory.

        Raises StateDictError that lists the missing and unexpected keys (unless ``strict=False``) and the shapes that
        differ; then nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise DTypeError(f"load_state_dict: expected a dict. Got {type(state_dict).__name__}.")
        own = dict(self._named_state())
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        given = {name: _as_given(state_dict[name]) for name in own if name in state_dict}
        problems = [
            f"shape of {name}: expected {own[name].shape}, got {tensor.shape}"
            for name, tensor in given.items()
            if tensor.shape != own[name].shape
        ]
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(unexpected)}")
        if problems:
            cure = " Pass strict=False to load what matches." if strict and (missing or unexpected) else ""
            raise StateDictError(f"load_state_dict into {type(self).__name__}: {'; '.join(problems)}.{cure}")
        with grad_mode(False):
            for name, tensor in given.items():
                own[name].assign(tensor)
        return IncompatibleKeys(missing, unexpected)

    # --- printing -----------------------------------------------------------------------------------------

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """Return what stands between the parentheses when the module is printed."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = [f"({name}): {_indented(repr(module))}" for name, module in self._modules.items()]
        if not children:
            return f"{self._get_name()}({_indented(extra)})"
        lines = [line for line in extra.split("\n") if line] + children
        return f"{self._get_name()}(\n  " + "\n  ".join(lines) + "\n)"


def _as_given(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return as_tensor(value if arrays.is_device_array(value) else np.asarray(value))


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
