"""pequegrad.compile: trace → passes → lower → emit → build → run, and the fallback to eager.

Invariant: a compiled function does what the function does eagerly, or raises; it never runs a step whose guards fail.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import arrays, targets
from .build import known
from .build.keys import CacheKey
from .calling import Described, Native
from .config import STANCES, config
from .errors import (
    CacheError,
    DeviceError,
    NotCompilable,
    PequegradWarning,
    RecompileLimit,
    ToolchainError,
    TraceError,
)
from .forking import ForkSafeLock
from .locations import definition
from .native import NativeStep, StepFacts
from .records import collector_at_rest, record
from .targets import Target
from .tensor import Tensor
from .trace.capture import Captured, capture
from .trace.graph import Graph, identify
from .trace.many import run_many
from .trace.placement import home_of
from .trace.quick import describe_call
from .trace.signature import Call, explain_difference, read_call, without_data
from .trace.step import BoundStep, Execute, interpret
from .trace.tracer import current_tracer

if TYPE_CHECKING:
    from .codegen.plan import StepPlan
    from .making import Artifact, Lowered
    from .profiling import Profile

_TARGETS = {arrays.CPU: "cpp", "cuda": "cuda"}
"""The target for each kind of device that tensors lie on."""

_FALLS_BACK = (NotCompilable, ToolchainError, DeviceError, CacheError)
"""The machine's limits, for which eager is the remedy; mistakes of the user's are always raised."""

Backend = Callable[[Graph], Execute]


@record
class Options:
    """How a function is to be compiled; the keywords of ``compile``."""

    target: str | Target | None = None
    strict: bool = False
    mode: str = "default"
    precision: str = "fp32"
    memory: str = "default"
    keep_grads: bool = False
    name: str | None = None

    def check(self) -> Options:
        """Return these options. Raises ValueError, TypeError or DeviceError for a value that there is not."""
        allowed = {
            "mode": ("default", "autotune", "reproducible"),
            "precision": ("fp32", "tf32", "bf16"),
            "memory": ("default", "small"),
        }
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                raise ValueError(f"compile: {option} must be one of {values}. Got {getattr(self, option)!r}.")
        for option in ("strict", "keep_grads"):
            if not isinstance(getattr(self, option), bool):
                raise TypeError(f"compile: {option} must be True or False. Got {getattr(self, option)!r}.")
        if isinstance(self.target, str) and self.target not in targets.names():
            raise DeviceError(f"compile: unknown target {self.target!r}; expected one of {', '.join(targets.names())}.")
        return self


@record
class CacheInfo:
    """What a compiled function has done: steps it holds, calls they served, calls that ran eagerly."""

    steps: int
    hits: int
    eager_calls: int
    limit: int


class _Entry:
    """One signature under one set of guards. ``step`` is None where this must run eagerly."""

    __slots__ = ("call", "captured", "described", "step")

    def __init__(self, call: Call, captured: Captured, step: BoundStep | None) -> None:
        self.call, self.captured, self.step = call, captured, step
        self.described = Described()

    def native(self) -> Native | None:
        """Return what does all of a call natively, or None where Python must take part."""
        return self.described.now(self._describe)

    def _describe(self) -> Native | None:
        if self.step is None:
            return None
        description = describe_call(self.call, self.captured, self.step)
        return None if description is None else (self.step.quick_call(description), description)


# Of the latest signatures: a step that is called with a flag now on, now off, is native both ways. One that does not fit takes 0.2 us.
MOST_NATIVES = 4

# Tracing borrows real tensors for a moment, so one trace at a time in the whole process.
_trace_lock = ForkSafeLock()


class CompiledFunction:
    """A function whose calls run as compiled steps, one per signature. Made by ``compile``."""

    def __init__(self, function: Callable[..., Any], options: Options, backend: Backend | None = None) -> None:
        if not callable(function):
            raise TypeError(f"compile: expected a function. Got {type(function).__name__}: {function!r}.")
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._backend = backend
        self._name = options.name or getattr(function, "__name__", type(function).__name__).replace(
            "<lambda>", "lambda"
        )
        self._entries: dict[Any, list[_Entry]] = {}
        self._latest: _Entry | None = None
        self._native: Native | None = None
        """The latest that fitted, one of these."""
        self._natives: tuple[Native, ...] = ()
        self._said: set[str] = set()
        self._hits = self._eager_calls = 0
        self._lock = threading.RLock()
        self._methods: dict[int, tuple[Any, CompiledFunction]] = {}

    # --- calling --------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Both parts are held until the call is over: another thread may describe calls anew meanwhile.
        native = self._native
        if native is not None:
            result = native[0](args, kwargs)
            if result is not NotImplemented:
                self._hits += 1
                return result
        for other in self._natives:
            if other is not native and (result := other[0](args, kwargs)) is not NotImplemented:
                self._native = other
                self._hits += 1
                return result
        return self._run(read_call(args, kwargs))[0]

    def run_many(self, order: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one step per row of ``order``, natively, and return the steps' results stacked along a new first dimension.

        ``order``: integers of shape (steps, rows of a batch). Every tensor or array among the arguments is a whole
        dataset, of shape (rows, …): step i gets its rows ``order[i]``; other arguments stay as they are. Bit for bit what
        ``[step(x[rows], y[rows]) for rows in order]`` gives, without a return to Python between the steps: on a GPU,
        datasets that lie there (``.cuda()``) stay there, and many steps are one launch. Learning rates stay as they are
        meanwhile. Where the step runs eagerly, the same in a Python loop.

        Raises ShapeError, DTypeError or IndexOutOfRange for an order that does not fit, before any step runs. A step
        that fails raises what its call raises; those before it have taken effect.
        """
        return run_many(read_call(args, kwargs), order, self._run, self._bound_step, read_call)

    def _run(self, call: Call) -> tuple[Any, BoundStep | None]:
        """Return the result of a call, and the step that gave it, or None if it ran eagerly."""
        stance = config.stance
        if stance == "force_eager" or current_tracer() is not None:
            return self._run_eagerly(call), None
        entry = self._find(call) or self._make(call, stance)
        if entry is None or entry.step is None:
            self._eager_calls += 1
            return self._run_eagerly(call), None
        self._hits += 1
        result = entry.step(call.tensors)
        if not config.debug_nans and (native := entry.native()) is not None:
            others = [other for other in self._natives if other is not native]
            self._native, self._natives = native, (native, *others[: MOST_NATIVES - 1])
        return result, entry.step

    def _bound_step(self, call: Call) -> BoundStep | None:
        entry = self._find(call)
        return None if entry is None else entry.step

    def _run_eagerly(self, call: Call) -> Any:
        args, kwargs = call.rebuild(call.tensors)
        return self._function(*args, **kwargs)

    def _find(self, call: Call) -> _Entry | None:
        for entry in self._entries.get(call.key, ()):
            if entry.captured.guards.hold(call.tensors) and (entry.step is None or entry.step.admits(call.tensors)):
                self._latest = entry
                return entry
        return None

    def _make(self, call: Call, stance: str) -> _Entry | None:
        """Return a new entry for the call, or None where the stance says to run it eagerly."""
        with self._lock:
            entry = self._find(call)  # another thread may have made it meanwhile
            if entry is not None:
                return entry
            reason = self._reason(call)
            if reason and stance == "eager_on_recompile":
                return None
            if reason and stance == "fail_on_recompile":
                raise TraceError(
                    f"{self._where()}: {self._name} would be compiled again: {reason}. The stance forbids that."
                )
            count = sum(map(len, self._entries.values()))
            if count >= config.recompile_limit:
                raise RecompileLimit(
                    f"{self._where()}: {self._name} was compiled {count} times, which is the limit. What changed now: {reason}. "
                    "Pass a value that changes as a tensor (numpy.float32(x), for a number), keep shapes alike, for "
                    "example by DataLoader(drop_last=True), or raise pequegrad.config.recompile_limit."
                )
            if reason and "recompiles" in config.logs:
                print(f"pequegrad: {self._name} is compiled again: {reason}", file=sys.stderr)
            captured = self._trace(call)
            home = home_of(captured.trace, call.tensors, call.names())
            step = self._build_or_fall_back(captured, reason, home, call.tensors)
            entry = self._latest = _Entry(without_data(call), captured, step)
            self._entries.setdefault(call.key, []).append(entry)
            return entry

    def _reason(self, call: Call) -> str:
        """Return why no entry fits the call, or "" if there is none yet."""
        if self._latest is None:
            return ""
        same = self._entries.get(call.key)
        if not same:
            return explain_difference(self._latest.call, call)
        failure = same[-1].captured.guards.failure(call.tensors)
        return failure or "an argument shares memory with what the step changes"

    def _where(self) -> str:
        return str(definition(getattr(self._function, "__code__", None)))

    # --- the road -------------------------------------------------------------------------------------------

    def _build_or_fall_back(
        self, captured: Captured, reason: str, home: str, tensors: Sequence[Tensor]
    ) -> BoundStep | None:
        device = arrays.CPU
        try:
            if self._backend:
                execute = self._backend(captured.trace.graph)
            else:
                target = self._target(home=home)
                device = target.device
                _check_home(target, home)
                execute = self._build(captured, target, reason, home, tensors)
        except _FALLS_BACK as error:
            if self._options.strict:
                raise
            self._say_eager(str(error))
            return None
        return BoundStep(captured.trace, execute, captured.pinned, device=device, home=home, say=self._say_once)

    def _trace(self, call: Call) -> Captured:
        with _trace_lock.now, collector_at_rest():
            return capture(self._function, call, name=self._name, keep_grads=self._options.keep_grads)

    def _target(self, target: str | Target | None = None, *, arch: str | None = None, home: str = arrays.CPU) -> Target:
        """Return the target that was asked for, or the one for the device that the step lives on."""
        wanted = target or self._options.target or _TARGETS[arrays.kind_of(home)]
        if not isinstance(wanted, Target):
            return targets.get(wanted, architecture=arch).with_launch(config.cuda_launch)
        if arch is not None:
            raise TypeError(
                f"compile: the target is a record for {wanted.instruction_set.name} already. Got arch={arch!r}."
            )
        return wanted

    def _plan(
        self,
        traced: Graph,
        target: Target,
        inputs: Callable[[], list[Any]] | None = None,
        home: str = arrays.CPU,
    ) -> tuple[StepPlan, Target]:
        """Return the plan of a trace, and its target with what tuning chose; ``inputs`` gives arrays to tune on."""
        options = self._options
        tune = None
        if options.mode == "autotune":
            tune = (inputs, home, self._say_tuning, self._say_once, self._say_progress)
        return _making().plan_of(traced, target, config.workers(), options.precision, options.memory, tune)

    def _build(self, captured: Captured, target: Target, reason: str, home: str, tensors: Sequence[Tensor]) -> Execute:
        traced = captured.trace.graph
        start = time.perf_counter()
        known.check_can_run(target)
        key = self._graph_key(traced, target)
        found = known.find_by_graph(key, target) if key is not None else None
        if found is not None:
            built, facts = found[0], StepFacts.from_text(found[1])
            planned = time.perf_counter() - start - built.seconds
        else:
            plan, target = self._plan(traced, target, lambda: _copied_inputs(captured, tensors), home)
            planned = time.perf_counter() - start
            facts = _making().facts_of(plan, target)
            step_key = _making().step_key(plan, target)
            built = _making().build(step_key, plan, target, self._say_progress)
            if key is not None:
                known.keep_by_graph(key, step_key, facts.to_text())
        seconds = time.perf_counter() - start
        self._log(facts, built, planned)
        if not config.quiet:
            how = "compiled" if built.origin == "compiled" else "cached"
            again = f" (again: {reason})" if reason else ""
            counts = f"{len(traced.nodes)} ops → {len(facts.origins)} kernels"
            print(f"pequegrad: {self._name}: {counts}, {seconds:.2f} s {how}{again}", file=sys.stderr)
        return NativeStep(built, facts)

    def _graph_key(self, traced: Graph, target: Target) -> CacheKey | None:
        """Return the key of all that the plan and the build of a trace depend on, or None where the trace does not tell:
        measurements decide too, or code outside of the package."""
        options = self._options
        text = identify(traced)
        if text is None or options.mode == "autotune":
            return None
        for_whom = f"{options.precision} memory={options.memory} workers={config.workers()} {target.identity()}"
        return known.make_graph_key(f"{for_whom}\n{text}", target, name=traced.name, probes=lambda: _making().PROBES)

    def _log(self, facts: StepFacts, built: known.BuiltStep, planned: float) -> None:
        """Print what ``config.logs`` asks for beside the one line."""
        texts = {
            "code": f"source: {built.entry.source}",
            "memory": f"memory: {facts.memory}",
            "timing": f"timing: passes and plan {planned:.3f} s, {built.origin} {built.seconds:.3f} s",
        }
        for topic in texts.keys() & config.logs:
            print(f"pequegrad: {self._name}: {texts[topic]}", file=sys.stderr)

    def _say_progress(self, text: str) -> None:
        if not config.quiet and text != "compiling":
            print(f"pequegrad: {self._name}: {text} …", file=sys.stderr)

    def _say_tuning(self, text: str) -> None:
        """Print how far tuning has come, over the line before; nothing where no terminal would show it so."""
        if not config.quiet and sys.stderr.isatty():
            line = f"pequegrad: {self._name}: {text}" if text else ""
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def _say_once(self, what: str) -> None:
        """Print what costs time at each call, once per function."""
        if not config.quiet and what not in self._said:
            self._said.add(what)
            print(f"pequegrad: {self._name}: {what}.", file=sys.stderr)

    def _say_eager(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(
                f"{self._name} runs eagerly, not compiled: {reason} (compile(strict=True) makes this an error.)",
                PequegradWarning,
                stacklevel=5,
            )

    # --- looking inside -------------------------------------------------------------------------------------

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Captured, str]:
        """Return the trace for these arguments and the device that its step would live on."""
        call = read_call(args, kwargs)
        with self._lock:
            captured = self._trace(call)
        return captured, home_of(captured.trace, call.tensors, call.names())

    def lower(self, *args: Any, target: str | Target | None = None, arch: str | None = None, **kwargs: Any) -> Lowered:
        """Return graph, plan, source and memory use for these arguments; nothing is compiled or run. ``arch``: as in
        ``compile``."""
        captured, home = self._capture(args, kwargs)
        chosen = self._target(target, arch=arch, home=home)
        plan, chosen = self._plan(captured.trace.graph, chosen)
        return _making().lowered(captured.trace.graph, plan, chosen)

    def compile(
        self, *args: Any, target: str | Target | None = None, arch: str | None = None, **kwargs: Any
    ) -> Artifact:
        """Build the step for these arguments ahead of time; a later call finds it. Raises what a strict call raises.

        ``arch``, for target "cuda", is the architecture of the device that the step is for, such as "sm_90"; no such
        device need be here. None: PEQUEGRAD_CUDA_ARCH, else this machine's device.
        """
        captured, home = self._capture(args, kwargs)
        chosen = self._target(target, arch=arch, home=home)
        call = read_call(args, kwargs)
        plan, chosen = self._plan(captured.trace.graph, chosen, lambda: _copied_inputs(captured, call.tensors), home)
        key = _making().step_key(plan, chosen)
        built = _making().build(key, plan, chosen, self._say_progress, is_for_here=False)
        return _making().artifact(self._name, without_data(call), captured, plan, chosen, built)

    def explain(self, *args: Any, **kwargs: Any) -> str:
        """Return, for people: which ops became which kernels, how many bytes move, and what is guarded."""
        captured, home = self._capture(args, kwargs)
        graph = captured.trace.graph
        plan, _ = self._plan(graph, self._target(home=home))
        counts = f"{self._name}: {len(graph.nodes)} ops → {len(plan.kernels)} kernels"
        lines = _making().explain(counts, plan)
        return "\n".join([*lines, "guards:", *(f"  {line}" for line in captured.guards.lines())])

    def profile(self, *args: Any, seconds: float | None = None, **kwargs: Any) -> Profile:
        """Time each kernel of the step for these arguments, on copies of them and of the state; ``print`` what it returns.

        The step is built once more, with a clock between its kernels, and runs for about ``seconds`` (None: one). Raises DeviceError
        for a target that has no such clock.
        """
        call = read_call(args, kwargs)
        captured, home = self._capture(args, kwargs)
        target = self._target(home=home)
        plan, target = self._plan(captured.trace.graph, target)
        return _making().profile(plan, target, _copied_inputs(captured, call.tensors), self._say_progress, seconds)

    def cache_info(self) -> CacheInfo:
        """Return how many steps there are and how often they ran."""
        steps = sum(entry.step is not None for entries in self._entries.values() for entry in entries)
        return CacheInfo(steps, self._hits, self._eager_calls, config.recompile_limit)

    # --- as a method, and copied ----------------------------------------------------------------------------

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundCompiledFunction(self._for(instance), instance)

    def _for(self, instance: Any) -> CompiledFunction:
        """Return the compiled function of one instance; it lives no longer than the instance."""
        made = self._methods.get(id(instance))
        if made is not None and made[0]() is instance:
            return made[1]
        key, methods = id(instance), self._methods
        try:
            reference: Any = weakref.ref(instance, lambda _: methods.pop(key, None))
        except TypeError:
            reference = lambda: instance  # noqa: E731 - a strong reference in the shape of a weak one
        method = functools.partial(_call_method, self._function, reference)
        functools.update_wrapper(method, self._function)
        compiled = CompiledFunction(method, self._options, self._backend)
        self._methods[key] = (reference, compiled)
        return compiled

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        return CompiledFunction(copy.deepcopy(self._function, memo), self._options, self._backend)

    def __reduce__(self) -> Any:
        return CompiledFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<compiled {self._name}, {sum(map(len, self._entries.values()))} signatures>"


class BoundCompiledFunction:
    """A compiled method of one instance: calls, and whatever else a compiled function offers."""

    def __init__(self, compiled: CompiledFunction, instance: Any) -> None:
        self._compiled = self.__wrapped__ = compiled
        self.__self__ = instance
        # What the class has too; the rest is found where this looks for all else. update_wrapper took 0.8 us of each call of a method.
        self.__doc__, self.__module__ = compiled.__doc__, compiled.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_compiled"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        instance = copy.deepcopy(self.__self__, memo)
        return getattr(instance, self._compiled._name)


def _call_method(function: Callable[..., Any], reference: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    return function(reference(), *args, **kwargs)


def _check_home(target: Target, home: str) -> None:
    """Raise DeviceError where a step for ``target`` cannot work on state that lies on ``home``."""
    if home not in (arrays.CPU, "cuda"):
        raise DeviceError(f"compiled steps run on the first GPU alone, and the step's state lies on {home!r}.")
    if target.device == arrays.CPU != home:
        raise DeviceError(
            f"target {target.name!r} runs on the CPU, and the step's state lies on {home!r}. Leave the target out, or move "
            "the module with .cpu()."
        )


def _making() -> Any:
    """Return what makes steps: loaded only where the cache has none, or somebody looks inside, for it takes 0.1 s."""
    from . import making

    return making


def _copied_inputs(captured: Captured, tensors: Sequence[Tensor]) -> list[Any]:
    """Return private copies of all that a call reads: arguments, state, numbers."""
    return BoundStep(captured.trace, interpret(captured.trace.graph), captured.pinned).copied_inputs(tensors)


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    target: str | Target | None = None,
    strict: bool = False,
    mode: str = "default",
    precision: str = "fp32",
    memory: str = "default",
    keep_grads: bool = False,
    name: str | None = None,
) -> Any:
    """Compile a function, method or lambda: forward, backward and optimizer of each call become one native step.

    ``target``: "cpp" (None: the same). ``strict``: raise where the step would otherwise run eagerly. ``mode``: "default";
    "reproducible" (the same here: results do not depend on the number of threads); or "autotune": the first call builds
    and times variants of the step on copies of its inputs and state, a few seconds each, and the cache keeps the fastest
    one for later processes. ``keep_grads``: gradients that the
    step zeroes first stay readable in ``.grad``. ``name``: what messages and files call the step.
    ``memory``: "small" lets the backward pass compute values of the forward pass again, at most about a third more work, where
    that leaves a smaller arena; draws are the same ones.
    Arguments may nest dicts, lists, tuples, Tensors, arrays and Python values; arrays arrive as Tensors. Results carry
    no gradient history: call ``backward`` inside.
    """
    options = Options(target, strict, mode, precision, memory, keep_grads, name).check()
    if fn is None:
        return lambda function: CompiledFunction(function, options)
    return CompiledFunction(fn, options)


def stance(name: str) -> contextlib.AbstractContextManager[Any]:
    """Say, for a ``with`` block, what compiled functions do: "default", "force_eager", "eager_on_recompile" or
    "fail_on_recompile"."""
    if name not in STANCES:
        raise ValueError(f"stance: expected one of {', '.join(STANCES)}. Got {name!r}.")
    return config(stance=name)
