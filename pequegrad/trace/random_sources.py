"""Python's and NumPy's random generators: which values are ones, and their states, to compare and to put back.

Invariant: this imports neither `random` nor `numpy.random`, which takes as long as a tenth of NumPy: from a module that
nobody has imported, nobody draws. One that appears while user code runs counts as a change of state.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

_TWISTER_BYTES = 4 * 624 + 4
"""Of a Mersenne twister: its words, and how many of them are drawn."""


def _python() -> Any:
    """Return the module `random`, or None where it is not there, or not all of it yet."""
    module = sys.modules.get("random")
    return module if hasattr(module, "setstate") else None


def _numpy() -> Any:
    """Return the module `numpy.random`, or None where it is not there, or not all of it yet."""
    module = sys.modules.get("numpy.random")
    return module if hasattr(module, "set_state") else None


def is_random_source(value: Any) -> bool:
    """Whether ``value`` is a Python or NumPy random generator."""
    return _is_pythons(value) or _is_numpys_old(value) or _is_numpys(value)


def is_system_random(value: Any) -> bool:
    """Whether ``value`` draws the system's random bytes, and so has no state."""
    module = _python()
    return module is not None and isinstance(value, module.SystemRandom)


def _is_pythons(value: Any) -> bool:
    module = _python()
    return module is not None and isinstance(value, module.Random) and not isinstance(value, module.SystemRandom)


def _is_numpys_old(value: Any) -> bool:
    module = _numpy()
    return module is not None and isinstance(value, module.RandomState)


def _is_numpys(value: Any) -> bool:
    module = _numpy()
    return module is not None and isinstance(value, module.Generator)


def random_state(value: Any) -> str:
    """Return the state of a random generator, to compare."""
    if _is_pythons(value):
        return repr(hash(value.getstate()))
    if _is_numpys_old(value):
        state: Any = value.get_state()
        return repr((state[0], hash(state[1].tobytes()), state[2:]))
    return repr(value.bit_generator.state)


def full_state(value: Any) -> Any:
    """Return the state of a random generator, to put back."""
    if _is_pythons(value):
        return value.getstate()
    return value.get_state() if _is_numpys_old(value) else value.bit_generator.state


def put_back(value: Any, state: Any) -> None:
    """Give a random generator the state that `full_state` gave."""
    if _is_pythons(value):
        value.setstate(state)
    elif _is_numpys_old(value):
        value.set_state(state)
    else:
        value.bit_generator.state = state


# --- the generators that all code shares ------------------------------------------------------------------------


def full_global_states() -> tuple[Any, Any]:
    """Return the states of Python's and of NumPy's own generator, to put back; None for one that is not there."""
    python, numpy = _python(), _numpy()
    return python and python.getstate(), numpy and numpy.get_state(legacy=False)


def put_back_global_states(states: tuple[Any, Any]) -> None:
    """Give Python's and NumPy's own generators the states that `full_global_states` gave."""
    for module, state, method in ((_python(), states[0], "setstate"), (_numpy(), states[1], "set_state")):
        if state is not None:
            getattr(module, method)(state)


def comparable(states: tuple[Any, Any]) -> Any:
    """Return what `full_global_states` gave as what compares by value."""
    return hash(states[0]), _comparable(states[1])


def keeps_a_normal(states: tuple[Any, Any]) -> bool:
    """Whether NumPy would give a normal number that it has kept from a pair, which changes nothing else of its state."""
    return states[1] is not None and bool(states[1]["has_gauss"])


def global_state() -> Any:
    """Return the states of Python's and of NumPy's own generator, to compare."""
    return comparable(full_global_states())


def quick_global_state() -> Any:
    """Return what changes with each draw while no normal number is kept, for every line: NumPy takes 0.1 ms to say it."""
    python, numpy = _python(), _numpy()
    drawn = None
    if numpy is not None:
        generator = numpy.get_bit_generator()
        if type(generator) is not numpy.MT19937:
            return global_state()
        drawn = ctypes.string_at(generator.ctypes.state_address, _TWISTER_BYTES)
    return hash(python and python.getstate()), drawn


def _comparable(state: Any) -> Any:
    """Return a generator's state, of numbers, arrays and dicts of them, as what compares by value."""
    if isinstance(state, dict):
        return tuple([(name, _comparable(part)) for name, part in state.items()])
    return state.tobytes() if isinstance(state, np.ndarray) else state
