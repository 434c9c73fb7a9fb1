"""Whatever is wrong with a checkpoint is found before anything is made of it."""

import json
import random
import shutil
from pathlib import Path

import pytest

from bumblecore_core.cli import main
from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint import manifest as manifests
from bumblecore_core.run.checkpoint.compare import checkpoint_differences
from bumblecore_core.run.checkpoint.folder import list_checkpoints
from bumblecore_core.run.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    Newer,
    Torn,
    faults,
    read_manifest,
    write_manifest,
)
from bumblecore_core.run.checkpoint.resume import choose_start
from bumblecore_core.run.checkpoint.writing import STATE
from workbench import pretrain_settings, workbench, write_config

STEPS = 3
FLIPS, CUTS = 200, 50


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The config and the output directory of a run that saved at each of three steps."""
    bench = workbench(tmp_path_factory.mktemp("manifest"))
    settings = pretrain_settings(bench, max_steps=STEPS)
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
    settings["loggers"] = []
    assert run(bench, settings) == 0
    return settings, bench / "pretrain"


@pytest.fixture
def output(made, tmp_path):
    """A copy of that directory."""
    return shutil.copytree(made[1], tmp_path / "output")


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """A checkpoint of its own, which a test may damage and must restore."""
    return Path(shutil.copytree(made[1] / f"checkpoint-{STEPS}", tmp_path_factory.mktemp("whole") / "checkpoint-3"))


@pytest.fixture(autouse=True)
def _is_whole_again(request):
    yield
    if "whole" in request.fixturenames:
        assert faults(request.getfixturevalue("whole")) == []


def run(directory, settings):
    with pytest.raises(SystemExit) as ended:
        main(["run", str(write_config(directory / "run.yaml", **settings))])
    return int(ended.value.code or 0)


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def problems_of(output_dir, resume):
    with pytest.raises(RunError) as caught:
        choose_start(output_dir, str(resume))
    return list(caught.value.problems)


def assert_found(checkpoint, file):
    """That the damaged `file` is named by `faults` and by a resume from that very checkpoint."""
    name = file.relative_to(checkpoint).as_posix()
    (fault,) = faults(checkpoint)
    assert fault.startswith(f"{name} "), fault
    (problem,) = problems_of(checkpoint.parent / "none", checkpoint)
    assert (problem.code, problem.field, problem.place) == ("BC046", "checkpoint.resume", str(checkpoint))
    assert problem.problem == fault


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def rewrite(checkpoint, **changes):
    """The manifest of `checkpoint` written anew, with other facts or files and a right hash of itself."""
    found = read_manifest(checkpoint)
    write_manifest(checkpoint, Manifest(**{"files": found.files, "facts": found.facts, **changes}))


def test_the_checkpoint_of_a_run_is_whole_and_lists_every_file(made):
    checkpoint = made[1] / f"checkpoint-{STEPS}"
    found = read_manifest(checkpoint)
    assert faults(checkpoint) == []
    assert {MANIFEST, *found.files} == {file.relative_to(checkpoint).as_posix() for file in files_of(checkpoint)}
    assert found.step == STEPS
    assert found.size == sum(file.stat().st_size for file in files_of(checkpoint) if file.name != MANIFEST)
    start = choose_start(made[1], "auto")
    assert (start.path, start.step, start.warnings) == (checkpoint, STEPS, ())
    assert start.lock == json.loads((made[1] / "run.lock.json").read_text())
    assert choose_start(made[1], str(checkpoint)) == start
    assert choose_start(made[1], "never") is None
    assert choose_start(made[1] / "missing", "auto") is None


def test_any_flipped_bit_is_found(whole):
    chance, files = random.Random(0), files_of(whole)
    hit = [chance.choice(files) for _ in range(FLIPS - len(files))] + files  # each file at least once
    for file in hit:
        bit = chance.randrange(file.stat().st_size * 8)
        flip(file, bit)
        assert_found(whole, file)
        flip(file, bit)


def test_a_manifest_with_one_bit_flipped_is_torn_and_never_of_a_newer_version(whole, tmp_path):
    chance, data = random.Random(2), (whole / MANIFEST).read_bytes()
    bits = [byte * 8 + chance.randrange(8) for byte in range(0, len(data), 6)]
    bits += range(data.index(b'"format"') * 8, data.index(b'"sha256"', data.index(b'"format"')) * 8)
    for bit in bits:
        (tmp_path / MANIFEST).write_bytes(data)
        flip(tmp_path / MANIFEST, bit)
        with pytest.raises(Torn) as caught:
            read_manifest(tmp_path)
        assert not isinstance(caught.value, Newer), f"bit {bit % 8} of byte {bit // 8}"


def test_any_truncation_is_found(whole):
    chance, files = random.Random(1), files_of(whole)
    for file in [chance.choice(files) for _ in range(CUTS - len(files))] + files:
        data = file.read_bytes()
        file.write_bytes(data[: chance.randrange(len(data))])
        assert_found(whole, file)
        file.write_bytes(data)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "longer", "replaced by a directory", "exchanged"])
def test_a_lost_or_changed_file_is_found(whole, damage):
    files = files_of(whole)
    for at, file in enumerate(files):
        data = file.read_bytes()
        if damage == "emptied":
            file.write_bytes(b"")
        elif damage == "longer":
            file.write_bytes(data + b"\n")
        elif damage == "exchanged":
            file.write_bytes(files[at - 1].read_bytes())
        else:
            file.unlink()
        if damage == "replaced by a directory":
            file.mkdir()
        assert_found(whole, file)
        if file.is_dir():
            file.rmdir()
        file.write_bytes(data)


def test_all_damaged_files_are_told_at_once(output):
    checkpoint = output / f"checkpoint-{STEPS}"
    damaged = [file for file in files_of(checkpoint) if file.name != MANIFEST]
    for file in damaged:
        flip(file, 0)
    found = problems_of(output, checkpoint)
    assert len(found) == len(damaged)
    assert {problem.code for problem in found} == {"BC046"}


def test_a_look_without_hashes_still_sees_sizes_and_the_manifest(output):
    checkpoint = output / f"checkpoint-{STEPS}"
    flip(checkpoint / "config.json", 3)
    assert faults(checkpoint, hashes=False) == []
    (checkpoint / "config.json").write_bytes(b"")
    (fault,) = faults(checkpoint, hashes=False)
    assert fault.startswith("config.json has 0 bytes")
    flip(checkpoint / MANIFEST, 100)
    assert faults(checkpoint, hashes=False) == [f"{MANIFEST} is damaged"]


DAMAGED = {
    "a flipped bit": lambda path: flip(path / "model.safetensors", 4000),
    "a lost file": lambda path: (path / STATE / "progress.json").unlink(),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "half a manifest": lambda path: (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:200]),
    "another step": lambda path: rewrite(path, facts={"step": 1}),
    "no step": lambda path: rewrite(path, facts={}),
    "a step that is no number": lambda path: rewrite(path, facts={"step": "three"}),
    "no training state": lambda path: (
        rewrite(path, files={"config.json": read_manifest(path).files["config.json"]}),
        shutil.rmtree(path / STATE),
    ),
    "nothing in it": lambda path: (shutil.rmtree(path), path.mkdir()),
    "a lock that is not there": lambda path: (
        rewrite(path, files={n: e for n, e in read_manifest(path).files.items() if n != f"{STATE}/lock.json"}),
        (path / STATE / "lock.json").unlink(),
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_auto_goes_on_from_the_newest_whole_one_and_names_the_others(output, kind):
    newest = output / f"checkpoint-{STEPS}"
    DAMAGED[kind](newest)
    start = choose_start(output, "auto")
    assert (start.path, start.step) == (output / "checkpoint-2", 2)
    assert start.warnings
    assert all(warning.startswith("BC046") and str(newest) in warning for warning in start.warnings)
    DAMAGED[kind](output / "checkpoint-2")
    start = choose_start(output, "auto")
    assert start.step == 1
    assert all(any(f"checkpoint-{step}" in warning for warning in start.warnings) for step in (2, 3))


def test_auto_with_no_whole_checkpoint_left_is_refused(output):
    for checkpoint in list_checkpoints(output):
        flip(checkpoint.path / STATE / "progress.json", 9)
    found = problems_of(output, "auto")
    assert {problem.code for problem in found} == {"BC046"}
    assert [problem.place for problem in found] == [str(output / f"checkpoint-{step}") for step in (3, 2, 1)]


@pytest.mark.parametrize("newer", [2, 9, 10**6])
@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_checkpoint_of_a_newer_version_is_not_passed_over(output, monkeypatch, resume, newer):
    checkpoint = output / f"checkpoint-{STEPS}"
    found = read_manifest(checkpoint)
    with monkeypatch.context() as patched:
        patched.setattr(manifests, "FORMAT", newer)
        write_manifest(checkpoint, found)
        assert read_manifest(checkpoint) == found
    (problem,) = problems_of(output, resume if resume == "auto" else checkpoint)
    assert (problem.code, problem.place) == ("BC051", str(checkpoint))
    assert f"format {newer}" in problem.problem


@pytest.mark.parametrize("name", ["/etc/hostname", "../checkpoint-2/config.json", "state/../../secret", ".."])
def test_a_manifest_that_names_files_elsewhere_is_damaged(output, name):
    checkpoint = output / f"checkpoint-{STEPS}"
    (output / "secret").write_text("mine")
    rewrite(checkpoint, files={**read_manifest(checkpoint).files, name: FileEntry(size=4, sha256="0" * 64)})
    assert faults(checkpoint) == [f"{MANIFEST} is damaged"]
    assert [problem.code for problem in problems_of(output, checkpoint)] == ["BC046"]


def test_a_final_model_is_nothing_to_go_on_from(output):
    assert faults(output / "final") == []
    (problem,) = problems_of(output, output / "final")
    assert (problem.code, problem.place) == ("BC046", str(output / "final"))
    assert "without its training state" in problem.problem


def test_a_path_that_is_not_there_is_refused_with_those_that_are(output):
    (problem,) = problems_of(output, output / "checkpoint-7")
    assert problem.code == "BC046"
    assert str(output / "checkpoint-7") in problem.problem
    assert "checkpoint-1, checkpoint-2, checkpoint-3" in problem.fix
    assert [one.code for one in problems_of(output, output / "run.yaml")] == ["BC046"]


def test_an_older_checkpoint_of_the_same_directory_is_refused_for_the_newer_ones(output):
    (problem,) = problems_of(output, output / "checkpoint-2")
    assert (problem.code, problem.field) == ("BC043", "checkpoint.resume")
    assert "checkpoint-3" in problem.problem
    assert choose_start(output.parent / "other", str(output / "checkpoint-2")).step == 2


def test_an_output_directory_stands_for_its_newest_checkpoint(output):
    assert choose_start(output.parent / "other", str(output)).path == output / f"checkpoint-{STEPS}"
    flip(output / f"checkpoint-{STEPS}" / "config.json", 0)
    assert [one.code for one in problems_of(output.parent / "other", output)] == ["BC046"]


@pytest.mark.parametrize("kind", ["a flipped bit", "no manifest"])
def test_a_torn_checkpoint_is_replaced_when_the_run_saves_that_step_again(made, output, kind, capsys):
    settings, original = made
    newest = output / f"checkpoint-{STEPS}"
    DAMAGED[kind](newest)
    (newest / "left over").write_text("of the torn one")
    shutil.rmtree(output / "final")
    assert run(output.parent, {**settings, "output_dir": str(output)}) == 0
    said = capsys.readouterr()
    assert "BC046" in said.out + said.err
    assert faults(newest) == []
    assert not (newest / "left over").exists()
    assert [(one.step, one.fault) for one in list_checkpoints(output)] == [(1, ""), (2, ""), (3, "")]
    for name in (newest.name, "final"):
        assert checkpoint_differences(original / name, output / name) == []
