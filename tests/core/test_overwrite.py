"""What `--overwrite` replaces can be put back until the new run has trained, wherever a crash comes."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bumblecore_core.run import files, overwrite
from bumblecore_core.run.files import recover
from bumblecore_core.run.output_dir import HEADER
from bumblecore_core.run.overwrite import discard, pending, put_back, set_aside

OLD = {
    "run.yaml": HEADER + "old",
    "run.lock.json": "old",
    "metrics.json": "old",
    "metrics.csv": "old",
    "final/config.json": "old",
    "checkpoint-4/config.json": "old",
    "checkpoint-4/state/rank-0/engine.json": "old",
    "tensorboard/events.out.tfevents.1": "old",
    "notes.txt": "mine",
    "mine/final/config.json": "mine",
}
NEW = {
    "run.yaml": HEADER + "new",
    "run.lock.json": "new",
    "run.info.json": "new",
    "logs/train.log": "new",
    "checkpoint-1/config.json": "new",
    ".checkpoint-2.writing/config.json": "new",
    "tensorboard/events.out.tfevents.2": "new",
}


class Crash(BaseException):
    pass


def write(directory, contents):
    for name, text in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def read(directory):
    return {file.relative_to(directory).as_posix(): file.read_text() for file in directory.rglob("*") if file.is_file()}


def start_over(out, config):
    """The part of a run with --overwrite that changes files."""
    put_back(out)
    recover(out)
    set_aside(SimpleNamespace(config=SimpleNamespace(output_dir=str(out)), path=config))
    write(out, NEW)


@pytest.fixture
def out(tmp_path):
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


@pytest.fixture(params=["another file", "run.yaml"])
def config(request, out):
    return out / "run.yaml" if request.param == "run.yaml" else out.parent / "config.yaml"


@pytest.fixture
def crash_at(monkeypatch):
    """Raises at the n-th change of a file; whether it came to that."""
    count = SimpleNamespace(left=0)

    def crashing(changes):
        def changing(*given, **named):
            count.left -= 1
            if count.left == 0:
                raise Crash
            return changes(*given, **named)

        return changing

    for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
        monkeypatch.setattr(Path, name, crashing(getattr(Path, name)))
    for module in (files, overwrite):
        monkeypatch.setattr(module.shutil, "rmtree", crashing(shutil.rmtree))
    monkeypatch.setattr(overwrite.shutil, "copy2", crashing(shutil.copy2))

    def at(number, action):
        count.left = number
        try:
            action()
        except Crash:
            return True
        finally:
            count.left = 0
        return False

    return at


def test_the_earlier_run_comes_back_and_goes_for_good_when_it_is_discarded(out, config):
    start_over(out, config)
    assert pending(out)
    assert put_back(out)
    assert read(out) == OLD
    assert not pending(out)
    start_over(out, config)
    discard(out)
    assert not put_back(out)
    recover(out)
    whole = {name: text for name, text in NEW.items() if not name.startswith(".")}
    mine = {name: text for name, text in OLD.items() if text == "mine"}
    assert read(out) == {**mine, **whole}


def test_a_crash_anywhere_leaves_the_earlier_run_to_be_put_back(out, config, crash_at):
    saved = out.with_name("saved")
    shutil.copytree(out, saved)
    for number in range(1, 1000):
        crashed = crash_at(number, lambda: start_over(out, config))
        assert config.name != "run.yaml" or config.exists()
        put_back(out)
        assert read(out) == OLD, number
        shutil.rmtree(out)
        shutil.copytree(saved, out)
        if not crashed:
            break
    assert number > 10


def test_a_crash_while_it_is_put_back_is_made_good_by_the_next_try(out, config, crash_at):
    start_over(out, config)
    saved = out.with_name("saved")
    shutil.copytree(out, saved)
    for number in range(1, 1000):
        crashed = crash_at(number, lambda: put_back(out))
        assert config.name != "run.yaml" or config.exists()
        put_back(out)
        assert read(out) == OLD, number
        shutil.rmtree(out)
        shutil.copytree(saved, out)
        if not crashed:
            break
    assert number > 10


def test_a_crash_while_it_is_discarded_leaves_one_of_the_two_runs_whole(out, config, crash_at):
    for number in range(1, 1000):
        start_over(out, config)
        crashed = crash_at(number, lambda: discard(out))
        restored = put_back(out)
        recover(out)
        assert read(out).get("metrics.json") == ("old" if restored else None)
        assert read(out)["run.yaml"] == (OLD if restored else NEW)["run.yaml"]
        shutil.rmtree(out)
        write(out, OLD)
        if not crashed:
            break
    assert number > 1


def test_a_directory_that_no_run_wrote_is_left_alone(tmp_path):
    write(tmp_path, {"final/config.json": "mine"})
    set_aside(SimpleNamespace(config=SimpleNamespace(output_dir=str(tmp_path)), path=tmp_path / "c.yaml"))
    assert read(tmp_path) == {"final/config.json": "mine"}
