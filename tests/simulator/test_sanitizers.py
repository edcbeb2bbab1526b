"""The simulator under sanitizers: right kernels are clean, planted mistakes are named with their line."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sanitizing import ADDRESS, THREAD, find_sanitizer
from tests.simulator.simulating import FLAGS, HERE, compile_text

KERNELS = [
    "block_sum", "tile", "wait_for_copy", "shared_bounds", "global_bounds", "divergent", "phases", "histogram", "far_behind",
    "far_before",
]  # fmt: skip
Runner = Callable[[str, bool, int], subprocess.CompletedProcess]


def program(kind: tuple[tuple[str, ...], tuple[str, ...]], folder: Path) -> Runner:
    """Compile planted.cu with a sanitizer."""
    arguments = [*FLAGS, "-g1", "-DPG_TEST_MAIN", str(HERE / "planted.cu")]
    path = find_sanitizer(kind, folder).build(folder / "planted", arguments)

    def run(name: str, bug: bool, seed: int) -> subprocess.CompletedProcess:
        number = KERNELS.index(name) if name else -1
        arguments = [str(path), str(number), str(int(bug)), str(seed)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return program(ADDRESS, tmp_path_factory.mktemp("address"))


@pytest.fixture(scope="session")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return program(THREAD, tmp_path_factory.mktemp("thread"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_kernels_are_clean_under_address_and_undefined(address: Runner, seed: int) -> None:
    done = address("", False, seed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["shared_bounds", "global_bounds"])
def test_address_sanitizer_names_the_line_that_leaves_its_bounds(address: Runner, name: str) -> None:
    done = address(name, True, 0)
    assert done.returncode not in (0, 3)
    assert "use-after-poison" in done.stderr and "planted.cu:" in done.stderr, done.stderr


def test_a_deadlock_is_reported_under_address_sanitizer_too(address: Runner) -> None:
    done = address("divergent", True, 0)
    assert done.returncode == 3, done.stderr
    assert "17 of 256 threads wait at __syncthreads" in done.stdout


@pytest.mark.parametrize("seed", [0, 1])
def test_right_kernels_are_clean_under_thread_sanitizer(thread: Runner, seed: int) -> None:
    done = thread("", False, seed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["block_sum", "tile", "phases", "histogram"])
def test_thread_sanitizer_names_both_lines_of_a_race(thread: Runner, name: str) -> None:
    done = thread(name, True, 0)
    assert done.returncode == 66, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert done.stderr.count("planted.cu:") >= 2


def test_the_portable_switch_of_stacks_works(tmp_path: Path) -> None:
    path = compile_text(HERE / "planted.cu", tmp_path / "portable", "-DPG_TEST_MAIN", "-DPG_SIM_UCONTEXT")
    subprocess.run([str(path), "-1", "0", "1"], check=True, timeout=60)


def test_two_files_of_one_module_share_one_simulator(tmp_path: Path) -> None:
    first, second = tmp_path / "first.cu", tmp_path / "second.cu"
    include = "#include <pequegrad/cuda/platform.h>\n"
    first.write_text(
        include
        + "int launch();\nint main() { launch(); return pg_sim::machine.statistics[PG_SIM_LAUNCHES] == 1 ? 0 : 1; }\n"
    )
    second.write_text(
        include + "static __global__ void nothing() {}\nint launch() { return pg_launch(nothing, 1, 32, 0, 0); }\n"
    )
    done = subprocess.run(
        ["g++", *FLAGS, str(first), str(second), "-o", str(tmp_path / "two")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    subprocess.run([str(tmp_path / "two")], check=True, timeout=20)
