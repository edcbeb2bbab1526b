"""Names of the state that a step captures, for people: where a tensor lies in a module or an optimizer.

Invariant: each name is a C identifier and no other input's name; names follow from the objects' own order and
attributes alone, so that equal steps of different processes have equal names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .graph import Input
from .state import FromGradient, FromTensor, Source


def input_names(
    inputs: Sequence[Input], sources: Sequence[Source], modules: Iterable[Any], optimizers: Iterable[Any]
) -> list[str]:
    """Return a name per input: for captured tensors, their place in a module ("mlp_fc1_weight") or in an optimizer
    ("mlp_fc1_weight_exp_avg"), where there is one; else the name that the input has."""
    known = _module_names(list(modules))
    for optimizer in optimizers:
        _add_optimizer_names(optimizer, known)
    used = {
        item.name
        for item, source in zip(inputs, sources, strict=True)
        if not isinstance(source, FromTensor | FromGradient)
    }
    names = []
    for item, source in zip(inputs, sources, strict=True):
        name = item.name
        if isinstance(source, FromTensor | FromGradient):
            name = _unused(_name_of(source, known) or name, used)
            used.add(name)
        names.append(name)
    return names


def _name_of(source: FromTensor | FromGradient, known: dict[int, str]) -> str | None:
    if isinstance(source, FromTensor):
        return known.get(id(source.tensor.storage))
    owner = None if source.owner is None else known.get(id(source.owner.storage))
    return owner and f"{owner}_grad"


def _unused(name: str, used: set[str]) -> str:
    number, candidate = 0, name
    while candidate in used:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _module_names(modules: list[Any]) -> dict[int, str]:
    """Return the path of each storage that a module holds, from the outermost module on, whose class begins the name."""
    nested: set[int] = set()
    for module in modules:
        if id(module) not in nested:
            _add_descendants(module, nested)
    names: dict[int, str] = {}
    for module in modules:
        if id(module) not in nested:
            _add_module_names(module, _in_snake_case(type(module).__name__), names, set())
    return names


def _add_descendants(module: Any, found: set[int]) -> None:
    for child in vars(module).get("_modules", {}).values():
        if child is not None and id(child) not in found:
            found.add(id(child))
            _add_descendants(child, found)


def _add_module_names(module: Any, path: str, names: dict[int, str], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    for table in ("_parameters", "_buffers"):
        for name, tensor in vars(module).get(table, {}).items():
            if tensor is not None:
                names.setdefault(id(tensor.storage), _identifier(f"{path}_{name}"))
    for name, child in vars(module).get("_modules", {}).items():
        if child is not None:
            _add_module_names(child, f"{path}_{name}", names, seen)


def _add_optimizer_names(optimizer: Any, names: dict[int, str]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        name = names.setdefault(id(parameter.storage), f"parameter{number}")
        for key, tensor in optimizer.state.get(parameter, {}).items():
            names.setdefault(id(tensor.storage), _identifier(f"{name}_{key}"))


def _identifier(name: str) -> str:
    if name.isascii() and name.isidentifier():
        return name
    return "".join([letter if letter.isascii() and letter.isalnum() else "_" for letter in name])


def _in_snake_case(name: str) -> str:
    """Return ``MyNet2Head`` as ``my_net2_head``. Without a regular expression, which takes 0.2 ms to compile."""
    starts = [
        "_" if "A" <= letter <= "Z" and (before.islower() or before.isdigit()) else ""
        for before, letter in zip(" " + name, name)
    ]
    return "".join([start + letter for start, letter in zip(starts, name)]).lower()
