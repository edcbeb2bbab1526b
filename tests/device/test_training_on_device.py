"""Models, optimizers and compiled steps on a device: they move, train as on the CPU, and say what they copy."""

from __future__ import annotations

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import Tensor, nn, optim, targets
from pequegrad.errors import DeviceError, PequegradWarning
from pequegrad.records import replace

MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)), (6, 12)),
    "convnet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        ),
        (6, 1, 6, 6),
    ),
}
OPTIMIZERS = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Lion]


def a_device(name="cuda"):
    """The simulator's target, which takes arrays of the stand-in for device memory, as the GPU's does its own."""
    return replace(targets.get("cuda-sim"), device=name)


def batch(shape):
    generator = np.random.default_rng(0)
    return generator.standard_normal(shape).astype(np.float32), generator.integers(0, 3, shape[0])


class Training:
    """A model of a name on a device, its optimizer, and one step, eager or compiled."""

    def __init__(self, name="mlp", device="cpu", kind=optim.Adam, target=None):
        pg.manual_seed(0)
        make, shape = MODELS[name]
        self.model = make().to(device)
        self.optimizer = kind(self.model.parameters(), lr=0.01)
        self.x, self.y = (Tensor(array) for array in batch(shape))
        self.compiled = pg.compile(self.step, target=target, strict=True)

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def where(self):
        """Every device that state lies on."""
        state = [t for entries in self.optimizer.state.values() for t in entries.values()]
        return {t.device for t in [*self.model.parameters(), *self.model.buffers(), *state]}


# --- eager ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_eager_training_on_the_device_takes_the_same_road(cupy, name, kind):
    here, there = Training(name, "cpu", kind), Training(name, "cuda", kind)
    x, y = there.x.cuda(), there.y.cuda()
    pg.manual_seed(1)
    expected = [here.step(here.x, here.y).item() for _ in range(3)]
    pg.manual_seed(1)
    losses = [there.step(x, y) for _ in range(3)]
    assert {loss.device for loss in losses} == there.where() == {"cuda"}
    assert [loss.item() for loss in losses] == expected


def test_a_module_moves_in_place_with_gradients_and_the_optimizers_state_follows(cupy):
    t = Training("convnet")
    t.step(t.x, t.y)
    before = list(t.model.parameters())
    gradient = before[0].grad.numpy()
    assert t.model.cuda() is t.model
    assert [p is q for p, q in zip(before, t.model.parameters(), strict=True)] == [True] * len(before)
    assert before[0].is_leaf and before[0].requires_grad and before[0].grad.device == "cuda"
    np.testing.assert_array_equal(np.asarray(before[0].grad), gradient)
    t.step(t.x.cuda(), t.y.cuda())
    assert t.where() == {"cuda"}
    t.model.to("cpu", "float64")
    assert {(p.device, p.dtype) for p in before} == {("cpu", pg.float64)}
    assert {b.device for b in t.model.buffers()} == {"cpu"}


def test_state_dicts_go_from_device_to_device(cupy, tmp_path):
    there, here = Training(device="cuda"), Training()
    there.step(there.x.cuda(), there.y.cuda())
    pg.save({"model": there.model.state_dict(), "optimizer": there.optimizer.state_dict()}, tmp_path / "state")
    saved = pg.load(tmp_path / "state")
    here.model.load_state_dict(there.model.state_dict())
    here.optimizer.load_state_dict(there.optimizer.state_dict())
    again = Training(device="cuda")
    again.model.load_state_dict(saved["model"])
    again.optimizer.load_state_dict(saved["optimizer"])
    assert (here.where(), again.where()) == ({"cpu"}, {"cuda"})
    for name, tensor in there.model.state_dict().items():
        assert here.model.state_dict()[name].tolist() == again.model.state_dict()[name].tolist() == tensor.tolist()
    assert (
        again.optimizer.state_dict()["state"][0]["exp_avg"].tolist()
        == saved["optimizer"]["state"][0]["exp_avg"].tolist()
    )


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected():
    """Losses of the CPU target per model."""
    found = {}
    for name in MODELS:
        t = Training(name)
        found[name] = [t.compiled(t.x, t.y).item() for _ in range(3)]
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["cuda-sim", "record"])
def test_a_compiled_step_trains_state_that_lies_on_the_device(cupy, expected, capfd, name, target):
    t = Training(name, "cuda", target=a_device() if target == "record" else target)
    losses = [t.compiled(t.x.cuda(), t.y.cuda()) for _ in range(3)]
    assert {loss.device for loss in losses} == t.where() == {"cuda"}
    assert [loss.item() for loss in losses] == pytest.approx(expected[name], rel=1e-4)
    assert t.compiled.cache_info().eager_calls == 0 and "copied" not in capfd.readouterr().err


def test_arguments_on_the_cpu_are_copied_and_that_is_said_once(cupy, expected, capfd):
    t = Training("mlp", "cuda", target=a_device())
    losses = [t.compiled(t.x.numpy(), t.y.numpy()) for _ in range(3)]
    assert losses[0].device == "cuda" and [loss.item() for loss in losses] == pytest.approx(expected["mlp"], rel=1e-4)
    assert capfd.readouterr().err.count("arguments that lie on the CPU are copied to the GPU") == 1


def test_state_on_the_cpu_is_copied_both_ways_and_that_is_said_once(cupy, expected, capfd):
    t = Training("mlp", "cpu", target=a_device())
    losses = [t.compiled(t.x, t.y) for _ in range(3)]
    assert t.where() == {losses[0].device} == {"cpu"}
    assert [loss.item() for loss in losses] == pytest.approx(expected["mlp"], rel=1e-4)
    assert capfd.readouterr().err.count("its state lies on the CPU and is copied to the GPU and back") == 1


def test_arguments_that_are_not_contiguous_or_aligned_are_made_so_first(cupy):
    @pg.compile(target=a_device(), strict=True)
    def double(x):
        return x * 2

    base = Tensor(np.arange(40, dtype=np.float32), device="cuda")
    for view in (base[1:37].reshape(6, 6), base[:36].reshape(6, 6).T):
        assert double(view).tolist() == (view * 2).tolist()


def test_captured_views_that_are_not_contiguous_are_written_back(cupy):
    state = Tensor(cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4)).T)
    raw = pg.from_dlpack(cupy.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))).array
    state = Tensor._from_data(raw.T)

    @pg.compile(target=a_device(), strict=True)
    def step(x):
        with pg.no_grad():
            state.add_(x)
        return state.sum()

    assert step(Tensor(1.0)).item() == 66 + 12 and raw.tolist() == (np.arange(12).reshape(3, 4) + 1).tolist()


def test_a_moved_module_is_traced_again_and_goes_on(cupy):
    t = Training("mlp", "cpu", target="cuda-sim")
    first = t.compiled(t.x, t.y)
    t.model.cuda()
    second = t.compiled(t.x, t.y)
    assert (first.device, second.device) == ("cpu", "cuda") and second.item() < first.item()


# --- bad input ------------------------------------------------------------------------------------------------------


def test_captured_tensors_on_different_devices_are_refused_by_path(cupy):
    t = Training("mlp", target="cuda-sim")
    t.model[3].cuda()
    with pytest.raises(
        DeviceError, match=r"sequential_3_weight lies on 'cuda', sequential_0_weight on 'cpu'.*\.cuda\(\)"
    ):
        t.compiled(t.x, t.y)


def test_an_argument_on_the_device_of_a_step_on_the_cpu_is_refused(cupy):
    t = Training("mlp")
    t.compiled(t.x, t.y)
    with pytest.raises(DeviceError, match=r"tensor 0 of the call lies on 'cuda'.*\.cpu\(\).*\.cuda\(\)"):
        t.compiled(t.x.cuda(), t.y)


def test_the_cpus_target_falls_back_to_eager_where_the_state_lies_on_the_device(cupy):
    t = Training("mlp", "cuda")
    with pytest.warns(PequegradWarning, match=r"'cpp' runs on the CPU, and the step's state lies on 'cuda'"):
        loss = pg.compile(t.step, target="cpp")(t.x.cuda(), t.y.cuda())
    assert loss.device == "cuda"
    with pytest.raises(DeviceError, match="cpu"):
        pg.compile(t.step, target="cpp", strict=True)(t.x.cuda(), t.y.cuda())


def test_the_target_follows_the_device_and_its_absence_is_said(cupy):
    t = Training("mlp", "cuda")
    with pytest.raises(DeviceError, match="CUDA"):  # the CUDA target was chosen, and asks for an architecture
        t.compiled(t.x.cuda(), t.y.cuda())
    second = Training("mlp", "cuda:1")
    with pytest.raises(DeviceError, match=r"first GPU alone.*'cuda:1'"):
        pg.compile(second.step, target="cuda-sim", strict=True)(second.x.cuda(1), second.y.cuda(1))


# --- the binding ----------------------------------------------------------------------------------------------------


class Device:
    """What has nothing but the interface."""

    def __init__(self, array, **changes):
        interface = array.__array_interface__
        self.memory = array
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": interface["typestr"], "data": (interface["data"][0], False), "version": 3
        } | changes  # fmt: skip


@pytest.fixture(scope="module")
def module():
    step = pg.compile(lambda x: x + 1, strict=True, name="binding_of_device_arrays")
    x = Tensor(np.zeros((4, 3), np.float32))
    step(x)
    artifact = step.compile(x)
    return artifact.exportable.built.module


def test_the_binding_takes_what_has_the_interface(module):
    x, out = np.arange(12, dtype=np.float32).reshape(4, 3), np.zeros((4, 3), np.float32)
    module.run([Device(x, strides=(12, 4)), Device(out, strides=None)], 1)
    assert out.tolist() == (x + 1).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 16)}, "C-contiguous"),
        ({"shape": (4, 4)}, "expected 48 bytes, got 64"),
        ({"typestr": "<f8"}, "expected 48 bytes, got 96"),
        ({"typestr": 4}, "not as defined: its typestr"),
        ({"typestr": "f"}, "not as defined: its typestr"),
        ({"data": None}, "not as defined: its data"),
        ({"shape": None}, "not as defined: its shape"),
        ({"strides": (4,)}, "not as defined: its strides"),
    ],
)
def test_the_binding_refuses_an_interface_that_does_not_fit(module, changes, message):
    x, out = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        module.run([Device(x, **changes), out], 1)


def test_the_binding_refuses_to_write_to_read_only_device_memory(module):
    x, out = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="writes to it, but it is read-only"):
        module.run([x, Device(out, data=(out.__array_interface__["data"][0], True))], 1)
