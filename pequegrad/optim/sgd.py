"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..dtypes import float32
from ..ops.elementwise import where
from ..ops.movement import full
from .optimizer import Group, Optimizer, State, is_on, like


class SGD(Optimizer):
    """p -= lr * buf, where buf = momentum * buf + (1 - dampening) * g (Sutskever et al. 2013, torch's form)."""

    rates = ("lr", "momentum", "dampening", "weight_decay")
    switches = ("momentum", "dampening", "weight_decay")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: float = 0, nesterov: bool = False, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                f"SGD: nesterov needs momentum and no dampening. Got momentum {momentum}, dampening {dampening}."
            )
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
                "nesterov": nesterov, "maximize": maximize,
            },
        )  # fmt: skip

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return a buffer of zeros where there is momentum, and a step count where there is dampening."""
        if not is_on(group, "momentum"):
            return {}
        # The first gradient is not damped, so then the first step differs from the others. Without
        # dampening, a buffer of zeros gives what torch starts with.
        return {"momentum_buffer": 0.0, "step": 0.0} if is_on(group, "dampening") else {"momentum_buffer": 0.0}

    def completed(self, state: State, group: Group) -> State:
        """Return torch's state, whose buffer exists only after a first step, with that said."""
        if "momentum_buffer" in state and "step" not in state and is_on(group, "dampening"):
            return state | {"step": full((), 1.0, dtype=float32)}
        return state

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the parameter one step on, and the momentum buffer."""
        lr, momentum = like(rates["lr"], parameter), like(rates["momentum"], parameter)
        if is_on(group, "weight_decay"):
            gradient = gradient + like(rates["weight_decay"], parameter) * parameter
        if not is_on(group, "momentum"):
            return parameter - lr * gradient, {}
        damped = gradient
        changed = {}
        if is_on(group, "dampening"):
            damped = where(state["step"] == 0, gradient, like(1 - rates["dampening"], parameter) * gradient)
            changed["step"] = state["step"] + 1
        changed["momentum_buffer"] = buffer = momentum * state["momentum_buffer"] + damped
        return parameter - lr * (gradient + momentum * buffer if group["nesterov"] else buffer), changed
