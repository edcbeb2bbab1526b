"""The compilers of this machine: which they are, where they lie, and what tells whether one was replaced.

Invariant: starts no process; each start of a program from a warm cache comes through here, so only what that needs is
imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES

from ..config import config
from ..errors import ToolchainError
from ..records import record

CANDIDATES = ("g++", "c++", "clang++")
CXX_HINT = (
    "Install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install or brew install gcc; "
    "conda: conda install -c conda-forge cxx-compiler) or set CXX to its path."
)
NVCC_HINT = (
    'Install one (python -m pip install "pequegrad[cuda]", or NVIDIA\'s CUDA toolkit) or set CUDA_HOME to the folder of the '
    'toolkit. target="cuda-sim" needs none.'
)
_WHEEL_FOLDERS = ("cu13", "cuda_nvcc")  # in site-packages/nvidia: wheels of CUDA 13 and of CUDA 12


@record
class Compiler:
    """A C++ compiler: the command with resolved path, the user's own CXXFLAGS, and the first line of
    --version.
    """

    command: tuple[str, ...]
    extra_flags: tuple[str, ...]
    version: str


@record
class Nvcc:
    """nvcc: its path, what it says of its version, the user's own flags before and after ours, and where its libraries
    lie.
    """

    path: str
    version: str
    prepend_flags: tuple[str, ...]
    append_flags: tuple[str, ...]
    library_folders: tuple[str, ...]

    @property
    def release(self) -> str:
        """CUDA's version, such as "13.0"."""
        return release_of(self.version)


def release_of(version: str) -> str:
    """Return CUDA's version from what nvcc says of itself, such as "13.0"; "" where it does not say."""
    found = re.search(r"\brelease (\d+\.\d+)", version)
    return found[1] if found else ""


def find_program(name: str) -> str | None:
    """Return the path of a program, which may be a path itself, or None; as `shutil.which` does, whose import takes 3 ms."""
    places = [name] if os.path.dirname(name) else [f"{folder}/{name}" for folder in os.get_exec_path() if folder]
    return next((path for path in places if os.access(path, os.X_OK) and not os.path.isdir(path)), None)


def locate_command() -> tuple[str, ...]:
    """Return the compiler command, its program as a full path, without starting it.

    ``config.cxx`` (CXX, which may carry arguments) comes first, then g++, c++ and clang++ on PATH. Raises
    ToolchainError with the cure when there is none.
    """
    if config.cxx:
        program, *arguments = _words(config.cxx)
        path = find_program(program)
        if path is None:
            raise ToolchainError(f"no C++ compiler: CXX is {config.cxx!r}, and {program!r} is not there. {CXX_HINT}")
        return (path, *arguments)
    for program in CANDIDATES:
        path = find_program(program)
        if path is not None:
            return (path,)
    raise ToolchainError(f"no C++ compiler: looked for {', '.join(CANDIDATES)} on PATH. {CXX_HINT}")


def extra_flags() -> tuple[str, ...]:
    """Return the user's CXXFLAGS, split as a shell would."""
    return _words(config.cxxflags)


def locate_nvcc() -> str:
    """Return nvcc's path without starting it: of ``config.cuda_home`` (CUDA_HOME), on PATH, or of pip's wheels.

    Raises ToolchainError with the cure when there is none.
    """
    if config.cuda_home is not None:
        program = f"{os.path.expanduser(config.cuda_home)}/bin/nvcc"
        if not os.access(program, os.X_OK):
            raise ToolchainError(
                f"no nvcc: CUDA_HOME is {str(config.cuda_home)!r}, and there is no {program}. {NVCC_HINT}"
            )
        return program
    path = find_program("nvcc")
    if path is not None:
        return path
    for folder in _wheels():
        program = f"{folder}/bin/nvcc"
        if os.access(program, os.X_OK):
            return program
    raise ToolchainError(
        f"no nvcc: looked at CUDA_HOME, which is not set, on PATH, and for the wheels of pequegrad[cuda]. {NVCC_HINT}"
    )


def _wheels() -> list[str]:
    spec = importlib.util.find_spec("nvidia")  # a namespace package, which many wheels share
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return [f"{place}/{name}" for name in _WHEEL_FOLDERS for place in places]


def nvcc_flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the user's NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS, split as a shell would."""
    return _words(config.nvcc_prepend_flags), _words(config.nvcc_append_flags)


def file_stamp(path: str) -> str:
    """Return a text that changes whenever the file is replaced or edited."""
    status = os.stat(path)
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def command_stamp(command: Sequence[str]) -> str:
    """Return a text that changes when a program of the command does, such as g++ in ``ccache g++``."""
    stamps = []
    for word in command:
        path = None if word.startswith("-") else find_program(word)
        stamps.append(word if path is None else f"{path}:{file_stamp(path)}")
    return " ".join(stamps)


def python_tag() -> str:
    """Return what a module compiled for this Python is called, such as ``.cpython-311-x86_64-linux-gnu.so``."""
    return EXTENSION_SUFFIXES[0] if EXTENSION_SUFFIXES else f".{sys.implementation.cache_tag}.so"


def _words(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    import shlex  # not at the top: few set any of these variables

    return tuple(shlex.split(text))
