"""save and load: every dtype, nesting, other frameworks' files, and files that are not what they should be."""

from __future__ import annotations

import os

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import Tensor, dtypes
from pequegrad.errors import DataError, DTypeError


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_every_dtype_and_shape_comes_back(tmp_path, dtype, shape):
    x = Tensor(np.ones(shape), dtype=dtype)
    pg.save({"x": x, "transposed": x.T if x.ndim == 2 else x}, tmp_path / "a.safetensors")
    back = pg.load(tmp_path / "a.safetensors")
    assert list(back) == ["x", "transposed"]
    assert (back["x"].dtype, back["x"].shape) == (dtype, shape)
    assert back["transposed"].tolist() == (x.T if x.ndim == 2 else x).tolist()


def test_nesting_keys_and_numbers_come_back(tmp_path):
    state = {
        "state": {0: {"step": 3, "m": Tensor([1.0, 2.0])}, 1: {}},
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "nesterov": False, "name": None}],
        "inf": float("inf"),
        "a.b": Tensor([1]),
        "a": {"b": Tensor([2])},
    }
    pg.save(state, tmp_path / "state")
    back = pg.load(tmp_path / "state")
    assert back["state"][0]["m"].tolist() == [1, 2] and back["state"][0]["step"] == 3 and back["state"][1] == {}
    assert back["groups"] == state["groups"] and isinstance(back["groups"][0]["betas"], tuple)
    assert (back["inf"], back["a.b"].item(), back["a"]["b"].item()) == (float("inf"), 1, 2)


def test_a_loaded_tensor_is_a_leaf_that_can_be_written(tmp_path):
    pg.save(Tensor([1.0, 2.0], requires_grad=True), tmp_path / "x")
    x = pg.load(tmp_path / "x")
    assert not x.requires_grad and x.add_(1).tolist() == [2, 3]


def test_safetensors_reads_a_flat_dict_and_writes_one_that_we_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    pg.save({"w": Tensor([[1.0, 2.0]])}, tmp_path / "ours")
    assert library.load_file(tmp_path / "ours")["w"].tolist() == [[1, 2]]
    library.save_file({"v": np.int64([3, 4])}, tmp_path / "theirs")
    assert pg.load(tmp_path / "theirs")["v"].tolist() == [3, 4]


def test_truncated_foreign_and_missing_files_are_named(tmp_path):
    path = tmp_path / "x"
    pg.save({"w": Tensor(np.arange(100.0))}, path)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:20], whole[:3], b"", b"PK\x03\x04 a pickle in a zip file", whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a whole safetensors file"):
            pg.load(path)
    with pytest.raises(DataError, match="No such file"):
        pg.load(tmp_path / "nothing")


def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "x"
    pg.save({"w": Tensor([1.0])}, path)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError, match="No space left"):
        pg.save({"w": Tensor([2.0])}, path)
    monkeypatch.undo()
    assert pg.load(path)["w"].tolist() == [1] and os.listdir(tmp_path) == ["x"]
    path.chmod(0o600)
    pg.save({"w": Tensor([3.0])}, path)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [{"f": print}, {1.5: Tensor([1])}, object(), {"x": {1, 2}}])
def test_what_is_no_data_is_refused(tmp_path, value):
    with pytest.raises(DTypeError, match="save: "):
        pg.save(value, tmp_path / "x")
    assert os.listdir(tmp_path) == []
