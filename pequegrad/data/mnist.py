"""MNIST (LeCun, Cortes, Burges), read from its four gzipped IDX files and checked field by field.

Invariant: arrays are returned only if the file is whole and says what its name says; else DataError names it.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError

FILES = {
    True: ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    False: ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
}
DEFAULT_ROOTS = ("examples/data/mnist", "data/mnist")
_IMAGE_SIZE = (28, 28)


def mnist(root: str | os.PathLike[str] | None = None, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's training or test part: ``(images, labels)``.

    ``images`` is float32 (N, 1, 28, 28) scaled to [0, 1], ``labels`` int64 (N,), with N 60,000 or 10,000.
    ``root`` is the folder of the four ``.gz`` files; None looks in ``examples/data/mnist`` and ``data/mnist``
    below the working directory and below the checkout that pequegrad was imported from.

    Raises DataError for a file that is missing, truncated, or not MNIST.
    """
    images_name, labels_name, count = FILES[bool(train)]
    folder = Path(root) if root is not None else _default_root(images_name)
    pixels = _read_idx(folder / images_name, (count, *_IMAGE_SIZE))
    labels = _read_idx(folder / labels_name, (count,))
    if labels.max() > 9:
        raise DataError(f"{folder / labels_name}: labels must be 0 to 9. Got {labels.max()}. {_CURE}")
    images = pixels.reshape(count, 1, *_IMAGE_SIZE).astype(np.float32)
    images /= np.float32(255.0)
    return images, labels.astype(np.int64)


_CURE = f"Get the file again; the four are {', '.join(name for part in FILES.values() for name in part[:2])}."


def _default_root(wanted: str) -> Path:
    checkout = Path(__file__).resolve().parents[2]
    tried = [base / root for base in (Path.cwd(), checkout) for root in DEFAULT_ROOTS]
    for folder in tried:
        if (folder / wanted).is_file():
            return folder
    places = ", ".join(dict.fromkeys(map(str, tried)))
    raise DataError(f"MNIST: no {wanted} in any of {places}. Name the folder that holds it: mnist(root=...).")


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of an IDX file (magic 0x08 and ndim, big-endian extents, bytes) of ``shape``."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. MNIST's folder must hold it; name another one by root= (--data).")
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the file is truncated or damaged ({error}). {_CURE}") from None
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DataError(f"{path}: an IDX header of {header} bytes was expected. Got {len(content)} bytes. {_CURE}")
    magic, *extents = struct.unpack(f">{1 + len(shape)}I", content[:header])
    expected_magic = 0x0800 + len(shape)
    if magic != expected_magic:
        raise DataError(f"{path}: expected the IDX magic 0x{expected_magic:08x}. Got 0x{magic:08x}. {_CURE}")
    if tuple(extents) != shape:
        raise DataError(f"{path}: expected shape {shape} in the header. Got {tuple(extents)}. {_CURE}")
    expected_bytes = int(np.prod(shape))
    if len(content) - header != expected_bytes:
        raise DataError(f"{path}: expected {expected_bytes} bytes of data. Got {len(content) - header}. {_CURE}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
