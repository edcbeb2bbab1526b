"""From a key to a running step: out of memory, out of the disk cache, or compiled now; and the cache, for people.

Invariant: a hit renders nothing and imports neither jinja2 nor pybind11; trouble with the cache folder costs a warning
and time, never the step.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import targets
from ..config import config
from ..errors import CacheError, CompilerBug, ToolchainError
from ..forking import in_each_child
from ..targets import Target
from . import folder as disk
from . import kernel_report, keys, known, loader, nvcc, programs, toolchain
from .folder import BINDINGS, STEPS, Entry, Root
from .keys import CacheKey
from .known import BuiltStep, Origin

Progress = Callable[[str], None]
PROBES = keys.Probes(toolchain.probe_version, nvcc.probe)

_BINDING_SOURCE = "binding/binding.cpp"
_BUILD_LOG = "build.log"
# Graphs of which is kept what they became, the last used ones: some kilobytes each.
_MOST_GRAPHS = 4096
# Templates, of a few versions of the package, of which the code is kept.
_MOST_CODES = 256


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """An entry of the disk cache, for people. ``problem``: why it is not believed, found by ``verify`` alone."""

    digest: str
    name: str
    target: str
    bytes: int
    created: float
    last_used: float
    build_seconds: float
    folder: Path
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The state of the disk cache. ``refusal``: why its folder must not be used, or None."""

    path: Path
    mode: str
    problem: str | None
    entries: int
    bytes: int
    limit_bytes: int
    bindings: int
    failed_builds: int
    unfinished_builds: int


_building: dict[str, threading.Lock] = {}
"""A lock for each key that is being built; under `known.lock`."""
in_each_child(_building.clear)


class _TemplateCodes:
    """Keeps the code that templates were compiled to, in the cache folder that there is then."""

    def recall(self, digest: str) -> bytes | None:
        """Return what was kept under a digest, whole, or None."""
        return disk.open_root().recall_code(digest)

    def keep(self, digest: str, code: bytes) -> None:
        """Keep it where that is possible."""
        disk.open_root().keep_code(digest, code)


TEMPLATE_CODES = _TemplateCodes()


def make_key(plan_text: str, target: Target, *, name: str) -> CacheKey:
    """Return the cache key of the step with this canonical plan text; ``name`` is what people call the step.

    Raises ToolchainError, with the cure, when there is no compiler.
    """
    return keys.make_step_key(plan_text, target, name=name, memo=disk.open_root(), probes=lambda: PROBES)


def recall(name: str, stamp: str) -> str | None:
    """Return what `remember` kept under that name with that stamp, in this process or another, or None."""
    return disk.open_root().get(name, stamp)


def remember(name: str, stamp: str, value: str) -> None:
    """Keep a fact that was slow to find out, until the cache is cleared."""
    disk.open_root().put(name, stamp, value)


def get_or_build(
    key: CacheKey,
    render: Callable[[], str],
    target: Target,
    progress: Progress | None = None,
    *,
    is_for_here: bool = True,
) -> BuiltStep:
    """Return the step of a key from memory, from disk, or compiled from the source text that ``render``
    returns.

    ``progress`` is told, in a few words, what takes long. ``is_for_here``: the step is to run on this machine; raises
    DeviceError when it cannot, because of processor, device or driver. Raises ToolchainError when the compiler fails.
    Threads and processes that ask for one key make one build.
    """
    start = time.perf_counter()
    if is_for_here:
        keys.check_can_run(target, key)
    digest = key.digest
    with known.lock.now:
        built = known.loaded.get(digest)
        building = _building.setdefault(digest, threading.Lock())
    if built is not None:
        return built.again(0.0)
    with building:
        built = known.loaded.get(digest)
        if built is not None:
            return built.again(time.perf_counter() - start)
        entry, origin = _find_or_build(key, digest, render, target, progress or (lambda text: None))
        built = known.load(entry, digest, origin, start)
    with known.lock.now:
        _building.pop(digest, None)
    return built


def _find_or_build(
    key: CacheKey, digest: str, render: Callable[[], str], target: Target, progress: Progress
) -> tuple[Entry, Origin]:
    root = disk.open_root()
    identity = key.fields()
    entry = root.read(STEPS, digest, identity)
    if entry is not None:
        root.touch(entry)
        return entry, "disk"
    if root.is_writable:
        try:
            with root.held(digest, progress):
                entry = root.read(STEPS, digest, identity)  # another process may have built it meanwhile
                if entry is not None:
                    return entry, "disk"
                entry = _build_step(root, key, digest, render, target, progress)
        except OSError as error:
            if root.is_temporary:
                raise CacheError(f"cannot build in the temporary folder {root.path}: {error}") from error
            disk.warn_unusable(root.path, error.strerror or str(error))
        else:
            _tidy(root, digest)
            return entry, "compiled"
    temporary = disk.temporary_root()
    entry = temporary.read(STEPS, digest, identity)
    return entry or _build_step(temporary, key, digest, render, target, progress), "compiled"


def _build_step(
    root: Root, key: CacheKey, digest: str, render: Callable[[], str], target: Target, progress: Progress
) -> Entry:
    """Compile and link a step into a new entry. The caller holds the lock of the digest."""
    start = time.perf_counter()
    compiler, device_compiler = key.host_compiler, key.device_compiler
    shared = [_get_or_build_shared(root, key, target, progress, *each) for each in _shared_sources(root, key, target)]
    progress("compiling")
    with root.begin(STEPS, digest) as place:
        folder = Path(place)
        source = folder / f"{_file_name(key.name)}{target.source_suffix}"
        text = _render(render)
        source.write_text(text, encoding="utf-8")
        product = folder / f"{loader.INIT_NAME}{key.python}"
        includes = (Path(keys.runtime_folder(), "include"),)
        if device_compiler is None:
            objects = [folder / f"step{number}.o" for number in range(1, toolchain.object_count(text) + 1)]
            results = toolchain.compile_objects(compiler, (*key.flags, *target.parts_flags), includes, source, objects)
        else:
            objects = [folder / "step.o"]
            results = [nvcc.compile_object(device_compiler, compiler, key.flags, includes, source, objects[0])]
        for compiled in results:
            _finish(root, digest, folder, source, compiled)
        kernel_report.write(folder, kernel_report.parse(results[0].output))
        link_flags = (*(f"-L{place}" for place in key.nvcc_libraries), *key.link_flags)
        linked = toolchain.link_shared(compiler, link_flags, (*objects, *shared), product)
        _finish(root, digest, folder, source, linked)
        for each in objects:
            each.unlink()
        record = {
            "name": key.name,
            "key": key.fields(),
            "source": source.name,
            "product": product.name,
            "created": time.time(),
            "build_seconds": round(time.perf_counter() - start, 3),
        }
        return root.publish(STEPS, digest, place, record)


def _shared_sources(root: Root, key: CacheKey, target: Target) -> list[tuple[str, str, dict[str, Any]]]:
    """Return what steps share: for people, its source in the runtime, and its identity."""
    found = [("the Python binding", _BINDING_SOURCE, keys.binding_fields(key, target, root))]
    if target.parts:
        found.append(("the parts that all steps have", target.parts, keys.parts_fields(key, target, root)))
    return found


def _get_or_build_shared(
    root: Root, key: CacheKey, target: Target, progress: Progress, what: str, source: str, identity: dict[str, Any]
) -> Path:
    digest = keys.digest_of(identity)
    entry = root.read(BINDINGS, digest, identity)
    if entry is None:
        with root.held(digest, progress):
            entry = root.read(BINDINGS, digest, identity)
            if entry is None:
                progress(f"compiling {what}, once for this machine")
                entry = _build_shared(root, key, digest, identity, Path(keys.runtime_folder(), source))
    root.touch(entry)
    return Path(entry.product)


def _build_shared(root: Root, key: CacheKey, digest: str, identity: dict[str, Any], source: Path) -> Entry:
    start = time.perf_counter()
    includes = (Path(keys.runtime_folder(), "include"), *toolchain.python_include_folders())
    with root.begin(BINDINGS, digest) as place:
        folder = Path(place)
        product = folder / f"{source.stem}.o"
        compiled = toolchain.compile_object(key.host_compiler, identity["flags"], includes, source, product)
        _finish(root, digest, folder, source, compiled)
        record = {
            "name": source.stem,
            "key": identity,
            "source": str(source),
            "product": product.name,
            "created": time.time(),
            "build_seconds": round(time.perf_counter() - start, 3),
        }
        return root.publish(BINDINGS, digest, place, record)


def _finish(root: Root, digest: str, folder: Path, source: Path, result: toolchain.CommandResult) -> None:
    """Add a command to the build log; raise if it failed, with the folder kept for the user to look at."""
    if result.is_full_disk:
        raise OSError(f"the compiler could not write: {result.output.strip().splitlines()[-1]}")
    with open(folder / _BUILD_LOG, "a", encoding="utf-8") as file:
        file.write(result.log())
    if result.status != 0:
        kept = Path(root.keep_failed(digest, str(folder)))
        kept_source = kept / source.name if source.parent == folder else source
        raise toolchain.compile_failure(result, kept_source, kept / _BUILD_LOG, nvcc.cure(result.output))


def _render(render: Callable[[], str]) -> str:
    try:
        return render()
    except OSError as error:  # such as a missing template, which must not be taken for trouble with the cache
        raise CompilerBug(f"the source of a step could not be rendered: {error}") from error


def _file_name(name: str) -> str:
    """Return a step's name as a file name, such as ``train_step`` or ``Model.step`` for a method."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return kept.strip(".")[:80] or "step"


def _tidy(root: Root, just_built: str) -> None:
    """Remove what killed builds left, and the least recently used entries beyond the size cap."""
    if root.is_temporary:
        return
    try:
        root.sweep()
        root.forget_graphs(keep=_MOST_GRAPHS)
        root.forget_codes(keep=_MOST_CODES)
        limit = config.cache_size_mb * 2**20
        sized = [(disk.last_used(folder), disk.tree_bytes(folder), folder) for folder in root.folders(STEPS)]
        total = sum(size for _, size, _ in sized)
        for _, size, folder in sorted(sized, key=lambda item: item[0]):
            if total <= limit:
                break
            if os.path.basename(folder) != just_built and root.remove_unless_held(os.path.basename(folder), folder):
                total -= size
                disk.log(f"evicted {folder}: the cache is larger than {config.cache_size_mb} MiB")
    except OSError as error:
        disk.log(f"could not tidy {root.path}: {error}")


# ---- for the command line ----


def describe_machine() -> dict[str, Any]:
    """Return what builds depend on: compilers, processor, device, Python and packages. ``compiler_problem``,
    ``nvcc_problem``, ``device_problem``: None when all is well.
    """
    memo = disk.open_root()
    target = targets.get("cpp")
    compiler: programs.Compiler | None = None
    problem: str | None = None
    try:
        compiler = keys.find_compiler(memo, lambda: PROBES)
        toolchain.python_include_folders()
    except ToolchainError as error:
        problem = str(error)
    device_compiler: programs.Nvcc | None = None
    nvcc_problem: str | None = "not asked without a C++ compiler, which it needs" if compiler is None else None
    if compiler is not None:
        try:
            device_compiler = keys.find_nvcc(memo, compiler, lambda: PROBES)
        except ToolchainError as error:
            nvcc_problem = str(error)
    device = targets.find_device()
    packages = ("pequegrad", "numpy", "pybind11", "jinja2")
    return {
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "packages": {name: keys.distribution_version(name) for name in packages},
        "compiler": list(compiler.command) if compiler else None,
        "compiler_version": compiler.version if compiler else None,
        "compiler_extra_flags": list(compiler.extra_flags) if compiler else [],
        "compiler_problem": problem,
        "nvcc": device_compiler.path if device_compiler else None,
        "nvcc_version": device_compiler.version if device_compiler else None,
        "nvcc_problem": nvcc_problem,
        "device": device.architecture if isinstance(device, targets.Device) else None,
        "device_driver": device.driver_version if isinstance(device, targets.Device) else None,
        "device_problem": None if isinstance(device, targets.Device) else device,
        "machine": targets.host_machine(),
        "workers": config.workers(),
        "instruction_set": target.instruction_set.name,
        "lanes": target.lanes,
        "features": sorted(targets.host_features()),
    }


def self_test(progress: Progress | None = None) -> BuiltStep:
    """Build and run the step of runtime/binding/selftest.cpp on one worker and on all. Raises CompilerBug if
    it is wrong.
    """
    target = targets.get("cpp")
    source = Path(keys.runtime_folder(), "binding", "selftest.cpp").read_text(encoding="utf-8")
    built = get_or_build(make_key(source, target, name="selftest"), lambda: source, target, progress)
    a, b = array("f", range(1024)), array("f", range(1, 1025))
    built.module.configure([(4096, False), (4096, False), (4096, True)], arena_bytes=4096)
    for workers in {1, config.workers()}:
        out = array("f", bytes(4096))
        built.module.run([a, b, out], workers)
        if out != array("f", range(1, 2049, 2)):
            raise CompilerBug(f"the self-test step is wrong with {workers} workers; its source is {built.source_path}")
    return built


def entries() -> list[EntryInfo]:
    """Return the steps of the disk cache, most recently used first."""
    root = _existing_root()
    if root is None:
        return []
    return sorted((_describe(folder) for folder in root.folders(STEPS)), key=lambda info: -info.last_used)


def stats() -> CacheStats:
    """Return size and health of the disk cache, without creating it."""
    path = disk.cache_path()
    problem = disk.usability(path, config.cache)
    root = _existing_root()
    steps = root.folders(STEPS) if root else []
    return CacheStats(
        path=Path(path),
        mode=config.cache,
        problem=problem,
        entries=len(steps),
        bytes=disk.tree_bytes(path) if root else 0,
        limit_bytes=config.cache_size_mb * 2**20,
        bindings=len(root.folders(BINDINGS)) if root else 0,
        failed_builds=len(list(Path(path, "failed").glob("*"))),
        unfinished_builds=len(root.temporaries()) if root else 0,
    )


def show(beginning: str) -> tuple[EntryInfo, dict[str, Any]]:
    """Return the step whose digest begins so, and its whole record. Raises CacheError unless it is exactly
    one.
    """
    found = [info for info in entries() if info.digest.startswith(beginning)]
    if len(found) != 1:
        some = ", ".join(info.digest[:12] for info in found[:5])
        raise CacheError(
            f"{len(found)} steps of the cache begin with {beginning!r}{f': {some}' if some else ''}. "
            "See: pequegrad cache ls"
        )
    return found[0], disk.read_record(str(found[0].folder))


def verify() -> list[EntryInfo]:
    """Return all steps of the disk cache with ``problem`` set where an entry is broken or was altered."""
    return [
        _describe(folder, disk.find_problem(Entry(folder, disk.read_record(folder))))
        for folder in [str(info.folder) for info in entries()]
    ]


def clear() -> int:
    """Remove everything from the disk cache but what is being built right now; return the bytes freed."""
    root = _existing_root()
    if root is None:
        return 0
    if config.cache == "readonly":
        raise CacheError(f"PEQUEGRAD_CACHE is readonly: {root.path} is not cleared")
    before = disk.tree_bytes(root.path)
    root.sweep()
    for kind in (STEPS, BINDINGS):
        for folder in root.folders(kind):
            root.remove_unless_held(os.path.basename(folder), folder)
    disk.remove_tree(f"{root.path}/failed")
    root.forget_graphs()
    root.forget_codes()
    root.forget_memo()
    return max(0, before - disk.tree_bytes(root.path))


def forget_loaded() -> None:
    """Drop the modules kept in memory, so that the next call looks on disk. Modules in use stay valid."""
    with known.lock.now:
        known.loaded.clear()


def _existing_root() -> Root | None:
    path = disk.cache_path()
    if not os.path.isdir(path) or disk.refusal(path) is not None:
        return None
    return Root(path, is_writable=config.cache != "readonly", is_temporary=False)


def _describe(folder: str, problem: str | None = None) -> EntryInfo:
    record = disk.read_record(folder)
    key = record.get("key")
    return EntryInfo(
        digest=os.path.basename(folder),
        name=str(record.get("name", "?")),
        target=str(key.get("target", "?")) if isinstance(key, dict) else "?",
        bytes=disk.tree_bytes(folder),
        created=float(record.get("created", 0.0)),
        last_used=disk.last_used(folder),
        build_seconds=float(record.get("build_seconds", 0.0)),
        folder=Path(folder),
        problem=problem,
    )
