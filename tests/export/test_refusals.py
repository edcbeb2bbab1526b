"""What is damaged, foreign, or for another machine is refused before anything of it runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import pequegrad as pg
from pequegrad.build import loader
from pequegrad.errors import ArtifactError, CacheError
from pequegrad.export import files, loading, machine
from pequegrad.export.manifest import FORMAT, parse
from pequegrad.targets import Device, device


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch, saved):
    """Let no module be loaded in these tests: a refusal that comes later is none."""

    def refuse(*arguments):
        raise AssertionError("a module was loaded")

    monkeypatch.setattr(loader, "load", refuse)
    monkeypatch.setattr(loading, "_modules", {})


def rewrite(folder: Path, change) -> None:
    """Change the manifest and make its sum right again, as someone who knows the format would."""
    data = json.loads((folder / files.MANIFEST).read_bytes())
    content = json.dumps(change(data) or data).encode()
    (folder / files.MANIFEST).write_bytes(content)
    (folder / files.SUM).write_bytes(files.sum_file(content))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_folder_gets_as_far_as_loading(copy):
    with pytest.raises(AssertionError, match=r"a module was loaded"):
        pg.load_step(copy)


@pytest.mark.parametrize("kind", ["manifest.json", "manifest.sha256", "pg_step", "state", "step"])
def test_a_missing_truncated_or_altered_file_is_refused(copy, kind):
    name = next(name for name in names_in(copy) if name.startswith(kind))
    content = (copy / name).read_bytes()
    places = range(0, len(content), max(1, len(content) // 7))
    for place in [*places, len(content) - 1]:
        (copy / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ArtifactError, match=r"altered"):
            pg.load_step(copy)
    for count in (0, 1, len(content) // 2, len(content) - 1):
        (copy / name).write_bytes(content[:count])
        with pytest.raises(ArtifactError, match=r"altered|is not whole"):
            pg.load_step(copy)
    (copy / name).write_bytes(content + b"\0")
    with pytest.raises(ArtifactError, match=r"altered|is not whole"):
        pg.load_step(copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=rf"has no {name}"):
        pg.load_step(copy)


def test_a_foreign_folder_is_refused(tmp_path, saved):
    with pytest.raises(ArtifactError, match=r"cannot be read: No such file"):
        pg.load_step(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"is no folder"):
        pg.load_step(saved / files.MANIFEST)
    with pytest.raises(CacheError, match=r"has no manifest.json. Expected a folder that an artifact's save wrote"):
        pg.load_step(tmp_path)
    for content, words in [(b"{}", "not the manifest of a pequegrad step"), (b"[" * 10**5, "is no JSON"),
                           (b"\xff", "is no JSON"), (b"[1]", "not the manifest")]:  # fmt: skip
        (tmp_path / files.MANIFEST).write_bytes(content)
        (tmp_path / files.SUM).write_bytes(files.sum_file(content))
        with pytest.raises(ArtifactError, match=words):
            pg.load_step(tmp_path)


def test_a_newer_format_is_refused_with_both_numbers(copy):
    rewrite(copy, lambda data: {"kind": data["kind"], "format": FORMAT + 1, "what else": "there may be"})
    with pytest.raises(
        ArtifactError, match=rf"format {FORMAT + 1}, and this version of pequegrad reads formats up to {FORMAT}"
    ):
        pg.load_step(copy)


@pytest.mark.parametrize("name", ["../module.so", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\0b", "a\nb", "é"])
@pytest.mark.parametrize("which", ["module", "state", "source"])
def test_a_path_out_of_the_folder_is_refused(copy, which, name):
    rewrite(copy, lambda data: data[which].update(name=name))
    with pytest.raises(ArtifactError, match=r"no name of a file in the folder"):
        pg.load_step(copy)


def test_links_pipes_and_folders_are_not_followed(copy, tmp_path):
    for name in names_in(copy):
        original = copy / name
        original.rename(tmp_path / "away")
        original.symlink_to(tmp_path / "away")
        with pytest.raises(ArtifactError, match=r"is a symbolic link, which is not followed"):
            pg.load_step(copy)
        original.unlink()
        os.mkfifo(original)
        with pytest.raises(ArtifactError, match=r"is no ordinary file"):
            pg.load_step(copy)
        original.unlink()
        original.mkdir()
        with pytest.raises(ArtifactError, match=r"is no ordinary file"):
            pg.load_step(copy)
        original.rmdir()
        (tmp_path / "away").rename(original)


def test_a_folder_that_others_may_write_to_is_refused(copy, monkeypatch):
    copy.chmod(0o777)
    with pytest.raises(ArtifactError, match=r"every user may write to .* Run: chmod go-w"):
        pg.load_step(copy)
    copy.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(copy, 12345, -1)
        with pytest.raises(ArtifactError, match=r"belongs to another user"):
            pg.load_step(copy)


def set_slot(**fields):
    return lambda data: data["slots"][2].update(fields)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda data: data.pop("slots"), "must have"),
        (lambda data: data.update(more=1), "must have"),
        (lambda data: data.update(workers="2"), "manifest.workers must be of type int"),
        (lambda data: data.update(workers=True), "manifest.workers must be of type int"),
        (lambda data: data.update(workers=0), "0 workers"),
        (lambda data: data.update(arena_bytes=-1), "an arena of -1 bytes"),
        (lambda data: data.update(arena_bytes=2**60), "an arena of"),
        (lambda data: data.update(arena_bytes=2**47), "bytes of memory, and this machine has"),
        (lambda data: data["state"].update(bytes=-1), "cannot have -1 bytes"),
        (lambda data: data["state"].update(bytes=2**62), "cannot have"),
        (lambda data: data["state"].update(bytes=2**40), "and the manifest says 1099511627776"),
        (lambda data: data["state"].update(sha256="0"), "has no sha256"),
        (lambda data: data["state"].update(name=data["module"]["name"]), "two files have one name"),
        (set_slot(shape=[2**40, 2**40]), "would have"),
        (set_slot(shape=[-9, -6]), "has shape"),
        (set_slot(shape=[9, 6.0]), "must be of type int"),
        (set_slot(shape=[1] * 99), "has shape"),
        (set_slot(bytes=8), "has 8 bytes, and its shape makes 216"),
        (set_slot(shape=[6, 9]), "expected model.0.weight as"),
        (set_slot(dtype="object"), "has dtype 'object'"),
        (set_slot(role="secret"), "a slot of role"),
        (set_slot(role="argument", argument=5), "is tensor 5 of the call"),
        (set_slot(name="model.0.bias"), "two slots are named"),
        (set_slot(name="other"), "does not hold the state"),
        (set_slot(role="scalar"), "is no number"),
        (lambda data: data["slots"].reverse(), "a result lies before an input"),
        (lambda data: data["slots"][0].update(shape=[8, 5], bytes=160), "is not as its argument"),
        (lambda data: data["results"]["leaves"][0].update(index=1), "name the 'result' 1, of 1"),
        (lambda data: data["results"]["leaves"][0].update(kind="slot", index=-1), "name the 'slot' -1"),
        (lambda data: data["results"]["leaves"].clear(), "have 0 leaves, and their nesting 1"),
        (lambda data: data["results"].update(structure={"kind": "os.system", "children": [None]}), "without keys"),
        (lambda data: data["results"].update(structure={"kind": "class X", "keys": ["a"], "children": [None]}),
         "no container that can be made"),
        (lambda data: data["results"]["leaves"][0].update(kind="value", value={"eval": "1"}), "no kind of value"),
        (lambda data: data["results"]["leaves"][0].update(
            kind="slot", index=2, views=[{"op": "exp", "params": []}]), "'exp' is no view"),
        (lambda data: data["arguments"].update(structure=None, leaves=data["arguments"]["leaves"][:1]), "positional"),
        (lambda data: data.update(gradients=[{"kind": "store", "argument": -1, "name": "x", "result": 3}]), "result 3"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_hold_together_is_refused_although_its_sum_is_right(copy, change, words):
    def changed(data):
        change(data)

    rewrite(copy, changed)
    with pytest.raises(ArtifactError, match=words):
        pg.load_step(copy)


def test_state_that_is_no_safetensors_file_is_refused_although_its_sum_is_right(copy):
    def replace(content):
        (copy / "state.safetensors").write_bytes(content)
        rewrite(copy, lambda data: data["state"].update(bytes=len(content), sha256=files.sum_of(content)))

    for content in (b"", b"\x80\x04]", (2**40).to_bytes(8, "little") + b"{}"):
        replace(content)
        with pytest.raises(ArtifactError, match=r"not a whole safetensors file"):
            pg.load_step(copy)
    pg.save([np.ones(3)], copy / "other")
    replace((copy / "other").read_bytes())
    with pytest.raises(ArtifactError, match=r"does not hold the state that the manifest names"):
        pg.load_step(copy)


# --- another machine --------------------------------------------------------------------------------------------


def require(folder: Path, **fields) -> None:
    rewrite(folder, lambda data: data["requires"].update(fields))


def test_a_module_for_another_python_or_machine_is_refused_with_both_named(copy):
    require(copy, python=".cpython-399-x86_64-linux-gnu.so")
    with pytest.raises(
        ArtifactError, match=r"for a Python of modules \*.cpython-399.* and this one's are \*.cpython-3"
    ):
        pg.load_step(copy)
    require(copy, machine="s390x")
    with pytest.raises(ArtifactError, match=r"was built for s390x, and this machine is .*arch="):
        pg.load_step(copy)


def test_a_module_for_another_instruction_set_is_refused_with_what_is_lacking(copy):
    require(copy, instruction_set="x86-64-v9", features=["avx9", "fma", "sse9"])
    with pytest.raises(ArtifactError, match=r"for the instruction set x86-64-v9, and this processor lacks avx9, "):
        pg.load_step(copy)


@pytest.fixture
def for_cuda(copy):
    require(copy, target="cuda", device="cuda", architecture="sm_90", toolkit="13.0", features=[])
    return copy


@pytest.mark.parametrize(
    "capability, driver, words",
    [
        ((8, 6), (13, 0), "was built for sm_90, and this device is sm_86"),
        ((10, 0), (13, 0), "was built for sm_90, and this device is sm_100"),
        ((9, 0), (12, 8), "built with CUDA 13.0, and this machine's driver is for CUDA 12.8: update the driver"),
    ],
)
def test_another_device_or_an_older_driver_is_refused_with_both_named(for_cuda, monkeypatch, capability, driver, words):
    monkeypatch.setattr(machine, "find_device", lambda: Device(capability, driver))
    with pytest.raises(ArtifactError, match=words):
        pg.load_step(for_cuda)


@pytest.mark.parametrize("capability, driver", [((9, 0), (13, 0)), ((9, 0), (14, 2)), ((9, 1), (13, 1))])
def test_the_same_generation_of_devices_and_newer_drivers_are_accepted(for_cuda, monkeypatch, capability, driver):
    monkeypatch.setattr(machine, "find_device", lambda: Device(capability, driver))
    with pytest.raises(AssertionError, match=r"a module was loaded"):
        pg.load_step(for_cuda)


def test_a_machine_without_a_device_is_refused(for_cuda, monkeypatch):
    def no_library(name):
        raise OSError(name)

    device.find_device.cache_clear()
    monkeypatch.setattr(device.ctypes, "CDLL", no_library)
    with pytest.raises(ArtifactError, match=r"for sm_90, and this machine has no CUDA driver \(libcuda.so.1\)"):
        pg.load_step(for_cuda)
    device.find_device.cache_clear()


def test_a_cuda_module_that_does_not_say_for_what_is_refused(for_cuda):
    require(for_cuda, toolkit="")
    with pytest.raises(ArtifactError, match=r"names no CUDA toolkit that it was built with"):
        pg.load_step(for_cuda)


def test_facts_about_the_machine_that_are_no_instructions_are_not_asked_for():
    found = machine.instruction_features()
    assert found and not found & {"hypervisor", "constant_tsc", "fpu_exception", "cpuid", "evtstrm"}


# --- the manifest itself ----------------------------------------------------------------------------------------


def test_a_manifest_reads_back_as_it_was(saved):
    manifest = loading.read_manifest(saved)
    assert parse(manifest.to_json(), "here") == manifest
    assert dataclasses.replace(manifest, name="other").to_json() != manifest.to_json()


def test_the_sum_file_is_one_that_sha256sum_reads(saved):
    digest, name = (saved / files.SUM).read_text().split()
    assert name == files.MANIFEST and digest == files.sum_of((saved / files.MANIFEST).read_bytes())


def test_a_link_to_the_folder_itself_is_followed(saved, tmp_path):
    (tmp_path / "latest").symlink_to(saved)
    with pytest.raises(AssertionError, match=r"a module was loaded"):
        pg.load_step(tmp_path / "latest")
    shutil.rmtree(tmp_path / "latest", ignore_errors=True)
