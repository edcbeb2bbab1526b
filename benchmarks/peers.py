"""Each framework's own best way to run a Workload: one class a framework, one method that makes the step.

Invariant: a step function takes the index of a batch that it was given beforehand, returns a loss that nobody
has waited for, and `read` waits for it. No framework is imported before its peer is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .catalog import AnyWorkload
from .transformers import Gpt, forward_in_jax, make_gpt
from .workloads import Adam, AdamW, Conv2d, Flatten, Linear, MaxPool2d, Relu, Sgd, Tanh, Workload

# The losses' names in nn.functional, which torch and pequegrad share.
LOSSES = {"cross_entropy": "cross_entropy", "mse": "mse_loss"}

Batches = Sequence[tuple[np.ndarray, np.ndarray]]


class Peer(Protocol):
    """A framework at its best settings."""

    def __init__(self, threads: int, cache_dir: str) -> None:
        """Import the framework and tell it how many threads it may use and where it may cache."""

    def variants(self, workload: AnyWorkload) -> tuple[str, ...]:
        """Return the settings worth trying; the fastest one is timed."""

    def make_step(self, workload: AnyWorkload, batches: Batches, variant: str) -> Callable[[int], Any]:
        """Return ``step(i)``: train on batch ``i``, from the workload's weights on, and return the loss."""

    def read(self, loss: Any) -> float:
        """Return the loss as a float, once it is there."""


def make_model(framework: Any, workload: AnyWorkload) -> Any:
    """Return the workload's net with its weights: a Module of torch or pequegrad, spelt alike."""
    model = make_gpt(framework, workload) if isinstance(workload, Gpt) else make_sequential(framework.nn, workload)
    with framework.no_grad():
        for parameter, weight in zip(model.parameters(), workload.weights(), strict=True):
            parameter.copy_(framework.from_numpy(weight))
    return model


def make_sequential(nn: Any, workload: Workload) -> Any:
    """Return the workload's layers, with weights of any values."""
    modules = []
    for layer in workload.layers:
        match layer:
            case Linear(inputs, outputs):
                modules.append(nn.Linear(inputs, outputs))
            case Conv2d(inputs, outputs, size):
                modules.append(nn.Conv2d(inputs, outputs, size))
            case MaxPool2d(size):
                modules.append(nn.MaxPool2d(size))
            case Relu():
                modules.append(nn.ReLU())
            case Tanh():
                modules.append(nn.Tanh())
            case Flatten():
                modules.append(nn.Flatten())
    return nn.Sequential(*modules)


def make_optimizer(framework: Any, workload: AnyWorkload, parameters: Any, **settings: Any) -> Any:
    """Return the workload's optimizer, of torch or of pequegrad."""
    match workload.optimizer:
        case Sgd(lr):
            return framework.optim.SGD(parameters, lr=lr, **settings)
        case Adam(lr):
            return framework.optim.Adam(parameters, lr=lr, **settings)
        case AdamW(lr, weight_decay):
            return framework.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, **settings)


class TorchPeer:
    """PyTorch, eager: no copies, gradients set to None, the optimizer's and the layout's fastest form."""

    device = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def variants(self, workload: AnyWorkload) -> tuple[str, ...]:
        layouts = ["", "channels_last"] if len(workload.input_shape) == 3 else [""]
        optimizers = ["foreach", "fused"]
        return tuple(f"{optimizer} {layout}".strip() for optimizer in optimizers for layout in layouts)

    def make_step(self, workload: AnyWorkload, batches: Batches, variant: str) -> Callable[[int], Any]:
        optimizer, data, forward = self._build(workload, batches, variant)
        forward, update = self._prepare(forward, optimizer.step)

        def step(i: int) -> Any:
            x, y = data[i]
            optimizer.zero_grad(set_to_none=True)
            loss = forward(x, y)
            loss.backward()
            update()
            return loss.detach()

        return step

    def read(self, loss: Any) -> float:
        return loss.item()

    def _build(self, workload: AnyWorkload, batches: Batches, variant: str) -> tuple[Any, Any, Callable[..., Any]]:
        """Return the optimizer, the batches on the device, and the function from batch to loss."""
        torch, functional = self.torch, self.torch.nn.functional
        model = make_model(torch, workload).to(self.device)
        data = [(torch.from_numpy(x).to(self.device), torch.from_numpy(y).to(self.device)) for x, y in batches]
        if "channels_last" in variant:
            model = model.to(memory_format=torch.channels_last)
            data = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in data]
        optimizer = make_optimizer(torch, workload, model.parameters(), **self._optimizer_settings(workload, variant))
        loss_function = getattr(functional, LOSSES[workload.loss])

        def forward(x: Any, y: Any) -> Any:
            return loss_function(model(x), y)

        return optimizer, data, forward

    def _optimizer_settings(self, workload: AnyWorkload, variant: str) -> dict[str, bool]:
        return {"fused": True} if "fused" in variant else {"foreach": True}

    def _prepare(self, forward: Callable[..., Any], update: Callable[[], Any]) -> tuple[Any, Any]:
        return forward, update


class TorchCompilePeer(TorchPeer):
    """PyTorch with torch.compile around forward and loss (and so the backward), and around the update."""

    def variants(self, workload: AnyWorkload) -> tuple[str, ...]:
        # The compiler fuses the update itself; it cannot trace fused SGD and Adam on the CPU.
        return tuple(variant for variant in super().variants(workload) if "foreach" in variant)

    def _prepare(self, forward: Callable[..., Any], update: Callable[[], Any]) -> tuple[Any, Any]:
        return self.torch.compile(forward), self.torch.compile(update)


class JaxPeer:
    """JAX: one jitted step with donated parameters and optimizer state.

    Images NCHW or NHWC; max pooling as a window reduction, as libraries spell it, or as a maximum over two axes
    of a reshaped image, whose gradient is faster on the CPU (and at ties the same here, where a relu is before it).
    """

    platform = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import jax

        jax.config.update("jax_platforms", self.platform)
        jax.config.update("jax_compilation_cache_dir", cache_dir)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        self.jax = jax

    def variants(self, workload: AnyWorkload) -> tuple[str, ...]:
        if len(workload.input_shape) != 3:
            return ("NCHW",)
        return ("NCHW", "NHWC", "NCHW reshaped pool", "NHWC reshaped pool")

    def make_step(self, workload: AnyWorkload, batches: Batches, variant: str) -> Callable[[int], Any]:
        jax, jnp = self.jax, self.jax.numpy
        is_nhwc = variant.startswith("NHWC")

        def put(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
            if is_nhwc:
                x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            return jax.device_put(x), jax.device_put(y.astype(np.int32) if y.dtype == np.int64 else y)

        data = [put(x, y) for x, y in batches]
        parameters = [jax.device_put(weight) for weight in workload.weights()]

        def loss_function(parameters: list[Any], x: Any, y: Any) -> Any:
            outputs = self._forward(workload, parameters, x, variant)
            if workload.loss == "mse":
                return jnp.mean((outputs - y) ** 2)
            log_probabilities = jax.nn.log_softmax(outputs)
            return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=1))

        match workload.optimizer:
            case Sgd(lr):
                state: Any = ()

                def update(parameters: list[Any], gradients: list[Any], state: Any) -> Any:
                    return [p - lr * g for p, g in zip(parameters, gradients)], state

            case Adam(lr) | AdamW(lr):
                kept = 1 - lr * getattr(workload.optimizer, "weight_decay", 0.0)
                state = (jnp.zeros((), jnp.int32), [jnp.zeros_like(p) for p in parameters])
                state = (*state, [jnp.zeros_like(p) for p in parameters])

                def update(parameters: list[Any], gradients: list[Any], state: Any) -> Any:
                    count, first, second = state
                    count = count + 1
                    first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients)]
                    second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradients)]
                    size = lr / (1 - 0.9**count)
                    root = jnp.sqrt(1 - 0.999**count)
                    triples = zip(parameters, first, second)
                    new = [kept * p - size * m / (jnp.sqrt(v) / root + 1e-8) for p, m, v in triples]
                    return new, (count, first, second)

        def whole_step(parameters: list[Any], state: Any, x: Any, y: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_function)(parameters, x, y)
            parameters, state = update(parameters, gradients, state)
            return parameters, state, loss

        compiled = jax.jit(whole_step, donate_argnums=(0, 1))
        current = (parameters, state)

        def step(i: int) -> Any:
            nonlocal current
            x, y = data[i]
            new_parameters, new_state, loss = compiled(*current, x, y)
            current = (new_parameters, new_state)
            return loss

        return step

    def read(self, loss: Any) -> float:
        return float(loss)

    def _forward(self, workload: AnyWorkload, parameters: list[Any], x: Any, variant: str) -> Any:
        jax, jnp, lax = self.jax, self.jax.numpy, self.jax.lax
        if isinstance(workload, Gpt):
            return forward_in_jax(jax, workload, parameters, x, "half" in variant)
        pairs = iter(zip(parameters[::2], parameters[1::2]))
        is_nhwc, is_reshaped = variant.startswith("NHWC"), variant.endswith("reshaped pool")
        for layer in workload.layers:
            match layer:
                case Linear():
                    weight, bias = next(pairs)
                    x = x @ weight.T + bias
                case Conv2d():
                    weight, bias = next(pairs)
                    bias = bias if is_nhwc else bias[:, None, None]
                    layout = (variant[:4], "OIHW", variant[:4])
                    x = lax.conv_general_dilated(x, weight, (1, 1), "VALID", dimension_numbers=layout) + bias
                case MaxPool2d(size) if is_reshaped:
                    first = 1 if is_nhwc else 2  # the axis of rows
                    rows, columns = x.shape[first] // size, x.shape[first + 1] // size
                    x = x[:, : rows * size, : columns * size] if is_nhwc else x[..., : rows * size, : columns * size]
                    shape = (*x.shape[:first], rows, size, columns, size, *x.shape[first + 2 :])
                    x = x.reshape(shape).max((first + 1, first + 3))
                case MaxPool2d(size):
                    window = (1, size, size, 1) if is_nhwc else (1, 1, size, size)
                    x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
                case Relu():
                    x = jax.nn.relu(x)
                case Tanh():
                    x = jnp.tanh(x)
                case Flatten():
                    # The weights that follow are in torch's order: channels first.
                    x = (x.transpose(0, 3, 1, 2) if is_nhwc else x).reshape(x.shape[0], -1)
        return x


class PequegradPeer:
    """pequegrad, compiled: what its README shows a user to write."""

    device = "cpu"

    def __init__(self, threads: int, cache_dir: str) -> None:
        import pequegrad

        pequegrad.config.num_threads = threads
        pequegrad.config.cache_dir = cache_dir
        self.pg = pequegrad

    def variants(self, workload: AnyWorkload) -> tuple[str, ...]:
        return ("default",)

    def make_step(self, workload: AnyWorkload, batches: Batches, variant: str) -> Callable[[int], Any]:
        pg = self.pg
        model = make_model(pg, workload).to(self.device)
        optimizer = make_optimizer(pg, workload, model.parameters())
        loss_function = getattr(pg.nn.functional, LOSSES[workload.loss])
        data = [(pg.from_numpy(x).to(self.device), pg.from_numpy(y).to(self.device)) for x, y in batches]

        def train_step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        compiled = self._compile(train_step, workload)

        def step(i: int) -> Any:
            return compiled(*data[i])

        return step

    def read(self, loss: Any) -> float:
        return loss.item()

    def _compile(self, train_step: Callable[..., Any], workload: AnyWorkload) -> Callable[..., Any]:
        return self.pg.compile(train_step, strict=True, precision=workload.precision)


class PequegradEagerPeer(PequegradPeer):
    """pequegrad without compiling: NumPy and the tape."""

    def _compile(self, train_step: Callable[..., Any], workload: AnyWorkload) -> Callable[..., Any]:
        return train_step


CPU_PEERS: dict[str, type[Any]] = {
    "pequegrad": PequegradPeer,
    "pequegrad-eager": PequegradEagerPeer,
    "torch": TorchPeer,
    "torch-compile": TorchCompilePeer,
    "jax": JaxPeer,
}
OURS = ("pequegrad", "pequegrad-eager")
