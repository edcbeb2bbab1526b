"""The native call takes all usual calls, notices all that changes, and leaves the rest to Python."""

import gc
import os
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.nn import functional as F
from tests.trace.helpers import X, quick

FACTOR = 1.0


class Training:
    """A step that has run twice, so that native code takes the third call."""

    def __init__(self):
        pg.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.1)
        self.step = pg.compile(self.eager, strict=True)
        self.step(X)
        self.step(X)

    def eager(self, x):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(x), x) * FACTOR
        loss.backward()
        self.optimizer.step()
        return loss


def test_usual_calls_are_native():
    training = Training()
    assert quick(training.step, X) is not NotImplemented
    assert quick(training.step, pg.Tensor(X)) is not NotImplemented
    assert quick(training.step, pg.Tensor(np.concatenate([X, X]))[:8]) is not NotImplemented


def test_native_calls_do_what_python_calls_do():
    native, plain = Training(), Training()
    for _ in range(5):
        found = native.step(X)
        plain.step._native, plain.step._natives = None, ()
        expected = plain.step(X)
        assert found.item() == expected.item()
        assert (found.shape, found.dtype, found.requires_grad, found.device) == ((), pg.float32, False, "cpu")
        assert (found + 1).item() == pytest.approx(found.item() + 1)
    for a, b in zip(native.model.parameters(), plain.model.parameters()):
        assert a.storage.version == b.storage.version
        assert type(a._grad) is type(b._grad)
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.mark.parametrize(
    "argument",
    [
        X[:4],
        X.astype(np.float64),
        X.astype(">f4"),
        pg.Tensor(X, requires_grad=True),
        X.tolist(),
        None,
    ],
    ids=["shape", "dtype", "bytes", "gradient", "list", "none"],
)
def test_another_argument_is_left_to_python(argument):
    assert quick(Training().step, argument) is NotImplemented


@pytest.mark.parametrize(
    "argument",
    [np.asfortranarray(X), np.concatenate([X, X], 1)[:, ::2], X[::-1], np.broadcast_to(X[0], X.shape)],
    ids=["order", "strided", "reversed", "broadcast"],
)
def test_arrays_whose_elements_are_apart_are_copied_natively(argument):
    """A column of a replay buffer, say: that call took 13 to 50 us."""
    step = pg.compile(lambda x: x * 2 + 1, strict=True)
    step(X), step(X)
    np.testing.assert_array_equal(quick(step, argument).numpy(), argument * 2 + 1)
    transposed = pg.Tensor(np.ascontiguousarray(argument.T)).T
    np.testing.assert_array_equal(quick(step, transposed).numpy(), argument * 2 + 1)


def test_parts_of_memory_that_the_step_writes_are_left_to_python():
    weight = pg.ones(4, 8)
    step = pg.compile(lambda x: weight.add_(x.sum()).sum(), strict=True)
    with pg.no_grad():
        x = np.ones((4, 4), np.float32)
        step(x), step(x)
        assert quick(step, x.T) is not NotImplemented
        assert quick(step, weight.array[:, ::2]) is NotImplemented
        assert quick(step, weight.detach()[:, ::2]) is NotImplemented


def test_another_number_of_arguments_is_left_to_python():
    step = Training().step
    assert quick(step) is NotImplemented
    assert quick(step, X, X) is NotImplemented


def test_memory_that_the_step_writes_is_left_to_python():
    training = Training()
    weight = training.model[0].weight
    step = pg.compile(lambda x: weight.add_(x).sum(), strict=True)
    with pg.no_grad():
        x = np.ones((3, 4), np.float32)
        step(x)
        step(x)
        assert quick(step, x) is not NotImplemented
        assert quick(step, weight) is NotImplemented
        assert quick(step, weight.detach()) is NotImplemented
        assert quick(step, weight.array) is NotImplemented


def change_rate(training):
    training.optimizer.param_groups[0]["lr"] = 0.5


def change_betas(training):
    training.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def replace_global(training):
    global FACTOR
    FACTOR = 2.0


def replace_layer(training):
    training.model[1] = nn.ReLU()


def replace_memory(training):
    training.model[0].weight.data = training.model[0].weight.data * 2


def replace_optimizer(training):
    training.optimizer = optim.SGD(training.model.parameters(), lr=0.1)


def freeze(training):
    training.model[0].weight.requires_grad_(False)


def reset_state(training):
    training.optimizer.state.clear()


CHANGES = [
    change_rate,
    change_betas,
    replace_global,
    replace_layer,
    replace_memory,
    replace_optimizer,
    freeze,
    reset_state,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_calls_takes_effect(change):
    global FACTOR
    compiled, eager = Training(), Training()
    # The second training's modules were a change too, after which Python looks at all guards once.
    compiled.step(X), eager.eager(X)
    before = compiled.step._natives[0]
    assert before[0]((X,), {}) is not NotImplemented
    eager.eager(X)
    try:
        for training in (compiled, eager):
            change(training)
        for _ in range(3):
            found, expected = compiled.step(X).item(), eager.eager(X).item()
            assert found == pytest.approx(expected, rel=1e-5)
    finally:
        FACTOR = 1.0


class Holder:
    """Keeps what a step reads, in all ways in which Python keeps things."""

    of_class = 3.0
    overridden = 4.0

    def __init__(self):
        self.scale = 0.5
        self.weights = [pg.ones(4), pg.ones(4) * 2]
        self.named = {"a": pg.ones(4), "deep": {"list": [1.5, (2.5, pg.ones(4))]}}
        self.slotted = Slotted()
        self.plain = types.SimpleNamespace(rate=0.25)
        self.kinds = {1}
        self.code = types.ModuleType("settings")
        self.code.__file__, self.code.factor = __file__, 1.25
        self.kind = type("Settings", (), {"bias": 0.75})
        self.net = Net()


class Slotted:
    __slots__ = ("rate",)

    def __init__(self):
        self.rate = 0.125


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = [2.0, 3.0]
        self.by_name = {"bias": 1.0}

    def forward(self, x):
        for factor in self.factors:
            x = x * factor
        return x + self.by_name["bias"]


def make_read_step(holder):
    local = {"x": [1.0, 2.0]}

    def step(x):
        for weight in holder.weights:
            x = x * weight
        for _ in holder.named.keys() | holder.named["deep"].keys():
            x = x + 1
        x = x * holder.weights[-1] + holder.named["a"] * holder.named["deep"]["list"][1][0]
        x = x * holder.scale + holder.of_class - holder.overridden + holder.slotted.rate
        for kind in holder.kinds:
            x = x + (0.5 if kind is True else 2.0)
        x = x * holder.plain.rate + holder.code.factor * holder.kind.bias + local["x"][0]
        return holder.net(x)

    return step, local


REPLACEMENTS = {
    "attribute": lambda h, _: setattr(h, "scale", 0.75),
    "item": lambda h, _: h.weights.__setitem__(0, pg.ones(4) * 3),
    "order": lambda h, _: h.weights.reverse(),
    "longer": lambda h, _: h.weights.append(pg.ones(4) * 3),
    "shorter": lambda h, _: h.weights.pop(0),
    "list": lambda h, _: setattr(h, "weights", (pg.ones(4) * 5, pg.ones(4))),
    "key": lambda h, _: h.named.update(a=pg.ones(4) * 7),
    "deep": lambda h, _: h.named["deep"]["list"].__setitem__(1, (9.0,)),
    "class": lambda h, _: setattr(Holder, "of_class", 5.0),
    "hidden by the object": lambda h, _: setattr(h, "overridden", 6.0),
    "slot": lambda h, _: setattr(h.slotted, "rate", 1.0),
    "slotted object": lambda h, _: setattr(h, "slotted", types.SimpleNamespace(rate=2.0)),
    "namespace": lambda h, _: setattr(h.plain, "rate", 2.0),
    "module": lambda h, _: setattr(h.code, "factor", 2.0),
    "attribute of a class": lambda h, _: setattr(h.kind, "bias", 2.0),
    "property": lambda h, _: setattr(Holder, "scale", property(lambda self: 8.0)),
    "list of a network": lambda h, _: h.net.factors.append(2.0),
    "dict of a network": lambda h, _: h.net.by_name.update(bias=3.0),
    "equal in a set": lambda h, _: (h.kinds.clear(), h.kinds.add(True)),
    "local": lambda h, local: local["x"].__setitem__(0, 7.0),
    "gone": lambda h, _: h.named["deep"]["list"].pop(),
}


@pytest.mark.parametrize("way", REPLACEMENTS)
def test_what_was_read_anywhere_is_compared_natively_and_takes_effect(way, monkeypatch):
    monkeypatch.setattr(Holder, "of_class", 3.0)
    holder = Holder()
    eager, local = make_read_step(holder)
    step = pg.compile(eager, strict=True)
    x = np.ones(4, np.float32)
    step(x), step(x)
    assert quick(step, x) is not NotImplemented
    assert not step._latest.captured.guards.description()["checks"]  # not one line of Python
    try:
        REPLACEMENTS[way](holder, local)
        assert quick(step, x) is NotImplemented
        try:
            expected = eager(pg.from_numpy(x)).numpy()
        except IndexError:
            with pytest.raises(IndexError):
                step(x)
        else:
            np.testing.assert_allclose(step(x).numpy(), expected, rtol=1e-6)
    finally:
        if "scale" in vars(Holder):
            del Holder.scale


def test_equal_objects_in_the_place_of_others_run_the_same_step():
    numbers = [float("2.5"), float("3.5")]
    step = pg.compile(lambda x: x * numbers[0] * numbers[1], strict=True)
    step(X), step(X)
    numbers[:] = [float("2.5"), float("3.5")]
    assert quick(step, X) is NotImplemented
    np.testing.assert_allclose(step(X).numpy(), X * 8.75, rtol=1e-6)
    assert step.cache_info().steps == 1


@pytest.mark.parametrize("stance", ["block", "assigned", "assigned again", "environment"])
def test_the_stance_takes_effect(stance, monkeypatch):
    training = Training()
    if stance == "environment":
        monkeypatch.setenv("PEQUEGRAD_STANCE", "force_eager")
        assert quick(training.step, X) is NotImplemented
        monkeypatch.delenv("PEQUEGRAD_STANCE")
    elif stance == "block":
        with pg.stance("force_eager"):
            assert quick(training.step, X) is NotImplemented
    else:
        if stance == "assigned again":
            pg.config.stance = "default"
            training.step(X)
            assert quick(training.step, X) is not NotImplemented
        pg.config.stance = "force_eager"
        try:
            assert quick(training.step, X) is NotImplemented
        finally:
            pg.config.reset("stance")
        training.step(X)  # by Python, which describes the call for the settings as they are now
    assert quick(training.step, X) is not NotImplemented


def test_the_gradient_mode_and_an_outer_trace_are_left_to_python():
    step = pg.compile(lambda x: x * 2, strict=True)
    step(X)
    step(X)
    with pg.no_grad():
        assert quick(step, X) is NotImplemented
    outer = pg.compile(lambda x: step(x) + 1, strict=True)
    np.testing.assert_array_equal(outer(X).numpy(), X * 2 + 1)


def test_two_threads_do_every_step_once():
    training = Training()
    before = training.model[0].weight.storage.version
    threads = [threading.Thread(target=lambda: [training.step(X) for _ in range(200)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert training.model[0].weight.storage.version == before + 400


def test_nested_results_come_back_nested():
    step = pg.compile(lambda x: {"a": x + 1, "b": [x * 2, 3]}, strict=True)
    step(X)
    step(X)
    found = quick(step, X)
    np.testing.assert_array_equal(found["a"].numpy(), X + 1)
    np.testing.assert_array_equal(found["b"][0].numpy(), X * 2)
    assert found["b"][1] == 3


def test_a_bad_index_raises_as_ever_and_the_step_goes_on():
    step = pg.compile(lambda x, i: x[i], strict=True)
    good = np.array([1, 2])
    step(X, good)
    step(X, good)
    for _ in range(2):
        with pytest.raises(pg.errors.IndexOutOfRange, match="index 8"):
            step(X, np.array([1, 8]))
        np.testing.assert_array_equal(step(X, good).numpy(), X[good])


def test_what_a_call_made_is_freed():
    step = pg.compile(lambda x: x * 2, strict=True)
    step(X)
    step(X)
    arrays = [weakref.ref(step(X).array) for _ in range(3)]
    assert [array() for array in arrays] == [None] * 3


def test_the_native_call_keeps_no_model_alive():
    training = Training()
    model, step = weakref.ref(training.model), weakref.ref(training.step)
    training.step(X)
    del training
    gc.collect()
    assert (model(), step()) == (None, None)


def test_each_storage_has_its_own_version():
    training = Training()
    weights = list(training.model.parameters())
    with pg.no_grad():
        weights[1].add_(0.0)
        weights[1].add_(0.0)
    training.step(X)
    before = [weight.storage.version for weight in weights]
    assert len(set(before)) > 1
    assert quick(training.step, X) is not NotImplemented
    assert [weight.storage.version for weight in weights] == [version + 1 for version in before]


def test_calls_inside_a_block_of_settings_become_native():
    """They took three times as long as others for as long as a block was open."""
    training = Training()
    with pg.config(num_threads=1):
        assert quick(training.step, X) is NotImplemented
        for _ in range(10):
            training.step(X)
        assert quick(training.step, X) is not NotImplemented
        with pg.config(logs="recompiles"):
            assert quick(training.step, X) is NotImplemented, "another block, other settings"
        assert quick(training.step, X) is not NotImplemented
    assert quick(training.step, X) is not NotImplemented, "outside all is as it was before the block"


def test_a_block_that_is_over_after_a_few_calls_costs_no_description():
    training = Training()
    native = training.step._native
    for _ in range(5):
        with pg.config(num_threads=1):
            training.step(X)
            training.step(X)
    training.step(X)
    assert training.step._native is native and quick(training.step, X) is not NotImplemented


def test_what_a_call_reads_outlives_it_though_another_thread_describes_calls_anew():
    """The native side only borrows: objects were freed under a call of a thread that had begun before."""
    step = pg.compile(lambda x: x @ x @ x, strict=True)
    x = np.zeros((3000, 3000), np.float32)
    step(x)
    step(x)
    native = step._natives[0]
    held = sys.getrefcount(native[1]), sys.getrefcount(native)
    thread = threading.Thread(target=lambda: step(x))
    thread.start()
    during = 0
    while thread.is_alive() and not during:
        during = sys.getrefcount(native) - held[1]
    assert during == 1, "the call has the description in its hands"
    thread.join()
    assert (sys.getrefcount(native[1]), sys.getrefcount(native)) == held


def test_a_block_of_another_threads_is_not_ones_own():
    training = Training()
    opened, done = threading.Event(), threading.Event()

    def hold():
        with pg.config(stance="force_eager"):
            opened.set()
            done.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    opened.wait(10)
    for _ in range(10):
        training.step(X)
    assert quick(training.step, X) is not NotImplemented, "here nothing is set"
    found = []
    stranger = threading.Thread(target=lambda: found.append(quick(training.step, X)))
    stranger.start()
    stranger.join()
    assert found == [NotImplemented], "a third thread may be inside of it"
    done.set()
    other.join()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to cores here")
@pytest.mark.skipif(pg.config.workers() < 2, reason="one core")
@pytest.mark.parametrize(("size", "is_shared"), [(4, False), (1024, True)])
def test_only_a_step_that_workers_share_asks_how_many_cores_there_are(size, is_shared):
    step = pg.compile(lambda x: x @ x, strict=True)
    x = np.ones((size, size), np.float32)
    step(x)
    step(x)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert (quick(step, x) is NotImplemented) == is_shared
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "python"])
def test_other_threads_run_while_a_step_does(is_native):
    def step(x):
        for _ in range(12):
            x = pg.tanh(x @ x)
        return x

    step = pg.compile(step, strict=True)
    x = np.ones((600, 600), np.float32)
    step(x), step(x)
    is_inside, seen = [], 0

    def call():
        if not is_native:
            step._native, step._natives = None, ()
        is_inside.append(True)
        step(x)
        is_inside.append(False)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds: whoever has the GIL gives it up, or nobody gets it
    try:
        thread = threading.Thread(target=call)
        thread.start()
        while len(is_inside) < 2:
            seen += len(is_inside)
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen > 10


def test_a_loss_is_read_from_where_the_step_wrote_it():
    training = Training()
    found = quick(training.step, X)
    assert found.numpy() is found.array or np.shares_memory(found.numpy(), found.array)
    pointer = found.array.__array_interface__["data"][0]
    assert found.numpy().__array_interface__["data"][0] == pointer
    assert found.array.flags.owndata
