"""From a call to a checked trace with its guards: two traces, compared, while the user's code is watched.

Invariant: what this returns repeats for as long as its guards hold; whatever Python would do differently in the next
call has raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from ..errors import TraceError
from ..locations import definition
from ..pytree import leaf_paths
from ..records import record
from ..tensor import Tensor
from .graph import Location
from .guards import Guards, ModuleSnapshot, OptimizerSnapshot
from .record import find_difference, record_call
from .signature import Call, argument_name
from .state import FreshLeaf, Trace, read_number
from .tracer import Tracer
from .watch import Watch


@record
class Captured:
    """A trace and its guards. ``pinned``: arguments that are captured tensors at the same time."""

    trace: Trace
    guards: Guards
    pinned: dict[int, Tensor]


class _ObservingTracer(Tracer):
    """Takes the snapshot of each module and optimizer when it is first used, which is what the trace then reads."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.snapshots: dict[int, Any] = {}

    def module_called(self, module: Any) -> None:
        if id(module) not in self.modules:
            super().module_called(module)
            self.snapshots[id(module)] = ModuleSnapshot(module)

    def optimizer_stepped(self, optimizer: Any) -> None:
        if id(optimizer) not in self.optimizers:
            super().optimizer_stepped(optimizer)
            self.snapshots[id(optimizer)] = OptimizerSnapshot(optimizer)


def capture(function: Callable[..., Any], call: Call, *, name: str, keep_grads: bool) -> Captured:
    """Return the trace of ``function`` for the arguments of ``call``. Raises TraceError for what cannot be repeated."""
    where = definition(getattr(getattr(function, "__wrapped__", function), "__code__", None))
    for path, leaf in zip(leaf_paths(call.structure), call.leaves):
        if isinstance(leaf, Iterator):
            raise TraceError(
                f"{where}: {argument_name(path)} of {name} is an iterator ({type(leaf).__name__}): what it gives would be "
                "frozen in the compiled step. Pass its next item, or a list."
            )
    pinned: frozenset[int] = frozenset()
    before: Watch | None = None
    try:
        while True:
            # Guards and snapshots are those of the second trace.
            drafting = Tracer(name)
            watch = Watch(function, drafting, is_guarding=False)
            before = before or watch
            try:
                first = _record(function, call, name, keep_grads, pinned, drafting, watch, is_for_comparison=True)
            except Exception:
                # Perhaps only since an argument and a captured tensor, which are one, were two in the trace.
                if drafting.entangled <= pinned:
                    raise
                pinned |= drafting.entangled
                continue
            wanted = _aliased_arguments(first, call) | pinned | drafting.entangled
            if wanted == pinned:
                break
            pinned = wanted
        tracer = _ObservingTracer(name)
        again = Watch(function, tracer)
        second = _record(function, call, name, keep_grads, pinned, tracer, again)
        _check(name, where, first, second, watch, again, tracer)
    except BaseException:
        if before is not None:
            before.restore_random()
        raise
    modules = [s for s in tracer.snapshots.values() if isinstance(s, ModuleSnapshot)]
    optimizers = [s for s in tracer.snapshots.values() if isinstance(s, OptimizerSnapshot)]
    changes = next(map(_change_counter, second.modules), None)
    guards = Guards(second, again.guards(), modules, optimizers, changes)
    leaves = tuple([_own_leaf(*pair) for pair in zip(first.result_leaves, second.result_leaves)])
    return Captured(second.kept(leaves), guards, {i: call.tensors[i] for i in pinned})


def _own_leaf(first: Any, second: Any) -> Any:
    """Return the leaf to give back: what was made anew in each trace, and can be changed, is copied at each call."""
    is_fresh = isinstance(second, np.ndarray | set | bytearray | deque) and first is not second
    return FreshLeaf(second) if is_fresh else second


def _change_counter(module: Any) -> Any:
    """Return the count of changes that all modules share: what the base class says, not an attribute of the user's."""
    return next((vars(kind)["changes"] for kind in reversed(type(module).__mro__) if "changes" in vars(kind)), None)


def _check(
    name: str, where: Location, first: Trace, second: Trace, watch: Watch, again: Watch, tracer: _ObservingTracer
) -> None:
    """Raise TraceError for whatever would be frozen: random draws, values that change, traces that differ."""
    # In both traces: between two lines, another thread may have drawn too.
    if watch.drawn is not None and again.drawn is not None:
        raise TraceError(
            f"{again.drawn}: this line draws random numbers from Python or NumPy, which would be frozen in the "
            "compiled step. Use pequegrad's (pequegrad.rand, randn, dropout …), whose state advances at each call, or pass "
            "them as an argument."
        )
    problem = again.problem()
    if problem is not None:
        raise TraceError(problem)
    for owner, key, value, line in tracer.scalar_reads:
        now = read_number(owner, key)
        if float(now) != float(value):
            raise TraceError(
                f"{line}: {key!r} of a parameter group is read here and changed while the step was traced: "
                f"{value} → {now}. The change would happen once instead of at each call. Step the scheduler outside "
                "the compiled function."
            )
    for snapshot in tracer.snapshots.values():
        failure = snapshot.failure()
        if failure is not None:
            raise TraceError(
                f"{again.line_of(failure) or where}: {failure} while the step was traced. Such a change would "
                "happen once instead of at each call. Keep state in tensors (register_buffer, and update in place), or "
                "change it outside."
            )
    difference = find_difference(first, second)
    if difference is not None:
        line, what = difference
        raise TraceError(
            f"{line or where}: two traces of {name} differ: {what}. A value that changes from trace to trace would be "
            "frozen in the compiled step. Pass it as an argument, or keep it in a tensor."
        )


def _record(
    function: Callable[..., Any],
    call: Call,
    name: str,
    keep_grads: bool,
    pinned: Collection[int],
    tracer: Tracer,
    watch: Watch,
    *,
    is_for_comparison: bool = False,
) -> Trace:
    def run(standins: Any) -> Any:
        args, kwargs = call.rebuild(standins)
        with watch.watching():
            return function(*args, **kwargs)

    return record_call(
        run,
        call.tensors,
        call.names(),
        name=name,
        keep_grads=keep_grads,
        pinned=pinned,
        tracer=tracer,
        is_for_comparison=is_for_comparison,
    )


def _aliased_arguments(trace: Trace, call: Call) -> frozenset[int]:
    """Return the arguments whose storage the step also reaches in another way, if anyone writes to it."""
    captured = {id(guard.storage): guard.storage for guard in trace.tensor_guards}
    written = any(binding.is_written for binding in trace.inputs)
    storages = [tensor.storage for tensor in call.tensors]
    shared = {id(s) for i, s in enumerate(storages) if id(s) in captured or any(s is other for other in storages[:i])}
    return frozenset(i for i, storage in enumerate(storages) if written and id(storage) in shared)
