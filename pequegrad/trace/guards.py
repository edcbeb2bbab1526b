"""What must still be as it was while tracing for a step to be the right one: captured tensors, modules, optimizers,
and what the user's code read.

Invariant: `Guards.failure` is None exactly when a new trace would read the same values.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from operator import is_not
from typing import Any

import numpy as np

from ..errors import TraceError
from .callees import Callees
from .fingerprint import OPEN_CONTAINERS, Same, TooLarge, describe, fingerprint
from .identities import MODULE_TABLES, dict_step, identities, referred
from .reads import Read
from .state import FromTensor, Trace

_TABLES = (*MODULE_TABLES, "_forward_hooks", "_forward_pre_hooks")
_OPTIMIZER_PARTS = ("defaults", "param_groups", "state")
_MUTABLE = (list, dict, set, bytearray, deque, np.ndarray, *OPEN_CONTAINERS)


class ModuleSnapshot:
    """All that a module's ``__dict__`` said: plain values by value; parameters, buffers and children by identity."""

    def __init__(self, module: Any) -> None:
        self._ref = Same(module)
        self._name = type(module).__name__
        self._items = self._read(module)

    def _read(self, module: Any) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in vars(module).items():
            try:
                items[key] = fingerprint(value)
            except TooLarge as error:
                raise TraceError(
                    f"{self._name}.{key} is {error}: too much to check at each call of a compiled function. Make it a "
                    "tensor (register_buffer), or keep it outside the module."
                ) from None
        return items

    @property
    def is_open(self) -> bool:
        """Whether it can change without the module noticing: a list or an array among its attributes."""
        module = self._ref.get()
        return module is not None and any(
            isinstance(value, _MUTABLE)
            for key, value in vars(module).items()
            # A module's own tables count their changes, but not a plain dict that was put in the place of one.
            if (key not in _TABLES or type(value) is dict) and key != "_non_persistent_buffers"
        )

    def native(self) -> tuple[Any, ...] | None:
        """Return what natively shows that nothing changed, as `Read.native` does, or None where Python has to look."""
        module = self._ref.get()
        expected = None if module is None else identities(vars(module))
        if expected is None or self._read(module) != self._items:
            return None
        return (referred(self._ref.reference), None), (dict_step(module),), expected

    @property
    def module(self) -> Any:
        """The module, or None when it is gone."""
        return self._ref.get()

    def failure(self) -> str | None:
        """Return which attribute changed, or None."""
        module = self._ref.get()
        if module is None:
            return f"a {self._name} that the step used is gone"
        now = self._read(module)
        if now == self._items:
            return None
        for key in {**self._items, **now}:
            if self._items.get(key, self) != now.get(key, self):
                return f"{self._name}.{key} changed{_table_change(key, self._items.get(key), now.get(key))}"
        return f"the order of the attributes of {self._name} changed"


def _table_change(key: str, before: Any, now: Any) -> str:
    if key not in _TABLES or before is None or now is None:
        return f": {_plain(before)} → {_plain(now)}"
    old, new = dict(before[1]), dict(now[1])
    return ": " + ", ".join(str(name) for name in {**old, **new} if old.get(name) != new.get(name))


def _plain(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], type):
        value = value[1]
    return describe(value)


class OptimizerSnapshot:
    """Parameters, state and built-in values of an optimizer. Rates are left out: a step reads them at each call."""

    def __init__(self, optimizer: Any) -> None:
        self._ref = Same(optimizer)
        self._name = type(optimizer).__name__
        self._members = self._read_members(optimizer)
        self._fields = self._read_fields(optimizer)
        self._raw = self._read_raw(optimizer)
        values = [value for _, fields in self._built_in(optimizer) for value in fields.values()]
        self.is_open = any(isinstance(value, _MUTABLE) for value in values)

    @staticmethod
    def _read_members(optimizer: Any) -> list[Any]:
        """Return the objects whose identity counts: groups, parameters, tensors of the state."""
        members: list[Any] = []
        for group in optimizer.param_groups:
            members.append(group)
            members += group["params"]
        for parameter, state in optimizer.state.items():
            members.append(parameter)
            members += state.values()
        return members

    @staticmethod
    def _built_in(optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
        """Return, per place, the values that the step has built in."""
        places = [(f".param_groups[{i}]", optimizer.static_fields(g)) for i, g in enumerate(optimizer.param_groups)]
        return [*places, ("", {key: value for key, value in vars(optimizer).items() if key not in _OPTIMIZER_PARTS})]

    def _read_fields(self, optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
        try:
            return [
                (place, {key: fingerprint(value) for key, value in fields.items()})
                for place, fields in self._built_in(optimizer)
            ]
        except TooLarge as error:
            raise TraceError(
                f"{self._name} holds {error}: too much to check at each call of a compiled function. Keep it elsewhere."
            ) from None

    @staticmethod
    def _read_raw(optimizer: Any) -> list[Any]:
        raw = [value for group in optimizer.param_groups for value in group.values()]
        raw += vars(optimizer).values()
        return raw

    @property
    def optimizer(self) -> Any:
        """The optimizer, or None when it is gone."""
        return self._ref.get()

    def native(self) -> tuple[Callable[[], Any], OptimizerSnapshot] | None:
        """Return what `failure` compares, as `binding/guards.h` takes it, or None where it compares more than identities."""
        reference = self._ref.reference
        return None if self.is_open or not isinstance(reference, weakref.ref) else (reference, self)

    def failure(self) -> str | None:
        """Return what changed, or None."""
        optimizer = self._ref.get()
        if optimizer is None:
            return f"the {self._name} that the step used is gone"
        members = self._read_members(optimizer)
        if len(members) != len(self._members) or any(map(is_not, members, self._members)):
            return f"parameters, groups or state of {self._name} were replaced"
        raw = self._read_raw(optimizer)
        if not self.is_open and len(raw) == len(self._raw) and not any(map(is_not, raw, self._raw)):
            return None
        fields = self._read_fields(optimizer)
        if fields == self._fields:
            self._raw = raw
            return None
        for (place, before), (_, now) in zip(self._fields, fields):
            for key in {**before, **now}:
                if before.get(key) != now.get(key):
                    return f"{self._name}{place}: {key}: {_plain(before.get(key))} → {_plain(now.get(key))}"
        return f"param_groups of {self._name} changed"


class Guards:
    """All guards of one compiled step."""

    def __init__(
        self,
        trace: Trace,
        watched: Sequence[Callable[[], str | None]],
        modules: Sequence[ModuleSnapshot],
        optimizers: Sequence[OptimizerSnapshot],
        changes: Any,
    ) -> None:
        self._tensors = [(guard.tensor, guard.storage, guard.requires_grad) for guard in trace.tensor_guards]
        self._gradients = [(guard.owner, guard.is_none) for guard in trace.gradient_guards]
        self._fixed_gradients = [
            (owner.tensor, is_none) for owner, is_none in self._gradients if isinstance(owner, FromTensor)
        ]
        self._argument_gradients = [
            (owner.index, is_none) for owner, is_none in self._gradients if not isinstance(owner, FromTensor)
        ]
        self._watched = list(watched)
        self._modules = list(modules)
        self._open = [snapshot for snapshot in modules if snapshot.is_open]
        self._optimizers = list(optimizers)
        self._changes = changes
        self._seen = -1 if changes is None else changes.count

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Whether the step may run for these arguments: the fast form of ``failure``."""
        for tensor, storage, requires_grad in self._tensors:
            if tensor.storage is not storage or tensor._requires_grad is not requires_grad:
                return False
        for tensor, is_none in self._fixed_gradients:
            if (tensor._grad is None) is not is_none:
                return False
        for index, is_none in self._argument_gradients:
            if (tensors[index]._grad is None) is not is_none:
                return False
        for check in self._watched:
            if check() is not None:
                return False
        if self._changes is None or self._changes.count != self._seen:
            now = -1 if self._changes is None else self._changes.count
            for snapshot in self._modules:
                if snapshot.failure() is not None:
                    return False
            self._seen = now
        else:
            for snapshot in self._open:
                if snapshot.failure() is not None:
                    return False
        return all(snapshot.failure() is None for snapshot in self._optimizers)

    def description(self) -> dict[str, Any]:
        """Return all that `hold` looks at, as `binding/guards.h` takes it."""
        found: dict[str, Any] = {"reads": [], "members": [], "functions": [], "checks": []}
        for check in self._watched:
            owner = getattr(check, "__self__", None)
            if isinstance(owner, Callees) and (callees := owner.description()) is not None:
                found["members"] += callees["members"]
                found["functions"] += callees["functions"]
            elif isinstance(owner, Read) and (read := owner.native()) is not None:
                found["reads"].append(read)
            else:
                found["checks"].append(check)
        for snapshot in self._modules if self._changes is None else self._open:
            if (read := snapshot.native()) is not None:
                found["reads"].append(read)
            else:
                found["checks"].append(snapshot.failure)
        optimizers = [(snapshot, snapshot.native()) for snapshot in self._optimizers]
        found["checks"] += [snapshot.failure for snapshot, native in optimizers if native is None]
        gradients = [(tensor, -1, is_none) for tensor, is_none in self._fixed_gradients]
        gradients += [(None, index, is_none) for index, is_none in self._argument_gradients]
        return {
            **found,
            "guards": self,
            "changes": self._changes,
            "tensors": self._tensors,
            "gradients": gradients,
            "optimizers": [native for _, native in optimizers if native is not None],
        }

    def failure(self, tensors: Sequence[Any]) -> str | None:
        """Return what is no longer as it was while tracing, for people, or None."""
        for tensor, storage, requires_grad in self._tensors:
            if tensor.storage is not storage:
                return f"the memory of a captured tensor {tensor.spec} was replaced"
            if tensor._requires_grad is not requires_grad:
                return f"requires_grad of a captured tensor {tensor.spec}: {requires_grad} → {tensor._requires_grad}"
        for tensor, is_none in self._fixed_gradients:
            if (tensor._grad is None) is not is_none:
                return f".grad of a captured tensor {tensor.spec} {'exists now' if is_none else 'is None now'}"
        for index, is_none in self._argument_gradients:
            if (tensors[index]._grad is None) is not is_none:
                return f".grad of tensor {index} of the call {'exists now' if is_none else 'is None now'}"
        checks = [*self._watched, *(s.failure for s in self._modules), *(s.failure for s in self._optimizers)]
        return next((text for check in checks if (text := check()) is not None), None)

    @property
    def modules(self) -> list[Any]:
        """The modules that the step called, and that are still there."""
        return [snapshot.module for snapshot in self._modules if snapshot.module is not None]

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers that the step stepped, and that are still there."""
        return [snapshot.optimizer for snapshot in self._optimizers if snapshot.optimizer is not None]

    def lines(self) -> list[str]:
        """Return one line per kind of guard, for ``explain``."""
        return [
            f"{len(self._tensors)} captured tensors (memory, requires_grad)",
            f"{len(self._gradients)} .grad (None or not)",
            f"{len(self._modules)} modules, {len(self._optimizers)} optimizers",
            f"{len(self._watched)} values that user code read",
        ]
