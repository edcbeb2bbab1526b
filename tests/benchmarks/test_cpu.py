"""The CPU script: its options, its table, and one run of it from beginning to end."""

import json
import math

import pytest

from benchmarks import cpu
from benchmarks.measure import PeerFailed, Row, choose_variant, note_differing_losses
from benchmarks.peak import measure_peak
from benchmarks.peers import OURS
from benchmarks.report import format_table
from benchmarks.workloads import find


def test_random_nets_are_named_from_the_seed_on():
    options = cpu.make_parser().parse_args(["--random", "3", "--seed", "5"])
    assert cpu.chosen_names(options) == ["random-5", "random-6", "random-7"]


def test_unknown_names_are_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        cpu.main(["--only", "nothing"])
    assert "resnet" in capsys.readouterr().err


def test_a_row_that_did_other_work_is_noted():
    rows = [Row("pequegrad", losses=[1.0, 0.9]), Row("torch", losses=[1.0, 0.9]), Row("jax", losses=[1.0, 0.8])]
    note_differing_losses(rows, 1e-3)
    assert [bool(row.note) for row in rows] == [False, False, True]


class Scripted:
    """A worker whose variants take given seconds a round of ten steps, or fail."""

    def __init__(self, seconds):
        self.seconds = seconds

    def ask(self, command, argument):
        if command == "start":
            self.variant = argument
            if self.seconds[argument] is None:
                raise PeerFailed(f"{argument} is broken")
            return {}
        return {"steps": 10} if command == "calibrate" else {"seconds": self.seconds[self.variant]}


def test_the_fastest_variant_is_chosen_and_a_broken_one_is_named():
    row = Row("torch")
    choose_variant(row, Scripted({"slow": 2.0, "broken": None, "fast": 1.0}), ["slow", "broken", "fast"])
    assert (row.variant, row.trials, row.failed) == ("fast", {"slow": 0.2, "fast": 0.1}, {"broken": "broken is broken"})


def test_a_framework_whose_variants_all_fail_has_failed():
    with pytest.raises(PeerFailed, match="a is broken"):
        choose_variant(Row("torch"), Scripted({"a": None, "b": None}), ["a", "b"])


def test_the_table_has_ratio_rate_and_share_of_the_peak():
    tiny = find("tiny")
    rows = [Row("pequegrad", rounds=[1e-4] * 3), Row("torch", rounds=[3e-4] * 3), Row("jax", rounds=[2e-4] * 3)]
    ours = format_table(tiny, rows, OURS, peak=tiny.flops() / 5e-5).splitlines()[2].split()
    assert ours[:4] == ["pequegrad", "100.0", "100.0-100.0", "0.500"]
    assert ours[5] == "50.0"


def test_the_peak_is_a_rate_that_a_processor_can_have():
    peak = measure_peak(1)
    assert math.isnan(peak.flops) or (1e8 < peak.flops < 1e13 and 1e7 < peak.bytes < 1e13)


def test_one_small_run_writes_table_file_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--only", "tiny", "--peers", "pequegrad-eager", "--threads", "1", "--rounds", "2", "--seconds", "0.01"]
    assert cpu.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "pequegrad-eager" in capsys.readouterr().out
    record = json.loads((tmp_path / "cpu-1threads.json").read_text())
    (row,) = record["workloads"]["tiny"]
    assert len(row["rounds"]) == 2 and len(row["losses"]) == 10
    assert (tmp_path / "cpu-1threads.png").stat().st_size > 1000
