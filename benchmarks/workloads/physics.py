"""A physics-informed net: Burgers' equation, as Raissi, Perdikaris and Karniadakis (2019) train it.

Invariant: the loss holds second derivatives by the inputs, and its gradient by the weights is the step's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Workload, uniform

VISCOSITY = 0.01 / np.pi


@dataclass(frozen=True, kw_only=True)
class Burgers(Workload):
    """u_t + u u_x = ν u_xx at ``batch`` points (t, x), and u = -sin πx at ``initial`` points with t = 0."""

    width: int
    depth: int
    initial: int

    def sizes(self) -> list[int]:
        """Return the widths from the inputs (t, x) to u."""
        return [2, *[self.width] * self.depth, 1]

    def weights(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng([self.seed, 1])
        for inputs, outputs in zip(self.sizes(), self.sizes()[1:]):
            yield uniform(random, inputs, (outputs, inputs))
            yield uniform(random, inputs, (outputs,))

    def make_batch(self, random: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Return points (B, 2), initial points (I, 2), and u there (I, 1)."""
        points = random.uniform((0, -1), (1, 1), (self.batch, 2)).astype(np.float32)
        starts = random.uniform((0, -1), (0, 1), (self.initial, 2)).astype(np.float32)
        return points, starts, -np.sin(np.float32(np.pi) * starts[:, 1:])

    def flops(self) -> int:
        """At a point, u and its three derivatives are four passes over the net, and their gradient costs twice as much."""
        sizes = self.sizes()
        products = 2 * sum(a * b for a, b in itertools.pairwise(sizes))
        return products * (12 * self.batch + 3 * self.initial)

    def module(self, framework: Any) -> Any:
        nn = framework.nn
        gradient = framework.autograd.grad if hasattr(framework, "autograd") else framework.grad

        class Net(nn.Module):
            def __init__(self, sizes: list[int]) -> None:
                super().__init__()
                linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
                self.layers = nn.Sequential(
                    *(part for linear in linears[:-1] for part in (linear, nn.Tanh())), linears[-1]
                )

            def forward(self, points: Any, starts: Any, values: Any) -> Any:
                if hasattr(framework, "func") and framework.compiler.is_compiling():
                    u, u_t, u_x, u_xx = self.functional_derivatives(points)
                else:
                    u, u_t, u_x, u_xx = self.derivatives(points)
                residual = u_t + u * u_x - VISCOSITY * u_xx
                return (residual**2).mean() + ((self.layers(starts) - values) ** 2).mean()

            def derivatives(self, points: Any) -> tuple[Any, ...]:
                points = points.clone().requires_grad_()
                u = self.layers(points)
                first = gradient(u.sum(), points, create_graph=True)[0]
                u_t, u_x = first[:, :1], first[:, 1:]
                return u, u_t, u_x, gradient(u_x.sum(), points, create_graph=True)[0][:, 1:]

            def functional_derivatives(self, points: Any) -> tuple[Any, ...]:
                """For torch.compile, which refuses gradients of gradients that autograd took."""
                derive = framework.func.grad
                first = derive(lambda x: self.layers(x).sum())
                second = derive(lambda x: first(x)[:, 1].sum())(points)
                along = first(points)
                return self.layers(points), along[:, :1], along[:, 1:], second[:, 1:]

        return Net(self.sizes())

    def jax_variants(self) -> tuple[str, ...]:
        """Derivatives by the inputs forward, along t and x, or backward, as the other frameworks take them."""
        return ("forward", "reverse")

    def loss_in_jax(
        self, jax: Any, parameters: list[Any], buffers: list[Any], batch: tuple[Any, ...], variant: str
    ) -> tuple[Any, list[Any]]:
        jnp = jax.numpy
        points, starts, values = batch

        def net(x: Any) -> Any:
            pairs = list(zip(parameters[::2], parameters[1::2]))
            for weight, bias in pairs[:-1]:
                x = jnp.tanh(x @ weight.T + bias)
            return x @ pairs[-1][0].T + pairs[-1][1]

        if variant == "forward":
            along_t, along_x = (jnp.broadcast_to(jnp.array(d, jnp.float32), points.shape) for d in ((1, 0), (0, 1)))
            u, u_t = jax.jvp(net, (points,), (along_t,))
            u_x, u_xx = jax.jvp(lambda x: jax.jvp(net, (x,), (along_x,))[1], (points,), (along_x,))
        else:
            u = net(points)
            first, pull = jax.vjp(jax.grad(lambda x: net(x).sum()), points)
            u_t, u_x = first[:, :1], first[:, 1:]
            u_xx = pull(jnp.broadcast_to(jnp.array((0, 1), jnp.float32), points.shape))[0][:, 1:]
        residual = u_t + u * u_x - VISCOSITY * u_xx
        return (residual**2).mean() + ((net(starts) - values) ** 2).mean(), []
