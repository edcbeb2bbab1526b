"""A folder appears whole or not at all; what a saved step could not repeat is refused with its reason."""

from __future__ import annotations

import collections
import os
import shutil
import threading

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import nn
from pequegrad.errors import ArtifactError, TraceError
from pequegrad.export import files, values
from pequegrad.export.loading import read_manifest
from tests.export.helpers import batches, losses, make_program

pytestmark = pytest.mark.usefixtures("saved")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the folder -------------------------------------------------------------------------------------------------


def test_the_folder_holds_module_state_source_manifest_and_sum(saved):
    module = read_manifest(saved).module.name
    assert set(contents(saved)) == {"manifest.json", "manifest.sha256", "state.safetensors", "step.cpp", module}
    assert b"train_step" in (saved / "step.cpp").read_bytes()
    state = pg.load(saved / "state.safetensors")
    assert state["model.0.weight"].shape == (9, 6) and state["optimizer.param_groups.0.lr"].item() == 0.02


def test_the_manifest_says_for_what_and_by_what_it_was_made(saved):
    manifest = read_manifest(saved)
    assert (manifest.name, manifest.requires.target, manifest.signature()) == (
        "train_step", "cpp", "train_step(float32[8,6], int64[8])",
    )  # fmt: skip
    assert manifest.requires.machine and manifest.made_by.compiler_version and manifest.made_by.flags
    slots = {slot.name: slot for slot in manifest.slots}
    assert slots["model.1.running_mean"].role == "buffer" and slots["model.1.running_mean"].is_written
    assert slots["optimizer.param_groups.0.lr"].role == "scalar" and slots["random.state"].role == "random"
    assert "model.3: Dropout training=True, p=0.25, inplace=False" in manifest.frozen


def test_an_existing_folder_is_replaced_only_when_asked_for(copy):
    before = contents(copy)
    loaded = pg.load_step(copy)
    losses(loaded, batches(1))
    with pytest.raises(ArtifactError, match=r"exists. Choose another path, or pass overwrite=True"):
        loaded.save(copy)
    assert contents(copy) == before
    loaded.save(copy, overwrite=True)
    after = contents(copy)
    assert after.keys() == before.keys() and after["state.safetensors"] != before["state.safetensors"]


def test_what_is_no_artifact_is_never_replaced(saved, tmp_path):
    loaded = pg.load_step(saved)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(saved)
    for name in ("notes", "file", "link"):
        with pytest.raises(ArtifactError, match=r"exists and is no artifact, so it is left as it is"):
            loaded.save(tmp_path / name, overwrite=True)
    assert (tmp_path / "notes" / "text").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fills_up_leaves_everything_as_it_was(copy, tmp_path, monkeypatch, overwrite):
    loaded = pg.load_step(copy)
    place = copy if overwrite else tmp_path / "new"
    before, names = contents(copy), sorted(os.listdir(tmp_path))

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match=r"cannot write .*: No space left on device"):
        loaded.save(place, overwrite=overwrite)
    assert contents(copy) == before and sorted(os.listdir(tmp_path)) == names


def test_replacing_works_where_folders_cannot_be_exchanged(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    loaded = pg.load_step(copy)
    loaded.state["optimizer.param_groups.0.lr"] = 0.75
    loaded.save(copy, overwrite=True)
    assert pg.load_step(copy).state["optimizer.param_groups.0.lr"] == 0.75
    assert os.listdir(tmp_path) == ["copy"]


def test_a_reader_finds_a_whole_folder_at_every_moment_of_replacing(copy):
    loaded = pg.load_step(copy)
    is_done = threading.Event()

    def replace():
        for _ in range(20):
            loaded.save(copy, overwrite=True)
        is_done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    seen = 0
    while not is_done.is_set():
        assert copy.is_dir() and (copy / files.MANIFEST).exists() | copy.is_dir()
        seen += 1
    writer.join()
    assert seen and read_manifest(copy) == loaded.manifest


def test_a_folder_that_cannot_be_made_is_an_error(saved, tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*No such file"):
        pg.load_step(saved).save(tmp_path / "not" / "there")


def test_a_module_that_left_the_cache_or_was_altered_there_is_not_saved(tmp_path):
    artifact = pg.compile(lambda x: x * 5 - 3, strict=True).compile(pg.ones(3))
    content = artifact.path.read_bytes()
    artifact.path.write_bytes(content[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"was altered since it was built"):
        artifact.save(tmp_path / "step")
    shutil.rmtree(artifact.path.parent)  # the whole entry: the other tests share this cache
    with pytest.raises(ArtifactError, match=r"no longer in the cache .* Compile it again"):
        artifact.save(tmp_path / "step")
    assert not (tmp_path / "step").exists()


# --- what cannot be saved ---------------------------------------------------------------------------------------


def refusal(function, *args, tmp_path):
    with pytest.raises(TraceError, match=r"cannot be saved as it is") as caught:
        pg.compile(function, strict=True).compile(*args).save(tmp_path / "step")
    assert not (tmp_path / "step").exists()
    return str(caught.value)


def test_a_step_whose_program_has_changed_since_is_refused(tmp_path):
    program = make_program()
    data = batches(1)
    artifact = program.step.compile(*data[0])
    program.model.eval()
    with pytest.raises(TraceError, match=r"since it was built, .*training.* Compile it again, and save that"):
        artifact.save(tmp_path / "step")
    program.model.train()
    artifact.save(tmp_path / "step")


def test_a_first_call_that_leaves_a_gradient_is_refused(tmp_path):
    weight = pg.ones(3).requires_grad_()

    def accumulate(x):
        loss = (weight * x).sum()
        loss.backward()
        return loss

    text = refusal(accumulate, pg.ones(3), tmp_path=tmp_path)
    assert "first call differs from the next" in text and "Call it once, then compile and save it" in text


def test_results_and_arguments_that_json_cannot_hold_are_refused(tmp_path):
    Pair = collections.namedtuple("Pair", "a b")
    x = pg.ones(3)
    assert "'class Pair' is no container" in refusal(lambda x: Pair(x * 2, x * 3), x, tmp_path=tmp_path)
    assert "returns a ndarray of its own" in refusal(lambda x: (x * 2, np.zeros(3)), x, tmp_path=tmp_path)
    assert "takes a Linear" in refusal(lambda x, layer: layer(x), x, nn.Linear(3, 2), tmp_path=tmp_path)


def test_an_argument_that_is_captured_too_is_refused(tmp_path):
    total = pg.zeros(3)

    def add(x):
        total.add_(1)
        return x + total

    assert "an argument is also a tensor that it captured" in refusal(add, total, tmp_path=tmp_path)


def test_a_captured_tensor_that_only_comes_back_is_refused(tmp_path):
    constant = pg.ones(3)
    text = refusal(lambda x: (x * 2, constant), pg.ones(3), tmp_path=tmp_path)
    assert "returns a captured tensor that it does not use" in text


# --- values -----------------------------------------------------------------------------------------------------

PLAIN = [None, True, 0, -(10**30), 0.1, -0.0, float("inf"), 1 - 2j, "ü\n", b"\0\xff", pg.bfloat16, (), (1, ("a", None)),
         slice(1, None, 2), range(3, 9, 2)]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_as_they_were(value):
    again = values.decode(values.encode(value))
    assert type(again) is type(value) and repr(again) == repr(value)
    assert sum(values.encode(value) == values.encode(other) for other in PLAIN) == 1


@pytest.mark.parametrize("value", [{"int": "x"}, {"float": 1}, {"complex": ["0x1p0"]}, {"range": [1, 2]}, {"a": 1, "b": 2},
                                   {"dtype": "no"}, {"tuple": 3}, {"bytes": "zz"}, 3.5, [1]], ids=repr)  # fmt: skip
def test_json_that_is_no_plain_value_is_refused(value):
    with pytest.raises(ValueError, match=r"\w"):
        values.decode(value)
