"""Optimizer: parameter groups, per-parameter state, and one step made of ops.

Invariant: a step reads numbers that may change between calls through the interpreter, writes parameters and state in
place, and reads no element in Python: so the same code runs eagerly and inside a compiled step. A tensor of the state,
once made, stays: loading writes into it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from .. import arrays
from ..dtypes import float32
from ..errors import AutogradError, DTypeError, StateDictError
from ..ops.core import EAGER, as_tensor, context, grad_mode, use_interpreter
from ..ops.movement import full
from ..tensor import Tensor

State = dict[str, Any]
Group = dict[str, Any]

_NOT_BUILT_IN = ("params", "initial_lr")
"""What no update of ours reads from a group as a value."""


def like(value: Any, tensor: Tensor) -> Any:
    """Return a hyperparameter to compute with ``tensor``: a number as it is, a traced float64 in the tensor's dtype."""
    return value.to(tensor.dtype) if isinstance(value, Tensor) else value


class Optimizer:
    """Base of all optimizers.

    ``params``: Tensors, or dicts with "params" and values that override the defaults. A subclass states ``rates``, and
    defines ``initial_state`` and ``update``, which are pure. Raises ValueError for an empty list, DTypeError for
    what is no Tensor, AutogradError for one that is no leaf.
    """

    rates: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    """Keys of numbers (or tuples of numbers) that a user may change between calls without recompiling."""

    switches: ClassVar[tuple[str, ...]] = ("weight_decay",)
    """Those of ``rates`` for which zero means that a part of the update is left out."""

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise DTypeError(
                f"{type(self).__name__}: params must be an iterable of Tensors or dicts. Got one Tensor. Use [tensor]."
            )
        self.defaults = dict(defaults)
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, State] = {}
        entries = list(params)
        if not entries:
            raise ValueError(f"{type(self).__name__} got an empty parameter list.")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with values of their own; what the group leaves out comes from the defaults."""
        given = param_group["params"]
        tensors = [given] if isinstance(given, Tensor) else list(given)
        present = {id(tensor) for group in self.param_groups for tensor in group["params"]}
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise DTypeError(f"{type(self).__name__}: expected Tensors to train. Got {type(tensor).__name__}.")
            if not tensor.is_leaf:
                raise AutogradError(
                    f"{type(self).__name__}: cannot train {tensor.spec}, which is not a leaf. Use .detach()."
                )
            if id(tensor) in present:
                raise ValueError(f"{type(self).__name__}: the parameter {tensor.spec} appears more than once.")
            present.add(id(tensor))
        group = {**self.defaults, **param_group, "params": tensors}
        self.check(group)
        self.param_groups.append(group)

    def check(self, group: Group) -> None:
        """Raise ValueError for a value in ``group`` that makes no sense: here, a negative one among ``rates``."""
        for name in self.rates:
            value = group[name]
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, int | float) and not part >= 0:
                    raise ValueError(f"{type(self).__name__}: {name} must not be negative. Got {value}.")

    # --- what a subclass says -----------------------------------------------------------------------------

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return the state of a parameter before its first update: per name, the number that fills it.

        Each entry has the parameter's shape and dtype; but "step", a count, is 0-d float32.
        """
        raise NotImplementedError

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the new parameter and the state entries that change. Pure.

        ``rates`` holds the current numbers (while tracing, 0-d float64 Tensors); ``group`` is for structure alone.
        """
        raise NotImplementedError

    def derive(self, rates: dict[str, Any], group: Group, tensor: Any) -> dict[str, Any]:
        """Return ``rates`` with what follows from them alone, for parameters of the dtype of ``tensor``. Pure.

        Called once for all of a group's parameters of a dtype; ``update`` gets what it returns.
        """
        return rates

    # --- stepping -----------------------------------------------------------------------------------------

    def ensure_state(self) -> None:
        """Make all state that is missing, for every parameter that requires grad; then no step has to."""
        for group in self.param_groups:
            initial = self.initial_state(group)
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._ensure(parameter, initial)

    def _ensure(self, parameter: Tensor, initial: dict[str, float]) -> State:
        state = self.state.setdefault(parameter, {})
        missing = [name for name in initial if name not in state]
        if missing:
            # Never inside a trace: there it would be a constant of the step.
            with use_interpreter(EAGER), grad_mode(False):
                place = parameter.device
                for name in missing:
                    shape, dtype = ((), float32) if name == "step" else (parameter.shape, parameter.dtype)
                    state[name] = full(shape, initial[name], dtype=dtype, device=place)
        if arrays.device_types:
            _follow(parameter, state)
        return state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        ``closure`` computes loss and gradients first; what it returns is returned.
        """
        loss = None
        if closure is not None:
            with grad_mode(True):
                loss = closure()
        interpreter = context.interpreter
        interpreter.optimizer_stepped(self)
        said_by_class = (self.ensure_state, self.initial_state, self.read_rates, self.derive, self.update)
        with interpreter.unwatched(*said_by_class), grad_mode(False):
            self.ensure_state()
            for group in self.param_groups:
                rates = self.read_rates(group)
                initial = self.initial_state(group)
                derived: dict[Any, dict[str, Any]] = {}
                for parameter in group["params"]:
                    gradient = parameter.grad
                    if gradient is not None:
                        if parameter.dtype not in derived:
                            derived[parameter.dtype] = self.derive(rates, group, parameter)
                        # A parameter frozen since may still have a gradient, which counts, as in torch.
                        state = self._ensure(parameter, initial)
                        self._apply(parameter, gradient, state, group, derived[parameter.dtype])
        return loss

    def _apply(self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]) -> None:
        if group.get("maximize"):
            gradient = -gradient
        new, changed = context.interpreter.updated(self.update, parameter, gradient, state, group, rates)
        for name, tensor in changed.items():
            state[name].assign(tensor)
        parameter.assign(new)

    def read_rates(self, group: Group) -> dict[str, Any]:
        """Return the ``rates`` in ``group`` as the interpreter gives them: floats, or inputs of a compiled step.

        A switch that is off is not asked for: it is no input of the step, so that switching it on needs a new trace.
        """
        return {name: self._read(group, name) for name in self.rates}

    def _read(self, group: Group, name: str) -> Any:
        value = group[name]
        if isinstance(value, Tensor):
            return value
        if isinstance(value, tuple | list):
            return tuple(context.interpreter.scalar(group, (name, i), float(part)) for i, part in enumerate(value))
        if name in self.switches and not is_on(group, name):
            return float(value)
        return context.interpreter.scalar(group, name, float(value))

    def static_fields(self, group: Group) -> dict[str, Any]:
        """Return what of ``group`` a compiled step has built in; while it compares equal, the step holds.

        All but the parameters and the ``rates``, and of those whether the ``switches`` are zero. A schedule's own
        notes do not count.
        """
        fields = {name: value for name, value in group.items() if name not in (*self.rates, *_NOT_BUILT_IN)}
        # A rate given as a Tensor is read as state; another Tensor, or a number, in its place is another program.
        fields |= {f"{name} is tensor": id(group[name]) for name in self.rates if isinstance(group[name], Tensor)}
        return fields | {f"{name} != 0": is_on(group, name) for name in self.switches}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.detach().zero_()

    # --- saving and loading -------------------------------------------------------------------------------

    def _numbered(self) -> list[Tensor]:
        return list(itertools.chain.from_iterable(group["params"] for group in self.param_groups))

    def state_dict(self) -> dict[str, Any]:
        """Return {"state": {number: {name: Tensor}}, "param_groups": […]} as torch does; the tensors share memory."""
        numbers = itertools.count()
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [next(numbers) for _ in group["params"]]}
            for group in self.param_groups
        ]
        state = {
            i: {name: tensor.detach() for name, tensor in self.state[parameter].items()}
            for i, parameter in enumerate(self._numbered())
            if self.state.get(parameter)
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over another optimizer's state and group values; also torch's, as Tensors, arrays or torch tensors.

        State is copied into the memory that is there. Raises StateDictError if groups or shapes do not fit; then
        nothing has been changed.
        """
        who = f"load_state_dict into {type(self).__name__}"
        groups, given = state_dict["param_groups"], state_dict["state"]
        sizes, expected = [[len(group["params"]) for group in side] for side in (groups, self.param_groups)]
        if sizes != expected:
            raise StateDictError(f"{who}: expected groups of {expected} parameters. Got {sizes}.")
        keys = itertools.chain.from_iterable(group["params"] for group in groups)
        loaded = {}
        for key, parameter in zip(keys, self._numbered(), strict=True):
            entries = given.get(key, given.get(str(key), {}))
            tensors = {name: as_given(value) for name, value in entries.items() if value is not None}
            for name, tensor in tensors.items():
                if tensor.shape not in ((), parameter.shape):
                    raise StateDictError(
                        f"{who}: {name} of parameter {key} must have shape {parameter.shape}. Got {tensor.shape}."
                    )
            loaded[parameter] = tensors
        with use_interpreter(EAGER), grad_mode(False):
            for group, values in zip(self.param_groups, groups, strict=True):
                group.update({name: _as_hyperparameter(value) for name, value in values.items() if name != "params"})
                for parameter in group["params"]:
                    self._load(parameter, group, loaded[parameter])

    def completed(self, state: State, group: Group) -> State:
        """Return loaded ``state`` with what this class keeps beyond torch's."""
        return state

    def _load(self, parameter: Tensor, group: Group, given: State) -> None:
        if not given and parameter not in self.state:
            return
        given = self.completed(given, group)
        initial = self.initial_state(group)
        state = self._ensure(parameter, initial)
        for name, tensor in state.items():
            tensor.assign(given[name] if name in given else initial.get(name, 0.0))
        state.update({n: t.clone().to(parameter.device) for n, t in given.items() if n not in state})

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])


def _follow(parameter: Tensor, state: State) -> None:
    """Bring the state of a parameter to where the parameter lies now: its module may have been moved."""
    for tensor in state.values():
        if isinstance(tensor, Tensor) and tensor.device != parameter.device:
            with use_interpreter(EAGER), grad_mode(False):
                tensor.data = tensor.detach().to(parameter.device)


def is_on(group: Group, name: str) -> bool:
    """Whether the number ``name`` takes part at all; one given as a Tensor does."""
    value = group[name]
    return True if isinstance(value, Tensor) else value != 0


def as_given(value: Any) -> Tensor:
    """Return a loaded value (Tensor, array, torch tensor or number) as a Tensor of its own dtype."""
    if isinstance(value, Tensor):
        return value.detach()
    return as_tensor(value if arrays.is_device_array(value) else np.asarray(value))


def _as_hyperparameter(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
