"""Loaded steps are called natively, notice all that is otherwise, and leave the rest to Python."""

from __future__ import annotations

import dataclasses
import threading
import weakref

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.errors import SignatureError
from pequegrad.export.calls import describe_call
from tests.export.helpers import batches, losses, make_program

pytestmark = pytest.mark.usefixtures("saved")

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def native(step, *args, **kwargs):
    """What the native call alone says."""
    assert step._native is not None
    return step._native[0](args, kwargs)


def load(tmp_path, function, *args, **kwargs):
    """Return a loaded step that has run once, so that native code takes the next call."""
    pg.compile(function, strict=True).compile(*args, **kwargs).save(tmp_path / "step")
    step = pg.load_step(tmp_path / "step")
    step(*args, **kwargs)
    return step


def test_native_calls_train_as_python_calls_do_bit_for_bit(tmp_path):
    """A call took 8 us, five times as long as one of the function that it was saved from."""
    data = batches(12)
    program = make_program()
    program.step.compile(*data[0]).save(tmp_path / "step")
    fast, slow = pg.load_step(tmp_path / "step"), pg.load_step(tmp_path / "step")
    fast(*data[0]), slow(*data[0])
    for batch in data[1:]:
        found = native(fast, *batch)
        slow._native = None
        assert found.item() == slow(*batch).item()
        slow._native = None
    assert losses(fast, data) == losses(slow, data)
    for name, value in slow.state.items():
        if isinstance(value, pg.Tensor):
            np.testing.assert_array_equal(fast.state[name].numpy(), value.numpy(), err_msg=name)
            assert fast.state[name].storage.version == value.storage.version
    for step in (fast, slow):
        step.state["optimizer.param_groups.0.lr"] = 0.5
    assert native(fast, *data[0]).item() == slow(*data[0]).item()
    assert native(fast, *data[1]).item() == slow(*data[1]).item()


@pytest.mark.parametrize("is_grad_enabled", [True, False])
def test_whether_gradients_are_recorded_does_not_matter(tmp_path, is_grad_enabled):
    step = load(tmp_path, lambda x: x * 2, X)
    with pg.set_grad_enabled(is_grad_enabled):
        np.testing.assert_array_equal(native(step, X).numpy(), X * 2)


def total(batch, scale, *, more=None):
    x, y = batch["pair"]
    return {"sum": x * scale + y, "x": [x - (more if more is not None else 0.0), scale]}


def test_nested_arguments_and_results_are_native(tmp_path):
    step = load(tmp_path, total, {"pair": (X, X * 2)}, 3.0, more=X + 1)
    found = native(step, {"pair": (X + 1, pg.Tensor(X.T).T)}, 3.0, more=X)
    np.testing.assert_allclose(found["sum"].numpy(), X * 4 + 3, rtol=1e-6)
    np.testing.assert_array_equal(found["x"][0].numpy(), X + 1 - X)
    assert found["x"][1] == 3.0


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (({"pair": (X, X)}, 3.0), {}),
        (({"pair": [X, X * 2]}, 3.0), {"more": X + 1}),
        (({"pair": (X, X * 2)}, 4.0), {"more": X + 1}),
        (({"pair": (X, X * 2)}, 3), {"more": X + 1}),
        (({"pair": (X[:2], X * 2)}, 3.0), {"more": X + 1}),
        (({"pair": (X, X.astype(np.float64))}, 3.0), {"more": X + 1}),
        (({"pair": (X, pg.Tensor(X, requires_grad=True))}, 3.0), {"more": X + 1}),
        (({"triple": (X, X * 2)}, 3.0), {"more": X + 1}),
    ],
    ids=["fewer", "list", "value", "type", "shape", "dtype", "gradient", "key"],
)
def test_other_arguments_are_refused_after_native_calls_too(tmp_path, args, kwargs):
    step = load(tmp_path, total, {"pair": (X, X * 2)}, 3.0, more=X + 1)
    assert native(step, {"pair": (X, X * 2)}, 3.0, more=X + 1) is not NotImplemented
    assert native(step, *args, **kwargs) is NotImplemented
    with pytest.raises(SignatureError):
        step(*args, **kwargs)
    assert native(step, {"pair": (X, X * 2)}, 3.0, more=X + 1) is not NotImplemented


def test_what_the_step_changes_is_refused_as_an_argument(tmp_path):
    weight = pg.Tensor(X.copy())
    step = load(tmp_path, lambda x: weight.add_(x).sum(), X)
    (name,) = step.state
    for argument in (step.state[name], step.state[name].array, step.state[name].detach()):
        assert native(step, argument) is NotImplemented
    with pytest.raises(SignatureError, match="shares memory"):
        step(step.state[name].array)


def test_gradients_of_arguments_are_set_natively(tmp_path):
    def loss(x):
        result = (x * x).sum()
        result.backward()
        return result

    step = load(tmp_path, loss, pg.Tensor(X, requires_grad=True))
    x = pg.Tensor(X, requires_grad=True)
    assert native(step, x) is not NotImplemented
    np.testing.assert_allclose(x.grad.numpy(), 2 * X, rtol=1e-6)
    assert native(step, x) is NotImplemented, "it has a gradient now"


def test_a_step_that_keeps_gradients_by_name_or_returns_an_argument_is_left_to_python(tmp_path):
    weight = pg.Tensor(X.copy(), requires_grad=True)

    def loss(x):
        weight.grad = None
        (weight * x).sum().backward()
        return x

    step = load(tmp_path, loss, pg.Tensor(X))
    assert step._native is None
    x = pg.Tensor(X * 3)
    assert step(x) is x


def test_two_threads_do_every_step_once(tmp_path):
    weight = pg.Tensor(np.zeros((4, 3), np.float32))
    step = load(tmp_path, lambda x: weight.add_(x).sum(), X)
    one = np.ones((4, 3), np.float32)
    (name,) = step.state
    step.state[name] = np.zeros((4, 3), np.float32)
    threads = [threading.Thread(target=lambda: [step(one) for _ in range(300)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(step.state[name].numpy(), np.full((4, 3), 600.0))


def test_a_loaded_step_is_freed_with_its_last_reference(tmp_path):
    """Its description must not refer to it: its state would wait for the garbage collector."""
    step = load(tmp_path, lambda x: {"y": x * 2}, X)
    step(X)
    gone = weakref.ref(step)
    del step
    assert gone() is None


def test_a_tensor_that_no_argument_is_has_no_native_call(tmp_path):
    """A manifest could name one: its memory would be that of nothing."""
    step = load(tmp_path, lambda x: x * 2, X)
    manifest = dataclasses.replace(step.manifest, tensors=step.manifest.tensors * 2)
    _, description = step._native
    assert describe_call(manifest, step._seen_structure, step._template, (), {}) is None
    with pytest.raises(ValueError, match="other tensors"):
        step._module.make_call({**description, "arguments": description["arguments"] * 2}, 1)
