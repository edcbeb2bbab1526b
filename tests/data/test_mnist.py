"""MNIST's reader: the files in the repository are whole, and a damaged one is named."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from pequegrad.data import mnist
from pequegrad.errors import DataError


@pytest.fixture(scope="session")
def original() -> Path:
    return Path(__file__).parents[2] / "examples" / "data" / "mnist"


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    """A copy of the test part, to be damaged."""
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(original / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("train", "count"), [(True, 60_000), (False, 10_000)])
def test_parts_have_their_shapes_dtypes_and_ranges(original, train, count):
    images, labels = mnist(original, train)
    assert images.shape == (count, 1, 28, 28) and images.dtype == np.float32
    assert labels.shape == (count,) and labels.dtype == np.int64
    assert images.min() == 0.0 and images.max() == 1.0
    assert sorted(set(labels.tolist())) == list(range(10))


def test_known_first_labels_and_mean(original):
    images, labels = mnist(original, train=True)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert images.mean() == pytest.approx(0.1307, abs=1e-4)  # the mean that everybody normalizes by


def test_root_is_found_in_the_checkout_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mnist(train=False)[1].shape == (10_000,)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: no such file"):
        mnist(tmp_path)


def test_truncated_file_is_named(folder):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: the file is truncated"):
        mnist(folder, train=False)


def test_a_file_that_is_no_gzip_is_named(folder):
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: the file is truncated or damaged"):
        mnist(folder, train=False)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\0\0", "IDX header"),
        (struct.pack(">II", 0x803, 10_000) + bytes(10_000), "magic 0x00000801. Got 0x00000803"),
        (struct.pack(">II", 0x801, 9_999) + bytes(9_999), r"expected shape \(10000,\).*Got \(9999,\)"),
        (struct.pack(">II", 0x801, 10_000) + bytes(9_999), "expected 10000 bytes of data. Got 9999"),
        (struct.pack(">II", 0x801, 10_000) + bytes([10] * 10_000), "labels must be 0 to 9. Got 10"),
    ],
    ids=["short", "magic", "count", "data", "range"],
)
def test_wrong_contents_are_named(folder, content, complaint):
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=f"t10k-labels-idx1-ubyte.gz.*{complaint}"):
        mnist(folder, train=False)
