"""The runtime API answers as CUDA's does: memory, streams, events, capture, graphs, errors."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from tests.simulator.simulating import Simulated


def answers(host: Simulated, name: str, seed: int = 0, memory: int = 1 << 30) -> tuple[list[str], np.ndarray]:
    """Run a scenario; return the names of the answers it got, and its numbers."""
    host.configure(seed, memory=memory)
    host.library.error_name.restype = ctypes.c_char_p
    codes, out = np.zeros(64, np.int32), np.zeros(8, np.float32)
    count = host.call(f"run_{name}", codes, out)
    names = [host.library.error_name(int(code)).decode() for code in codes[:count]]
    return [name.removeprefix("cudaError").removeprefix("cuda") for name in names], out


def test_memory_calls_answer_with_cudas_errors(host: Simulated) -> None:
    seen, out = answers(host, "memory")
    out_of_memory = ["MemoryAllocation", "MemoryAllocation", "MemoryAllocation", "Success"]
    assert seen[:6] == ["Success", "Success", *out_of_memory]
    assert seen[6:] == ["InvalidValue"] * 4 + ["Success", "InvalidValue", "Success", "Success"]
    assert out[0] == 1 << 20


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pinned_copies_are_late_and_pageable_ones_early(host: Simulated, seed: int) -> None:
    seen, out = answers(host, "copies", seed)
    assert seen == ["Success"] * 8 + ["NotReady", "Success"]
    assert out[:4].tolist() == [1.0, 2.0, -1.0, 1.0]


def test_an_event_orders_two_streams(host: Simulated) -> None:
    for seed in range(8):
        seen, out = answers(host, "ordered_streams", seed)
        assert set(seen) == {"Success"} and out[0] == 15.0


def test_streams_without_an_event_show_both_orders(host: Simulated) -> None:
    assert {answers(host, "unordered_streams", seed)[1][0] for seed in range(16)} == {15.0, 3.0}


def test_the_legacy_stream_is_ordered_with_blocking_streams(host: Simulated) -> None:
    for seed in range(8):
        seen, out = answers(host, "legacy_stream", seed)
        assert set(seen) == {"Success"} and out[0] == 7.0


@pytest.mark.parametrize("seed", range(4))
def test_a_captured_graph_replays_and_updates(host: Simulated, seed: int) -> None:
    seen, out = answers(host, "graph", seed)
    assert seen == ["Success"] * (len(seen) - 1) + ["GraphExecUpdateFailure"]
    assert out[:6].tolist() == [5.0, 22.0, 14.0, 44.0, 14.0, 2.0]
    counted = host.statistics()
    assert (counted["launches"], counted["graph_launches"], counted["kernels"]) == (0, 2, 6)


def test_a_capture_forbids_allocation_and_waiting(host: Simulated) -> None:
    seen, _ = answers(host, "forbidden")
    for which, error in enumerate(["Unsupported", "Unsupported", "Implicit", "Unsupported"]):
        invalid = "StreamCaptureInvalidated"
        assert seen[4 * which : 4 * which + 4] == ["Success", f"StreamCapture{error}", invalid, invalid]
    assert seen[16:] == ["StreamCaptureUnsupported", "InvalidValue", "StreamCaptureUnjoined", "Success", "Success"]


def test_a_failed_kernel_fails_every_call_until_the_reset(host: Simulated) -> None:
    seen, _ = answers(host, "sticky")
    assert seen == ["Success"] + ["LaunchFailure"] * 5 + ["Success"] * 5


def test_the_device_describes_itself(host: Simulated) -> None:
    seen, out = answers(host, "device")
    assert seen == ["Success", "Success", "InvalidDevice"] + ["Success"] * 4
    assert out[:4].tolist() == [1, 4, 227 * 1024, 4]


def test_error_names_and_texts_are_cudas(host: Simulated) -> None:
    host.library.error_text.restype = host.library.error_name.restype = ctypes.c_char_p
    assert host.library.error_name(2) == b"cudaErrorMemoryAllocation"
    assert host.library.error_text(2) == b"out of memory"
    assert host.library.error_text(719) == b"unspecified launch failure"
    assert host.library.error_name(12345) == b"unrecognized error code"


def test_threads_may_launch_at_once(host: Simulated) -> None:
    host.configure(0)
    outs = [np.zeros(32, np.float32) for _ in range(4)]
    threads = [threading.Thread(target=host.call, args=("run_many", out, 40)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(outs, np.full((4, 32), 40))


def test_each_module_has_a_simulator_of_its_own(host: Simulated, device: Simulated) -> None:
    host.configure(0)
    device.configure(0)
    host.call("run_many", np.zeros(32, np.float32), 3)
    assert host.statistics()["launches"] == 3
    assert device.statistics()["launches"] == 0
