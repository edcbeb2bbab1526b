"""Whether the CUDA target computes what it should: ``python -m benchmarks.gpu_check --target cuda``.

Every op of the registry runs on its own samples, forward and gradients, and small nets train; the results are held
against our CPU target and against PyTorch, on the GPU where it has one. Prints one JSON object; exit code 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pequegrad as pg
from pequegrad.errors import NotCompilable
from pequegrad.ops.core import Op, Sample, bind
from pequegrad.ops.registry import REGISTRY

from .peers import make_function, make_model
from .workloads import SMALL_WORKLOADS, Workload, find

SAMPLES_A_STEP = 40
"""Samples that one compiled step holds: fewer steps compile sooner, smaller steps compile beside each other."""
CLOSE, CLOSE_AT_FIRST, CLOSE_LATER = 2e-4, 1e-3, 5e-2
FIRST_STEPS = 10
"""Losses are close in the first steps; later, rounding has grown along the trajectory."""


@dataclass
class Report:
    """What was compared, with what, and what differed."""

    compared: dict[str, int] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, name: str, kind: str, got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
        """Count a comparison, and note it where the arrays are not close, relative to the largest element."""
        self.compared[kind] = self.compared.get(kind, 0) + 1
        got, expected = np.asarray(got), np.asarray(expected)
        if got.shape != expected.shape:
            self.differing.append(f"{name}: shape {got.shape}, {kind} has {expected.shape}")
            return
        if got.dtype.kind == "c" or expected.size == 0 or np.array_equal(got, expected):
            return
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        finite = np.isfinite(expected)
        scale = np.abs(expected[finite]).max(initial=1e-3)
        is_same = np.array_equal(got[~finite], expected[~finite], equal_nan=True)
        gap = np.abs(got[finite] - expected[finite]).max(initial=0.0) / scale
        if not is_same or not gap <= tolerance:
            self.differing.append(f"{name}: {gap:.1e} from {kind}")


@dataclass(frozen=True)
class Case:
    """One sample of an op."""

    op: type[Op]
    sample: Sample

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Return results and gradients; traced or eager. Each floating-point result counts once in the gradients."""
        tensors = [tensor.clone() for tensor in tensors]
        for index in self.sample.differentiable:
            tensors[index].requires_grad_()
        made = bind(self.op, *tensors, **dict(self.sample.params))
        results = list(made) if isinstance(made, tuple) else [made]
        sums = [result.sum() for result in results if result.requires_grad]
        if sums:
            sum(sums[1:], sums[0]).backward()
        return results + [tensors[i].grad for i in self.sample.differentiable if tensors[i].grad is not None]

    def run_torch(self, torch: Any, device: str) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """Return the results and the gradients of PyTorch's function, or None where it has none."""
        if self.sample.torch is None:
            return None
        tensors = [torch.from_numpy(array.copy()).to(device) for array in self.sample.arrays]
        for index in self.sample.differentiable:
            tensors[index].requires_grad_()
        made = self.sample.torch(torch, *tensors)
        results = list(made) if isinstance(made, tuple | list) else [made]
        sums = [result.sum() for result in results if result.requires_grad]
        if sums:
            sum(sums[1:], sums[0]).backward()
        gradients = [tensors[i].grad for i in self.sample.differentiable if tensors[i].grad is not None]
        arrays = ([part.detach().cpu().numpy() for part in parts] for parts in (results, gradients))
        return next(arrays), next(arrays)


def cases(only: Sequence[str] = ()) -> list[Case]:
    """Return all samples of float32 and integers, of all ops or of those named."""
    return [
        Case(op, sample)
        for name, op in sorted(REGISTRY.items())
        if not only or name in only
        for sample in op.samples()
        if all(array.dtype.itemsize < 16 and array.dtype != np.float64 for array in sample.arrays)
    ]


def has_kernel(case: Case, target: str, report: Report) -> bool:
    """Whether the sample can be compiled; some are left to eager on purpose, which is noted."""
    arguments = [pg.from_numpy(array.copy()) for array in case.sample.arrays]
    try:
        pg.compile(lambda arguments: case.run(arguments)).lower(arguments, target=target)
    except NotCompilable as error:
        report.notes.append(f"{case.op.name} is not compiled for a sample: {str(error).split(': ', 2)[-1]}")
        return False
    return True


def check_ops(report: Report, target: str, only: Sequence[str]) -> None:
    """Compare every op on ``target`` with the CPU target and with PyTorch."""
    torch, device = find_torch(report)
    found = [case for case in cases(only) if has_kernel(case, target, report)]
    groups = [found[i : i + SAMPLES_A_STEP] for i in range(0, len(found), SAMPLES_A_STEP)]
    with ThreadPoolExecutor(4) as builders:
        ours, reference = (list(builders.map(lambda group, on=on: Group(group, on), groups)) for on in (target, "cpp"))
    for group, steps in zip(groups, zip(ours, reference)):
        for case, got, expected in zip(group, *(step.run() for step in steps)):
            name = case.op.name
            for a, b in zip(got, expected, strict=True):
                report.compare(name, "the CPU target", a, b, CLOSE)
            theirs = case.run_torch(torch, device) if torch else None
            if theirs is None:
                continue
            results, gradients = theirs
            for a, b in zip(got, results):
                report.compare(name, f"torch on {device}", a, b.astype(a.dtype), CLOSE)
            for a, b in zip(got[len(got) - len(gradients) :], gradients):
                report.compare(f"gradient of {name}", f"torch on {device}", a, b.astype(a.dtype), CLOSE)


class Group:
    """Cases in one compiled step, built at once."""

    def __init__(self, group: Sequence[Case], target: str) -> None:
        self._arguments = [[pg.from_numpy(array.copy()) for array in case.sample.arrays] for case in group]

        def step(arguments: list[list[Any]]) -> list[list[Any]]:
            return [case.run(tensors) for case, tensors in zip(group, arguments)]

        self._step = pg.compile(step, target=target, strict=True)
        self._step.compile(self._arguments)

    def run(self) -> list[list[np.ndarray]]:
        """Return the arrays of each case; random ones are drawn from the same state by each group."""
        pg.manual_seed(0)
        return [[result.cpu().numpy() for result in parts] for parts in self._step(self._arguments)]


def find_torch(report: Report) -> tuple[Any, str]:
    """Return (torch, its device), or (None, ""); what is not there is noted."""
    try:
        import torch
    except ImportError:
        report.notes.append("PyTorch is not installed: compared with our CPU target only")
        return None, ""
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions are in half the digits
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        report.notes.append("PyTorch sees no GPU: compared with its CPU")
    return torch, device


def check_training(report: Report, target: str, workloads: Sequence[Workload], steps: int) -> None:
    """Compare the losses of some training steps on ``target`` with those of the CPU target and of PyTorch."""
    torch, device = find_torch(report)
    for workload in workloads:
        batches = workload.batches(4)
        ours = train(pg, workload, batches, steps, lambda step: pg.compile(step, target=target, strict=True))
        others = {"the CPU target": train(pg, workload, batches, steps, lambda step: pg.compile(step, strict=True))}
        if torch:
            others[f"torch on {device}"] = train(torch, workload, batches, steps, lambda step: step, device)
        for kind, losses in others.items():
            first = slice(0, FIRST_STEPS)
            report.compare(f"{workload.name}, first steps", kind, ours[first], losses[first], CLOSE_AT_FIRST)
            report.compare(f"{workload.name}, {steps} steps", kind, ours, losses, CLOSE_LATER)


def train(
    framework: Any, workload: Workload, batches: Any, steps: int, compiled: Callable[..., Any], device: str = "cpu"
) -> np.ndarray:
    """Return the losses of ``steps`` training steps."""
    model = make_model(framework, workload).to(device)
    run = compiled(make_function(framework, workload, model))
    data = [tuple(framework.from_numpy(part).to(device) for part in batch) for batch in batches]
    return np.array([run(*data[i % len(data)]).item() for i in range(steps)])


def training_workloads(is_small: bool) -> list[Workload]:
    """Return the nets to train; ``is_small``: over little, for the simulator and the sanitizer."""
    return list(SMALL_WORKLOADS) if is_small else [find(name) for name in ("mlp", "conv", "tiny", "gpt")]


def is_chosen(workload: Workload, nets: Sequence[str] | None) -> bool:
    """Whether the command line asks for a net, by its name or by that of which it is a small form."""
    return nets is None or workload.name.removesuffix("-small") in nets


def main(arguments: list[str] | None = None) -> int:
    """Check, print the report; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cuda", choices=("cuda", "cuda-sim"))
    parser.add_argument("--launch", default="auto", choices=("auto", "graph", "cooperative"))
    parser.add_argument("--steps", type=int, default=50, help="training steps of each net (%(default)s)")
    parser.add_argument("--small", action="store_true", help="few samples a batch")
    parser.add_argument("--nets", type=lambda text: text.split(","), help="these nets alone")
    parser.add_argument("--ops", type=lambda text: text.split(","), default=[], help="these ops alone; 'none' for none")
    options = parser.parse_args(arguments)
    pg.config.cuda_launch, pg.config.quiet = options.launch, True
    report = Report()
    if options.ops != ["none"]:
        check_ops(report, options.target, options.ops)
    chosen = [net for net in training_workloads(options.small) if is_chosen(net, options.nets)]
    check_training(report, options.target, chosen, options.steps)
    report.notes = list(dict.fromkeys(report.notes))
    print(json.dumps({"compared": report.compared, "differing": report.differing, "notes": report.notes}))
    return int(bool(report.differing))


if __name__ == "__main__":
    sys.exit(main())
