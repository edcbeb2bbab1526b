"""What a compiled function takes and gives, how it is found again, and what happens where it cannot be compiled."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import threading
import warnings
import weakref
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import Tensor, nn, optim
from pequegrad.compiler import CompiledFunction, Options, compile, stance
from pequegrad.errors import (
    AutogradError,
    DeviceError,
    IndexOutOfRange,
    NotCompilable,
    PequegradWarning,
    RecompileLimit,
    ShapeError,
    ToolchainError,
    TraceError,
)
from pequegrad.trace.step import interpret

from .conftest import assert_same_state, make_model, make_step

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Batch:
    x: Tensor
    scale: float


# --- arguments and results --------------------------------------------------------------------------------------


def test_nested_arguments_and_results_keep_their_structure(compiled):
    def work(a, *, extra):
        return {
            "sum": a[0] + a[1]["deep"],
            "pair": Pair(extra.x * extra.scale, None),
            "list": [a[2], "text", (a[0] * 2,)],
            "ordered": OrderedDict(z=a[0] * 3),
        }

    x = Tensor([1.0, 2.0])
    result = compiled(work)((x, {"deep": np.ones(2, np.float32)}, 7), extra=Batch(x, 2.0))
    np.testing.assert_allclose(result["sum"].numpy(), [2, 3])
    assert isinstance(result["pair"], Pair) and result["pair"].second is None
    np.testing.assert_allclose(result["pair"].first.numpy(), [2, 4])
    assert result["list"][:2] == [7, "text"]
    np.testing.assert_allclose(result["list"][2][0].numpy(), [2, 4])
    assert list(result) == ["sum", "pair", "list", "ordered"] and isinstance(result["ordered"], OrderedDict)


def test_arrays_and_tensors_of_equal_spec_share_a_step(compiled):
    function = compiled(lambda x: x * 2)
    values = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    for given in (Tensor(values), values, values.T.copy().T, Tensor(values.T).T, np.asfortranarray(values)):
        np.testing.assert_allclose(function(given).numpy(), 2 * values)
    assert function.cache_info().steps == 1


def test_slice_of_a_data_set_is_an_argument_like_any_other(compiled):
    data = Tensor(np.arange(12, dtype=np.float32).reshape(6, 2))
    function = compiled(lambda x: x.sum(0))
    for i in range(3):
        np.testing.assert_allclose(function(data[2 * i : 2 * i + 2]).numpy(), data.numpy()[2 * i : 2 * i + 2].sum(0))
    assert function.cache_info().steps == 1


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
def test_every_dtype_passes_through(compiled, dtype):
    x = np.array([0, 1, 1], dtype)
    np.testing.assert_array_equal(compiled(lambda a: pg.ops.elementwise.where(a == 1, a, a))(x).numpy(), x)


def test_a_step_without_tensors_or_results_works(compiled):
    w = Tensor([1.0])

    def step():
        w.add_(1.0)

    function = compiled(step)
    assert function() is None
    function()
    assert w.item() == 3.0


def test_static_arguments_select_their_own_step(traced):
    function = traced(lambda x, factor, flag=False: x * factor if flag else x + factor)
    x = Tensor([1.0])
    assert function(x, 2).item() == 3.0
    assert function(x, 2, flag=True).item() == 2.0
    assert function(x, 2.0, True).item() == 2.0
    assert function(x, 0.0).item() == 1.0
    assert np.signbit((function(x * 0, -0.0) * 1).numpy()) == np.signbit((x * 0 + -0.0).numpy())


def test_gradient_mode_is_part_of_the_signature(traced, batch):
    model = make_model()
    function = traced(lambda x: model(x))
    function(batch[0])
    with pg.ops.core.grad_mode(False):
        function(batch[0])
    assert function.cache_info().steps == 2


def test_results_carry_no_history(compiled, batch):
    model = make_model()
    out = compiled(lambda x: model(x))(batch[0])
    assert not out.requires_grad
    out.numpy()


# --- methods ----------------------------------------------------------------------------------------------------


class Doubler:
    def __init__(self, factor):
        self.factor = Tensor([factor])

    def run(self, x):
        return x * self.factor


def test_a_compiled_method_says_what_it_is():
    class Agent:
        @pg.compile
        def act(self, x: int) -> float:
            """Say what to do."""
            return x * 2

    agent = Agent()
    act = agent.act
    assert (act.__name__, act.__doc__, act.__module__) == ("act", "Say what to do.", __name__)
    assert act.__qualname__.endswith("Agent.act") and act.__annotations__ == Agent.act.__annotations__
    assert act.__self__ is agent and inspect.unwrap(act) is inspect.unwrap(Agent.act)
    assert act.cache_info() == agent.act.cache_info()


def test_methods_compile_per_instance_and_let_it_go(traced):
    class Local(Doubler):
        run = traced(Doubler.run)

    a, b = Local(2.0), Local(3.0)
    x = Tensor([1.0])
    assert (a.run(x).item(), b.run(x).item(), a.run(x).item()) == (2.0, 3.0, 2.0)
    assert a.run.cache_info().steps == 1 and a.run.cache_info().hits == 2
    gone = weakref.ref(a)
    del a
    gc.collect()
    assert gone() is None
    twin = copy.deepcopy(b)
    twin.factor.mul_(2.0)
    assert (twin.run(x).item(), b.run(x).item()) == (6.0, 3.0)


def test_compiled_attribute_of_an_instance_is_copied_with_it(traced):
    thing = Doubler(2.0)
    thing.fast = traced(thing.run)
    twin = copy.deepcopy(thing)
    twin.factor.mul_(5.0)
    x = Tensor([1.0])
    assert (thing.fast(x).item(), twin.fast(x).item()) == (2.0, 10.0)


def test_decorator_forms_and_names():
    @compile
    def plain(x):
        """Say."""
        return x

    @compile(name="other", strict=True)
    def named(x):
        return x

    assert plain.__name__ == "plain" and plain.__doc__ == "Say."
    assert "plain" in repr(plain) and "other" in repr(named)
    assert "lambda" in repr(compile(lambda x: x))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "fastest"}, ValueError),
        ({"precision": "fp8"}, ValueError),
        ({"memory": "tiny"}, ValueError),
        ({"strict": "yes"}, TypeError),
        ({"target": "fpga"}, DeviceError),
        ({"unknown": 1}, TypeError),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        compile(lambda x: x, **options)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="expected a function"):
        compile(3)


def test_calling_a_compiled_function_inside_another_inlines_it(compiled):
    inner = compiled(lambda x: x * 2)
    outer = compiled(lambda x: inner(x) + 1)
    assert outer(Tensor([3.0])).item() == 7.0
    assert inner.cache_info().steps == 0


# --- recompiling ------------------------------------------------------------------------------------------------


def test_changing_batch_size_compiles_once_per_size_and_says_so(traced, capsys):
    function = traced(lambda x: x.sum())
    with pg.config(logs="recompiles"):
        for size in (3, 2, 3, 2, 2):
            assert function(np.ones(size, np.float32)).item() == size
    assert function.cache_info().steps == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "argument 0: shape (3,) → (2,)" in said


def test_too_many_signatures_raise_and_name_what_changes(traced):
    function = traced(lambda x, rate: x * rate)
    with pg.config(recompile_limit=3):
        for i in range(3):
            function(Tensor([1.0]), float(i))
        with pytest.raises(RecompileLimit, match=r"argument 1: 2\.0 → 3\.0.*numpy\.float32"):
            function(Tensor([1.0]), 3.0)
    assert function(Tensor([1.0]), np.float32(2.0)).item() == 2.0


def test_too_many_changes_of_a_global_raise_and_name_it(traced):
    settings = {"rate": 0.0}
    function = traced(lambda x: x * settings["rate"])
    with pg.config(recompile_limit=2), pytest.raises(RecompileLimit, match=r"settings\['rate'\].*1\.0 → 2\.0"):
        for i in range(5):
            settings["rate"] = float(i)
            function(Tensor([1.0]))


def test_stances(traced):
    calls = []

    def work(x):
        calls.append  # noqa: B018 - read, so that the list is seen and not changed
        return x * 2

    function = traced(work)
    x, longer = Tensor([1.0]), Tensor([1.0, 2.0])
    with stance("force_eager"):
        function(x)
    assert function.cache_info().steps == 0
    function(x)
    with stance("eager_on_recompile"):
        np.testing.assert_allclose(function(longer).numpy(), [2, 4])
    assert function.cache_info().steps == 1
    with stance("fail_on_recompile"):
        function(x)
        with pytest.raises(TraceError, match="shape"):
            function(longer)
    with pytest.raises(ValueError, match="force_eager"):
        stance("sometimes")


def test_stance_of_the_environment_counts(traced, monkeypatch):
    monkeypatch.setenv("PEQUEGRAD_STANCE", "force_eager")
    function = traced(lambda x: x * 2)
    function(Tensor([1.0]))
    assert function.cache_info().steps == 0


# --- falling back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [NotCompilable("no such kernel"), ToolchainError("no compiler"), DeviceError("no GPU")], ids=repr
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_so_once(error):
    def refuse(graph):
        raise error

    function = CompiledFunction(lambda x: x * 2, Options(), refuse)
    with pytest.warns(PequegradWarning, match=str(error.args[0])) as said:
        assert function(Tensor([1.0])).item() == 2.0
        assert function(Tensor([1.0])).item() == 2.0
        assert function(Tensor([1.0, 1.0])).sum().item() == 4.0
    assert len(said) == 1 and function.cache_info().eager_calls == 3
    strict = CompiledFunction(lambda x: x * 2, Options(strict=True), refuse)
    with pytest.raises(type(error)):
        strict(Tensor([1.0]))


def test_cuda_is_refused_clearly():
    with pytest.raises(DeviceError, match="no CUDA device"):
        compile(lambda x: x * 2, target="cuda", strict=True)(Tensor([1.0]))
    with pytest.warns(PequegradWarning, match="cuda"):
        assert compile(lambda x: x * 2, target="cuda")(Tensor([1.0])).item() == 2.0


def test_mistakes_of_the_user_are_errors_and_no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ShapeError):
            compile(lambda x: x @ x)(Tensor(np.ones((2, 3), np.float32)))
        with pytest.raises(AutogradError):
            compile(lambda x: x.backward())(Tensor([1.0]))
        with pytest.raises(TraceError):
            compile(lambda x: x.item())(Tensor([1.0]))


def test_index_out_of_range_names_the_line_and_changes_nothing():
    table, count = Tensor(np.ones((4, 2), np.float32)), Tensor([0.0])

    def work(i):
        count.add_(1.0)
        return table[i]  # the bad index

    with pg.config(quiet=True):
        function = compile(work, strict=True)
        function(Tensor(np.array([0, 3])))
        with pytest.raises(IndexOutOfRange, match=r"test_calls\.py:\d+: .*7"):
            function(Tensor(np.array([0, 7])))
    assert count.item() == 1.0


@pytest.mark.parametrize("target", ["cpp", "cuda-sim"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_label_that_is_no_class_names_the_line_and_changes_nothing(target, dtype):
    """A compiled cross_entropy once gave such a row a loss of 0, where eager raised."""
    pg.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = optim.Adam(model.parameters())

    def work(x, labels):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)  # the bad label
        loss.backward()
        optimizer.step()
        return loss

    def state():
        return [model.weight.detach().numpy().copy(), model.bias.detach().numpy().copy(), *moments()]

    def moments():
        return [value.numpy().copy() for _, value in sorted(optimizer.state[model.weight].items())]

    x, labels = np.ones((5, 4), np.float32), np.array([0, 1, 2, -100, 1], dtype)
    with pg.config(quiet=True):
        function = compile(work, strict=True, target=target)
        assert np.isfinite(function(x, labels).item())
        before = state()
        for wrong in (3, -1, 2**31 - 1):
            with pytest.raises(IndexOutOfRange, match=rf"test_calls\.py:\d+: .*index {wrong} is outside .*\[0, 3\)"):
                function(x, np.where(labels == 2, wrong, labels).astype(dtype))
        for was, now in zip(before, state(), strict=True):
            np.testing.assert_array_equal(now, was)
        assert np.isfinite(function(x, labels).item())


def test_one_hot_of_no_class_is_an_error_in_a_compiled_function():
    with pg.config(quiet=True):
        function = compile(lambda x: F.one_hot(x, 3), strict=True)
        np.testing.assert_array_equal(function(Tensor([2, 0])).numpy(), [[0, 0, 1], [1, 0, 0]])
        with pytest.raises(IndexOutOfRange, match="index 3 is outside"):
            function(Tensor([2, 3]))


# --- threads ----------------------------------------------------------------------------------------------------


def test_threads_may_call_at_once(compiled):
    function = compiled(lambda x: (x * 2).sum())
    results, errors = {}, []

    def work(number):
        try:
            for i in range(20):
                x = np.full(3 + number % 2, float(number + i), np.float32)
                results[number, i] = function(x).item() == x.sum() * 2
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and all(results.values()) and len(results) == 80
    assert function.cache_info().steps == 2


def test_threads_that_train_lose_no_update(compiled):
    total = Tensor([0.0])

    def add(x):
        total.add_(x)

    function = compiled(add)
    threads = [threading.Thread(target=lambda: [function(np.ones(1, np.float32)) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total.item() == 200.0


# --- looking inside ---------------------------------------------------------------------------------------------


def test_lower_explain_and_ahead_of_time_compile(batch):
    model = make_model()
    with pg.config(quiet=True):
        step = compile(make_step(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy), strict=True)
        before = model[0].weight.detach().numpy().copy()
        lowered = step.lower(*batch)
        assert lowered.graph.nodes and lowered.plan.kernels and "#include" in lowered.source
        assert "kernels" in step.explain(*batch)
        artifact = step.compile(*batch)
        assert artifact.path.exists() and artifact.source_path.exists()
        np.testing.assert_array_equal(model[0].weight.detach().numpy(), before)
        step(*batch)
    assert not np.array_equal(model[0].weight.detach().numpy(), before)


def test_one_line_per_compile(batch, capsys):
    model = make_model()
    step = compile(make_step(model, optim.SGD(model.parameters(), lr=0.1), F.cross_entropy), strict=True)
    step(*batch)
    step(*batch)
    lines = [line for line in capsys.readouterr().err.splitlines() if "kernels" in line]
    assert (
        len(lines) == 1 and lines[0].startswith("pequegrad: train_step: ") and lines[0].endswith(("compiled", "cached"))
    )


def test_float64_training_is_eager_training(compiled):
    rng = np.random.default_rng(0)
    models = [make_model().double(), make_model().double()]
    x, y = Tensor(rng.standard_normal((8, 5))), Tensor(rng.integers(0, 3, 8))
    steps = [make_step(m, optim.Adam(m.parameters(), lr=0.01), F.cross_entropy) for m in models]
    steps[1] = compiled(steps[1])
    for _ in range(50):
        losses = [step(x, y).item() for step in steps]
        assert abs(losses[0] - losses[1]) < 1e-9
    assert_same_state(*models, rtol=1e-9)


def test_interpreted_backend_is_the_graphs_meaning(batch):
    layer = nn.Linear(5, 2)
    function = CompiledFunction(lambda x: layer(x), Options(strict=True), interpret)
    np.testing.assert_allclose(function(batch[0]).numpy(), layer(batch[0]).detach().numpy(), rtol=1e-6)
