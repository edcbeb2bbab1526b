"""Settings, read from the environment at the moment of use, and overridable as attributes or a context manager.

Invariant: no other module of the package reads the environment.
"""

from __future__ import annotations

import contextlib
import os
import sys
from _thread import _local as ThreadLocal  # what threading.local is: threading takes as long as 0.01 of NumPy
from _thread import get_ident
from collections.abc import Iterator
from typing import Any

STANCES = ("default", "force_eager", "eager_on_recompile", "fail_on_recompile")
LOG_TOPICS = ("recompiles", "code", "memory", "cache", "timing")
CACHE_MODES = ("on", "off", "readonly")
CUDA_LAUNCHES = ("auto", "graph", "cooperative")

_UNSET = object()


class Setting:
    """One setting: an environment variable with a parser and a default; assignment overrides the environment."""

    def __init__(self, variable: str, default: Any, doc: str, parse: Any = str) -> None:
        self.variable = variable
        self.default = default
        self.parse = parse
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Config | None, owner: type) -> Any:
        if config is None:
            return self
        override = config._local_override(self.name)
        if override is not _UNSET:
            return override
        text = os.environ.get(self.variable)
        if text is None or text == "":
            return self.default
        try:
            return self.parse(text)
        except ValueError as error:
            raise ValueError(f"{self.variable}={text!r}: {error}") from None

    def __set__(self, config: Config, value: Any) -> None:
        config.overrides[self.name] = self.parse(value) if isinstance(value, str) else value
        object.__setattr__(config, "generation", object())


class PathSetting(Setting):
    """A setting that reads as a Path: made when it is read, for pathlib takes as long as a tenth of `import numpy`."""

    def __get__(self, config: Config | None, owner: type) -> Any:
        text = super().__get__(config, owner)
        if text is None or text is self:
            return text
        from pathlib import Path

        return Path(text)

    def __set__(self, config: Config, value: Any) -> None:
        super().__set__(config, None if value is None else os.fspath(value))

    def text(self, config: Config) -> str | None:
        """Return the path as text, or None."""
        text = super().__get__(config, type(config))
        return None if text is None else os.fspath(text)


def _choice(*allowed: str) -> Any:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}; got {text!r}")
        return text

    return parse


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"expected a positive integer; got {value}")
    return value


def _flag(text: str) -> bool:
    return text.lower() not in ("0", "false", "no", "off")


def _topics(text: str) -> frozenset[str]:
    topics = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = topics - set(LOG_TOPICS) - {"help"}
    if unknown:
        raise ValueError(f"unknown topic {', '.join(sorted(unknown))}; expected {', '.join(LOG_TOPICS)} or help")
    return topics


class Config:
    """All settings of pequegrad; ``pequegrad.config`` is the one instance.

    Reading a field reads its environment variable now; assigning a field overrides it for the process;
    ``with config(field=value): ...`` overrides it for the current thread inside the block.
    """

    cache_dir = PathSetting("PEQUEGRAD_CACHE_DIR", None, "folder of the disk cache; None: the user's own")
    cache = Setting("PEQUEGRAD_CACHE", "on", "on, off or readonly", _choice(*CACHE_MODES))
    cache_size_mb = Setting(
        "PEQUEGRAD_CACHE_SIZE_MB", 2048, "disk cache cap in MiB; least recently used goes", _positive
    )
    stance = Setting("PEQUEGRAD_STANCE", "default", "what compiled functions do; one of STANCES", _choice(*STANCES))
    logs = Setting("PEQUEGRAD_LOGS", frozenset(), "comma list of LOG_TOPICS, or help", _topics)
    debug_nans = Setting(
        "PEQUEGRAD_DEBUG_NANS", False, "check for NaN: eager results, compiled steps' results and updates", _flag
    )
    num_threads = Setting(
        "PEQUEGRAD_NUM_THREADS", None, "worker threads; None: OMP_NUM_THREADS or the cores", _positive
    )
    recompile_limit = Setting(
        "PEQUEGRAD_RECOMPILE_LIMIT", 16, "signatures per compiled function before it raises", _positive
    )
    cuda_arch = Setting("PEQUEGRAD_CUDA_ARCH", None, "CUDA architecture such as sm_90")
    cxx = Setting("CXX", None, "C++ compiler command; None: g++, then c++, then clang++ on PATH")
    cxxflags = Setting("CXXFLAGS", "", "extra flags for the C++ compiler")
    cuda_launch = Setting("PEQUEGRAD_CUDA_LAUNCH", "auto", "auto, graph or cooperative", _choice(*CUDA_LAUNCHES))
    cuda_home = PathSetting("CUDA_HOME", None, "CUDA toolkit folder")
    nvcc_prepend_flags = Setting("NVCC_PREPEND_FLAGS", "", "extra flags for nvcc, before pequegrad's own")
    nvcc_append_flags = Setting("NVCC_APPEND_FLAGS", "", "extra flags for nvcc, after pequegrad's own")
    omp_num_threads = Setting("OMP_NUM_THREADS", None, "honoured when num_threads is not set", _positive)
    xdg_cache_home = PathSetting("XDG_CACHE_HOME", None, "folder of all caches of a user of Linux; None: ~/.cache")
    no_color = Setting("NO_COLOR", False, "never print colours; any value counts", bool)
    quiet = Setting("PEQUEGRAD_QUIET", False, "do not print the line per compile", _flag)

    _thread: ThreadLocal

    overrides: dict[str, Any]
    """What was assigned, by name."""
    generation: object
    """Another object after each assignment."""
    blocks: list[Any]
    """The ``with`` blocks that are open, of all threads."""

    def __init__(self) -> None:
        object.__setattr__(self, "overrides", {})
        object.__setattr__(self, "generation", object())
        object.__setattr__(self, "blocks", [])
        object.__setattr__(self, "_thread", ThreadLocal())

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(type(self), name, None), Setting):
            raise AttributeError(f"config has no field {name!r}; fields: {', '.join(self.fields())}")
        object.__setattr__(self, name, value)

    def _local_override(self, name: str) -> Any:
        for layer in reversed(getattr(self._thread, "layers", ())):
            if name in layer:
                return layer[name]
        return self.overrides.get(name, _UNSET)

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(name for name, value in vars(cls).items() if isinstance(value, Setting))

    def reset(self, name: str) -> None:
        """Drop an assignment, so that the environment counts again."""
        self.overrides.pop(name, None)
        object.__setattr__(self, "generation", object())

    @contextlib.contextmanager
    def __call__(self, **fields: Any) -> Iterator[Config]:
        """Override fields inside a ``with`` block, for the current thread."""
        layer = {}
        for name, value in fields.items():
            setting = getattr(type(self), name, None)
            if not isinstance(setting, Setting):
                raise AttributeError(f"config has no field {name!r}; fields: {', '.join(self.fields())}")
            layer[name] = setting.parse(value) if isinstance(value, str) else value
        if not hasattr(self._thread, "layers"):
            self._thread.layers = []
        self._thread.layers.append(layer)
        self.blocks.append(layer)
        try:
            yield self
        finally:
            self._thread.layers.remove(layer)
            self.blocks.remove(layer)

    def moment(self) -> tuple[int, ...]:
        """Return what is equal as long as settings are what they were, but for the environment: of which assignment, and
        inside which blocks of which thread. Numbers of objects, which a caller keeps alive for as long as he compares."""
        return (id(self.generation), *((get_ident(), *map(id, self.blocks)) if self.blocks else ()))

    def workers(self) -> int:
        """Number of worker threads that a compiled step may use."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.num_threads or self.omp_num_threads or available

    def cache_folder(self) -> str:
        """Return the folder of the disk cache as text; it need not exist."""
        folder = Config.cache_dir.text(self)
        if folder is None and sys.platform == "linux":  # as platformdirs says, whose import takes 5 ms
            folder = f"{Config.xdg_cache_home.text(self) or '~/.cache'}/pequegrad"
        if folder is None:
            import platformdirs

            folder = platformdirs.user_cache_dir("pequegrad", appauthor=False)
        return os.path.abspath(os.path.expanduser(folder))


def environment() -> dict[str, str]:
    """Return all variables of the environment as they are now: what a step that reads one depends on."""
    return dict(os.environ)


def is_environment(value: Any) -> bool:
    """Whether ``value`` is Python's way to the environment: ``os.environ`` or ``os.getenv``."""
    return value is os.environ or value is os.getenv


config = Config()
