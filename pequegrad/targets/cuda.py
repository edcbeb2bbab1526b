"""The CUDA target, for nvcc and a device or for the C++ compiler and the simulator.

Invariant: both get the same source text, byte for byte; only compilers and flags differ.
"""

from __future__ import annotations

from ..errors import DeviceError
from .cpp import BINDING_FLAGS, DTYPES, LINK_FLAGS
from .target import ANY_MACHINE, InstructionSet, Target

# --expt-relaxed-constexpr is not needed, and machine code for one architecture alone: a driver older than the toolkit
# refuses its PTX. -O1 is the host part's, which takes 0.6 s less than with -O3; device code is optimized in full all the
# same. -v: registers, shared memory and spills of each kernel, for the build log.
NVCC_FLAGS = (
    "-std=c++17",
    "-O1",
    "--split-compile=2",
    "-Xptxas=-v",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xcudafe=--diag_suppress=177",
)
NVCC_LINK_FLAGS = ("-lcudart_static", "-ldl", "-lrt", "-lpthread")
# -fwrapv: a device's integers wrap. Contraction as nvcc does it.
SIMULATOR_FLAGS = (
    "-x",
    "c++",
    "-std=c++17",
    "-O1",
    "-fwrapv",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
)

HEADERS = (
    ("map", ("scalar.h",)),
    ("row", ("reduce.h",)),
    ("contract", ("product_tensor.h",)),
    ("conv2d", ("convolution.h", "product_tensor.h")),
    ("window", ("window.h",)),
    ("index", ("indexing.h",)),
    ("scan", ("indexing.h",)),
    ("sort", ("sorting.h",)),
    ("attention", ("attention.h",)),
)

# A launch takes 4,096 bytes of parameters on every device and driver, and compilers are slow with more.
MOST_POINTERS = 256

# Compute capabilities that nvcc 13 knows.
ARCHITECTURES = (
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_87",
    "sm_88",
    "sm_89",
    "sm_90",
    "sm_100",
    "sm_103",
    "sm_110",
    "sm_120",
    "sm_121",
)

# Of shared memory that one block of threads can have, where it asks (the programming guide's table of compute
# capabilities); of others SHARED_KIB.
SHARED_KIB_OF = {"sm_75": 64, "sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227, "sm_110": 227}
SHARED_KIB = 99

# Their tensor cores know neither tf32 nor bf16.
WITHOUT_TENSOR_CORES = ("sm_75",)

# The simulator's multiprocessor has as much shared memory.
SIMULATED = "sm_90"
_SIMULATOR = InstructionSet(name="simulator", machine=ANY_MACHINE, lanes=1, features=frozenset(), flags=())


def cuda_target(architecture: str) -> Target:
    """Return the CUDA target for one architecture, such as "sm_90". Raises DeviceError for one that it does not know."""
    if architecture not in ARCHITECTURES:
        raise DeviceError(f"unknown CUDA architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}.")
    number = architecture.removeprefix("sm_")
    machine_code = InstructionSet(
        name=architecture,
        machine=ANY_MACHINE,
        lanes=1,
        features=frozenset(),
        flags=(f"-gencode=arch=compute_{number},code={architecture}",),
    )
    return _target("cuda", NVCC_FLAGS, (*LINK_FLAGS, *NVCC_LINK_FLAGS), machine_code, "nvcc", architecture)


def simulator_target() -> Target:
    """Return the target that runs the CUDA source on the processor, each of its threads a fibre."""
    return _target("cuda-sim", SIMULATOR_FLAGS, (*LINK_FLAGS, "-lpthread"), _SIMULATOR, "cxx", SIMULATED)


def _target(
    name: str,
    flags: tuple[str, ...],
    link_flags: tuple[str, ...],
    machine_code: InstructionSet,
    compiler: str,
    architecture: str,
) -> Target:
    return Target(
        name=name,
        source_suffix=".cu",
        template_folder="cuda",
        flags=flags,
        link_flags=link_flags,
        binding_flags=BINDING_FLAGS,
        dtypes=DTYPES,
        instruction_set=machine_code,
        is_native=False,
        native_flags=(),
        execution="threads",
        device=name,
        compiler=compiler,
        headers=HEADERS,
        random_header="random.h",
        most_pointers=MOST_POINTERS,
        has_tensor_cores=machine_code.name not in WITHOUT_TENSOR_CORES,
        has_clock=False,
        has_blocks=True,
        shared_bytes=1024 * SHARED_KIB_OF.get(architecture, SHARED_KIB),
    )
