"""Runs a plan in Python, by the kernels' own fields, on real bytes: the oracle of what a plan means.

Invariant: memory that nobody wrote holds NaN; kernels of a phase run in any order, and none writes what another of its
phase touches. Chunks of blocks run in any order too, and each block finds NaN in the memory that it has to itself.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..errors import CompilerBug, IndexOutOfRange
from ..ops.core import Family
from ..ops.registry import REGISTRY
from ..records import replace
from . import schedule
from .plan import (
    Access,
    Accumulate,
    Attention,
    Compute,
    Contract,
    Conv2d,
    Index,
    Kernel,
    Load,
    Map,
    Phase,
    Row,
    Scan,
    Sort,
    StepPlan,
    Store,
    Walk,
    Window,
)

POISON = 0xFF
"""Every byte of fresh memory: NaN in each floating-point dtype, -1 as an integer."""


def run_plan(plan: StepPlan, passed: Sequence[np.ndarray], *, seed: int = 0) -> None:
    """Run ``plan`` on the passed buffers, in the order of ``plan.slots``; results and states are written in place.

    ``seed`` picks the order of the kernels in each phase. Raises IndexOutOfRange as a compiled step does, and
    CompilerBug where kernels of one phase would race.
    """
    memory = _Memory(plan, passed)
    order = random.Random(seed)
    with np.errstate(all="ignore"):
        for number, phase in enumerate(plan.phases):
            if phase.blocks is not None:
                check_blocks(plan, phase, number)
                _run_blocks(phase, memory, order)
                continue
            check_phase(plan, phase, number)
            kernels = list(phase.kernels)
            order.shuffle(kernels)
            for kernel in kernels:
                _RUNNERS[type(kernel)](kernel, memory)


def _run_blocks(phase: Phase, memory: _Memory, order: random.Random) -> None:
    blocks = phase.blocks
    assert blocks is not None
    chunks = list(range(blocks.chunks))
    order.shuffle(chunks)
    for chunk in chunks:
        for buffer, elements in blocks.sums:
            memory.flat[buffer][chunk * elements : (chunk + 1) * elements] = 0
        for block in blocks.blocks_of(chunk):
            memory.poison_locals()
            for kernel, walks in zip(phase.kernels, blocks.walks, strict=True):
                moved = memory.moved({walk.buffer: block * walk.block + chunk * walk.chunk for walk in walks})
                _RUNNERS[type(kernel)](kernel, moved)


def allocate(plan: StepPlan, inputs: Sequence[Any]) -> list[np.ndarray]:
    """Return the passed buffers of ``plan``: copies of ``inputs`` (in the graph's order), then poisoned results."""
    arrays = []
    given = iter(inputs)
    for number in plan.slots:
        buffer = plan.buffers[number]
        if buffer.scope == "result":
            array = np.empty(buffer.shape, buffer.dtype.numpy)
            array.reshape(-1).view(np.uint8)[:] = 1 if buffer.dtype.kind == "bool" else POISON
        else:
            array = np.array(next(given), buffer.dtype.numpy, order="C").reshape(buffer.shape)
        arrays.append(array)
    return arrays


class _Memory:
    """All buffers, as flat typed arrays."""

    def __init__(self, plan: StepPlan, passed: Sequence[np.ndarray]) -> None:
        arena = np.full(plan.arena_bytes, POISON, np.uint8)
        self._local = np.full(plan.local_bytes + plan.shared_bytes, POISON, np.uint8)
        self.flat: list[np.ndarray] = []
        slots = dict(zip(plan.slots, passed, strict=True))
        for number, buffer in enumerate(plan.buffers):
            if buffer.scope in ("arena", "local"):
                whole = arena if buffer.scope == "arena" else self._local
                part = whole[buffer.offset : buffer.offset + buffer.nbytes]
                self.flat.append(part.view(buffer.dtype.numpy))
                continue
            array = slots[number]
            if array.dtype != buffer.dtype.numpy or array.size != buffer.size or not array.flags.c_contiguous:
                raise CompilerBug(
                    f"{buffer.name}: expected {buffer.size} {buffer.dtype.name}. Got {array.dtype} {array.shape}"
                )
            self.flat.append(array.reshape(-1))

    def poison_locals(self) -> None:
        self._local[:] = POISON

    def moved(self, starts: dict[int, int]) -> _Memory:
        """Return the same memory with some buffers beginning at a later element."""
        other = copy.copy(self)
        other.flat = list(self.flat)
        for number, start in starts.items():
            other.flat[number] = self.flat[number][start:]
        return other

    def view(self, access: Access, shape: Sequence[int]) -> np.ndarray:
        """Return the elements that an access reaches over a domain; a view."""
        flat = self.flat[access.buffer]
        if not math.prod(shape):
            return np.empty(tuple(shape), flat.dtype)
        reach = [(extent - 1) * stride for extent, stride in zip(shape, access.strides, strict=True)]
        low = access.offset + sum(min(r, 0) for r in reach)
        high = access.offset + sum(max(r, 0) for r in reach)
        if low < 0 or high >= flat.size:
            raise CompilerBug(f"{access} over {tuple(shape)} leaves its buffer of {flat.size} elements")
        strides = [stride * flat.itemsize for stride in access.strides]
        return as_strided(flat[access.offset :], tuple(shape), strides)


# --- statements ---------------------------------------------------------------------------------------------------


def _run_statements(
    statements: Sequence[Any], domain: tuple[int, ...], memory: _Memory, variables: dict[int, Any]
) -> None:
    for statement in statements:
        if isinstance(statement, Load):
            variables[statement.dst] = np.array(memory.view(statement.access, domain))
        elif isinstance(statement, Store):
            value = np.broadcast_to(variables[statement.src], domain)
            _scatter_store(memory.view(statement.access, domain), statement.access, value)
        else:
            variables[statement.dst] = _compute(statement, domain, variables)


def _scatter_store(target: np.ndarray, access: Access, value: np.ndarray) -> None:
    # Axes that do not move the target hold one value: write it once.
    kept = tuple(slice(None) if stride else 0 for stride in access.strides)
    target[kept] = value[kept]


def _compute(statement: Compute, domain: tuple[int, ...], variables: dict[int, Any]) -> np.ndarray:
    arguments = [variables[a] for a in statement.arguments]
    params = dict(statement.params)
    if isinstance(statement.op.lowering, Family):  # a draw: the seed and the stream are numbers
        arguments = [np.array([a.reshape(-1)[0] for a in arguments])]
    result = np.asarray(statement.op.numpy(np, *arguments, **params), statement.dtype.numpy)
    if statement.index is None:
        return result
    return result.reshape(-1)[_linear(statement.index, domain)]


def _linear(index: Access, domain: tuple[int, ...]) -> np.ndarray:
    total = np.full(domain, index.offset, np.int64)
    for axis, (extent, stride) in enumerate(zip(domain, index.strides, strict=True)):
        total += (np.arange(extent) * stride).reshape([-1 if a == axis else 1 for a in range(len(domain))])
    return total


# --- families -----------------------------------------------------------------------------------------------------


def _run_map(kernel: Map, memory: _Memory) -> None:
    _run_statements(kernel.body, kernel.extents, memory, {})


def _run_row(kernel: Row, memory: _Memory) -> None:
    domain = kernel.outer + kernel.inner
    inner_axes = tuple(range(len(kernel.outer), len(domain)))
    kept: dict[int, Any] = {}
    for stage in kernel.stages:
        variables = dict(kept)
        _run_statements(stage.inner, domain, memory, variables)
        for a in stage.accumulate:
            kept[a.dst] = _reduce(a, np.broadcast_to(variables[a.src], domain), inner_axes)
        # Row-level statements see the domain with inner extents of 1.
        _run_statements(stage.outer, kernel.outer + (1,) * len(kernel.inner), memory, kept)


def _reduce(statement: Accumulate, values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    rows = values.shape[: axes[0]]
    flat = values.reshape(*rows, -1)
    op = next(op for op in REGISTRY.values() if getattr(op.lowering, "monoid", None) == statement.monoid)
    result = op.numpy(np, flat, dims=(flat.ndim - 1,), keepdim=True)
    return np.asarray(result, statement.dtype.numpy).reshape(*rows, *(1,) * len(axes))


def _run_contract(kernel: Contract, memory: _Memory) -> None:
    a = memory.view(kernel.a, (*kernel.batch, kernel.m, kernel.k))
    b = memory.view(kernel.b, (*kernel.batch, kernel.k, kernel.n))
    total = np.asarray(REGISTRY["matmul"].numpy(np, a, b), kernel.dtype.numpy)
    _run_statements(kernel.epilogue, (*kernel.batch, kernel.m, kernel.n), memory, {0: total})


def _run_conv2d(kernel: Conv2d, memory: _Memory) -> None:
    s = kernel.shape
    w = s.O, s.C // s.groups, s.KH, s.KW
    # Elements of a place are images of the batch.
    x, y = (s.N * s.lanes, s.C, s.H, s.W), (s.N * s.lanes, s.O, s.OH, s.OW)
    # Only top and left are in the record; what is below and to the right follows from the sizes.
    bottom = (s.OH - 1) * s.stride_h + s.dilation_h * (s.KH - 1) + 1 - s.H - s.pad_h
    right = (s.OW - 1) * s.stride_w + s.dilation_w * (s.KW - 1) + 1 - s.W - s.pad_w
    params: dict[str, Any] = {
        "stride": (s.stride_h, s.stride_w), "dilation": (s.dilation_h, s.dilation_w), "groups": s.groups,
        "padding": (s.pad_h, bottom, s.pad_w, right),
    }  # fmt: skip
    if kernel.kind == "forward":
        name, first, second = "conv2d", x, w
    elif kernel.kind == "grad_input":
        name, first, second, params["size"] = "conv2d_grad_input", y, w, (s.H, s.W)
    else:
        name, first, second, params["kernel"] = "conv2d_grad_weight", x, y, (s.KH, s.KW)
    arrays = [
        memory.view(access if shape is w else replace(access, strides=_images(shape, s.N, s.lanes)), shape)
        for access, shape in ((kernel.a, first), (kernel.b, second))
    ]
    total = np.asarray(REGISTRY[name].numpy(np, *arrays, **params), kernel.dtype.numpy)
    if kernel.kind != "grad_weight":
        total = np.moveaxis(total.reshape(s.N, s.lanes, *total.shape[1:]), 1, -1)
    domain = schedule.conv_domain(kernel)
    _run_statements(kernel.epilogue, domain, memory, {0: np.ascontiguousarray(total).reshape(domain)})


def _images(shape: tuple[int, ...], batch: int, lanes: int) -> tuple[int, int, int, int]:
    """Return the strides of images (batch · lanes, C, H, W) that lie as (batch, C, H, W, lanes): one of both is 1."""
    assert min(batch, lanes) <= 1
    _, channels, height, width = shape
    plane = height * width * lanes
    return (1 if lanes > 1 else channels * plane), plane, width * lanes, lanes


def _run_window(kernel: Window, memory: _Memory) -> None:
    s = kernel.shape
    # Elements of a place are images of a batch.
    images, windows = (s.lanes, s.planes, s.H, s.W), (s.lanes, s.planes, s.OH, s.OW)
    bottom = (s.OH - 1) * s.stride_h + s.dilation_h * (s.KH - 1) + 1 - s.H - s.pad_h
    right = (s.OW - 1) * s.stride_w + s.dilation_w * (s.KW - 1) + 1 - s.W - s.pad_w
    params: dict[str, Any] = {
        "kernel": (s.KH, s.KW), "stride": (s.stride_h, s.stride_w),
        "padding": (s.pad_h, bottom, s.pad_w, right),
    }  # fmt: skip
    if kernel.kind.startswith("avg"):
        params["count_include_pad"] = s.count_include_pad
    else:
        params["dilation"] = (s.dilation_h, s.dilation_w)
        positions = (kernel.outputs if kernel.kind == "max_pool2d" else kernel.inputs)[1]
        params["taps"] = memory.flat[positions.buffer].dtype.itemsize == 1
    puts = kernel.kind in ("window_put", "avg_pool2d_grad")
    if puts:
        params["size"] = (s.H, s.W)
    shapes = [windows if puts or i else images for i in range(len(kernel.inputs))]
    arrays = [
        memory.view(Access(a.buffer, _images(shape, 1, s.lanes), a.offset), shape)
        for a, shape in zip(kernel.inputs, shapes, strict=True)
    ]
    results = REGISTRY[kernel.kind].numpy(np, *arrays, **params)
    for access, result in zip(kernel.outputs, results if isinstance(results, tuple) else (results,), strict=True):
        shape = images if puts else windows
        memory.view(Access(access.buffer, _images(shape, 1, s.lanes), access.offset), shape)[...] = result


def _run_index(kernel: Index, memory: _Memory) -> None:
    moved = (kernel.outer, kernel.count, kernel.inner)
    index = memory.view(kernel.index, moved if kernel.per_element else (kernel.count,))
    is_wrong = (index < 0) | (index >= kernel.extent)
    if kernel.ignored is not None:
        is_wrong &= index != kernel.ignored
    if is_wrong.any():
        wrong = index[is_wrong].reshape(-1)[0]
        where = ", ".join(map(str, kernel.origin.locations))
        raise IndexOutOfRange(f"{where}: index {int(wrong)} is out of range: expected 0 <= index < {kernel.extent}.")
    if kernel.table is None:
        memory.view(kernel.out, (kernel.count,))[...] = index
        return
    whole = (kernel.outer, kernel.extent, kernel.inner)
    rows, columns = np.arange(kernel.outer)[:, None, None], np.arange(kernel.inner)
    address = (rows, index if kernel.per_element else index[:, None], columns)
    if kernel.kind == "gather":
        memory.view(kernel.out, moved)[...] = memory.view(kernel.table, whole)[address]
        return
    out = memory.view(kernel.out, whole)
    out[...] = memory.view(kernel.table, whole).copy()
    assert kernel.source is not None
    source = memory.view(kernel.source, moved)
    if kernel.kind == "scatter":
        out[address] = source
    else:
        np.add.at(out, address, source)


def _run_scan(kernel: Scan, memory: _Memory) -> None:
    shape = (kernel.outer, kernel.extent, kernel.inner)
    memory.view(kernel.out, shape)[...] = np.cumsum(memory.view(kernel.source, shape), axis=1, dtype=kernel.dtype.numpy)


def _run_sort(kernel: Sort, memory: _Memory) -> None:
    shape = (kernel.outer, kernel.extent, kernel.inner)
    found = REGISTRY["sort"].numpy(np, memory.view(kernel.source, shape), dim=1, descending=kernel.is_descending)
    for access, result in zip((kernel.out, kernel.places), found, strict=True):
        memory.view(access, shape)[...] = result


def _run_attention(kernel: Attention, memory: _Memory) -> None:
    op = REGISTRY["attention" if kernel.kind == "forward" else "attention_grad"]
    inputs = zip(kernel.inputs, kernel.input_shapes, strict=True)
    arrays = [np.array(memory.view(access, (*kernel.batch, *shape))) for access, shape in inputs]
    results = op.numpy(np, *arrays, scale=kernel.scale, is_causal=kernel.is_causal)
    for access, shape, result in zip(kernel.outputs, kernel.output_shapes, results, strict=True):
        memory.view(access, (*kernel.batch, *shape))[...] = result


_RUNNERS: dict[type[Kernel], Callable[[Any, _Memory], None]] = {
    Map: _run_map,
    Row: _run_row,
    Contract: _run_contract,
    Conv2d: _run_conv2d,
    Window: _run_window,
    Index: _run_index,
    Scan: _run_scan,
    Sort: _run_sort,
    Attention: _run_attention,
}


# --- races --------------------------------------------------------------------------------------------------------


def check_phase(plan: StepPlan, phase: Phase, number: int) -> None:
    """Raise CompilerBug if a kernel of ``phase`` writes bytes that another one reads or writes."""
    touched = [_touched(plan, kernel) for kernel in phase.kernels]
    for (i, (reads, writes)), (j, (other_reads, other_writes)) in itertools.combinations(enumerate(touched), 2):
        for mine, theirs in ((writes, other_reads), (reads, other_writes), (writes, other_writes)):
            for region, other in itertools.product(mine, theirs):
                if _overlap(region, other):
                    names = phase.kernels[i].name, phase.kernels[j].name
                    raise CompilerBug(
                        f"phase {number}: {names[0]} and {names[1]} touch the same memory: {region[0]}, {other[0]}"
                    )


def check_blocks(plan: StepPlan, phase: Phase, number: int) -> None:
    """Raise CompilerBug if a block or chunk of ``phase`` writes where another one reads or writes."""
    blocks = phase.blocks
    assert blocks is not None
    written = {
        access.buffer for kernel in phase.kernels for access in schedule.reads_and_writes(kernel)[1]
    }  # fmt: skip
    moves: dict[int, Walk] = {}
    for kernel, walks in zip(phase.kernels, blocks.walks, strict=True):
        of_kernel = {walk.buffer: walk for walk in walks}
        for side in schedule.reads_and_writes(kernel):
            for access in side:
                buffer = plan.buffers[access.buffer]
                if access.buffer not in written or buffer.scope == "local":
                    continue
                walk = of_kernel.get(access.buffer)
                if walk is None or moves.setdefault(access.buffer, walk) != walk:
                    raise CompilerBug(f"phase {number}: blocks share {buffer.name} in {kernel.name}")
                low, high = reach(access, kernel)
                if low < 0 or high >= (walk.block or walk.chunk):
                    raise CompilerBug(f"phase {number}: {kernel.name} leaves its block's part of {buffer.name}")


def reach(access: Access, kernel: Kernel) -> tuple[int, int]:
    """Return the first and the last element that an access of a kernel's statements or operands reaches."""
    for found, elements in (*schedule.operand_sizes(kernel), *schedule.result_sizes(kernel)):
        if found is access and not isinstance(kernel, Contract):
            return access.offset, access.offset + elements - 1
    extents = schedule.domain(kernel)
    if isinstance(kernel, Contract) and access is kernel.a:
        extents = (*kernel.batch, kernel.m, kernel.k)
    elif isinstance(kernel, Contract) and access is kernel.b:
        extents = (*kernel.batch, kernel.k, kernel.n)
    steps = [(extent - 1) * stride for extent, stride in zip(extents, access.strides, strict=True)]
    return access.offset + sum(min(s, 0) for s in steps), access.offset + sum(max(s, 0) for s in steps)


Region = tuple[str, int, int, Any]


def _touched(plan: StepPlan, kernel: Kernel) -> tuple[list[Region], list[Region]]:
    reads, writes = schedule.reads_and_writes(kernel)
    domain = schedule.domain(kernel)
    return [_region(plan, a, domain) for a in reads], [_region(plan, a, domain) for a in writes]


def _region(plan: StepPlan, access: Access, domain: tuple[int, ...]) -> Region:
    """Return (space, first byte, one past the last byte, the elements as a set where they are few) of an access."""
    buffer = plan.buffers[access.buffer]
    if buffer.scope == "arena":
        space, start = "arena", buffer.offset
    else:
        space, start = buffer.name + f"#{buffer.slot}", 0
    elements = None
    if len(access.strides) == len(domain) and math.prod(domain) <= 100_000:
        elements = np.unique(_linear(access, domain)) * buffer.dtype.itemsize + start
    return space, start, start + buffer.nbytes, elements


def _overlap(a: Region, b: Region) -> bool:
    if a[0] != b[0] or a[1] >= b[2] or b[1] >= a[2]:
        return False
    if a[1:3] == b[1:3] and a[3] is not None and b[3] is not None:
        return bool(np.intersect1d(a[3], b[3], assume_unique=True).size)
    return True
