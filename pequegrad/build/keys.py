"""What makes two builds the same: the key of a cache entry, as readable fields.

Invariant: every input that could change a module's bytes or meaning is a field of its key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .. import targets
from ..config import config
from ..errors import CacheError, DeviceError, ToolchainError
from ..records import fields, record
from ..targets import Target
from . import programs
from .programs import Compiler, Nvcc

_FORMAT = 2  # goes up when the layout of an entry changes
_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# All of the runtime that the binding's object is made of: other headers may change without compiling it again.
BINDING_SOURCES = (
    "binding/arguments.h",
    "binding/binding.cpp",
    "binding/call.h",
    "binding/guards.h",
    "binding/objects.h",
    "include/pequegrad/interface.h",
    "include/pequegrad/pool.h",
)
# The Python that turns a plan into source: an edit there changes the source of an equal plan.
_GENERATOR_ROOMS = ("codegen", "ops", "targets")
# A file edited twice within one tick of the file system's clock has the same stamp: a fresh one is read
# again.
_SETTLED_SECONDS = 2.0
_NO_NVCC = Nvcc("", "", (), (), ())
_LAST_NVCC = "the last nvcc"


class Memo(Protocol):
    """Facts that are slow to find out, kept with a stamp that says when they are no longer true."""

    def get(self, name: str, stamp: str) -> str | None:
        """Return the fact if it was kept with that stamp."""

    def put(self, name: str, stamp: str, value: str) -> None:
        """Keep a fact."""


@record
class Probes:
    """What asks compilers what they are, by starting them: ``cxx(command)`` returns a version, ``nvcc(path, host)`` a
    version and the folders of libraries. Raise ToolchainError."""

    cxx: Callable[[Sequence[str]], str]
    nvcc: Callable[[str, Compiler], tuple[str, tuple[str, ...]]]


GetProbes = Callable[[], Probes]
"""Asked only where the memo does not know a compiler: the modules that start processes are loaded for that alone."""


@record
class CacheKey:
    """Everything that decides what a step module is. ``name`` is for people and is no part of the identity. The fields
    of nvcc are empty where the C++ compiler alone is asked.
    """

    name: str
    format: int
    target: str
    launch: str
    plan: str
    generator: str
    templates: str
    headers: str
    compiler: tuple[str, ...]
    compiler_version: str
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    extra_flags: tuple[str, ...]
    nvcc: str
    nvcc_version: str
    nvcc_prepend_flags: tuple[str, ...]
    nvcc_append_flags: tuple[str, ...]
    nvcc_libraries: tuple[str, ...]
    processor: str
    python: str
    pybind11: str
    pequegrad: str

    def fields(self) -> dict[str, Any]:
        """Return the identity as a dictionary of JSON values."""
        values = fields(self)
        del values["name"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def digest(self) -> str:
        """The identity as 40 hexadecimal digits."""
        return digest_of(self.fields())

    @property
    def host_compiler(self) -> Compiler:
        """The C++ compiler: of the binding and the link always, of the step's source where there is no nvcc."""
        return Compiler(self.compiler, self.extra_flags, self.compiler_version)

    @property
    def device_compiler(self) -> Nvcc | None:
        """nvcc, or None where the C++ compiler alone is asked."""
        if not self.nvcc:
            return None
        return Nvcc(self.nvcc, self.nvcc_version, self.nvcc_prepend_flags, self.nvcc_append_flags, self.nvcc_libraries)


def digest_of(fields: dict[str, Any]) -> str:
    """Return 40 hexadecimal digits for a dictionary of JSON values."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:40]


def runtime_folder() -> str:
    """Return the folder of the runtime's headers: inside an installed package, or beside it in a source
    checkout.
    """
    installed, beside = f"{_PACKAGE}/_runtime", f"{os.path.dirname(_PACKAGE)}/runtime"
    for folder in (installed, beside):
        if os.path.isdir(f"{folder}/include"):
            return folder
    raise CacheError(
        f"the runtime headers are missing: neither {installed} nor {beside} has them. Install pequegrad again."
    )


def make_step_key(plan_text: str, target: Target, *, name: str, memo: Memo, probes: GetProbes) -> CacheKey:
    """Return the key of the step with this canonical plan text. Raises ToolchainError when there is no
    compiler, or no nvcc for a target that needs it.
    """
    generator = hash_folders(memo, *(f"{_PACKAGE}/{room}" for room in _GENERATOR_ROOMS), suffix=".py")
    return _make_key(plan_text, generator, _package_version(memo, generator), target, name, memo, probes)


def make_graph_key(graph_text: str, target: Target, *, name: str, memo: Memo, probes: GetProbes) -> CacheKey:
    """Return the key under which is kept what became of a traced graph: like a step's, but with all of the package's Python,
    which makes the plan of a graph. Raises as `make_step_key` does."""
    package = hash_folders(memo, _PACKAGE, suffix=".py")
    return _make_key(graph_text, package, "", target, name, memo, probes)


def _make_key(
    text: str, generator: str, version: str, target: Target, name: str, memo: Memo, probes: GetProbes
) -> CacheKey:
    compiler = find_compiler(memo, probes)
    device_compiler = find_nvcc(memo, compiler, probes) if target.compiler == "nvcc" else _NO_NVCC
    return CacheKey(
        name=name,
        format=_FORMAT,
        target=target.name,
        launch=target.launch,
        plan=hashlib.sha256(text.encode()).hexdigest(),
        generator=generator,
        templates=hash_folders(memo, f"{_PACKAGE}/templates"),
        headers=hash_folders(memo, runtime_folder()),
        compiler=compiler.command,
        compiler_version=compiler.version,
        flags=target.compile_flags,
        link_flags=target.link_flags,
        extra_flags=compiler.extra_flags,
        nvcc=device_compiler.path,
        nvcc_version=device_compiler.version,
        nvcc_prepend_flags=device_compiler.prepend_flags,
        nvcc_append_flags=device_compiler.append_flags,
        nvcc_libraries=device_compiler.library_folders,
        processor=targets.host_processor() if target.is_native else targets.host_machine(),
        python=programs.python_tag(),
        pybind11=_pybind11_version(memo),
        pequegrad=version,
    )


def binding_fields(key: CacheKey, target: Target, memo: Memo) -> dict[str, Any]:
    """Return what decides the binding's object: the same for all steps of one Python, pybind11 and compiler."""
    return {
        "format": _FORMAT,
        "headers": hash_folders(memo, *(f"{runtime_folder()}/{name}" for name in BINDING_SOURCES)),
        "compiler": list(key.compiler),
        "compiler_version": key.compiler_version,
        "flags": list(target.binding_flags),
        "extra_flags": list(key.extra_flags),
        "machine": targets.host_machine(),
        "python": key.python,
        "pybind11": key.pybind11,
    }


def parts_fields(key: CacheKey, target: Target, memo: Memo) -> dict[str, Any]:
    """Return what decides the object of the parts that depend on no graph: the same for all steps of a compiler, a
    processor and a set of flags."""
    return {
        "format": _FORMAT,
        "headers": hash_folders(memo, f"{runtime_folder()}/include", f"{runtime_folder()}/{target.parts}"),
        "compiler": list(key.compiler),
        "compiler_version": key.compiler_version,
        "flags": list(key.flags),
        "extra_flags": list(key.extra_flags),
        "processor": key.processor,
    }


def find_compiler(memo: Memo, probes: GetProbes) -> Compiler:
    """Return the compiler; a process is started only when the compiler has changed since the memo was
    written.
    """
    command = programs.locate_command()
    name, stamp = f"version of {' '.join(command)}", programs.command_stamp(command)
    version = memo.get(name, stamp)
    if version is None:
        version = probes().cxx(command)
        memo.put(name, stamp, version)
    return Compiler(command, programs.extra_flags(), version)


def find_nvcc(memo: Memo, host: Compiler, probes: GetProbes) -> Nvcc:
    """Return nvcc; a process is started only when it has changed since the memo was written. Where none is there any
    more, return the last one that was: what it has built is still good.
    """
    prepend, append = programs.nvcc_flags()
    try:
        path = programs.locate_nvcc()
    except ToolchainError:
        last = memo.get(_LAST_NVCC, "") if config.cuda_home is None else None
        if last is None:
            raise
        path, version, *libraries = json.loads(last)
        return Nvcc(path, version, prepend, append, tuple(libraries))
    name, stamp = f"nvcc {path}", programs.command_stamp((path,))
    known = memo.get(name, stamp)
    if known is None:
        version, folders = probes().nvcc(path, host)
        known = json.dumps([path, version, *folders])
        memo.put(name, stamp, known)
        memo.put(_LAST_NVCC, "", known)
    path, version, *libraries = json.loads(known)
    return Nvcc(path, version, prepend, append, tuple(libraries))


def check_can_run(target: Target, key: CacheKey | None = None) -> None:
    """Raise DeviceError if this machine cannot run code for the target, with what it needs and what is here named.

    ``key``, where there is one, tells what the code was compiled with.
    """
    target.check_runs_on(targets.host_machine(), targets.host_features())
    if target.compiler != "nvcc":
        return
    device = targets.find_device()
    if isinstance(device, str):
        raise DeviceError(targets.no_device(device))
    toolkit = programs.release_of(key.nvcc_version) if key is not None else ""
    problem = targets.device_problem(device, target.instruction_set.name, toolkit)
    if problem is not None:
        raise DeviceError(f"a compiled step cannot run on this machine: {problem}.")


def hash_folders(memo: Memo, *folders: str, suffix: str = "") -> str:
    """Return a hash over names and contents of files and of all files below folders; unchanged files are not read
    again.
    """
    files = sorted(found for folder in folders for found in _list_files(folder, suffix))
    stamp = hashlib.sha256("\n".join(f"{name} {mark}" for name, _, mark, _ in files).encode()).hexdigest()
    name = f"contents of {' '.join(folders)} {suffix}".rstrip()
    known = memo.get(name, stamp)
    if known is not None:
        return known
    contents = hashlib.sha256()
    for relative, path, _, _ in files:
        with open(path, "rb") as file:
            data = file.read()
        contents.update(f"{relative}\0{len(data)}\0".encode() + data)
    if all(time.time() - changed > _SETTLED_SECONDS for *_, changed in files):
        memo.put(name, stamp, contents.hexdigest())
    return contents.hexdigest()


def distribution_version(distribution: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _list_files(place: str, suffix: str) -> list[tuple[str, str, str, float]]:
    """Return (name, path, stamp, time of change) of a file or of each file below a folder but hidden ones."""
    above = len(os.path.dirname(place)) + 1
    if not os.path.isdir(place):
        return _stamped([place], above)
    paths, waiting = [], [place]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name == "__pycache__":
                    continue
                if entry.is_dir():
                    waiting.append(entry.path)
                elif name.endswith(suffix):
                    paths.append(entry.path)
    return _stamped(paths, above)


def _stamped(paths: list[str], above: int) -> list[tuple[str, str, str, float]]:
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue  # a room that is not there adds nothing
        mark = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
        found.append((path[above:], path, mark, max(status.st_mtime, status.st_ctime)))
    return found


def _pybind11_version(memo: Memo) -> str:
    # Neither pybind11 nor importlib.metadata is imported when the memo knows: together they cost 15 ms.
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        return "none"
    return _memoised_version(memo, "pybind11", programs.file_stamp(spec.origin))


def _package_version(memo: Memo, generator: str) -> str:
    return _memoised_version(memo, "pequegrad", generator)


def _memoised_version(memo: Memo, distribution: str, stamp: str) -> str:
    name = f"version of the distribution {distribution} for {sys.prefix}"
    version = memo.get(name, stamp)
    if version is None:
        version = distribution_version(distribution)
        memo.put(name, stamp, version)
    return version
