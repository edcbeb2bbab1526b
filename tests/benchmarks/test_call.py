"""What a call costs is printed for tensors kept, and arguments given, in each way, and for a loaded step."""

from benchmarks import call


def test_each_way_has_a_row(monkeypatch, capsys):
    monkeypatch.setattr(call, "ROUNDS", 2)
    monkeypatch.setattr(call, "CALLS", 2)
    call.main()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == [
        "module",
        "list",
        "list, loaded",
        "dict",
        "agent",
        "list, batch in a dict",
        "list, rate by name",
        "list, flag on and off",
    ]
    assert all(row.count(" µs") == 2 for row in rows[1:])
