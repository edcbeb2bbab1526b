"""The GPU script, as far as a machine without a GPU can tell: its checks on the simulator, its sections, its file."""

import json
import math
import sys
import time

import numpy as np
import pytest

from benchmarks import gpu, gpu_check, measure
from benchmarks.gpu_device import Limits
from benchmarks.measure import Connection, PeerFailed, Row
from benchmarks.workloads import find
from pequegrad.targets.device import Device, find_device

ON_SIMULATOR = ["--target", "cuda-sim", "--small", "--steps", "2", "--nets", "tiny", "--ops", "add,matmul,softmax,rand"]


def check(capsys, arguments):
    code = gpu_check.main(arguments)
    return code, json.loads(capsys.readouterr().out)


def test_ops_and_training_agree_on_the_simulator(capsys):
    code, report = check(capsys, ON_SIMULATOR)
    assert (code, report["differing"]) == (0, [])
    assert report["compared"]["the CPU target"] > 10
    assert any(kind.startswith("torch") for kind in report["compared"])


def test_a_difference_is_named_and_fails_the_check(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "train", lambda framework, *rest: np.full(3, framework is gpu_check.pg, float))
    code, report = check(capsys, ["--target", "cuda-sim", "--nets", "tiny", "--ops", "none"])
    assert code == 1
    assert any("tiny" in text and "torch" in text for text in report["differing"])


@pytest.mark.parametrize(
    ("got", "expected", "is_same"),
    [
        ([1.0, 2.0], [1.0, 2.0001], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [1.0, 2.0], False),
        ([1.0, math.inf], [1.0, -math.inf], False),
        ([1.0, 2.0, 3.0], [1.0, 2.0], False),
        ([], [], True),
    ],
)
def test_comparing(got, expected, is_same):
    report = gpu_check.Report()
    report.compare("op", "peer", np.array(got), np.array(expected), gpu_check.CLOSE)
    assert report.compared == {"peer": 1}
    assert (report.differing == []) is is_same


@pytest.mark.skipif(isinstance(find_device(), Device), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_is_missing(capsys):
    assert gpu.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_a_section_that_fails_leaves_the_others_and_the_file(tmp_path, capsys):
    session = gpu.Session(tmp_path / "results" / "device.json", {"date": "today"}, minutes=1)

    def fails(section):
        raise RuntimeError("the device is on fire")

    session.run("first", fails)
    session.run("second", lambda section: section.facts.update(rows=[1]))
    record = json.loads(session.path.read_text())
    assert [part["state"] for part in record["sections"]] == ["failed", "passed"]
    assert "on fire" in record["sections"][0]["text"]
    assert record["sections"][1]["facts"] == {"rows": [1]}
    assert session.has_failed


def test_a_check_that_crashes_fails_its_section(monkeypatch):
    section = gpu.Section("ops")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    gpu.run_check(section, [], 10.0)
    assert section.state == "failed"
    assert "exit code 1" in section.text


def test_without_the_sanitizer_its_sections_are_skipped(monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    session = gpu.Session(None, {}, minutes=1)
    gpu.sanitize(session, "memcheck", "graph")
    assert session.sections[0].state == "skipped"


def test_a_worker_is_stopped_at_the_deadline(tmp_path):
    worker = Connection(measure.worker_environment(1, str(tmp_path)), False, deadline=time.monotonic())
    with pytest.raises(PeerFailed, match="no time left"):
        worker.ask("prepare", "pequegrad", "tiny", 1, str(tmp_path))
    worker.close()


def test_each_part_has_its_share_of_the_time_and_leaves_what_is_reserved():
    session = gpu.Session(None, {}, minutes=10)
    share = session.deadline_of_part(5, reserved=100) - time.monotonic()
    assert share == pytest.approx(100, abs=1)
    last = session.deadline_of_part(1, reserved=100) - time.monotonic()
    assert last == pytest.approx(500, abs=1)
    assert session.deadline_of_part(1, reserved=1000) <= time.monotonic()


def test_a_framework_that_compiles_for_long_leaves_time_to_the_others_and_the_rounds():
    options = measure.Options(threads=1, rounds=10, seconds=0.5, deadline=time.monotonic() + 100)
    first = measure.set_up_deadline(options, peers=4, left=4) - time.monotonic()
    assert first == pytest.approx((100 - 40) / 4, abs=1)
    assert measure.set_up_deadline(measure.Options(1, 10, 0.5), peers=4, left=4) == math.inf


def test_the_share_of_the_limit_is_of_whichever_is_slower():
    limits = Limits("Device", "sm_90", fp32=1e12, bf16=1e13, bytes=1e9)
    assert limits.seconds(1e12, 1e6, "fp32") == 1.0
    assert limits.seconds(1e12, 1e6, "bf16") == 0.1
    assert limits.seconds(1e9, 1e9, "fp32") == 1.0


def test_rows_carry_share_and_bandwidth(capsys):
    tiny = find("tiny")
    limits = Limits("Device", "sm_90", fp32=tiny.flops() / 1e-6, bf16=math.nan, bytes=1e15)
    row = Row("pequegrad-cuda", rounds=[2e-6, 4e-6, 4e-6], trials={"graph": 4e-6})
    (record,) = gpu.add_limits(tiny, [row], limits)
    assert record["share_of_limit"] == pytest.approx(0.25)
    assert record["bytes_per_second"] == pytest.approx(tiny.least_bytes() / 4e-6)
    assert "graph" in capsys.readouterr().out
