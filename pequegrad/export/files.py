"""An artifact's folder on disk: written beside its place and renamed, and read with sizes and sums checked.

Invariant: a folder appears whole or not at all; no byte of a file is used before its size and sha256 were found right,
and none outside of the folder is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from ..errors import ArtifactError

MANIFEST, SUM = "manifest.json", "manifest.sha256"
MOST_MANIFEST_BYTES = 2**26  # thousands of times what a step needs
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def sum_of(content: bytes) -> str:
    """Return the sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sum_file(manifest: bytes) -> bytes:
    """Return the content of the manifest's sum file, as ``sha256sum -c`` reads it."""
    return f"{sum_of(manifest)}  {MANIFEST}\n".encode()


def write_folder(path: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write a new folder with these files. ``overwrite``: in the place of an artifact that is there.

    Raises ArtifactError where something is there already that must stay, or the disk says no; then nothing has changed.
    """
    path = Path(os.path.abspath(path.expanduser()))
    _check_place(path, overwrite)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        os.mkdir(beside)
        try:
            for name, content in files.items():
                with open(beside / name, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _sync(beside)
            _put_in_place(beside, path)
            _sync(path.parent)
        finally:
            _remove(beside)
    except OSError as error:
        raise ArtifactError(f"save: cannot write {path}: {error.strerror or error}.") from error


def _check_place(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    is_artifact = path.is_dir() and not path.is_symlink() and (path / MANIFEST).is_file() and (path / SUM).is_file()
    if not is_artifact:
        raise ArtifactError(f"save: {path} exists and is no artifact, so it is left as it is. Choose another path.")
    if not overwrite:
        raise ArtifactError(f"save: {path} exists. Choose another path, or pass overwrite=True to replace it.")


def _put_in_place(folder: Path, path: Path) -> None:
    """Give a finished folder its name; one that had it is left under the name of ``folder``, to be removed."""
    if not os.path.lexists(path):
        os.rename(folder, path)
    elif not _exchange(folder, path):
        old = path.with_name(f"{folder.name}.old")
        os.rename(path, old)
        try:
            os.rename(folder, path)
        except OSError:
            os.rename(old, path)
            raise
        os.rename(old, folder)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that there is one under each name at every moment; False where that cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    return rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot; the files themselves are on disk
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def check_folder(path: Path) -> None:
    """Raise ArtifactError unless this is a folder that nobody else could have planted code in."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ArtifactError(f"{path} is no folder. Expected one that an artifact's save wrote.")
    if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
        raise ArtifactError(
            f"{path} belongs to another user (uid {status.st_uid}), who could put code of theirs in it. Copy it first."
        )
    if status.st_mode & stat.S_IWOTH:
        raise ArtifactError(f"every user may write to {path} and could put code in it. Run: chmod go-w {path}")


def read_manifest(path: Path) -> bytes:
    """Return the manifest's bytes, which agree with its sum file. Raises ArtifactError."""
    content = _read(path, MANIFEST, most=MOST_MANIFEST_BYTES)
    expected = _read(path, SUM, most=1024)
    if expected != sum_file(content):
        raise ArtifactError(
            f"{path / MANIFEST} was altered or is not whole: its sha256 is {sum_of(content)}, and {SUM} says "
            f"{expected[:64].decode('ascii', 'replace')}. Copy the folder again, or save it again."
        )
    return content


def read_file(path: Path, name: str, size: int, sha256: str) -> bytes:
    """Return the bytes of one file of the folder, of just this size and sum. Raises ArtifactError."""
    content = _read(path, name, most=size, exactly=size)
    found = sum_of(content)
    if found != sha256:
        raise ArtifactError(
            f"{path / name} was altered: its sha256 is {found}, and the manifest says {sha256}. Copy the folder again, or "
            "save it again."
        )
    return content


def _read(path: Path, name: str, *, most: int, exactly: int = -1) -> bytes:
    place = path / name
    try:
        # No link is followed: it could lead out of the folder. A pipe would make open wait.
        number = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        hint = "" if name != MANIFEST else " Expected a folder that an artifact's save wrote."
        raise ArtifactError(f"{path} has no {name}.{hint}") from None
    except OSError as error:
        what = (
            "is a symbolic link, which is not followed" if place.is_symlink() else f"cannot be read: {error.strerror}"
        )
        raise ArtifactError(f"{place} {what}.") from error
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{place} is no ordinary file.")
        if exactly >= 0 and status.st_size != exactly:
            raise ArtifactError(
                f"{place} has {status.st_size} bytes, and the manifest says {exactly}: it is not whole. Copy the folder "
                "again, or save it again."
            )
        if status.st_size > most:
            raise ArtifactError(f"{place} has {status.st_size} bytes, more than the {most} that it may have.")
        with open(number, "rb", closefd=False) as file:
            return file.read(status.st_size + 1)
    finally:
        os.close(number)
