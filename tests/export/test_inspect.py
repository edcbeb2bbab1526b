"""`pequegrad inspect`: what it prints, and its exit codes."""

from __future__ import annotations

import json

from pequegrad.cli import main
from pequegrad.export import machine


def test_inspect_says_what_a_saved_step_is(saved, capsys):
    assert main(["inspect", str(saved)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train_step(float32[8,6], int64[8])\n")
    assert "runs here yes" in out and "files     all whole" in out
    assert "parameter w float32[9,6]  model.0.weight" in out and "model.3: Dropout training=True, p=0.25" in out


def test_inspect_prints_json_that_a_program_can_read(saved, capsys):
    assert main(["inspect", str(saved), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (
        manifest["name"] == "train_step" and manifest["runs_here"] is True and manifest["slots"][2]["shape"] == [9, 6]
    )


def test_inspect_works_where_the_step_cannot_run_and_says_why(saved, capsys, monkeypatch):
    here = machine.targets.host_machine()
    monkeypatch.setattr(machine.targets, "host_machine", lambda: "s390x")
    assert main(["inspect", str(saved)]) == 0
    assert f"runs here no: it was built for {here}, and this machine is s390x" in capsys.readouterr().out


def test_inspect_fails_on_a_damaged_folder(copy, capsys):
    (copy / "step.cpp").write_bytes(b"other")
    assert main(["inspect", str(copy)]) == 1
    assert "is not whole" in capsys.readouterr().err
