"""ptxas's report: read a kernel at a time, spills of it and of what it calls counted, kept beside the module."""

from __future__ import annotations

from pequegrad.build import kernel_report
from pequegrad.build.kernel_report import KernelReport

# As nvcc 13.0 prints it: a kernel that spills itself, and one that calls a function which does.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z13launch_phase0N2pg7controlEPKfPf' for 'sm_90'
ptxas info    : Function properties for _Z13launch_phase0N2pg7controlEPKfPf
    72 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 72 bytes cumulative stack size, 4096 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 12.700 ms
ptxas info    : Compiling entry function '_ZL13launch_phase1PKfPf' for 'sm_90'
ptxas info    : Function properties for _ZL13launch_phase1PKfPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 0 barriers, 16 bytes cumulative stack size
ptxas info    : Function properties for _Z6calledf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
"""


def test_each_kernel_has_its_registers_shared_memory_stack_and_spills():
    assert kernel_report.parse(REPORT) == (
        KernelReport("launch_phase0", "sm_90", registers=255, shared=4096, stack=72, spill_stores=24, spill_loads=40),
        KernelReport("launch_phase1", "sm_90", registers=31, shared=0, stack=16, spill_stores=8, spill_loads=4),
    )


def test_the_report_lies_beside_the_module_and_a_step_without_one_has_no_file(tmp_path):
    kernels = kernel_report.parse(REPORT)
    kernel_report.write(tmp_path, kernels)
    assert kernel_report.read(tmp_path) == kernels
    (tmp_path / kernel_report.FILE_NAME).unlink()
    kernel_report.write(tmp_path, kernel_report.parse("g++ prints nothing of this kind"))
    assert not list(tmp_path.iterdir()) and kernel_report.read(tmp_path) == ()
