"""nvcc: found in each of its places, and where something is missing or does not fit, named with the cure at build time."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

import pequegrad as pg
from pequegrad import targets
from pequegrad.build import BuiltStep, cache, programs
from pequegrad.errors import DeviceError, ToolchainError
from tests.build.conftest import COMPILER
from tests.build.helpers import run_affine, step_source

TARGET = targets.get("cuda", architecture="sm_90")


@pytest.fixture
def machine(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of which no nvcc is found, by a cache that has never seen one."""
    for name in ("CXX", "CUDA_HOME", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        monkeypatch.delenv(name, raising=False)

    def find_program(program, real=programs.find_program):
        found = real(program)
        return None if program == "nvcc" and not str(found).startswith(str(tmp_path)) else found

    def find_spec(name, *rest, real=importlib.util.find_spec):
        if name != "nvidia":
            return real(name, *rest)
        return importlib.machinery.PathFinder.find_spec(name, [str(tmp_path / "site-packages")])

    monkeypatch.setattr(programs, "find_program", find_program)
    monkeypatch.setattr(programs.importlib.util, "find_spec", find_spec)
    return tmp_path


def toolkit(folder: Path, release: str = "13.0", says: str = "") -> Path:
    """Write a toolkit whose nvcc notes its calls and compiles host code alone, or fails and ``says`` why."""
    for part in ("bin", "lib"):
        (folder / part).mkdir(parents=True)
    (folder / "lib" / "libcudart_static.a").write_bytes(b"!<arch>\n")  # an archive without members
    script = folder / "bin" / "nvcc"
    script.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        case "$*" in
          --version) echo "Cuda compilation tools, release {release}, V{release}.88"; exit 0 ;;
          *--dryrun*) echo '#$ TOP={folder}'; exit 0 ;;
        esac
        echo "$*" >> "{folder}/calls"
        if [ -n "{says}" ]; then echo "{says}"; exit 1; fi
        for word; do case "$word" in -I*) include="$word" ;; *.cu) source="$word" ;; esac; done
        exec "{COMPILER}" -x c++ -std=c++17 -O1 -fPIC -fvisibility=hidden "$include" -c "$source" -o "$word"
        """)
    )
    script.chmod(0o755)
    return folder


def calls(folder: Path) -> list[str]:
    """The arguments of each compilation by the nvcc of a toolkit."""
    log = folder / "calls"
    return log.read_text().splitlines() if log.exists() else []


def build(*, is_for_here: bool = False) -> BuiltStep:
    source = step_source("affine", SCALE=3)
    return cache.get_or_build(
        cache.make_key(source, TARGET, name="step"), lambda: source, TARGET, is_for_here=is_for_here
    )


# --- where it is found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wheel", ["cu13", "cuda_nvcc"])
def test_the_nvcc_of_a_wheel_builds_a_step_with_the_library_beside_it(machine, wheel):
    folder = toolkit(machine / "site-packages" / "nvidia" / wheel)
    built = build()
    run_affine(built, 3)
    (call,) = calls(folder)
    assert "-gencode=arch=compute_90,code=sm_90" in call and f"-ccbin={COMPILER}" in call
    assert f"-L{folder / 'lib'}" in (built.path.parent / "build.log").read_text()


def test_path_comes_before_wheels_and_cuda_home_before_path(machine, monkeypatch):
    kits = [toolkit(machine / place) for place in ("site-packages/nvidia/cu13", "path", "home")]
    assert programs.locate_nvcc() == f"{kits[0]}/bin/nvcc"
    monkeypatch.setenv("PATH", f"{kits[1]}/bin", prepend=os.pathsep)
    assert programs.locate_nvcc() == f"{kits[1]}/bin/nvcc"
    monkeypatch.setenv("CUDA_HOME", str(kits[2]))
    assert programs.locate_nvcc() == f"{kits[2]}/bin/nvcc"
    run_affine(build(), 3)
    assert [len(calls(kit)) for kit in kits] == [0, 0, 1]


# --- what is missing or does not fit ------------------------------------------------------------------------------


def test_no_nvcc_names_where_it_was_looked_for_and_the_cure(machine):
    step = pg.compile(lambda x: x * 2)
    with pytest.raises(
        ToolchainError, match=r"no nvcc: .*CUDA_HOME, .*PATH, .*wheels.*pip install \"pequegrad\[cuda\]"
    ):
        step.compile(np.ones(4, np.float32), target="cuda", arch="sm_90")


def test_a_cuda_home_without_nvcc_is_named_whatever_there_is_elsewhere(machine, monkeypatch):
    monkeypatch.setenv("PATH", f"{toolkit(machine / 'path')}/bin", prepend=os.pathsep)
    monkeypatch.setenv("CUDA_HOME", str(machine / "nowhere"))
    with pytest.raises(ToolchainError, match=r"CUDA_HOME is '.*/nowhere', and there is no .*/nowhere/bin/nvcc\..*pip"):
        build()


def test_nvcc_without_a_host_compiler_names_that_compiler_and_the_cure(machine, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "home")))
    monkeypatch.setenv("PATH", str(machine))
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler: looked for g\+\+.*apt install g\+\+.*CXX"):
        build()
    assert not calls(machine / "home")


@pytest.mark.parametrize("release", ["11.8", "12.3"])
def test_an_old_nvcc_is_refused_with_both_versions_before_anything_is_compiled(machine, monkeypatch, release):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "home", release)))
    with pytest.raises(
        ToolchainError, match=rf"home/bin/nvcc is of CUDA {release}, and pequegrad needs 12\.4 or newer\..*pip"
    ):
        build()
    assert not calls(machine / "home")


@pytest.mark.parametrize("release", ["12.4", "12.10", "13.0"])
def test_the_oldest_release_that_is_taken_and_later_ones_are(machine, monkeypatch, release):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "home", release)))
    assert programs.release_of(cache.make_key("plan", TARGET, name="step").nvcc_version) == release


def test_an_nvcc_that_does_not_run_is_named_with_what_it_said(machine, monkeypatch):
    folder = toolkit(machine / "home")
    (folder / "bin" / "nvcc").write_text("#!/bin/sh\necho wrong machine; exit 126\n")
    monkeypatch.setenv("CUDA_HOME", str(folder))
    with pytest.raises(ToolchainError, match=r"nvcc does not run: .*home/bin/nvcc --version said:\n  wrong machine\n"):
        build()


def test_a_driver_older_than_nvcc_is_refused_with_both_versions_before_anything_is_compiled(machine, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "home", "13.0")))
    monkeypatch.setattr(targets, "find_device", lambda: targets.Device((9, 0), (12, 8)))
    with pytest.raises(
        DeviceError, match=r"built with CUDA 13\.0, and this machine's driver is for CUDA 12\.8: update"
    ):
        build(is_for_here=True)
    assert not calls(machine / "home")
    run_affine(build(), 3)  # for another machine it is built all the same


@pytest.mark.parametrize(
    ("says", "does"),
    [
        ("nvcc fatal   : Failed to preprocess host compiler properties.", r"no host compiler.*apt install g\+\+.*CXX"),
        ("error: -- unsupported GNU version! gcc versions later than 14 are not supported!", r"too new.*CXX=g\+\+-13"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_90'", "does not know the architecture: install a newer"),
        ("sh: 1: cicc: not found", r"parts of this toolkit do not fit.*pip install \"pequegrad\[cuda\]"),
        (
            "ptxas /tmp/a.ptx, line 9; fatal : Unsupported .version 8.8; current version is '8.4'",
            "parts of this toolkit",
        ),
        ("step.cu(7): error: expected a declaration", "bug of pequegrad: please report"),
    ],
    ids=["host compiler", "new host compiler", "architecture", "missing part", "mixed parts", "source"],
)
def test_what_nvcc_says_is_quoted_with_the_cure_and_where_the_log_lies(machine, monkeypatch, says, does):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(machine / "home", says=says)))
    with pytest.raises(ToolchainError, match="nvcc failed with exit status 1") as caught:
        build()
    message = str(caught.value)
    assert f"  {says}\n" in message
    rest = message.partition("log:")[2]
    assert says in Path(rest.splitlines()[0].strip()).read_text()
    assert re.search(does, rest), rest


def test_a_toolkit_without_its_library_is_named_by_the_part_to_install(machine, monkeypatch):
    folder = toolkit(machine / "home")
    (folder / "lib" / "libcudart_static.a").unlink()
    monkeypatch.setenv("CUDA_HOME", str(folder))
    with pytest.raises(ToolchainError, match=r"toolkit lacks libcudart_static\.a: .*nvidia-cuda-runtime"):
        build()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on this machine")
def test_a_real_nvcc_refuses_a_host_compiler_that_compiles_nothing(root, compiler, monkeypatch):
    script = compiler.script
    script.write_text(script.read_text().replace("esac\n", "*-E*|*cu*) exit 1 ;;\nesac\n"))
    with pytest.raises(
        ToolchainError, match=r"(?s)nvcc failed.*nvcc found no host compiler that works: .*apt install g\+\+"
    ):
        build()
