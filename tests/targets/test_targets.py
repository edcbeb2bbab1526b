"""Target records: found by name, true to the processor, refused by name."""

from __future__ import annotations

import io
import re

import pytest

from pequegrad import targets
from pequegrad.errors import DeviceError
from pequegrad.targets import cpp
from pequegrad.targets import device as device_module


def test_the_native_target_has_instructions_that_the_processor_has():
    target = targets.get("cpp")
    target.check_runs_on(targets.host_machine(), targets.host_features())
    assert f"-DPG_LANES={target.lanes}" in target.compile_flags


@pytest.mark.parametrize(
    ("text", "kib"),
    [("1024K\n", 1024), ("2048K\n", 2048), ("256K\n", 512), ("2M\n", 512), ("1048576\n", 512), ("\n", 512)],
)
def test_the_size_of_a_cache_is_what_linux_says_and_never_less_than_the_kernels_assume(monkeypatch, text, kib):
    opened = []
    monkeypatch.setattr("builtins.open", lambda path, **__: opened.append(path) or io.StringIO(text))
    assert cpp._cache_kib.__wrapped__(2, 512) == kib and opened == ["/sys/devices/system/cpu/cpu0/cache/index2/size"]
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError))
    assert cpp._cache_kib.__wrapped__(2, 512) == 512


@pytest.mark.parametrize(
    ("name", "lanes"), [("x86-64-v4", 16), ("x86-64-v3", 8), ("x86-64-v2", 4), ("neon", 4), ("scalar", 1)]
)
def test_a_named_instruction_set_decides_lanes_and_flags(name, lanes):
    target = targets.get("cpp", instruction_set=name)
    assert target.lanes == lanes and f"-DPG_LANES={lanes}" in target.compile_flags
    assert "-march=native" not in target.compile_flags


def test_no_flag_gives_up_nan_infinity_or_the_order_of_a_sum():
    forbidden = {
        "-ffast-math",
        "-Ofast",
        "-ffinite-math-only",
        "-fassociative-math",
        "-funsafe-math-optimizations",
    }
    for name in [None, *(each.name for each in targets.INSTRUCTION_SETS)]:
        assert not forbidden & set(targets.get("cpp", instruction_set=name).compile_flags)


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", "sse4_1 sse4_2 ssse3 popcnt", "x86-64-v2"),
        ("x86_64", "avx2 fma bmi1 bmi2 f16c movbe sse4_1 sse4_2 ssse3 popcnt", "x86-64-v3"),
        ("x86_64", "sse2", "scalar"),
        ("aarch64", "fp asimd", "neon"),
        ("riscv64", "", "scalar"),
    ],
)
def test_a_processor_gets_the_widest_set_that_it_has(machine, features, expected):
    assert cpp._native_instruction_set(machine, frozenset(features.split())).name == expected


def test_code_for_another_processor_is_refused_with_what_is_missing():
    target = targets.get("cpp", instruction_set="x86-64-v3")
    with pytest.raises(DeviceError, match="lacks avx2, bmi1, bmi2"):
        target.check_runs_on("x86_64", frozenset({"fma", "f16c", "movbe"}))
    with pytest.raises(DeviceError, match="is aarch64, not x86_64"):
        target.check_runs_on("aarch64", frozenset({"asimd"}))


@pytest.fixture
def device(monkeypatch):
    """Say what device this machine has."""

    def choose(found):
        monkeypatch.setattr(targets, "find_device", lambda: found)

    return choose


def test_cuda_is_for_the_architecture_that_is_named_or_set_or_here(device, monkeypatch):
    device(targets.Device((8, 6), (13, 0)))
    assert targets.get("cuda").instruction_set.name == "sm_86"
    monkeypatch.setenv("PEQUEGRAD_CUDA_ARCH", "sm_120")
    assert targets.get("cuda").instruction_set.name == "sm_120"
    named = targets.get("cuda", architecture="sm_90")
    assert named.compile_flags[-1] == "-gencode=arch=compute_90,code=sm_90"


def test_cuda_without_a_device_or_an_architecture_says_what_is_missing_and_what_to_do(device):
    device("this machine has no CUDA driver (libcuda.so.1)")
    with pytest.raises(DeviceError, match=r"no CUDA driver.*target=\"cuda-sim\".*arch=\"sm_90\".*PEQUEGRAD_CUDA_ARCH"):
        targets.get("cuda")


def test_an_unknown_or_too_old_architecture_lists_the_known_ones():
    for name in ("sm_1", "sm_70"):
        with pytest.raises(DeviceError, match=f"unknown CUDA architecture '{name}'.*expected one of sm_75"):
            targets.get("cuda", architecture=name)


def test_an_architecture_is_for_cuda_alone():
    with pytest.raises(DeviceError, match="'sm_90', is for target=\"cuda\"; this target is 'cpp'"):
        targets.get("cpp", architecture="sm_90")


@pytest.mark.parametrize(
    ("architecture", "toolkit", "problem"),
    [
        ("sm_86", "13.0", None),
        ("sm_80", "13.9", None),  # an older minor version of its generation, and a newer toolkit of its driver's
        ("sm_86", "", None),
        ("sm_89", "13.0", "built for sm_89, and this device is sm_86"),
        ("sm_90", "13.0", "built for sm_90, and this device is sm_86"),
        ("sm_86", "14.0", "built with CUDA 14.0, and this machine's driver is for CUDA 13.0"),
        ("", "13.0", "names no CUDA architecture"),
    ],
)
def test_a_device_runs_its_generation_and_what_its_driver_knows(architecture, toolkit, problem):
    found = targets.device_problem(targets.Device((8, 6), (13, 0)), architecture, toolkit)
    assert found is None if problem is None else problem in found


class FakeDriver:
    """A driver that has one device, or fails at one of its functions."""

    def __init__(self, failing=""):
        self.failing = failing

    def __getattr__(self, name):
        def call(*arguments):
            if name == self.failing:
                return 100
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 12080
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 9, 76: 0}[arguments[1]]
            return 0

        return call


def test_the_driver_is_asked_for_capability_and_version(monkeypatch):
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda name: FakeDriver())
    found = device_module.find_device.__wrapped__()
    assert found == targets.Device((9, 0), (12, 8))
    assert (found.architecture, found.driver_version) == ("sm_90", "12.8")


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("cuInit", "does not start .error 100"),
        ("cuDeviceGet", "finds no device .error 100"),
        ("cuDeviceGetAttribute", "finds no device .error 100"),
    ],
)
def test_a_driver_that_fails_is_said(monkeypatch, failing, said):
    monkeypatch.setattr(device_module.ctypes, "CDLL", lambda name: FakeDriver(failing))
    found = device_module.find_device.__wrapped__()
    assert isinstance(found, str) and re.search(said, found)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DeviceError, match="unknown target 'c'; expected one of cpp"):
        targets.get("c")
    with pytest.raises(DeviceError, match="unknown instruction set 'mmx'; expected one of x86-64-v4"):
        targets.get("cpp", instruction_set="mmx")


def test_a_target_that_says_what_kernels_take_the_compiler_says_it_of_each_family():
    target = targets.get("cpp")
    assert [family for family, _ in target.headers] == [family for family, _ in target.milliseconds]
    assert targets.get("cuda", architecture="sm_80").milliseconds_of("map") == 0
