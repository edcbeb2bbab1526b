"""Adam and AdamW: one formula, which differ in where weight decay enters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from ..dtypes import float64
from ..ops.selection import maximum
from ..tensor import Tensor
from .optimizer import Group, Optimizer, State, is_on, like


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient (Kingma and Ba 2015); amsgrad after Reddi et al. 2018.

    ``weight_decay`` is added to the gradient. State: step (0-d float32), exp_avg, exp_avg_sq, and max_exp_avg_sq.
    """

    rates = ("lr", "betas", "eps", "weight_decay")
    is_decay_decoupled: ClassVar[bool] = False

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check(self, group: Group) -> None:
        """Raise ValueError for negative values and for betas outside [0, 1)."""
        super().check(group)
        check_betas(self, group)

    def initial_state(self, group: Group) -> dict[str, float]:
        """Return a step count of 0 and moments of zeros."""
        state = {"step": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}
        return state | {"max_exp_avg_sq": 0.0} if group["amsgrad"] else state

    def derive(self, rates: dict[str, Any], group: Group, tensor: Any) -> dict[str, Any]:
        """Return the rates, and in the parameters' dtype the factors of decay and of both moments."""
        lr, (beta1, beta2) = rates["lr"], rates["betas"]
        derived = rates | {
            "1 - beta1": like(1 - beta1, tensor),
            "beta2": like(beta2, tensor),
            "1 - beta2": like(1 - beta2, tensor),
            "eps": like(rates["eps"], tensor),
        }
        if is_on(group, "weight_decay"):
            decay = rates["weight_decay"]
            derived["decay"] = like(1 - lr * decay if self.is_decay_decoupled else decay, tensor)
        return derived

    def update(
        self, parameter: Any, gradient: Any, state: State, group: Group, rates: dict[str, Any]
    ) -> tuple[Any, State]:
        """Return the parameter one step on, the step count, and the moments."""
        lr, (beta1, beta2) = rates["lr"], rates["betas"]
        new = parameter
        if is_on(group, "weight_decay"):
            if self.is_decay_decoupled:
                new = parameter * rates["decay"]
            else:
                gradient = gradient + rates["decay"] * parameter
        step = state["step"] + 1
        mean = state["exp_avg"] + rates["1 - beta1"] * (gradient - state["exp_avg"])
        square = rates["beta2"] * state["exp_avg_sq"] + rates["1 - beta2"] * (gradient * gradient)
        changed = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        if group["amsgrad"]:
            changed["max_exp_avg_sq"] = square = maximum(state["max_exp_avg_sq"], square)
        # In float64, as torch computes them in Python: 1 - beta2 ** step cancels most digits of the first steps.
        count = step.to(float64)
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count
        # A product with one reciprocal for all: a division of each element would cost as much as all its products.
        denominator = square.sqrt() * like(1 / correction2.sqrt(), parameter) + rates["eps"]
        return new - like(lr / correction1, parameter) * (mean / denominator), changed


class AdamW(Adam):
    """Adam whose weight decay shrinks the parameter itself, before the step (Loshchilov and Hutter 2019)."""

    is_decay_decoupled = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


def check_betas(optimizer: Optimizer, group: Group) -> None:
    """Raise ValueError for betas outside [0, 1)."""
    if any(not isinstance(beta, Tensor) and not 0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"{type(optimizer).__name__}: betas must lie in [0, 1). Got {group['betas']}.")
