"""Run nvcc: the source of a step on a device to an object, with the C++ compiler for its host part.

Invariant: nvcc gets the flags that the cache key names and no others; its variables of the environment are settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..config import environment
from ..errors import ToolchainError
from . import toolchain
from .programs import NVCC_HINT, Compiler, Nvcc, find_program, locate_nvcc, release_of
from .toolchain import CommandResult

OLDEST_TOOLKIT = (12, 4)  # the first whose --split-compile and mma of all types the templates were written for
_LIBRARY = "libcudart_static.a"
_READ_BY_NVCC = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")
# What nvcc or the linker prints, and the cure.
_CURES = (
    (
        re.compile(r"unsupported (GNU|clang) version"),
        "The host compiler is too new for this nvcc: set CXX to an older one, such as CXX=g++-13, or install a newer CUDA "
        "toolkit.",
    ),
    (
        re.compile(r"Unsupported gpu architecture|is not defined for option 'gpu-architecture'"),
        "This nvcc does not know the architecture: install a newer CUDA toolkit, or choose another architecture.",
    ),
    (
        re.compile(
            r"Failed to preprocess host compiler properties|[Cc]annot find compiler|No such file or directory.*cc1plus"
        ),
        "nvcc found no host compiler that works: install g++ (Debian, Ubuntu: apt install g++) or set CXX to its path.",
    ),
    (
        re.compile(r"cannot find -lcudart_static|unable to find library -lcudart_static"),
        f"The toolkit lacks {_LIBRARY}: install its cudart part (pip: nvidia-cuda-runtime of the same version; conda: "
        "cuda-cudart-static).",
    ),
    (
        re.compile(r"Unsupported \.version|PTX version|cuda_runtime\.h: No such file|cicc: not found|libnvvm"),
        'The parts of this toolkit do not fit each other or are missing: python -m pip install "pequegrad[cuda]" pins all to '
        "one version.",
    ),
)


def probe(path: str, host: Compiler) -> tuple[str, tuple[str, ...]]:
    """Return the line of --version that names the release, and the folders of its libraries. Raises ToolchainError when
    it does not run or is too old.
    """
    said = toolchain.run_command([path, "--version"], _environment())
    version = next((line.strip() for line in said.output.splitlines() if release_of(line)), "")
    if said.status != 0 or not version:
        raise ToolchainError(f"nvcc does not run: {path} --version said:\n{toolchain.quote(said.output)}\n{NVCC_HINT}")
    release = release_of(version)
    if tuple(map(int, release.split("."))) < OLDEST_TOOLKIT:
        oldest = "{}.{}".format(*OLDEST_TOOLKIT)
        raise ToolchainError(f"{path} is of CUDA {release}, and pequegrad needs {oldest} or newer. {NVCC_HINT}")
    # nvcc itself knows best where its toolkit lies: it may be a script or a link elsewhere.
    dry = toolchain.run_command([path, *_host_options(host), "--dryrun", "probe.cu"], _environment())
    top = re.search(r"^#\$ TOP=(.*)$", dry.output, re.MULTILINE)
    places = re.findall(r'"-L([^"]+)"', dry.output)
    if top is not None:
        places += [
            f"{top[1].strip()}/lib64",
            f"{top[1].strip()}/lib",
        ]  # wheels have no lib64, and a lib that it does not name
    found = [os.path.normpath(place) for place in places if os.path.exists(f"{place}/{_LIBRARY}")]
    return version, tuple(found[:1])


def compile_object(
    nvcc: Nvcc, host: Compiler, flags: Sequence[str], include_folders: Sequence[Path], source: Path, output: Path
) -> CommandResult:
    """Compile one source file to an object file; the user's NVCC_APPEND_FLAGS come last and so win."""
    if not os.access(nvcc.path, os.X_OK):
        locate_nvcc()  # it went since the key was made: say so
    return toolchain.run_command(
        [
            nvcc.path,
            *nvcc.prepend_flags,
            *_host_options(host),
            *flags,
            *(f"-I{folder}" for folder in include_folders),
            *nvcc.append_flags,
            "-c",
            str(source),
            "-o",
            str(output),
        ],
        _environment(),
    )


def cure(output: str) -> str:
    """Return what to do about what nvcc or the linker printed; "" when it may be the source's fault."""
    return next((text for pattern, text in _CURES if pattern.search(output)), "")


def _host_options(host: Compiler) -> list[str]:
    # nvcc takes a program without arguments: behind a launcher, as in `ccache g++ -m64`, that is the last program.
    programs = [word for word in host.command if not word.startswith("-")]
    program = find_program(programs[-1]) or programs[0]
    return [f"-ccbin={program}", *(f"-Xcompiler={word}" for word in host.command if word.startswith("-"))]


def _environment() -> dict[str, str]:
    return {name: value for name, value in environment().items() if name not in _READ_BY_NVCC}
