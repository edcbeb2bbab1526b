"""The cache's folder: which one may be used, its layout, its entries with their sums, and its locks.

Invariant: an entry appears whole, by renaming a folder written beside it, and is believed only while its sums
are right. With ``cache.py`` the only code that writes there.

    memo.json                        facts slow to find out, such as the compiler's version
    steps/<ab>/<digest>/             key.json, <name>.cpp, build.log, pg_step<suffix>
    bindings/<ab>/<digest>/          key.json, build.log, binding.o
    graphs/<ab>/<digest>.json        which step a traced graph became, and how it is run
    templates/<ab>/<digest>          the Python code that a template was compiled to, after its sum
    locks/<digest>.lock              held while an entry is built or evicted
    failed/<digest>/                 source and log of the last failed builds
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..config import config
from ..errors import PequegradWarning
from ..records import record

STEPS, BINDINGS, GRAPHS, CODES = "steps", "bindings", "graphs", "templates"
_RECORD = "key.json"
_MEMO = "memo.json"
_TEMPORARY = ".tmp-"
_WORLD_WRITABLE = 0o002
_SUM_BYTES = hashlib.sha256().digest_size
_LOCK_SECONDS = 600.0  # far longer than any build: beyond it the other process hangs
_POLL_SECONDS = 0.02

_said: set[str] = set()
_opened: dict[tuple[str, str, int], Root] = {}
_temporary_roots: list[tuple[int, str]] = []


@record
class Entry:
    """A folder of the cache whose record was read: ``product`` is the module or object file that it is about."""

    folder: str
    record: dict[str, Any]

    @property
    def product(self) -> str:
        """The module or object file."""
        return os.path.join(self.folder, self.record["product"])

    @property
    def source(self) -> str:
        """The source file that the product was compiled from."""
        return os.path.join(self.folder, self.record["source"])


class Root:
    """One usable cache folder. ``is_temporary``: private to this process and removed at its end."""

    def __init__(self, path: str, *, is_writable: bool, is_temporary: bool) -> None:
        self.path = path
        self.is_writable = is_writable
        self.is_temporary = is_temporary
        self._memo: dict[str, list[str]] | None = None

    # ---- memo ----

    def get(self, name: str, stamp: str) -> str | None:
        """Return the fact of that name if it was kept with that stamp."""
        if self._memo is None:
            self._memo = _read_memo(f"{self.path}/{_MEMO}")
        known = self._memo.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def put(self, name: str, stamp: str, value: str) -> None:
        """Keep a fact, on disk too where that is possible."""
        # Other processes write here as well: take in what they found first.
        self._memo = {**_read_memo(f"{self.path}/{_MEMO}"), **(self._memo or {}), name: [stamp, value]}
        if self.is_writable:
            with contextlib.suppress(OSError):  # a memo saves time, it is never needed
                _replace(f"{self.path}/{_MEMO}", json.dumps(self._memo, indent=1).encode())

    def forget_memo(self) -> None:
        """Remove all facts."""
        self._memo = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}/{_MEMO}")

    # ---- entries ----

    def folder(self, kind: str, digest: str) -> str:
        """Return where the entry of that digest lies, or would."""
        return f"{self.path}/{kind}/{digest[:2]}/{digest}"

    def read(self, kind: str, digest: str, identity: dict[str, Any]) -> Entry | None:
        """Return the entry if it is there, is about ``identity``, and its product has its recorded size and
        sha256.
        """
        return self._checked(self.folder(kind, digest), lambda key: key == identity)

    def read_known(self, kind: str, digest: str, digest_of: Callable[[dict[str, Any]], str]) -> Entry | None:
        """Return the entry if it is there, its identity has this digest, and its product is as recorded."""
        return self._checked(self.folder(kind, digest), lambda key: digest_of(key) == digest)

    def _checked(self, folder: str, is_wanted: Callable[[Any], bool]) -> Entry | None:
        if not os.path.isdir(folder):
            return None
        entry = Entry(folder, read_record(folder))
        problem = find_problem(entry)
        if "key" in entry.record and not is_wanted(entry.record["key"]):
            problem = "belongs to another key"
        if problem is not None:
            log(f"{folder} {problem}: building it again")
            return None
        return entry

    @contextlib.contextmanager
    def begin(self, kind: str, digest: str) -> Iterator[str]:
        """Yield a new folder beside the entry's place; remove it at the end unless ``publish`` has renamed
        it.
        """
        shelf = os.path.dirname(self.folder(kind, digest))
        os.makedirs(shelf, mode=0o700, exist_ok=True)
        folder = f"{shelf}/{_TEMPORARY}{digest}-{os.getpid()}-{time.monotonic_ns()}"
        os.mkdir(folder, mode=0o700)
        try:
            yield folder
        finally:
            remove_tree(folder)

    def publish(self, kind: str, digest: str, folder: str, record: dict[str, Any]) -> Entry:
        """Write the record with the product's sums into a folder from ``begin`` and give it its place.

        The caller holds the digest's lock; a broken entry in that place is replaced.
        """
        record = {**record, **_sums(f"{folder}/{record['product']}")}
        with open(f"{folder}/{_RECORD}", "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
        place = self.folder(kind, digest)
        if os.path.exists(place):
            broken = f"{folder}-replaced"
            os.rename(place, broken)
            remove_tree(broken)
        os.rename(folder, place)
        return Entry(place, record)

    # ---- graphs ----

    def recall_graph(self, digest: str, identity: dict[str, Any]) -> tuple[str, str] | None:
        """Return (the digest of the step, how it is run) that `keep_graph` kept, if the file is whole and is about
        ``identity``."""
        path = f"{self.folder(GRAPHS, digest)}.json"
        try:
            with open(path, "rb") as file:
                if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                    return None
                record = json.loads(file.read())
            step, facts = record["step"], record["facts"]
            if record["key"] != identity or record["sha256"] != _sum_of_graph(step, facts):
                log(f"{path} was altered, or belongs to another key: planning again")
                return None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            log(f"{path} is not readable: planning again")
            return None
        if self.is_writable:
            with contextlib.suppress(OSError):
                os.utime(path)
        return step, facts

    def keep_graph(self, digest: str, identity: dict[str, Any], step: str, facts: str) -> None:
        """Keep which step a graph became, and how it is run; the file appears whole, by renaming."""
        if not self.is_writable:
            return
        path = f"{self.folder(GRAPHS, digest)}.json"
        record = {"key": identity, "step": step, "facts": facts, "sha256": _sum_of_graph(step, facts)}
        with contextlib.suppress(OSError):  # it saves time, it is never needed
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            _replace(path, json.dumps(record, indent=1).encode())

    def forget_graphs(self, keep: int = 0) -> None:
        """Remove all but the ``keep`` that were used last, and what killed processes left of them."""
        self._forget(GRAPHS, keep)

    def _forget(self, kind: str, keep: int) -> None:
        found = sorted(_on_shelves(f"{self.path}/{kind}"), key=_last_change, reverse=True)
        for path in found[keep:]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    # ---- the code of templates ----

    def recall_code(self, digest: str) -> bytes | None:
        """Return what `keep_code` kept, if the file is whole and this user's."""
        path = self.folder(CODES, digest)
        try:
            with open(path, "rb") as file:
                if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                    return None
                data = file.read()
        except OSError:
            return None
        code = data[_SUM_BYTES:]
        if hashlib.sha256(code).digest() != data[:_SUM_BYTES]:
            log(f"{path} was altered: compiling the template again")
            return None
        return code

    def keep_code(self, digest: str, code: bytes) -> None:
        """Keep the code of a template; the file appears whole, by renaming."""
        if not self.is_writable:
            return
        path = self.folder(CODES, digest)
        with contextlib.suppress(OSError):  # it saves time, it is never needed
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            _replace(path, hashlib.sha256(code).digest() + code)

    def forget_codes(self, keep: int = 0) -> None:
        """Remove all but the ``keep`` newest, and what killed processes left of them."""
        self._forget(CODES, keep)

    def keep_failed(self, digest: str, folder: str) -> str:
        """Move the folder of a failed build to where the user can read it; return its new place."""
        failed = f"{self.path}/failed"
        place = f"{failed}/{digest}"
        os.makedirs(failed, mode=0o700, exist_ok=True)
        remove_tree(place)
        os.rename(folder, place)
        for old in sorted(_children(failed), key=_last_change)[:-16]:
            remove_tree(old)
        return place

    def touch(self, entry: Entry) -> None:
        """Note that the entry was used now."""
        if self.is_writable:
            with contextlib.suppress(OSError):  # at worst it is evicted too early
                os.utime(f"{entry.folder}/{_RECORD}")

    def folders(self, kind: str) -> list[str]:
        """Return the folders of all entries, broken ones too."""
        found = _on_shelves(f"{self.path}/{kind}")
        return [folder for folder in found if not _is_temporary(folder) and os.path.isdir(folder)]

    def temporaries(self) -> list[str]:
        """Return the folders of builds that are under way, or were killed."""
        return [
            place for kind in (STEPS, BINDINGS) for place in _on_shelves(f"{self.path}/{kind}") if _is_temporary(place)
        ]

    # ---- locks ----

    @contextlib.contextmanager
    def held(self, digest: str, progress: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of a digest, waiting for another process that has it. The system frees a dead
        process's lock.

        Raises OSError when the lock cannot be had.
        """
        from filelock import FileLock, Timeout

        os.makedirs(f"{self.path}/locks", mode=0o700, exist_ok=True)
        lock = FileLock(f"{self.path}/locks/{digest}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress("waiting for another process that builds the same step")
            try:
                lock.acquire(timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS)
            except Timeout as error:
                raise OSError(f"another process held {lock.lock_file} for {_LOCK_SECONDS:.0f} s") from error
        try:
            yield
        finally:
            lock.release()

    def remove_unless_held(self, digest: str, folder: str) -> bool:
        """Remove a folder that belongs to the digest, unless a process holds its lock; return whether it
        went.
        """
        from filelock import FileLock, Timeout

        os.makedirs(f"{self.path}/locks", mode=0o700, exist_ok=True)
        lock = FileLock(f"{self.path}/locks/{digest}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            remove_tree(folder)
        finally:
            lock.release()
        return True

    def sweep(self) -> None:
        """Remove what killed builds have left."""
        for folder in self.temporaries():
            self.remove_unless_held(os.path.basename(folder).removeprefix(_TEMPORARY).partition("-")[0], folder)


def cache_path() -> str:
    """Return the cache folder that the settings name; it need not exist."""
    return config.cache_folder()


def refusal(path: str) -> str | None:
    """Return why the cache must not use an existing folder, or None."""
    status = os.stat(path)
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return f"it belongs to another user (uid {status.st_uid}), who could plant code in it"
    if status.st_mode & _WORLD_WRITABLE:
        return f"every user may write to it and could plant code in it. Run: chmod go-w {path}"
    return None


def usability(path: str, mode: str) -> str | None:
    """Return why the folder cannot be used as things stand, or None; nothing is created."""
    if mode == "off":
        return None
    try:
        if os.path.isdir(path):
            return refusal(path) or (None if mode == "readonly" or os.access(path, os.W_OK) else "it is read-only")
        above = os.path.dirname(path)
        while not os.path.exists(above):
            above = os.path.dirname(above)
        return None if mode == "readonly" or os.access(above, os.W_OK) else f"{above} is read-only"
    except OSError as error:
        return error.strerror or str(error)


def open_root() -> Root:
    """Return the folder to use: the cache, or with one warning a private temporary folder when it cannot be
    used.
    """
    mode = config.cache
    if mode == "off":
        return temporary_root()
    path = cache_path()
    key = (path, mode, os.getpid())  # a forked child must not lean on its parent's temporary folder
    if key not in _opened:
        _opened[key] = _open(path, mode)
    return _opened[key]


def _open(path: str, mode: str) -> Root:
    try:
        if mode == "on":
            os.makedirs(path, mode=0o700, exist_ok=True)
        elif not os.path.isdir(path):
            return temporary_root()
        problem = refusal(path)
    except OSError as error:
        problem = f"{error.strerror or error}"
    if problem is not None:
        warn_unusable(path, problem)
        return temporary_root()
    return Root(path, is_writable=mode == "on", is_temporary=False)


def warn_unusable(path: str, problem: str) -> None:
    """Say once that the cache folder cannot be used and what to do."""
    text = (
        f"the cache folder {path} is not used: {problem}. Steps are compiled into a temporary folder, "
        "again in every process. Set PEQUEGRAD_CACHE_DIR to a folder of your own, or PEQUEGRAD_CACHE=off to "
        "silence this."
    )
    if text not in _said:
        _said.add(text)
        warnings.warn(text, PequegradWarning, stacklevel=2)


def temporary_root() -> Root:
    """Return this process's private folder, made at the first call and removed at the process's end."""
    key = ("", "temporary", os.getpid())
    if key not in _opened:
        import atexit
        import tempfile

        path = tempfile.mkdtemp(prefix="pequegrad-")
        _temporary_roots.append((os.getpid(), path))
        if len(_temporary_roots) == 1:
            atexit.register(_remove_temporary_roots)
        _opened[key] = Root(path, is_writable=True, is_temporary=True)
    return _opened[key]


def _remove_temporary_roots() -> None:
    for process, path in _temporary_roots:
        if process == os.getpid():  # not the parent's, in a forked child
            remove_tree(path)


def read_record(folder: str) -> dict[str, Any]:
    """Return an entry's record; an unreadable one counts as empty, and so as a broken entry."""
    try:
        record = json.loads(_content(f"{folder}/{_RECORD}"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def find_problem(entry: Entry) -> str | None:
    """Return what is wrong with an entry's record or product, or None when it can be trusted."""
    if not {"key", "product", "source", "size", "sha256"} <= entry.record.keys():
        return "has no readable record"
    try:
        if hasattr(os, "geteuid") and os.stat(entry.folder).st_uid != os.geteuid():
            return "belongs to another user"
        found = _sums(entry.product)
    except OSError as error:
        return f"has no readable {entry.record['product']} ({error.strerror})"
    if found["size"] != entry.record["size"]:
        return f"has a {entry.record['product']} of {found['size']} bytes instead of {entry.record['size']}"
    if found["sha256"] != entry.record["sha256"]:
        return f"has a {entry.record['product']} that was altered"
    return None


def last_used(folder: str) -> float:
    """Return when the entry was last used, in seconds since the epoch."""
    record = f"{folder}/{_RECORD}"
    return _last_change(record if os.path.exists(record) else folder)


def tree_bytes(folder: str) -> int:
    """Return the bytes of all files below a folder, some of which may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def remove_tree(folder: str) -> None:
    """Remove a folder and all in it as far as that is possible; nothing happens when there is none."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def log(text: str) -> None:
    """Print a line for PEQUEGRAD_LOGS=cache."""
    if "cache" in config.logs:
        print(f"pequegrad cache: {text}", file=sys.stderr)


def _last_change(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _children(place: str) -> list[str]:
    """Return the paths of what lies in a folder; none where there is no such folder."""
    try:
        return [f"{place}/{name}" for name in os.listdir(place)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _on_shelves(place: str) -> list[str]:
    """Return the paths of all that lies in the folders of a folder."""
    return [path for shelf in _children(place) for path in _children(shelf)]


def _is_temporary(path: str) -> bool:
    return os.path.basename(path).startswith(_TEMPORARY)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _replace(path: str, content: bytes) -> None:
    """Write a file so that it appears whole, by renaming."""
    above, name = os.path.split(path)
    temporary = f"{above}/{_TEMPORARY}{name}-{os.getpid()}-{threading.get_ident()}"
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def _sums(path: str) -> dict[str, Any]:
    data = _content(path)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sum_of_graph(step: str, facts: str) -> str:
    return hashlib.sha256(f"{step}\0{facts}".encode()).hexdigest()


def _read_memo(path: str) -> dict[str, list[str]]:
    try:
        memo = json.loads(_content(path))
    except (OSError, ValueError):
        return {}
    if not isinstance(memo, dict):
        return {}
    return {name: fact for name, fact in memo.items() if isinstance(fact, list) and len(fact) == 2}
