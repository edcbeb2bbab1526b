"""The C++ target: flags, and the instruction sets that its templates can use.

Invariant: no flag here may change what NaN, infinity or the order of a sum mean (never -ffast-math and its
parts).
"""

from __future__ import annotations

import functools
import platform
import sys

from .target import ANY_MACHINE, InstructionSet, Target

FLAGS = (
    "-std=c++17",
    "-O2",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-fvisibility=hidden",
)

# -O1: the binding's text takes 4 s instead of 6 s, and a call costs the same 0.5 µs.
# -DNDEBUG: without it pybind11 asks at each count of a reference whether the thread has the GIL, a tenth of a call.
BINDING_FLAGS = ("-std=c++17", "-O1", "-DNDEBUG", "-fPIC", "-fvisibility=hidden")

# -Bsymbolic: all steps define pg_step_run, and a process that loads with RTLD_GLOBAL would run the first one
# for all.
LINK_FLAGS = ("-shared", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared", "-Wl,-Bsymbolic")

# types.h's own PG_L1_KIB and PG_L2_KIB.
LEAST_L1_KIB, LEAST_L2_KIB = 32, 512

DTYPES = frozenset({"bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"})

# What each family needs beside phases.h.
HEADERS = (
    ("map", ("math.h", "transpose.h")),
    ("row", ("accumulate.h",)),
    ("contract", ("gemm.h", "gemm_small.h", "gemm_dots.h", "gemm_turned.h", "math.h", "scratch.h")),
    ("conv2d", ("gemm.h", "math.h", "conv.h", "conv_winograd.h", "scratch.h")),
    ("window", ("window.h",)),
    ("index", ("indexing.h",)),
    ("scan", ("indexing.h",)),
    ("sort", ("sorting.h",)),
    ("attention", ("attention.h", "scratch.h")),
)

# What g++ 12 takes on Zen 4 for a kernel of each family, beside what the headers take: the median of those of a perceptron, a
# convnet and a transformer, and a sort alone.
MILLISECONDS = (
    ("map", 12),
    ("row", 25),
    ("contract", 40),
    ("conv2d", 35),
    ("window", 3),
    ("index", 10),
    ("scan", 10),
    ("sort", 70),
    ("attention", 110),
)

# Ordered from the widest: a processor gets the first set whose features it has.
INSTRUCTION_SETS = (
    InstructionSet(
        name="x86-64-v4",
        machine="x86_64",
        lanes=16,
        features=frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2", "f16c"}),
        flags=("-march=x86-64-v4", "-DPG_LANES=16"),
    ),
    InstructionSet(
        name="x86-64-v3",
        machine="x86_64",
        lanes=8,
        features=frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}),
        flags=("-march=x86-64-v3", "-DPG_LANES=8"),
    ),
    InstructionSet(
        name="x86-64-v2",
        machine="x86_64",
        lanes=4,
        features=frozenset({"ssse3", "sse4_1", "sse4_2", "popcnt"}),
        flags=("-march=x86-64-v2", "-DPG_LANES=4"),
    ),
    InstructionSet(
        name="neon", machine="aarch64", lanes=4, features=frozenset({"asimd"}), flags=("-march=armv8-a", "-DPG_LANES=4")
    ),
    # The compiler's own default instructions, and no vectors: right on any machine, such as riscv64.
    InstructionSet(
        name="scalar", machine=ANY_MACHINE, lanes=1, features=frozenset(), flags=("-fno-tree-vectorize", "-DPG_LANES=1")
    ),
)


@functools.lru_cache(maxsize=1)
def host_machine() -> str:
    """Name of this machine's architecture: x86_64, aarch64, or what the system calls it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@functools.lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """Features of this machine's processor, spelled as in /proc/cpuinfo; without that file, what its kind
    always has.
    """
    return frozenset(_cpuinfo_fields().get("flags", _cpuinfo_fields().get("Features", "")).split()) or (
        frozenset({"asimd"}) if host_machine() == "aarch64" else frozenset({"ssse3", "sse4_1", "sse4_2", "popcnt"})
    )


@functools.lru_cache(maxsize=1)
def host_processor() -> str:
    """One line that tells apart the processors for which a compiler would emit different native code."""
    fields = _cpuinfo_fields()
    model = [fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")]
    return " ".join([host_machine(), *filter(None, model), *sorted(host_features())])


@functools.lru_cache(maxsize=1)
def _cpuinfo_fields() -> dict[str, str]:
    try:
        # The first processor's entry stands for all, and the kernel writes the file as it is read: stop
        # early.
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            fields = {}
            for line in file:
                name, colon, value = line.partition(":")
                if not colon:
                    break
                fields[name.strip()] = value.strip()
            return fields
    except OSError:
        return {}


@functools.lru_cache(maxsize=2)
def _cache_kib(index: int, least: int) -> int:
    """KiB of a core's cache by Linux's index, 0 for L1's data and 2 for L2; ``least``, what most have at least, without its files."""
    try:
        with open(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size", encoding="utf-8") as file:
            size = file.read().strip()
    except OSError:
        return least
    number, unit = size[:-1], size[-1:]
    return max(least, int(number)) if unit == "K" and number.isdecimal() else least


def _native_instruction_set(machine: str, features: frozenset[str]) -> InstructionSet:
    return next(candidate for candidate in INSTRUCTION_SETS if candidate.runs_on(machine, features))


def _native_flags(machine: str) -> tuple[str, ...]:
    # Without /proc/cpuinfo (macOS) the features are assumed, so the flags name the assumed set and nothing
    # above it.
    if machine in ("x86_64", "aarch64") and _cpuinfo_fields():
        lanes = _native_instruction_set(machine, host_features()).lanes
        l1, l2 = _cache_kib(0, LEAST_L1_KIB), _cache_kib(2, LEAST_L2_KIB)
        return ("-march=native", f"-DPG_LANES={lanes}", f"-DPG_L1_KIB={l1}", f"-DPG_L2_KIB={l2}")
    return _native_instruction_set(machine, host_features()).flags


def native_target() -> Target:
    """Return the C++ target for all that this machine's processor has."""
    machine = host_machine()
    chosen = _native_instruction_set(machine, host_features())
    return Target(
        name="cpp",
        source_suffix=".cpp",
        template_folder="cpp",
        flags=FLAGS,
        link_flags=LINK_FLAGS,
        binding_flags=BINDING_FLAGS,
        dtypes=DTYPES,
        instruction_set=chosen,
        is_native=chosen.lanes > 1,
        native_flags=_native_flags(machine),
        execution="lanes",
        device="cpu",
        compiler="cxx",
        headers=HEADERS,
        random_header="philox.h",
        most_pointers=sys.maxsize,
        has_tensor_cores=False,
        has_clock=True,
        has_blocks=True,
        parts="binding/parts.cpp",
        parts_flags=("-DPG_PARTS_APART",),
        milliseconds=MILLISECONDS,
    )
