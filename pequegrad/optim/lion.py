"""Lion: steps of equal size in every element, in the direction of a sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ops.elementwise import sign
from .adam import check_betas
from .optimizer import Group, Optimizer, State, is_on, like


class Lion(Optimizer):
    """p -= lr * sign(beta1 * m + (1 - beta1) * g), m = beta2 * m + (1 - beta2) * g (Chen et al. 2023).

    Weight decay shrinks the parameter itself, as in AdamW.
    """

    rates = ("lr", "betas", "weight_decay")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    def check(self, group: Group) -> None:
        """Raise ValueError for negative values and for betas outside [0, 1)."""
        super().check(group)
        check_betas(self, group)

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return a mean of zeros."""
        return {"exp_avg": 0.0}

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the parameter one step on, and the mean."""
        lr, (beta1, beta2), mean = rates["lr"], rates["betas"], state["exp_avg"]
        new = parameter
        if is_on(group, "weight_decay"):
            new = parameter * like(1 - lr * rates["weight_decay"], parameter)
        direction = sign(like(beta1, parameter) * mean + like(1 - beta1, parameter) * gradient)
        changed = {"exp_avg": like(beta2, parameter) * mean + like(1 - beta2, parameter) * gradient}
        return new - like(lr, parameter) * direction, changed
