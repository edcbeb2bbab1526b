"""What a target is: a record of names, flags and instruction sets.

Invariant: whatever differs between targets is a field here, a template of the target's folder, or toolchain
code; nobody else asks for a target's name.
"""

from __future__ import annotations

from ..errors import DeviceError
from ..records import Record, fields, record, replace

ANY_MACHINE = "any"


@record
class InstructionSet:
    """The vector instructions that emitted code may use.

    ``lanes`` is the number of float32 in one vector. ``features`` are the names, as /proc/cpuinfo spells
    them, that a processor must have. ``flags`` make a compiler emit for this set and nothing above it.
    """

    name: str
    machine: str
    lanes: int
    features: frozenset[str]
    flags: tuple[str, ...]

    def runs_on(self, machine: str, features: frozenset[str]) -> bool:
        """Whether a processor of that machine and those features knows all instructions of this set."""
        return self.machine in (machine, ANY_MACHINE) and self.features <= features


@record
class Target:
    """A kind of code that pequegrad emits: where its templates lie, and how its source is compiled and
    linked.

    ``is_native``: compile with ``native_flags`` for exactly this machine's processor; else with the
    instruction set's. ``execution``: how templates read a plan, "lanes" (of vectors, on workers) or "threads" (in blocks).
    ``device``: where a step's memory lies, "cpu" or a device's name. ``compiler``: "cxx" or "nvcc", for the step's source;
    the binding and the link are always the C++ compiler's. ``headers``: what each kernel family includes.
    ``most_pointers``: parameters that one launch can take. ``has_tensor_cores``: for products in tf32 and bf16.
    ``has_clock``: whether its steps can be timed kernel by kernel.
    ``has_blocks``: kernels that follow each other on blocks of samples become one phase, for the sake of caches or, with
    ``shared_bytes`` of shared memory for each block of threads, of those.
    ``parts``: a source of the runtime that is compiled once, with a step's flags, and linked with all steps ("": none);
    ``parts_flags`` tell a step that it need not compile these parts itself.
    ``milliseconds``: what a kernel of each family takes the compiler, about, where a step may be compiled as several objects.
    ``launch``: "graph" (a node for each phase), "cooperative" (one kernel) or "auto"; of execution "threads" alone.
    """

    name: str
    source_suffix: str
    template_folder: str
    flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    binding_flags: tuple[str, ...]
    dtypes: frozenset[str]
    instruction_set: InstructionSet
    is_native: bool
    native_flags: tuple[str, ...]
    execution: str
    device: str
    compiler: str
    headers: tuple[tuple[str, tuple[str, ...]], ...]
    random_header: str
    most_pointers: int
    has_tensor_cores: bool
    has_clock: bool
    has_blocks: bool
    shared_bytes: int = 0
    parts: str = ""
    parts_flags: tuple[str, ...] = ()
    milliseconds: tuple[tuple[str, int], ...] = ()
    launch: str = "auto"

    @property
    def lanes(self) -> int:
        """Number of float32 in one vector; 1: no vectors."""
        return self.instruction_set.lanes

    @property
    def compile_flags(self) -> tuple[str, ...]:
        """All flags that compile a step's source to an object."""
        return (*self.flags, *(self.native_flags if self.is_native else self.instruction_set.flags))

    def identity(self) -> str:
        """Return all that this record says, the same text in each process."""
        parts = [
            part
            for value in fields(self).values()
            for part in (value.values() if isinstance(value, Record) else (value,))
        ]
        return repr([sorted(part) if isinstance(part, frozenset) else part for part in parts])

    def headers_of(self, family: str) -> tuple[str, ...]:
        """Headers that a kernel family's template needs."""
        return dict(self.headers)[family]

    def milliseconds_of(self, family: str) -> int:
        """Milliseconds that a kernel of the family takes the compiler, about; 0 where a step is one object anyway."""
        return dict(self.milliseconds)[family] if self.milliseconds else 0

    def with_instruction_set(self, instruction_set: InstructionSet) -> Target:
        """Return this target for exactly the given instruction set instead of all that this machine has."""
        return replace(self, instruction_set=instruction_set, is_native=False)

    def with_launch(self, launch: str) -> Target:
        """Return this target with the given way to launch a step, where it knows several."""
        return replace(self, launch=launch) if self.execution == "threads" else self

    def check_runs_on(self, machine: str, features: frozenset[str]) -> None:
        """Raise DeviceError if code for this target would meet an illegal instruction on such a processor."""
        wanted = self.instruction_set
        if not wanted.runs_on(machine, features):
            missing = ", ".join(sorted(wanted.features - features))
            lack = f"it lacks {missing}" if wanted.machine == machine else f"it is {machine}, not {wanted.machine}"
            raise DeviceError(
                f"target {self.name!r} with instruction set {wanted.name!r} cannot run on this processor: "
                f"{lack}. Use targets.get({self.name!r}) for what it has."
            )
