"""Adagrad: steps scaled by the root of all squared gradients so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..dtypes import float64
from .optimizer import Group, Optimizer, State, is_on, like


class Adagrad(Optimizer):
    """p -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(sum of g²) + eps) (Duchi et al. 2011)."""

    rates = ("lr", "lr_decay", "weight_decay", "eps")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return a step count of 0 and the initial sum."""
        return {"step": 0.0, "sum": group["initial_accumulator_value"]}

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the parameter one step on, the step count, and the sum."""
        if is_on(group, "weight_decay"):
            gradient = gradient + like(rates["weight_decay"], parameter) * parameter
        size = rates["lr"] / (1 + state["step"].to(float64) * rates["lr_decay"])
        total = state["sum"] + gradient * gradient
        direction = gradient / (total.sqrt() + like(rates["eps"], parameter))
        return parameter - like(size, parameter) * direction, {"step": state["step"] + 1, "sum": total}
