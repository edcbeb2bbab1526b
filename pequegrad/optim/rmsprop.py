"""RMSprop: steps scaled by a running root mean square of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .optimizer import Group, Optimizer, State, is_on, like


class RMSprop(Optimizer):
    """p -= lr * g / (sqrt(mean of g²) + eps) (Hinton's lecture 6; centered after Graves 2013)."""

    rates = ("lr", "alpha", "eps", "weight_decay", "momentum")
    switches = ("weight_decay", "momentum")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return a step count of 0 and means of zeros."""
        state = {"step": 0.0, "square_avg": 0.0}
        if is_on(group, "momentum"):
            state["momentum_buffer"] = 0.0
        return state | {"grad_avg": 0.0} if group["centered"] else state

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the parameter one step on, the step count, and the means."""
        lr, alpha, rest = (like(rate, parameter) for rate in (rates["lr"], rates["alpha"], 1 - rates["alpha"]))
        if is_on(group, "weight_decay"):
            gradient = gradient + like(rates["weight_decay"], parameter) * parameter
        square = alpha * state["square_avg"] + rest * (gradient * gradient)
        changed = {"step": state["step"] + 1, "square_avg": square}
        if group["centered"]:
            changed["grad_avg"] = mean = state["grad_avg"] + rest * (gradient - state["grad_avg"])
            square = square - mean * mean
        direction = gradient / (square.sqrt() + like(rates["eps"], parameter))
        if is_on(group, "momentum"):
            direction = like(rates["momentum"], parameter) * state["momentum_buffer"] + direction
            changed["momentum_buffer"] = direction
        return parameter - lr * direction, changed
