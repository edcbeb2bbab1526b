"""Attacks on compiled steps: each changes, between two calls, something that a step might have frozen.

Every attack runs once eagerly and once compiled (strictly); the results must agree, or the step must refuse by name.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import itertools
import operator
import os
import time
import types

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn, optim
from pequegrad.errors import TraceError
from pequegrad.nn import functional as F
from pequegrad.ops.core import bind
from pequegrad.ops.registry import REGISTRY
from pequegrad.trace.watch import Watch

VARIABLE = "PEQUEGRAD_TEST_FACTOR"
SETTINGS = types.SimpleNamespace()


def vector(*values):
    """Return a float32 tensor."""
    return pg.Tensor(np.array(values, np.float32))


def unwrapped(function):
    """Stand in for compile: the eager run of an attack."""
    return function


def flat(value):
    """Return a result as NumPy and plain Python, to compare."""
    if isinstance(value, pg.Tensor):
        return value.detach().numpy().copy()
    return [flat(item) for item in value] if isinstance(value, list | tuple) else value


def assert_same(compiled, eager):
    """Fail unless two nested results agree."""
    assert type(compiled) is type(eager)
    if isinstance(eager, list):
        assert len(compiled) == len(eager)
        for mine, theirs in zip(compiled, eager):
            assert_same(mine, theirs)
    else:
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


# --- functions and classes ----------------------------------------------------------------------------------


def default_values(compiler):
    def scaled(x, by=2.0, *, shift=0.0):
        return x * by + shift

    step, x = compiler(scaled), vector(1, 2)
    results = [step(x)]
    scaled.__defaults__ = (7.0,)
    results.append(step(x))
    scaled.__kwdefaults__["shift"] = 5.0
    return [*results, step(x)]


def default_list_of_a_helper(compiler):
    def helper(x, factors=[1.0]):  # noqa: B006 - the attack
        return x * factors[0]

    step, x = compiler(lambda x: helper(x)), vector(1, 2)
    results = [step(x)]
    helper.__defaults__[0][0] = 4.0
    return [*results, step(x)]


def default_values_of_many_closures(compiler):
    helpers = [lambda x, i=i: x * i for i in range(80)]
    step, x = compiler(lambda x: helpers[70](x)), vector(1, 2)
    results = [step(x)]
    helpers[70].__defaults__ = (3,)
    return [*results, step(x)]


def code_of_a_function(compiler):
    def helper(x):
        return x * 2

    def other(x):
        return x * 3

    step, x = compiler(lambda x: helper(x)), vector(1, 2)
    results = [step(x)]
    helper.__code__ = other.__code__
    return [*results, step(x)]


def forward_of_a_class(compiler):
    class Double(nn.Module):
        def forward(self, x):
            return x * 2

    model, x = Double(), vector(1, 2)
    step = compiler(lambda x: model(x))
    results = [step(x)]
    for factor in (9, 11):  # the second replaces a lambda, under the name that it has in the class
        Double.forward = lambda self, x, factor=factor: x * factor
        results.append(step(x))
    return results


def forward_of_a_base_class(compiler):
    class Base(nn.Module):
        def forward(self, x):
            return x * 2

    class Plus(Base):
        def forward(self, x):
            return super().forward(x) + 1

    model, x = Plus(), vector(1, 2)
    step = compiler(lambda x: model(x))
    results = [step(x)]
    Base.forward = lambda self, x: x * 5
    return [*results, step(x)]


def methods_of_a_plain_class(compiler):
    class Scale:
        def __call__(self, x):
            return self.go(x) * self.factor * Scale.still(1.0)

        def go(self, x):
            return x * 2

        @property
        def factor(self):
            return 2.0

        @staticmethod
        def still(value):
            return value

    scale, x = Scale(), vector(1, 2)
    step = compiler(lambda x: scale(x))
    results = [step(x)]
    Scale.go = lambda self, x: x * 7
    results.append(step(x))
    Scale.factor = property(lambda self: 3.0)
    results.append(step(x))
    Scale.still = staticmethod(lambda value: value + 1)
    results.append(step(x))
    scale.go = lambda x: x * 100
    results.append(step(x))
    Scale.__call__ = lambda self, x: x - 1
    return [*results, step(x)]


def class_attribute_of_a_module(compiler):
    class Scale(nn.Module):
        factor = 2.0

        def forward(self, x):
            return x * self.factor

    model, x = Scale(), vector(1, 2)
    step = compiler(lambda x: model(x))
    results = [step(x)]
    Scale.factor = 9.0
    return [*results, step(x)]


# --- partial, containers, attributes ------------------------------------------------------------------------


def compiled_partial(compiler):
    factors = {"a": 2.0}

    def scaled(x, factors, k):
        return x * factors["a"] * k

    partial = functools.partial(scaled, factors=factors, k=1.0)
    step, x = compiler(partial), vector(1, 2)
    results = [step(x)]
    factors["a"] = 3.0
    results.append(step(x))
    partial.keywords["k"] = 10.0
    return [*results, step(x)]


def partial_inside(compiler):
    partial = functools.partial(lambda x, k: x * k, k=2.0)
    step, x = compiler(lambda x: partial(x)), vector(1, 2)
    results = [step(x)]
    partial.keywords["k"] = 10.0
    return [*results, step(x)]


def containers_of_the_closure(compiler):
    Pair = collections.namedtuple("Pair", "a b")
    held = [
        collections.deque([1.0]), collections.OrderedDict(a=2.0), collections.Counter(a=3),
        collections.defaultdict(float, a=4.0), Pair([5.0], 6.0), collections.ChainMap({"a": 7.0}),
        types.SimpleNamespace(a=types.SimpleNamespace(b=8.0)),
    ]  # fmt: skip
    queue, ordered, counter, default, pair, chain, space = held

    def step(x):
        return x * queue[0] + ordered["a"] + counter["a"] + default["a"] + pair.a[0] + chain["a"] + space.a.b

    step, x = compiler(step), vector(1, 2)
    results = [step(x)]

    def change(target, key):
        target[key] = 50.0
        results.append(step(x))

    change(queue, 0)
    change(ordered, "a")
    change(counter, "a")
    change(default, "a")
    change(pair.a, 0)
    change(chain.maps[0], "a")
    space.a.b = 1.0
    results.append(step(x))
    queue.appendleft(0.5)
    return [*results, step(x)]


def containers_as_arguments(compiler):
    def step(x, queue, counter, partial, raw):
        return partial(x * queue[0] + counter["a"]) + raw[0]

    queue, counter, raw = collections.deque([1.0]), collections.defaultdict(float, a=2.0), bytearray(b"a")
    partial = functools.partial(operator.mul, 3.0)
    step, x = compiler(step), vector(1, 2)
    results = [step(x, queue, counter, partial, raw)]
    queue[0] = 5.0
    results.append(step(x, queue, counter, partial, raw))
    counter["a"] = 6.0
    results.append(step(x, queue, counter, partial, raw))
    raw[0] = 3
    return [*results, step(x, queue, counter, partial, raw)]


def attribute_that_was_missing(compiler):
    class Settings:
        pass

    settings = Settings()

    def step(x):
        try:
            return x * settings.factor
        except AttributeError:
            return x * getattr(settings, "other", 100)

    step, x = compiler(step), vector(1, 2)
    results = [step(x)]
    settings.other = 3.0
    results.append(step(x))
    Settings.factor = 4.0
    results.append(step(x))
    settings.factor = 5.0
    return [*results, step(x)]


def global_that_was_missing(compiler):
    def step(x):
        try:
            return x * unheard_of
        except NameError:
            return x * globals()["SETTINGS"].factor

    SETTINGS.factor = 2.0
    step, x = compiler(step), vector(1, 2)
    results = [step(x)]
    SETTINGS.factor = 3.0
    results.append(step(x))
    globals()["unheard_of"] = 4.0
    try:
        return [*results, step(x)]
    finally:
        del globals()["unheard_of"]


def attribute_that_the_step_sets(compiler):
    class Settings:
        factor = 1.0

    settings = Settings()

    def step(x, factor):
        settings.factor = factor
        return x * settings.factor

    step, x = compiler(step), vector(1, 2)
    results = [step(x, 1.0), step(x, 2.0)]
    settings.factor = 9.0
    results.append(step(x, 1.0))
    return [*results, settings.factor]


def environment_variable(compiler):
    get = os.getenv

    def step(x):
        return x * float(os.environ[VARIABLE]) * float(get(VARIABLE)) * float(os.environ.get(VARIABLE, "1"))

    os.environ[VARIABLE] = "2"
    try:
        step, x = compiler(step), vector(1, 2)
        results = [step(x)]
        os.environ[VARIABLE] = "3"
        return [*results, step(x)]
    finally:
        del os.environ[VARIABLE]


def object_with_slots_made_inside(compiler):
    @dataclasses.dataclass(slots=True)
    class Pair:
        first: object
        second: object

    def step(x):
        pair = Pair(x * 2, x)
        pair.first = pair.first + pair.second
        return pair.first * 2

    step = compiler(step)
    return [step(vector(1, 2)), step(vector(3, 4))]


# --- modules ------------------------------------------------------------------------------------------------


def small_model():
    """Return an MLP whose parameters are always the same."""
    pg.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def tables_of_a_module(compiler):
    model, x = small_model(), vector([1, 2], [3, 4])
    step = compiler(lambda x: model(x))
    results = [step(x)]
    model._modules["1"] = nn.Tanh()
    results.append(step(x))
    model[0]._parameters.update(weight=nn.Parameter(pg.ones((3, 2))))
    results.append(step(x))
    model[0].__dict__["_parameters"]["bias"] = None
    results.append(step(x))
    model._forward_hooks[-1] = lambda module, args, result: result * 2
    results.append(step(x))
    model._forward_hooks.clear()
    results.append(step(x))
    model._modules.popitem()
    return [*results, step(x)]


def buffer_in_its_table(compiler):
    norm, x = nn.BatchNorm1d(2).eval(), vector([1, 2], [3, 4])
    step = compiler(lambda x: norm(x))
    results = [step(x)]
    norm._buffers["running_mean"] = pg.ones(2)
    return [*results, step(x)]


# --- optimizers and gradients -------------------------------------------------------------------------------


class FromGroup(optim.SGD):
    """An optimizer of the user's that reads values of the group and of its own."""

    def update(self, parameter, gradient, state, group, rates):
        """Return the parameter one step on."""
        return parameter - gradient * group.get("scale", 0.1) * group["scales"][0], {}


def training(make, *changes):
    """Return the attack that trains two steps, and two more after each change of the optimizer."""

    def attack(compiler):
        model = small_model()
        optimizer = make(model.parameters())
        x, y = vector([1, 2], [3, 4]), pg.Tensor(np.array([0, 1]))

        def train_step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = compiler(train_step)
        results = [step(x, y), step(x, y)]
        for change in changes:
            change(optimizer)
            results += [step(x, y), step(x, y)]
        return [*results, *model.parameters()]

    return attack


def setting(**values):
    """Return the change that sets values of the first group."""
    return lambda optimizer: optimizer.param_groups[0].update(values)


def adam(parameters):
    """Return Adam."""
    return optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    """Return SGD."""
    return optim.SGD(parameters, lr=0.1)


def from_group(parameters):
    """Return an optimizer with a list in its group."""
    optimizer = FromGroup(parameters)
    optimizer.param_groups[0]["scales"] = [1.0]
    return optimizer


def patch_update(optimizer):
    """Replace a method of one optimizer."""
    optimizer.update = lambda parameter, gradient, state, group, rates: (parameter - gradient, {})


def set_first_scale(optimizer):
    """Change a list in the group."""
    optimizer.param_groups[0]["scales"][0] = 0.3


OPTIMIZERS = {
    "betas": training(adam, setting(betas=(0.5, 0.6)), setting(betas=[0.7, 0.8])),
    "schedule": training(adam, lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 1).step()),
    "state_cleared": training(adam, lambda optimizer: optimizer.state.clear()),
    "momentum": training(sgd, setting(momentum=0.9), setting(momentum=0.5), setting(momentum=0)),
    "weight_decay": training(sgd, setting(weight_decay=0.1), setting(weight_decay=0.3), setting(weight_decay=0)),
    "lr_tensor": training(sgd, lambda optimizer: optimizer.param_groups[0].update(lr=vector(0.5)[0]), setting(lr=0.2)),
    "group_key": training(from_group, setting(scale=0.5), set_first_scale),
    "update_patched": training(sgd, patch_update),
}


def gradients_that_change_places(compiler):
    a, b = vector(1, 2).requires_grad_(), vector(3, 4).requires_grad_()

    def step():
        (a * 2 + b * b).sum().backward()
        a.grad, b.grad = b.grad, a.grad

    step, results = compiler(step), []
    for _ in range(3):
        step()
        results += [a.grad.numpy().copy(), b.grad.numpy().copy()]
    a.grad = vector(9, 9)
    step()
    return [*results, a.grad, b.grad]


def gradient_that_is_returned(compiler):
    layer, x = nn.Linear(2, 2, bias=False), vector([1, 2], [3, 4])

    def step(x):
        layer(x).sum().backward()
        return layer.weight.grad

    step = compiler(step)
    results = [step(x).numpy().copy(), step(x).numpy().copy()]
    layer.weight.grad = pg.ones((2, 2))
    gradient = step(x)
    return [*results, gradient, gradient is layer.weight.grad]


def parameters_as_arguments(compiler):
    model, x = small_model(), vector([1, 2], [3, 4])

    def step(parameters, x):
        return pg.grad([model(x).square().sum()], parameters)

    step = compiler(step)
    return [step(list(model.parameters()), x), step(list(model.parameters()), x * 2)]


def array_that_is_returned(compiler):
    def step(x):
        return x * 2, np.zeros(2)

    step, x = compiler(step), vector(1, 2)
    first = step(x)
    first[1][:] = 5.0
    return [first, step(x)]


def conversion_after_training(compiler):
    model, x = small_model(), vector([1, 2], [3, 4])
    optimizer = sgd(model.parameters())

    def train_step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    step = compiler(train_step)
    results = [step(x)]
    model.to("float64")  # the gradients were fused into the step
    return [*results, step(x.to("float64")), step(x.to("float64"))]


ATTACKS = {
    function.__name__: function
    for function in (
        default_values, default_list_of_a_helper, default_values_of_many_closures, code_of_a_function,
        forward_of_a_class, forward_of_a_base_class, methods_of_a_plain_class, class_attribute_of_a_module,
        compiled_partial, partial_inside, containers_of_the_closure, containers_as_arguments,
        attribute_that_was_missing, global_that_was_missing, attribute_that_the_step_sets, environment_variable,
        object_with_slots_made_inside, tables_of_a_module, buffer_in_its_table, gradients_that_change_places,
        gradient_that_is_returned, parameters_as_arguments, array_that_is_returned, conversion_after_training,
    )
} | OPTIMIZERS  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_change_between_calls_takes_effect(traced, name):
    results = []
    for compiler in (unwrapped, traced):
        pg.manual_seed(1)
        results.append(flat(ATTACKS[name](compiler)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ([setting(betas=(0.5, 0.6)), setting(betas=[0.7, 0.8]), setting(lr=0.2, eps=0.1)], 1),
        ([lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 1).step()], 1),
        ([setting(weight_decay=0.1), setting(weight_decay=0.3), setting(weight_decay=0)], 2),
    ],
    ids=["betas", "schedule", "weight_decay"],
)
def test_rate_takes_effect_without_another_trace(traced, changes, steps):
    made = []

    def compiler(function):
        made.append(traced(function))
        return made[0]

    training(adam, *changes)(compiler)
    assert made[0].cache_info().steps == steps


def iterator_of_the_closure():
    """Return a step that reads one."""
    numbers = itertools.cycle([2.0])
    return lambda x: x * next(numbers)


def generator_of_the_closure():
    """Return a step that reads one."""
    numbers = (float(i // 4) for i in range(100))
    return lambda x: x * next(numbers)


def iterator_in_a_list():
    """Return a step that reads one."""
    numbers = [iter([1.0] * 10)]

    def step(x):
        for one in numbers:
            x = x * next(one)
        return x

    return step


def iterator_in_a_module():
    """Return a step that reads one."""

    class Cycled(nn.Module):
        def __init__(self):
            super().__init__()
            self.numbers = itertools.cycle([2.0])

        def forward(self, x):
            return x * next(self.numbers)

    return Cycled()


def iterator_as_a_default():
    """Return a step that reads one."""

    def step(x, numbers=iter([1.0] * 10)):  # noqa: B008 - the attack
        return x * next(numbers)

    return step


def generator_of_random_numbers_as_a_default():
    """Return a step whose branch depends on one."""

    def step(x, rng=np.random.default_rng(0)):  # noqa: B008 - the attack
        return x * (2 if rng.random() < 2 else 3)

    return step


def hidden_attribute():
    """Return a step that reads one."""
    settings, get = types.SimpleNamespace(a=types.SimpleNamespace(b=2.0)), operator.attrgetter("a.b")
    return lambda x: x * get(settings)


REFUSED = {
    "iterator": (iterator_of_the_closure, "an iterator from outside"),
    "generator": (generator_of_the_closure, "an iterator from outside"),
    "iterator_in_a_list": (iterator_in_a_list, "an iterator from outside"),
    "iterator_in_a_module": (iterator_in_a_module, "an iterator from outside"),
    "iterator_as_a_default": (iterator_as_a_default, "a default value of step is an iterator"),
    "random_default": (generator_of_random_numbers_as_a_default, "draws random numbers"),
    "clock": (lambda: lambda x: x * (2 if time.time() > 0 else 3), "reads a clock"),
    "date": (lambda: lambda x: x * datetime.datetime.now().year, "reads a clock"),
    "attrgetter": (hidden_attribute, "attrgetter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_frozen_unseen_is_refused_with_the_line(traced, name):
    make, message = REFUSED[name]
    with pytest.raises(TraceError, match=rf"test_red_team\.py:\d+: .*{message}"):
        traced(make())(vector(1, 2))


def test_iterator_as_an_argument_is_refused(traced):
    step = traced(lambda x, numbers: x * next(numbers))
    with pytest.raises(TraceError, match=r"argument 1 .* is an iterator \(list_iterator\)"):
        step(vector(1, 2), iter([2.0] * 10))


def test_iterator_made_inside_is_fine(traced):
    def step(x):
        numbers = iter([2.0, 3.0])
        for a, b in zip([1.0], [4.0]):
            x = x * a + b
        return x * next(numbers) * next(numbers)

    np.testing.assert_array_equal(traced(step)(vector(1, 2)).numpy(), [30, 36])


def test_default_value_too_large_to_compare_is_refused(traced):
    def helper(x, factors=list(range(5000))):  # noqa: B006 - the attack
        return x * factors[1]

    with pytest.raises(TraceError, match=r"test_red_team\.py:\d+: a default value of helper is a container of more"):
        traced(lambda x: helper(x))(vector(1, 2))


def test_retrace_says_which_method_was_replaced(traced):
    class Double(nn.Module):
        def forward(self, x):
            return x * 2

    model = Double()
    step = traced(lambda x: model(x))
    step(vector(1, 2))
    Double.forward = lambda self, x: x * 3
    with pg.stance("fail_on_recompile"), pytest.raises(TraceError, match=r"Double\.forward .* was replaced"):
        step(vector(1, 2))


@pytest.mark.parametrize("after", ["a module", "the gradient", "the update"])
def test_what_the_user_reads_after_code_of_ours_is_watched_again(after):
    """The watch rests while nothing but ours runs, and only then."""
    model = small_model()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    x, y = vector([1, 2], [3, 4]), pg.Tensor(np.array([0, 1]))

    @pg.compile(strict=True)
    def train_step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if after == "a module":
            return loss * SETTINGS.factor
        loss.backward()
        if after == "the gradient":
            return loss * SETTINGS.factor
        optimizer.step()
        return loss.detach() * SETTINGS.factor

    SETTINGS.factor = 1.0
    train_step(x, y)
    SETTINGS.factor = -3.0
    assert train_step(x, y).item() < 0


def test_an_update_of_the_users_own_is_watched():
    class Scaled(optim.SGD):
        def update(self, parameter, gradient, state, group, rates):
            """Return the parameter one step on."""
            return parameter - gradient * SETTINGS.factor, {}

    SETTINGS.factor = 0.0
    model = small_model()
    optimizer = Scaled(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]

    @pg.compile(strict=True)
    def train_step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    train_step(vector([1, 2], [3, 4]))
    assert all((a == b).all().item() for a, b in zip(before, model.parameters(), strict=True))
    SETTINGS.factor = 1.0
    train_step(vector([1, 2], [3, 4]))
    assert any((a != b).any().item() for a, b in zip(before, model.parameters(), strict=True))


def test_inside_an_op_of_ours_nobody_watches_but_inside_the_users_own(monkeypatch):
    seen = []
    note = Watch._on_call

    def noting(self, frame, event, argument):
        seen.append((frame.f_globals.get("__name__"), frame.f_code.co_name))
        return note(self, frame, event, argument)

    class Own(REGISTRY["neg"]):
        @staticmethod
        def infer(x):
            return x

    monkeypatch.setattr(Watch, "_on_call", noting)
    pg.compile(lambda x: bind(Own, x) + x).lower(vector(1, 2))
    traces = seen.count((__name__, "<lambda>"))
    assert seen.count((__name__, "infer")) == seen.count(("pequegrad.trace.tracer", "_record")) == traces == 2
