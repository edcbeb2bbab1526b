"""Modules that hold others: Sequential, ModuleList, ModuleDict, ParameterList.

Invariant: positions are the keys "0", "1", … of ``_modules`` (or ``_parameters``), without gaps, as in torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from ..errors import IndexOutOfRange
from .module import Module
from .parameter import Parameter


def _position(index: int, length: int, who: str) -> int:
    if not -length <= index < length:
        raise IndexOutOfRange(f"{who}: index {index} is out of range for {length} entries.")
    return index % length


class _ModuleSequence(Module):
    """What Sequential and ModuleList share: a list of children that can be changed in place."""

    def _entries(self) -> list[Module]:
        return list(self._modules.values())  # type: ignore[arg-type]

    def _replace_entries(self, entries: Iterable[Module]) -> None:
        entries = list(entries)
        for entry in entries:
            if not isinstance(entry, Module):
                raise TypeError(f"{type(self).__name__}: expected a Module. Got {type(entry).__name__}.")
        self._modules.clear()
        self._modules.update({str(i): entry for i, entry in enumerate(entries)})
        Module.changes.bump()

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Any: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            part = type(self)()
            part._modules.update(list(self._modules.items())[index])
            if not isinstance(self, Sequential) or all(key.isdigit() for key in part._modules):
                part._replace_entries(part._entries())
            return part
        return self._entries()[_position(index, len(self), type(self).__name__)]

    def __setitem__(self, index: int, module: Module) -> None:
        key = list(self._modules)[_position(index, len(self), type(self).__name__)]
        setattr(self, key, module)

    def __delitem__(self, index: int | slice) -> None:
        entries = self._entries()
        if not isinstance(index, slice):
            index = _position(index, len(self), type(self).__name__)
        del entries[index]
        self._replace_entries(entries)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._entries())

    def append(self, module: Module) -> Any:
        """Add a module at the end and return this container."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end and return this container."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Add a module before ``index`` and return this container."""
        entries = self._entries()
        entries.insert(index, module)
        self._replace_entries(entries)
        return self

    def pop(self, index: int = -1) -> Module:
        """Remove and return the module at ``index``."""
        module = self[index]
        del self[index]
        return module


class Sequential(_ModuleSequence):
    """Modules run one after another. Takes modules, or one dict of name → module."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self._replace_entries(modules)

    def forward(self, input: Any) -> Any:
        """Return the last module's result, each applied to the one before."""
        for module in self:
            input = module(input)
        return input


class ModuleList(_ModuleSequence):
    """A list of modules, to be called by the user's own forward."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self._replace_entries(modules if modules is not None else ())


class ModuleDict(Module):
    """A dict of modules, to be called by the user's own forward."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add or replace modules."""
        for name, module in dict(modules).items():
            self[name] = module

    def __getitem__(self, key: str) -> Module:
        return self._modules[key]  # type: ignore[return-value]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]
        Module.changes.bump()

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def keys(self) -> Any:
        """Return the names."""
        return self._modules.keys()

    def values(self) -> Any:
        """Return the modules."""
        return self._modules.values()

    def items(self) -> Any:
        """Return (name, module) pairs."""
        return self._modules.items()

    def pop(self, key: str) -> Module:
        """Remove and return a module."""
        module = self[key]
        del self[key]
        return module

    def clear(self) -> None:
        """Remove all modules."""
        self._modules.clear()
        Module.changes.bump()


class ParameterList(Module):
    """A list of parameters."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self.extend(values if values is not None else ())

    def append(self, value: Any) -> ParameterList:
        """Add a parameter (a plain Tensor becomes one) and return this list."""
        parameter = value if isinstance(value, Parameter) else Parameter(value)
        self.register_parameter(str(len(self)), parameter)
        return self

    def extend(self, values: Iterable[Any]) -> ParameterList:
        """Add parameters and return this list."""
        for value in values:
            self.append(value)
        return self

    def __getitem__(self, index: int) -> Parameter:
        return list(self._parameters.values())[_position(index, len(self), "ParameterList")]  # type: ignore[return-value]

    def __setitem__(self, index: int, value: Any) -> None:
        key = str(_position(index, len(self), "ParameterList"))
        setattr(self, key, value if isinstance(value, Parameter) else Parameter(value))

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(list(self._parameters.values()))  # type: ignore[arg-type]
