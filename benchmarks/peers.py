"""Each framework's own best way to run a Workload: one class a framework, one method that makes the step.

Invariant: a step function takes the index of a batch that it was given beforehand, returns a loss that nobody
has waited for, and `read` waits for it. No framework is imported before its peer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .workloads import Workload
from .workloads.base import Adam, AdamW, Sgd

Batches = Sequence[tuple[np.ndarray, ...]]

SMALL = 10**8
"""Operations a step, below which one thread may be faster than several, and more ways are worth the time to try."""
LARGE = 10**11
"""Operations a step, above which compiling takes minutes, and fewer ways are tried."""


class Peer(Protocol):
    """A framework at its best settings."""

    def __init__(self, threads: int, cache_dir: str) -> None:
        """Import the framework and tell it how many threads it may use and where it may cache."""

    def build_once(self) -> None:
        """Build what a machine builds once, for all programs: it is not part of a step's compile time."""

    def variants(self, workload: Workload) -> tuple[str, ...]:
        """Return the settings worth trying; the fastest one is timed."""

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        """Return ``step(i)``: train on batch ``i``, if the workload trains, from its weights on, and return the loss."""

    def read(self, loss: Any) -> float:
        """Return the loss as a float, once it is there."""


def make_model(framework: Any, workload: Workload) -> Any:
    """Return the workload's net with its weights: a Module of torch or pequegrad, spelt alike, from batch to loss."""
    model = workload.module(framework)
    with framework.no_grad():
        for parameter, weight in zip(model.parameters(), workload.weights(), strict=True):
            parameter.copy_(framework.from_numpy(weight))
    return model


def make_optimizer(framework: Any, workload: Workload, parameters: Any, **settings: Any) -> Any:
    """Return the workload's optimizer, of torch or of pequegrad."""
    match workload.optimizer:
        case Sgd(lr, momentum):
            return framework.optim.SGD(parameters, lr=lr, momentum=momentum, **settings)
        case Adam(lr):
            return framework.optim.Adam(parameters, lr=lr, **settings)
        case AdamW(lr, weight_decay):
            return framework.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, **settings)


def make_function(framework: Any, workload: Workload, model: Any) -> Callable[..., Any]:
    """Return the function from a batch to its loss, and to the next weights, as a user of pequegrad or torch writes it."""
    if workload.optimizer is None:

        def evaluate(*batch: Any) -> Any:
            with framework.no_grad():
                return model(*batch)

        return evaluate
    optimizer = make_optimizer(framework, workload, model.parameters())

    def train_step(*batch: Any) -> Any:
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        return loss

    return train_step


class TorchPeer:
    """PyTorch, eager: no copies, gradients set to None, the fastest form of optimizer, layout and thread count."""

    device = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.threads = torch, threads

    def build_once(self) -> None:
        pass

    def variants(self, workload: Workload) -> tuple[str, ...]:
        layouts = ["", " channels_last"] if workload.has_images else [""]
        threads = ["", " one_thread"] if self.threads > 1 and workload.flops() < SMALL else [""]
        kinds = ("foreach", "fused") if workload.optimizer else ("no update",)
        return tuple(f"{kind}{a}{b}" for kind in kinds for a in layouts for b in threads)

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        self.torch.set_num_threads(1 if "one_thread" in variant else self.threads)
        model, data = self._build(workload, batches, variant)
        if workload.optimizer is None:
            forward, _ = self._prepare(workload, model, lambda: None, variant)

            def evaluate(i: int) -> Any:
                with self.torch.inference_mode():
                    return forward(*data[i])

            return evaluate
        optimizer = make_optimizer(self.torch, workload, model.parameters(), **self._optimizer_settings(variant))
        forward, update = self._prepare(workload, model, optimizer.step, variant)

        def step(i: int) -> Any:
            optimizer.zero_grad(set_to_none=True)
            loss = forward(*data[i])
            loss.backward()
            update()
            return loss.detach()

        return step

    def read(self, loss: Any) -> float:
        return loss.item()

    def _build(self, workload: Workload, batches: Batches, variant: str) -> tuple[Any, Any]:
        """Return the model from batch to loss, and the batches on the device."""
        torch = self.torch
        model = make_model(torch, workload).to(self.device)
        data = [tuple(torch.from_numpy(part).to(self.device) for part in batch) for batch in batches]
        if "channels_last" in variant:
            model = model.to(memory_format=torch.channels_last)
            data = [(x.contiguous(memory_format=torch.channels_last), *rest) for x, *rest in data]
        return model, data

    def _optimizer_settings(self, variant: str) -> dict[str, bool]:
        return {"fused": True} if "fused" in variant else {"foreach": True}

    def _prepare(self, workload: Workload, model: Any, update: Callable[[], Any], variant: str) -> tuple[Any, Any]:
        """Return the functions from batch to loss and for the update."""
        return model, update


class TorchCompilePeer(TorchPeer):
    """PyTorch with torch.compile around forward and loss (and so the backward), and around the update, which it fuses
    itself; or with the optimizer's own fused update, which it cannot trace on the CPU."""

    def variants(self, workload: Workload) -> tuple[str, ...]:
        found = super().variants(workload)
        if workload.flops() > LARGE:
            return tuple(variant for variant in found if "foreach" in variant)
        return (*found, f"{found[0]} max-autotune") if workload.flops() < SMALL else found

    def _prepare(self, workload: Workload, model: Any, update: Callable[[], Any], variant: str) -> tuple[Any, Any]:
        self.torch.compiler.reset()  # what other variants have compiled counts towards a limit
        mode = "max-autotune-no-cudagraphs" if "max-autotune" in variant else "default"
        compiled = self.torch.compile(model, mode=mode)
        return compiled, self.torch.compile(update) if "foreach" in variant else update


class JaxPeer:
    """JAX: one jitted step with donated parameters, buffers and optimizer state; see `Workload.jax_variants`."""

    platform = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import jax

        jax.config.update("jax_platforms", self.platform)
        jax.config.update("jax_compilation_cache_dir", cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        self.jax = jax

    def build_once(self) -> None:
        pass

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return workload.jax_variants()

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        jax = self.jax
        is_nhwc = variant.startswith("NHWC")

        def put(array: np.ndarray) -> Any:
            if is_nhwc and array.ndim == 4:
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            return jax.device_put(array.astype(np.int32) if array.dtype == np.int64 else array)

        data = [tuple(put(part) for part in batch) for batch in batches]
        parameters = [jax.device_put(weight) for weight in workload.weights()]
        buffers = [jax.device_put(buffer) for buffer in workload.buffers()]

        def loss_function(parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...]) -> tuple[Any, list[Any]]:
            return workload.loss_in_jax(jax, parameters, buffers, batch, variant)

        if workload.optimizer is None:
            evaluate = jax.jit(lambda *batch: loss_function(parameters, buffers, batch)[0])
            return lambda i: evaluate(*data[i])
        state, update = self._optimizer(workload, parameters)

        def whole_step(parameters: list[Any], buffers: list[Any], state: Any, batch: tuple[Any, ...]) -> Any:
            with_gradient = jax.value_and_grad(loss_function, has_aux=True)
            (loss, buffers), gradients = with_gradient(parameters, buffers, batch)
            parameters, state = update(parameters, gradients, state)
            return (parameters, buffers, state), loss

        compiled = jax.jit(whole_step, donate_argnums=(0, 1, 2))
        current: Any = (parameters, buffers, state)

        def step(i: int) -> Any:
            nonlocal current
            current, loss = compiled(*current, data[i])
            return loss

        return step

    def read(self, loss: Any) -> float:
        return float(loss)

    def _optimizer(self, workload: Workload, parameters: list[Any]) -> tuple[Any, Callable[..., Any]]:
        """Return the optimizer's state and its update: (parameters, gradients, state) → (parameters, state)."""
        jnp = self.jax.numpy

        def zeros() -> list[Any]:
            return [jnp.zeros_like(parameter) for parameter in parameters]

        match workload.optimizer:
            case Sgd(lr, momentum):

                def descend(parameters: list[Any], gradients: list[Any], state: Any) -> Any:
                    if momentum:
                        gradients = state = [momentum * s + g for s, g in zip(state, gradients)]
                    return [p - lr * g for p, g in zip(parameters, gradients)], state

                return (zeros() if momentum else ()), descend
            case Adam(lr) | AdamW(lr):
                kept = 1 - lr * getattr(workload.optimizer, "weight_decay", 0.0)

                def adapt(parameters: list[Any], gradients: list[Any], state: Any) -> Any:
                    count, first, second = state
                    count = count + 1
                    first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients)]
                    second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradients)]
                    size = lr / (1 - 0.9**count)
                    root = jnp.sqrt(1 - 0.999**count)
                    triples = zip(parameters, first, second)
                    new = [kept * p - size * m / (jnp.sqrt(v) / root + 1e-8) for p, m, v in triples]
                    return new, (count, first, second)

                return (jnp.zeros((), jnp.int32), zeros(), zeros()), adapt


class PequegradPeer:
    """pequegrad, compiled: what its README shows a user to write."""

    device = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import pequegrad

        pequegrad.config.num_threads = threads
        pequegrad.config.cache_dir = cache_dir
        self.pg = pequegrad

    def build_once(self) -> None:
        """Build the Python binding, which all steps share."""
        self.pg.compile(lambda x: x + 1)(self.pg.ones(1).to(self.device))

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return ("default",)

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        pg = self.pg
        model = make_model(pg, workload).to(self.device)
        data = [tuple(pg.from_numpy(part).to(self.device) for part in batch) for batch in batches]
        compiled = self._compile(make_function(pg, workload, model), workload)

        def step(i: int) -> Any:
            return compiled(*data[i])

        return step

    def read(self, loss: Any) -> float:
        return loss.item()

    def _compile(self, function: Callable[..., Any], workload: Workload) -> Callable[..., Any]:
        return self.pg.compile(function, strict=True, precision=workload.precision)


class PequegradEagerPeer(PequegradPeer):
    """pequegrad without compiling: NumPy and the tape."""

    def build_once(self) -> None:
        pass

    def _compile(self, function: Callable[..., Any], workload: Workload) -> Callable[..., Any]:
        return function


CPU_PEERS: dict[str, type[Any]] = {
    "pequegrad": PequegradPeer,
    "pequegrad-eager": PequegradEagerPeer,
    "torch": TorchPeer,
    "torch-compile": TorchCompilePeer,
    "jax": JaxPeer,
}
OURS = ("pequegrad", "pequegrad-eager")
