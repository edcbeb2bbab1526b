"""Values that Python would change between calls: each takes effect, compiles again, or raises and names the line."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import random
import sys

import numpy as np
import pytest

import pequegrad.nn.functional as F
from pequegrad import Tensor, nn, optim
from pequegrad.errors import AutogradError, TraceError
from pequegrad.ops.core import Expression, Sample, bind, grad_mode
from pequegrad.ops.elementwise import Elementwise
from pequegrad.ops.random import manual_seed, rand
from pequegrad.ops.registry import REGISTRY

from .conftest import make_model, make_step, state_of

X = Tensor([1.0, 2.0])
SCALE = 2.0
CONFIG = {"scale": 2.0, "names": ["a", "b"]}
WEIGHTS = np.array([1.0, 2.0], np.float32)
COUNT = 0


@dataclasses.dataclass
class Settings:
    scale: float = 2.0


SETTINGS = Settings()


def line_of(function, text):
    """Return ``file:line`` of the line of ``function`` that contains ``text``."""
    lines, start = inspect.getsourcelines(function)
    number = start + next(i for i, line in enumerate(lines) if text in line and "raises" not in line)
    return f"test_frozen.py:{number}"


def check(function, x, expected):
    np.testing.assert_allclose(function(x).numpy(), expected)


# --- takes effect -----------------------------------------------------------------------------------------------


def test_changed_global_number_takes_effect(traced, monkeypatch):
    function = traced(lambda x: x * SCALE)
    check(function, X, [2, 4])
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    check(function, X, [3, 6])
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    check(function, X, [2, 4])
    assert function.cache_info().steps == 2


def test_changed_global_number_of_a_gradient_rule_takes_effect(traced, monkeypatch):
    class Scaled(Elementwise):
        """Its operand, and for the gradient a number of the user's."""

        name = "scaled_for_a_test"
        lowering = Expression("{0}")
        call = staticmethod(lambda x: bind(Scaled, x))
        numpy = staticmethod(lambda xp, x: x)
        vjp = staticmethod(lambda saved, g: (g * SCALE,))
        samples = staticmethod(lambda: [Sample((WEIGHTS,))])

    monkeypatch.delitem(REGISTRY, "scaled_for_a_test")

    def work(x):
        x = x.detach().requires_grad_()
        Scaled.call(x * 1.5).sum().backward()
        return x.grad

    function = traced(work)
    check(function, X, [3, 3])
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    check(function, X, [4.5, 4.5])
    assert function.cache_info().steps == 2


def test_changed_closure_number_takes_effect(traced):
    scale = 2.0

    def work(x):
        return x * scale

    function = traced(work)
    check(function, X, [2, 4])
    scale = 5.0
    check(function, X, [5, 10])


def test_changed_closure_of_a_helper_and_of_a_comprehension_takes_effect(traced):
    scale, shifts = 2.0, [1.0]

    def helper(x):
        return x * scale

    def work(x):
        return sum([helper(x) + scale * shift for shift in shifts], Tensor([0.0, 0.0]))

    function = traced(work)
    check(function, X, [4, 6])
    scale = 3.0
    check(function, X, [6, 9])
    shifts.append(0.0)
    check(function, X, [9, 15])


def test_the_closure_and_default_of_a_forward_are_found_without_a_search_of_all_objects(traced, monkeypatch):
    """Three such searches were a third of the time that it took to trace a small convnet."""
    searches = []
    monkeypatch.setattr(
        gc, "get_referrers", lambda *codes, real=gc.get_referrers: searches.append(codes) or real(*codes)
    )

    def make_net(scale):
        class Net(nn.Module):
            def forward(self, x, shift=1.0):
                return x * scale + shift

        def change(new):
            nonlocal scale
            scale = new

        return Net(), change

    (net, change), (_, change_other) = make_net(2.0), make_net(2.0)
    function = traced(lambda x: net(x))
    check(function, X, [3, 5])
    assert not searches
    change_other(5.0)
    check(function, X, [3, 5])
    assert function.cache_info().steps == 1
    change(3.0)
    check(function, X, [4, 7])
    type(net).forward.__defaults__ = (2.0,)
    check(function, X, [5, 8])


def test_changed_entry_of_a_global_dict_takes_effect(traced, monkeypatch):
    function = traced(lambda x: x * CONFIG["scale"])
    check(function, X, [2, 4])
    monkeypatch.setitem(CONFIG, "scale", 4.0)
    check(function, X, [4, 8])
    monkeypatch.setitem(CONFIG, "names", [])
    check(function, X, [4, 8])
    assert function.cache_info().steps == 2


def test_changed_attribute_takes_effect_also_through_a_local_name(traced, monkeypatch):
    def work(x):
        settings = SETTINGS
        return x * settings.scale

    function = traced(work)
    check(function, X, [2, 4])
    monkeypatch.setattr(SETTINGS, "scale", 6.0)
    check(function, X, [6, 12])


def test_changed_attribute_of_objects_in_a_list_takes_effect(traced):
    parts = [Settings(1.0), Settings(2.0)]

    def work(x):
        for part in parts:
            x = x * part.scale
        return x

    function = traced(work)
    check(function, X, [2, 4])
    parts[1].scale = 7.0
    check(function, X, [7, 14])


def test_attribute_read_through_getattr_takes_effect(traced):
    settings = Settings(2.0)
    function = traced(lambda x: x * getattr(settings, "scale"))  # noqa: B009 - what is tested
    check(function, X, [2, 4])
    settings.scale = 3.0
    check(function, X, [3, 6])


def test_changed_property_and_slot_take_effect(traced):
    class Slotted:
        __slots__ = ("inner",)

        @property
        def scale(self):
            return self.inner * 2

    thing = Slotted()
    thing.inner = 1.0
    function = traced(lambda x: x * thing.scale)
    check(function, X, [2, 4])
    thing.inner = 2.0
    check(function, X, [4, 8])


def test_changed_numpy_global_takes_effect(traced):
    function = traced(lambda x: x * WEIGHTS)
    check(function, X, [1, 4])
    WEIGHTS[0] = 10.0
    try:
        check(function, X, [10, 4])
    finally:
        WEIGHTS[0] = 1.0


def test_rebound_global_function_takes_effect(traced, monkeypatch):
    function = traced(lambda x: helper(x))
    check(function, X, [2, 3])
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x * 0)
    check(function, X, [0, 0])


def helper(x):
    return x + 1


def test_changed_plain_attribute_of_a_module_takes_effect(traced):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = 2.0
            self.shifts = [1.0]

        def forward(self, x):
            return x * self.scale + self.shifts[0]

    module = Scaled()
    function = traced(lambda x: module(x))
    check(function, X, [3, 5])
    module.scale = 3.0
    check(function, X, [4, 7])
    module.shifts[0] = 0.0  # no attribute is set, so the module cannot count this change
    check(function, X, [3, 6])


def test_value_read_from_a_module_that_is_not_called_takes_effect(traced):
    layer = nn.Linear(2, 2)
    layer.factor = 2.0
    function = traced(lambda x: x * layer.factor)
    check(function, X, [2, 4])
    layer.factor = 3.0
    check(function, X, [3, 6])


def test_learning_rate_read_by_user_code_takes_effect(traced):
    opt = optim.SGD([Tensor([1.0], requires_grad=True)], lr=2.0)
    function = traced(lambda x: x * opt.param_groups[0]["lr"])
    check(function, X, [2, 4])
    opt.param_groups[0]["lr"] = 3.0
    check(function, X, [3, 6])


def test_rebound_captured_tensor_takes_effect(traced):
    weight = Tensor([1.0, 1.0])

    def work(x):
        return x * weight

    function = traced(work)
    check(function, X, [1, 2])
    weight = Tensor([3.0, 3.0])
    check(function, X, [3, 6])


def test_objects_made_in_the_step_are_no_guards(traced):
    def work(x):
        settings = Settings(3.0)
        settings.scale += 1.0
        return x * settings.scale

    function = traced(work)
    for _ in range(3):
        check(function, X, [4, 8])
    assert function.cache_info().steps == 1


# --- raises -----------------------------------------------------------------------------------------------------


def test_counter_attribute_raises_with_the_line(traced):
    class Trainer:
        def __init__(self):
            self.count = 0

        def step(self, x):
            self.count += 1
            return x * self.count

    trainer = Trainer()
    with pytest.raises(TraceError) as error:
        traced(trainer.step)(X)
    assert line_of(Trainer.step, "self.count += 1") in str(error.value)


def test_global_counter_raises_with_the_line(traced):
    def step(x):
        global COUNT
        COUNT += 1
        return x * 2 if COUNT % 100 else x

    with pytest.raises(TraceError) as error:
        traced(step)(X)
    assert line_of(step, "COUNT += 1") in str(error.value)


def test_nonlocal_counter_raises(traced):
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return x * count

    with pytest.raises(TraceError, match="count"):
        traced(step)(X)


def test_a_local_that_an_inner_function_reads_may_be_assigned(traced):
    # The closed-over `scale` made a closure of the step; its own `x`, a cell for the lambda, was looked for there.
    scale = 3.0

    def step(x):
        x = x * scale
        y = 2
        return (lambda: x + y)()

    np.testing.assert_allclose(traced(step)(X).numpy(), X.numpy() * 3 + 2)


def test_module_counter_raises_with_the_line(traced):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, x):
            self.count += 1
            return x * 2

    module = Counting()
    with pytest.raises(TraceError, match=r"Counting\.count") as error:
        traced(lambda x: module(x))(X)
    assert line_of(Counting.forward, "self.count += 1") in str(error.value)


def test_list_that_grows_raises(traced):
    seen = []

    def step(x):
        seen.append(1.0)
        return x * 2

    with pytest.raises(TraceError, match="seen"):
        traced(step)(X)


def test_value_set_before_it_is_read_is_no_counter(traced):
    class Trainer:
        def step(self, x):
            self.scale = 1.0
            self.scale += 1.0
            return x * self.scale

    function = traced(Trainer().step)
    check(function, X, [2, 4])
    check(function, X, [2, 4])


def test_scheduler_stepped_inside_raises(traced, batch):
    model = make_model()
    opt = optim.SGD(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    step = make_step(model, opt, F.cross_entropy)

    def train(x, y):
        loss = step(x, y)
        scheduler.step()
        return loss

    with pytest.raises(TraceError):
        traced(train)(*batch)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.random(),
        lambda: np.random.rand(),
        lambda: np.random.default_rng(0).random() * 0 + random.gauss(0, 1),
    ],
    ids=["random", "numpy", "gauss"],
)
def test_python_and_numpy_random_numbers_raise_and_keep_their_state(traced, draw):
    def step(x):
        noise = draw()
        return x + noise

    states = repr((random.getstate(), np.random.get_state()))
    with pytest.raises(TraceError, match="random numbers") as error:
        traced(step)(X)
    assert "test_frozen.py" in str(error.value)
    assert repr((random.getstate(), np.random.get_state())) == states


def test_a_normal_number_that_numpy_has_kept_from_a_pair_is_a_draw_too(traced):
    np.random.seed(0)
    np.random.standard_normal()  # of a pair, whose other number is given next without a change to the twister

    def step(x):
        return x + np.random.standard_normal()

    states = repr(np.random.get_state())
    with pytest.raises(TraceError, match="random numbers"):
        traced(step)(X)
    assert repr(np.random.get_state()) == states


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.SFC64])
def test_another_global_generator_than_the_twister_is_watched_too(traced, kind):
    """Its state has other fields than the twister's: looking for them stopped every trace with a KeyError."""
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(kind(0))
    try:
        check(traced(lambda x: x * 2.0), X, [2, 4])
        state = repr(np.random.get_state(legacy=False))
        with pytest.raises(TraceError, match="random numbers"):
            traced(lambda x: x + np.random.rand())(X)
        assert repr(np.random.get_state(legacy=False)) == state
    finally:
        np.random.set_bit_generator(before)


def test_own_numpy_generator_raises_with_the_line(traced):
    rng = np.random.default_rng(0)
    state = repr(rng.bit_generator.state)

    def step(x):
        return x * rng.standard_normal()

    with pytest.raises(TraceError, match="random numbers") as error:
        traced(step)(X)
    assert line_of(step, "rng.standard_normal()") in str(error.value)
    assert repr(rng.bit_generator.state) == state


def test_value_that_differs_from_trace_to_trace_raises_with_the_line(traced):
    draw = iter(range(10)).__next__

    def step(x):
        y = x * 2
        return y * float(draw())

    with pytest.raises(TraceError, match="two traces") as error:
        traced(step)(X)
    assert line_of(step, "draw()") in str(error.value)


def test_returned_python_value_that_changes_raises(traced):
    take = iter(range(10)).__next__
    with pytest.raises(TraceError, match="returned Python value"):
        traced(lambda x: (x, take()))(X)


def test_large_captured_array_raises_with_the_cure(traced):
    table = np.zeros((1024, 1024), np.float32)
    with pytest.raises(TraceError, match="from_numpy"):
        traced(lambda x: x * table[0, 0])(X)


@pytest.mark.parametrize("how", ["append", "attribute", "global"])
def test_escaping_tensor_raises_with_the_line(traced, how):
    kept, holder = [], Settings()

    def step(x):
        y = x * 2  # made here
        if how == "append":
            kept.append(y)
        elif how == "attribute":
            holder.last = y
        else:
            globals()["ESCAPED"] = y
        return y

    with pytest.raises(TraceError, match=r"kept in a list|changed|was traced") as error:
        traced(step)(X)
    globals().pop("ESCAPED", None)
    if how != "append":
        assert line_of(step, "# made here") in str(error.value)


def test_escaped_tensor_cannot_be_used(traced):
    holder = Settings()

    def step(x):
        holder.last = x * 2
        return x

    with pytest.raises(TraceError):
        traced(step)(X)
    for use in (lambda: holder.last.numpy(), lambda: holder.last + 1, lambda: traced(lambda x: x + holder.last)(X)):
        with pytest.raises(TraceError, match="escaped"):
            use()


def test_traced_tensor_set_on_a_module_raises(traced):
    module = nn.Linear(2, 2)

    def step(x):
        module.last = x * 2
        return x

    with pytest.raises(TraceError, match="last"):
        traced(step)(X)


READS = {
    "item": lambda t: t.sum().item(),
    "bool": lambda t: bool(t.sum() > 0),
    "if": lambda t: 1 if t.sum() > 0 else 2,
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t.sum()),
    "numpy": lambda t: t.detach().numpy(),
    "asarray": lambda t: np.asarray(t),
    "tolist": lambda t: t.tolist(),
    "while": lambda t: [None for _ in iter(lambda: bool(t.sum() < 0), False)],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
@pytest.mark.parametrize("what", ["argument", "captured"])
def test_reading_elements_raises_with_the_line_and_the_cure(traced, read, what):
    captured = Tensor([1.0, 2.0])

    def step(x):
        read(x if what == "argument" else captured)
        return x * 2

    with pytest.raises(TraceError, match=r"test_frozen.py:\d+: .*pequegrad.where"):
        traced(step)(X)


def test_backward_into_history_outside_raises(traced):
    w = Tensor([1.0, 2.0], requires_grad=True)
    outside = w * 2

    def step(x):
        (outside * x).sum().backward()

    with pytest.raises(TraceError, match="outside the compiled function"):
        traced(step)(X)
    with pytest.raises(TraceError, match="outside the compiled function"):
        traced(lambda h: h.sum().backward())(outside)
    outside.sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [2, 2])


def test_history_written_into_a_captured_tensor_raises(traced):
    w, buffer = Tensor([1.0, 2.0], requires_grad=True), Tensor([0.0, 0.0])

    def step(x):
        buffer.copy_(w * x)

    with pytest.raises(TraceError, match="gradient history"):
        traced(step)(X)
    assert not buffer.requires_grad and buffer.is_leaf


def test_read_only_memory_is_not_written(traced):
    array = np.ones(2, np.float32)
    array.flags.writeable = False
    function = traced(lambda x: x.add_(1.0))
    with pytest.raises(AutogradError, match="read-only"):
        function(array)
    function(Tensor([1.0, 1.0]))
    with pytest.raises(AutogradError, match="read-only"):
        function(array)
    check(traced(lambda x: x + 1.0), array, [2, 2])


# --- an exception in the middle ---------------------------------------------------------------------------------


def test_exception_while_tracing_leaves_everything_as_it_was(traced, batch):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    opt = optim.Adam(model.parameters(), lr=0.1)
    view = model[0].weight.detach()[0]
    (model(batch[0]).sum() * 0.5).backward()

    def step(x, y):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        with grad_mode(False):
            view.add_(1.0)
        raise KeyError("in the middle")

    manual_seed(5)
    expected = rand(3).numpy()
    manual_seed(5)
    parameters = list(model.parameters())
    before = state_of(model)
    gradients = [p.grad for p in parameters]
    gradient_values = [g.numpy().copy() for g in gradients]
    versions = [p.storage.version for p in parameters]
    flags = [p.requires_grad for p in parameters]
    function = traced(step)
    with pytest.raises(KeyError, match="in the middle"):
        function(*batch)
    for mine, old in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(mine, old)
    assert all(p.grad is g for p, g in zip(parameters, gradients))
    for gradient, value in zip(gradients, gradient_values):
        np.testing.assert_array_equal(gradient.numpy(), value)
    assert versions == [p.storage.version for p in parameters]
    assert flags == [p.requires_grad for p in parameters]
    assert not opt.state
    np.testing.assert_array_equal(rand(3).numpy(), expected)


def test_previous_trace_function_is_restored(traced):
    def previous(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(previous)
    try:
        traced(lambda x: x * 2)(X)
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is previous
