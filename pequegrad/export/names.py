"""Names for the state of a saved step: where a tensor or number lies in a model or an optimizer.

Invariant: names are unique, and follow from the objects' own order and attributes alone.

One model is "model", several are named by their classes; optimizers likewise:
"model.0.weight", "optimizer.state.model.0.weight.exp_avg", "optimizer.param_groups.0.lr", "random.state".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..ops.random import default_generator
from ..trace.state import FromConstant, FromGradient, FromScalar, FromTensor, InputBinding

Named = tuple[str, str]
"""(role of a slot, its name)."""


def name_inputs(inputs: Sequence[InputBinding], modules: Sequence[Any], optimizers: Sequence[Any]) -> list[Named]:
    """Return (role, name) per input of a step."""
    tensors, numbers = _known(in_order_of_use(modules, inputs), optimizers)
    used: set[str] = set()
    named = []
    for binding in inputs:
        role, name = _name(binding, tensors, numbers)
        if role != "argument":
            name = _unused(re.sub(r"[^\w.-]", "_", name), used)
            used.add(name)
        named.append((role, name))
    return named


def _name(binding: InputBinding, tensors: dict[int, Named], numbers: dict[int, str]) -> Named:
    source = binding.source
    if isinstance(source, FromTensor):
        return tensors.get(id(source.tensor.storage), ("tensor", binding.name))
    if isinstance(source, FromGradient):
        owner = None if source.owner is None else tensors.get(id(source.owner.storage))
        return "gradient", f"{owner[1]}.grad" if owner else binding.name
    if isinstance(source, FromScalar):
        group = numbers.get(id(source.owner))
        key = ".".join(map(str, source.key)) if isinstance(source.key, tuple) else str(source.key)
        return "scalar", f"{group}.{key}" if group else binding.name
    return ("constant" if isinstance(source, FromConstant) else "argument"), binding.name


def in_order_of_use(modules: Sequence[Any], inputs: Sequence[InputBinding]) -> list[Any]:
    """Return the modules in the order in which the step meets their tensors, instead of that of the variables' names."""
    last = len(inputs)
    places = {id(b.source.tensor.storage): i for i, b in enumerate(inputs) if isinstance(b.source, FromTensor)}

    def first_use(module: Any) -> int:
        tensors = [tensor for found in (module.named_parameters(), module.named_buffers()) for _, tensor in found]
        return min((places.get(id(tensor.storage), last) for tensor in tensors), default=last)

    return sorted(modules, key=first_use)


def roots(modules: Sequence[Any]) -> dict[str, Any]:
    """Return the modules that are inside of no other one, by name."""
    nested = {id(inner) for module in modules for inner in module.modules() if inner is not module}
    return _by_name([module for module in modules if id(module) not in nested], "model")


def named_optimizers(optimizers: Sequence[Any]) -> dict[str, Any]:
    """Return the optimizers by name."""
    return _by_name(optimizers, "optimizer")


def _by_name(objects: Sequence[Any], only: str) -> dict[str, Any]:
    if len(objects) == 1:
        return {only: objects[0]}
    named: dict[str, Any] = {}
    for item in objects:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(item).__name__).lower()
        named[_unused(kind, named)] = item
    return named


def _known(modules: Sequence[Any], optimizers: Sequence[Any]) -> tuple[dict[int, Named], dict[int, str]]:
    """Return the names of storages and of parameter groups, by id."""
    tensors: dict[int, Named] = {id(default_generator.state.storage): ("random", "random.state")}
    numbers: dict[int, str] = {}
    for place, module in roots(modules).items():
        for role, found in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
            for name, tensor in found:
                tensors.setdefault(id(tensor.storage), (role, f"{place}.{name}"))
    for place, optimizer in named_optimizers(optimizers).items():
        count = 0
        for i, group in enumerate(optimizer.param_groups):
            numbers[id(group)] = f"{place}.param_groups.{i}"
            for parameter in group["params"]:
                usual = ("parameter", f"{place}.parameter{count}")
                _, name = tensors.setdefault(id(parameter.storage), usual)
                count += 1
                for key, tensor in optimizer.state.get(parameter, {}).items():
                    if hasattr(tensor, "storage"):
                        tensors.setdefault(id(tensor.storage), ("optimizer", f"{place}.state.{name}.{key}"))
    return tensors, numbers


def _unused(name: str, used: Any) -> str:
    number, candidate = 0, name
    while candidate in used:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
