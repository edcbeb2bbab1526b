"""The command line: what it prints, its exit codes, its colours."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pequegrad import config
from pequegrad.build import cache, keys
from pequegrad.cli import main
from pequegrad.cli.output import Printer, readable_bytes

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on this machine")
needs_pool = pytest.mark.skipif(
    not Path(keys.runtime_folder(), "include", "pequegrad", "pool.h").exists(),
    reason="the runtime has no pool.h",
)


class Terminal(io.StringIO):
    """A stream that a person reads."""

    def isatty(self) -> bool:
        return True


@needs_compiler
@needs_pool
def test_doctor_is_well_where_a_step_compiles(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "compiled step" in out and "right on 1 and" in out
    assert "FAILED" not in out and "\x1b" not in out


def test_doctor_fails_without_a_compiler_and_names_the_cure(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "apt install g++" in out


def test_doctor_fails_on_a_cache_folder_that_must_not_be_used(capsys, monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", str(tmp_path / "open"))
    monkeypatch.setenv("PATH", str(tmp_path))  # the step is no part of this test
    with pytest.warns(UserWarning):
        assert main(["doctor"]) == 1
    assert "chmod go-w" in capsys.readouterr().out


def test_env_prints_json_that_a_program_can_read(capsys):
    assert main(["env", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"python", "compiler", "features", "settings", "packages"} <= set(values)
    assert main(["env"]) == 0
    assert "config.cache = 'on'" in capsys.readouterr().out


@needs_compiler
@needs_pool
def test_doctor_and_env_say_what_there_is_for_cuda_and_do_not_fail_for_lack_of_it(capsys, monkeypatch, tmp_path):
    found = {"device": "sm_90", "device_driver": "13.0", "device_problem": None}
    found |= {"nvcc": "/cuda/bin/nvcc", "nvcc_version": "release 13.0", "nvcc_problem": None}
    monkeypatch.setattr(cache, "describe_machine", lambda real=cache.describe_machine: real() | found)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "nvcc: /cuda/bin/nvcc (release 13.0)" in out and "CUDA device: sm_90, driver for CUDA 13.0" in out
    found |= {
        "device": None,
        "device_problem": "no driver",
        "nvcc_version": None,
        "nvcc_problem": "no nvcc: set CUDA_HOME",
    }
    assert main(["doctor"]) == 0
    assert re.search(r"no +nvcc: no nvcc: set CUDA_HOME\nno +CUDA device: none: no driver", capsys.readouterr().out)
    assert main(["env"]) == 0
    assert "device         none: no driver" in capsys.readouterr().out


@needs_compiler
@needs_pool
def test_the_cache_is_listed_shown_verified_and_cleared(capsys, monkeypatch, tmp_path, cache_dir):
    folder = tmp_path / "cache"
    cache.self_test()
    shutil.copytree(cache_dir, folder)
    folder.chmod(0o700)
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", str(folder))

    assert main(["cache", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    (step,) = [each for each in listed if each["name"] == "selftest"][:1]
    assert main(["cache", "ls"]) == 0
    assert step["digest"][:12] in capsys.readouterr().out
    assert main(["cache", "show", step["digest"]]) == 0
    assert "compiler_version" in capsys.readouterr().out
    assert main(["cache", "verify"]) == 0

    (module,) = folder.glob(f"steps/*/{step['digest']}/pg_step*")
    module.write_bytes(b"not a module")
    capsys.readouterr()
    assert main(["cache", "verify"]) == 1
    assert "selftest" in capsys.readouterr().out

    assert main(["cache", "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == len(listed)
    assert main(["cache", "clear"]) == 0
    assert not list(folder.glob("steps/*/*"))


def test_show_of_an_unknown_step_fails_and_says_where_to_look(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", str(tmp_path / "none"))
    assert main(["cache", "show", "abc"]) == 1
    assert "pequegrad cache ls" in capsys.readouterr().err


def test_looking_at_a_cache_that_is_not_there_does_not_make_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PEQUEGRAD_CACHE_DIR", str(tmp_path / "none"))
    for command in ("stats", "ls", "verify", "clear"):
        assert main(["cache", command]) == 0
    assert not (tmp_path / "none").exists()


def test_python_m_pequegrad_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "pequegrad", "cache", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "verify" in done.stdout


def test_a_wrong_command_exits_with_usage():
    with pytest.raises(SystemExit) as caught:
        main(["no-such-command"])
    assert caught.value.code == 2


def test_colour_is_for_terminals_and_not_for_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Printer(Terminal()).has_color
    assert not Printer(io.StringIO()).has_color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Printer(Terminal()).has_color


def test_sizes_are_readable():
    assert [readable_bytes(size) for size in (5, 2048, 3 * 2**20, 5 * 2**30)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert config.cache_size_mb > 0
