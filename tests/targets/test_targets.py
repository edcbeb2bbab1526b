"""Target records: found by name, true to the processor, refused by name."""

from __future__ import annotations

import pytest

from pequegrad import targets
from pequegrad.errors import DeviceError
from pequegrad.targets import cpp


def test_the_native_target_has_instructions_that_the_processor_has():
    target = targets.get("cpp")
    target.check_runs_on(targets.host_machine(), targets.host_features())
    assert f"-DPG_LANES={target.lanes}" in target.compile_flags


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


def test_cuda_needs_an_architecture_and_knows_which_there_are():
    assert targets.get("cuda", architecture="sm_90").compile_flags[-1] == "-gencode=arch=compute_90,code=sm_90"
    with pytest.raises(DeviceError, match="needs an architecture"):
        targets.get("cuda")
    with pytest.raises(DeviceError, match="unknown CUDA architecture 'sm_1'; expected one of sm_75"):
        targets.get("cuda", architecture="sm_1")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(DeviceError, match="unknown target 'c'; expected one of cpp"):
        targets.get("c")
    with pytest.raises(DeviceError, match="unknown instruction set 'mmx'; expected one of x86-64-v4"):
        targets.get("cpp", instruction_set="mmx")
