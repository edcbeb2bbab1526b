"""Each framework's own best way to run a Workload on a CUDA device: what differs from the CPU.

Invariant: parameters, optimizer state and batches lie on the device before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .peers import Batches, JaxPeer, PequegradPeer, TorchPeer
from .workloads import Workload

LARGE = 10**9
"""Operations a step, above which one cooperative kernel for the whole step is not worth building."""


class TorchCudaPeer(TorchPeer):
    """PyTorch, eager, on the GPU; float32 products and convolutions in float32, as the others'; bfloat16 by autocast."""

    device = "cuda"

    def __init__(self, threads: int, cache_dir: str) -> None:
        super().__init__(threads, cache_dir)
        self.torch.backends.cudnn.allow_tf32 = False

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return tuple(variant for variant in super().variants(workload) if "one_thread" not in variant)

    def _prepare(self, workload: Workload, model: Any, update: Callable[[], Any], variant: str) -> tuple[Any, Any]:
        if workload.precision != "bf16":
            return model, update

        def in_bfloat16(*batch: Any) -> Any:
            with self.torch.autocast("cuda", self.torch.bfloat16):
                return model(*batch)

        return in_bfloat16, update


class TorchCompileCudaPeer(TorchCudaPeer):
    """PyTorch with torch.compile; "reduce-overhead" replays CUDA graphs, the optimizer's own kernels are fused."""

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return ("fused reduce-overhead", "fused default")

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        step = super().make_step(workload, batches, variant)

        def marked(i: int) -> Any:
            self.torch.compiler.cudagraph_mark_step_begin()
            return step(i).clone()  # the graph's next replay overwrites its result

        return marked

    def _prepare(self, workload: Workload, model: Any, update: Callable[[], Any], variant: str) -> tuple[Any, Any]:
        forward, update = super()._prepare(workload, model, update, variant)
        self.torch.compiler.reset()
        return self.torch.compile(forward, mode=variant.split()[1]), update


class JaxCudaPeer(JaxPeer):
    """JAX on the GPU; float32 products in float32, as the others'."""

    platform = "cuda"

    def __init__(self, threads: int, cache_dir: str) -> None:
        super().__init__(threads, cache_dir)
        self.jax.config.update("jax_default_matmul_precision", "highest")


class PequegradCudaPeer(PequegradPeer):
    """pequegrad with target "cuda": the step as a graph of kernels, or as one cooperative kernel."""

    device = "cuda"

    def variants(self, workload: Workload) -> tuple[str, ...]:
        return ("graph", "cooperative") if workload.flops() < LARGE else ("graph",)

    def make_step(self, workload: Workload, batches: Batches, variant: str) -> Callable[[int], Any]:
        self.pg.config.cuda_launch = variant
        return super().make_step(workload, batches, variant)


GPU_PEERS: dict[str, type[Any]] = {
    "pequegrad-cuda": PequegradCudaPeer,
    "torch-cuda": TorchCudaPeer,
    "torch-compile-cuda": TorchCompileCudaPeer,
    "jax-cuda": JaxCudaPeer,
}
OURS_ON_GPU = ("pequegrad-cuda",)
