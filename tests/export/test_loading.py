"""A loaded step goes on exactly where the program would have gone on, and says so where it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F
from pequegrad import nn, optim
from pequegrad.errors import AutogradError, DTypeError, IndexOutOfRange, ShapeError, SignatureError
from tests.export.helpers import batches, export, losses, make_program, run_python

pytestmark = pytest.mark.usefixtures("saved")


@pytest.mark.parametrize("target", ["cpp", "cuda-sim"])
def test_fifty_steps_after_loading_have_the_losses_of_the_program_bit_for_bit(target, tmp_path):
    program = make_program(target)
    data = batches(54)
    losses(program.step, data[:4])
    loaded = export(program.step, tmp_path / "step", *data[0])
    random_before = loaded.state["random.state"].numpy().copy()

    assert losses(loaded, data[4:]) == losses(program.step, data[4:])

    assert not np.array_equal(loaded.state["random.state"].numpy(), random_before)  # dropout drew new numbers
    for name, tensor in program.model.state_dict().items():
        np.testing.assert_array_equal(loaded.state[f"model.{name}"].numpy(), tensor.numpy(), err_msg=name)


def test_another_process_goes_on_without_tracing_rendering_or_a_compiler(tmp_path):
    program = make_program()
    data = batches(6)
    losses(program.step, data[:2])
    program.step.compile(*data[0]).save(tmp_path / "step")
    code = f"""
import sys, json, numpy as np, pequegrad as pg
step = pg.load_step({str(tmp_path / "step")!r})
rng = np.random.default_rng(0)
data = [(rng.standard_normal((8, 6), dtype=np.float32), rng.integers(0, 3, 8)) for _ in range(6)]
print(json.dumps([[step(*batch).item() for batch in data[2:]], sorted(sys.modules)]))
"""
    empty = tmp_path / "nothing"
    empty.mkdir()
    found, modules = json.loads(run_python(code, PATH=str(empty), PEQUEGRAD_CACHE="off"))
    assert found == losses(program.step, data[2:])
    rooms = ("trace", "codegen", "passes", "compiler", "nn", "optim", "data", "export.saving", "export.names")
    assert not [name for name in modules for room in rooms if f"{name}.".startswith(f"pequegrad.{room}.")]
    assert not {"jinja2", "pybind11", "subprocess", "filelock", "platformdirs"}.intersection(modules)


def test_the_learning_rate_can_be_read_and_changed_by_name(tmp_path):
    program = make_program()
    data = batches(6)
    loaded = export(program.step, tmp_path / "step", *data[0])
    assert loaded.state["optimizer.param_groups.0.lr"] == 0.02
    assert loaded.state["optimizer.param_groups.0.betas.1"] == 0.999
    program.optimizer.param_groups[0]["lr"] = loaded.state["optimizer.param_groups.0.lr"] = 0.5
    assert losses(loaded, data) == losses(program.step, data)


def test_the_state_is_that_of_the_moment_of_saving(tmp_path):
    program = make_program()
    data = batches(6)
    artifact = program.step.compile(*data[0])
    losses(program.step, data[:3])
    program.optimizer.param_groups[0]["lr"] = 0.125
    artifact.save(tmp_path / "step")
    loaded = pg.load_step(tmp_path / "step")
    assert loaded.state["optimizer.param_groups.0.lr"] == 0.125
    assert loaded.state["optimizer.state.model.0.weight.step"].item() == 3
    assert losses(loaded, data[3:]) == losses(program.step, data[3:])


def test_state_takes_values_of_its_own_shape_and_dtype_alone(saved):
    state = pg.load_step(saved).state
    weight = state["model.0.weight"]
    state["model.0.weight"] = np.full((9, 6), 2, np.float32)
    assert weight.numpy().min() == 2 and state["model.0.weight"] is weight
    with pytest.raises(ShapeError, match=r"model.0.weight.*\(9, 6\). Got \(6, 9\)"):
        state["model.0.weight"] = weight.numpy().T
    with pytest.raises(DTypeError, match=r"dtype float32. Got float64"):
        state["model.0.weight"] = np.zeros((9, 6))
    with pytest.raises(KeyError, match=r"no state of this step. Expected one of model.0.weight"):
        state["model.weight"] = 1
    state.update({"optimizer.param_groups.0.lr": 1})
    assert dict(state)["optimizer.param_groups.0.lr"] == 1.0
    assert "model.0.weight: float32[9,6]" in repr(state) and len(list(state)) == len(state)


def test_state_dict_goes_back_into_the_model(tmp_path):
    program = make_program()
    data = batches(4)
    loaded = export(program.step, tmp_path / "step", *data[0])
    losses(loaded, data)
    other = make_program()
    missing = other.model.load_state_dict(loaded.state_dict())
    del missing
    losses(program.step, data)
    for name, tensor in program.model.state_dict().items():
        np.testing.assert_array_equal(other.model.state_dict()[name].numpy(), tensor.numpy())
    copy = loaded.state_dict()["0.weight"]
    copy.zero_()
    assert loaded.state["model.0.weight"].numpy().any()


def test_a_loaded_step_can_be_saved_again_over_its_own_folder(copy):
    data = batches(6)
    loaded = pg.load_step(copy)
    losses(loaded, data[:2])
    loaded.state["optimizer.param_groups.0.lr"] = 0.25
    loaded.save(copy, overwrite=True)
    again = pg.load_step(copy)
    assert again.state["optimizer.param_groups.0.lr"] == 0.25
    assert losses(again, data[2:]) == losses(loaded, data[2:])


def test_two_loaded_steps_of_one_folder_share_nothing(saved):
    data = batches(3)
    first, second = pg.load_step(saved), pg.load_step(saved)
    assert losses(first, data) == losses(second, data)


# --- arguments --------------------------------------------------------------------------------------------------


def test_other_arguments_are_refused_with_both_sides_named(saved):
    step = pg.load_step(saved)
    x, y = batches(1)[0]
    before = {name: np.array(value) for name, value in step.state.items()}
    for arguments, words in [
        ((x[:4], y), r"argument 0 of train_step: expected float32\[8,6\]. Got float32\[4,6\]"),
        ((x, y.astype(np.int32)), r"argument 1 of train_step: expected int64\[8\]. Got int32\[8\]"),
        ((pg.Tensor(x).to(pg.float64), y), r"expected float32\[8,6\]. Got float64\[8,6\]"),
        ((x,), r"expected train_step\(float32\[8,6\], int64\[8\]\). Got train_step\(float32\[8,6\]\)"),
        (([x], y), r"Got train_step\(\[float32\[8,6\]\], int64\[8\]\)"),
        ((x, 3), r"argument 1 of train_step is int64\[8\]. Got int: 3"),
        ((pg.Tensor(x, requires_grad=True), y), "expected requires_grad=False. Got requires_grad=True"),
        ((step.state["model.0.weight"].reshape(-1)[:48].reshape(8, 6), y), "shares memory with what the step changes"),
    ]:
        with pytest.raises(SignatureError, match=words):
            step(*arguments)
    with pytest.raises(SignatureError, match=r"Got train_step\(float32\[8,6\], y=int64\[8\]\)"):
        step(x, y=y)
    for name, value in step.state.items():
        np.testing.assert_array_equal(np.array(value), before[name])


def test_python_values_among_the_arguments_are_built_in(tmp_path):
    def scale(batch, factor, *, mode, shift=None):
        return {"sum": batch["x"] * factor + batch["y"] if mode == "sum" else batch["x"], "mode": mode}

    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    step = export(pg.compile(scale, strict=True), tmp_path / "step", {"x": x, "y": y}, 2.5, mode="sum")
    result = step({"x": x, "y": y}, 2.5, mode="sum")
    np.testing.assert_array_equal(result["sum"].numpy(), x * 2.5 + 1)
    assert result["mode"] == "sum" and list(result) == ["sum", "mode"]
    assert step.manifest.signature() == "scale({'x': float32[2,3], 'y': float32[3]}, 2.5, mode='sum')"
    for arguments, words in [(({"x": x, "y": y}, 2.0), r"value 2.5, which is built in. Got 2.0"),
                             (({"x": x, "y": y}, 2), "Got 2"), (({"y": y, "x": x}, 2.5), "nest otherwise"),
                             (({"x": x, "y": y}, set()), r"Got set\(\)")]:  # fmt: skip
        with pytest.raises(SignatureError, match=words):
            step(*arguments, mode="sum")


def test_a_tensor_passed_twice_must_be_passed_twice_again(tmp_path):
    x = pg.ones(3)
    step = export(pg.compile(lambda a, b: a * b + b, strict=True), tmp_path / "step", x, x)
    assert step(x, x).tolist() == [2, 2, 2]
    with pytest.raises(SignatureError, match=r"is passed twice. Got two"):
        step(x, pg.ones(3))


def test_an_argument_that_the_step_writes_to_is_written_in_place(tmp_path):
    def add_to(total, x):
        total += x
        return total

    step = export(pg.compile(add_to, strict=True), tmp_path / "step", pg.zeros(2, 3), pg.ones(2, 3))
    total = pg.zeros(2, 3)
    assert step(total, pg.ones(2, 3)) is total and total.numpy().tolist() == [[1] * 3] * 2
    array = np.zeros((3, 2), np.float32)
    step(array.T, np.ones((2, 3), np.float32))
    assert array.tolist() == [[1] * 2] * 3
    with pytest.raises(SignatureError, match=r"argument 0 of add_to shares memory"):
        step(array.T, array.T)
    array.flags.writeable = False
    with pytest.raises(AutogradError, match=r"argument 0 is written to by add_to, but is read-only"):
        step(array.T, np.ones((2, 3), np.float32))


def test_the_gradient_of_an_argument_is_delivered(tmp_path):
    def differentiate(x):
        loss = (x * x).sum()
        loss.backward()
        return loss

    step = export(pg.compile(differentiate, strict=True), tmp_path / "step", pg.ones(3).requires_grad_())
    x = pg.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    assert step(x).item() == 14 and x.grad.tolist() == [2, 4, 6]
    with pytest.raises(SignatureError, match=r"expected .grad absent. Got one with a .grad"):
        step(x)


# --- results, gradients and errors ------------------------------------------------------------------------------


def test_results_nest_as_they_did_and_state_comes_back_as_itself(tmp_path):
    total = pg.zeros(2, 3)

    def step(x):
        total.add_(x)
        doubled = x * 2
        return [doubled, (total.T, None, 7)], doubled

    loaded = export(pg.compile(step, strict=True), tmp_path / "step", pg.ones(2, 3))
    for count in (1, 2):
        [doubled, (transposed, nothing, seven)], again = loaded(pg.ones(2, 3))
        assert doubled is again and doubled.tolist() == [[2] * 3] * 2 and nothing is None and seven == 7
        assert transposed.tolist() == [[count] * 2] * 3
    assert np.shares_memory(transposed.numpy(), next(iter(loaded.state.values())).numpy())


def test_gradients_that_the_step_keeps_are_there_by_name(tmp_path):
    program = make_program(keep_grads=True)
    data = batches(2)
    loaded = export(program.step, tmp_path / "step", *data[0])
    losses(loaded, data), losses(program.step, data)
    assert sorted(loaded.gradients) == sorted(f"model.{name}" for name, _ in program.model.named_parameters())
    np.testing.assert_array_equal(loaded.gradients["model.4.bias"].numpy(), program.model[4].bias.grad.numpy())


def test_gradients_that_add_up_from_call_to_call_are_state(tmp_path):
    weight = pg.Tensor([1.0, 2.0], requires_grad=True)

    def accumulate(x):
        loss = (weight * x).sum()
        loss.backward()
        return loss

    step = pg.compile(accumulate, strict=True)
    step(pg.ones(2))
    loaded = export(step, tmp_path / "step", pg.ones(2))
    for _ in range(3):
        loaded(pg.ones(2))
        step(pg.ones(2))
    name = next(slot.name for slot in loaded.manifest.slots if slot.role == "gradient")
    assert loaded.state[name].tolist() == weight.grad.tolist() == [4, 4]


@pytest.mark.parametrize("target", ["cpp", "cuda-sim"])
def test_an_index_out_of_range_names_the_line_and_changes_nothing(target, tmp_path):
    table = nn.Embedding(5, 3)
    optimizer = optim.SGD(table.parameters(), lr=0.1)

    def train(indices):
        optimizer.zero_grad()
        loss = table(indices).sum()
        loss.backward()
        optimizer.step()
        return loss

    loaded = export(pg.compile(train, strict=True, target=target), tmp_path / "step", np.array([0, 1]))
    before = loaded.state["model.weight"].numpy().copy()
    with pytest.raises(IndexOutOfRange, match=r"test_loading.py:\d+: .*index 7 is outside a dimension of size 5"):
        loaded(np.array([0, 7]))
    np.testing.assert_array_equal(loaded.state["model.weight"].numpy(), before)
    loaded(np.array([0, 4]))
    assert loaded.state["model.weight"].numpy()[4].tolist() != before[4].tolist()


def test_bfloat16_float16_and_empty_shapes_pass_through(tmp_path):
    scale = pg.Tensor([2.0, 3.0]).to(pg.bfloat16)
    half = pg.Tensor([0.5]).to(pg.float16)

    def multiply(x):
        scale.add_(1)
        return x * scale, half * 2, x[:0]

    step = pg.compile(multiply, strict=True)
    x = pg.Tensor([1.5, 4.0]).to(pg.bfloat16)
    loaded = export(step, tmp_path / "step", x)
    for mine, other in zip(loaded(x), step(x)):
        assert mine.spec == other.spec and mine.tolist() == other.tolist()


def test_several_models_and_optimizers_are_named_by_their_classes(tmp_path):
    encoder, decoder = nn.Linear(3, 2), nn.Linear(2, 3)
    first, second = optim.SGD(encoder.parameters(), lr=0.1), optim.AdamW(decoder.parameters(), lr=0.2)

    def train(x):
        first.zero_grad(), second.zero_grad()
        loss = F.mse_loss(decoder(encoder(x)), x)
        loss.backward()
        first.step(), second.step()
        return loss

    loaded = export(pg.compile(train, strict=True), tmp_path / "step", np.ones((4, 3), np.float32))
    assert {"linear.weight", "linear_1.bias", "adam_w.state.linear_1.bias.exp_avg"} <= set(loaded.state)
    assert loaded.state["sgd.param_groups.0.lr"] == 0.1 and loaded.state["adam_w.param_groups.0.lr"] == 0.2
    assert sorted(loaded.state_dict()) == ["linear.bias", "linear.weight", "linear_1.bias", "linear_1.weight"]
