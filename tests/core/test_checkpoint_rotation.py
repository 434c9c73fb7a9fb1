"""A limit lets go of old checkpoints, and of nothing else."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.run.checkpoint.folder import Checkpoint, best, checkpoint_path, list_checkpoints, outdated, rotate
from bumblecore_core.run.checkpoint.manifest import MANIFEST, Manifest
from bumblecore_core.run.checkpoint.writing import commit, write_part

NO_LOSS = object()
TEARS = ("no manifest", "short file", "missing file", "another step", "damaged manifest")
losses = st.sampled_from([NO_LOSS, None, math.nan, math.inf, -math.inf]) | st.integers(0, 3).map(float) | st.floats()
limits = st.none() | st.integers(1, 5)


@dataclass
class Saved:
    """A generated checkpoint. `tear`: how it was damaged, or None."""

    step: int
    loss: object
    tear: str | None
    pinned: bool

    @property
    def counted_loss(self) -> float | None:
        return self.loss if isinstance(self.loss, float) and math.isfinite(self.loss) else None


def saved(steps):
    whole = st.builds(Saved, step=steps, loss=losses, tear=st.none(), pinned=st.booleans())
    torn = st.builds(Saved, step=steps, loss=losses, tear=st.sampled_from(TEARS), pinned=st.booleans())
    return st.one_of(whole, whole, whole, torn)


def sets(most):
    near = st.integers(1, 12)  # so that texts and numbers order differently: 9 and 10
    either = saved(near) | saved(st.integers(1, 2000))
    return st.lists(either, max_size=most, unique_by=lambda one: one.step)


def expected_to_go(ones, limit):
    """The steps that go, worked out the plain way."""
    valid = sorted((one for one in ones if one.tear is None), key=lambda one: one.step)
    if limit is None:
        return []
    kept = {one.step for one in valid[max(0, len(valid) - limit) :]} | {one.step for one in valid if one.pinned}
    measured = [(one.counted_loss, one.step) for one in valid if one.counted_loss is not None]
    if measured:
        kept.add(sorted(measured)[0][1])
    return [one.step for one in valid if one.step not in kept]


def facts_of(one):
    return {"step": one.step, **({} if one.loss is NO_LOSS else {"evaluation_loss": one.loss})}


def as_value(root, one):
    manifest = None if one.tear else Manifest(files={}, facts=facts_of(one))
    return Checkpoint(path=checkpoint_path(root, one.step), step=one.step, manifest=manifest, fault=one.tear or "")


def make(path, facts):
    """A committed directory of two small files."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.mkdir()

    def write(directory):
        (directory / "weights").write_bytes(b"w" * 9)
        (directory / "state" / "progress.json").write_text("{}")

    write_part(temporary, 0, write)
    commit(temporary, path, world_size=1, facts=facts)


def make_saved(root, one):
    path = checkpoint_path(root, one.step)
    make(path, {**facts_of(one), "step": one.step + (one.tear == "another step")})
    if one.tear == "no manifest":
        (path / MANIFEST).unlink()
    elif one.tear == "short file":
        (path / "weights").write_bytes(b"w")
    elif one.tear == "missing file":
        (path / "state" / "progress.json").unlink()
    elif one.tear == "damaged manifest":
        (path / MANIFEST).write_text((path / MANIFEST).read_text()[:-3])


def contents(root):
    """Every file and link under `root`, with what is in it."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@settings(max_examples=150, deadline=None)
@given(sets(14), limits, st.randoms(use_true_random=False))
def test_exactly_the_outdated_go(ones, limit, random):
    root = Path("out")
    random.shuffle(ones)
    pinned = [checkpoint_path(root, one.step) for one in ones if one.pinned]
    gone = outdated([as_value(root, one) for one in ones], limit=limit, pinned=pinned)
    assert [one.step for one in gone] == expected_to_go(ones, limit)
    assert [one.path for one in gone] == [checkpoint_path(root, step) for step in expected_to_go(ones, limit)]


@settings(max_examples=100, deadline=None)
@given(sets(14), limits)
def test_a_second_look_finds_nothing_more(ones, limit):
    root = Path("out")
    values = [as_value(root, one) for one in ones]
    pinned = [checkpoint_path(root, one.step) for one in ones if one.pinned]
    gone = {one.path for one in outdated(values, limit=limit, pinned=pinned)}
    rest = [one for one in values if one.path not in gone]
    assert outdated(rest, limit=limit, pinned=pinned) == []
    assert best(rest) == best([one for one in values if one.manifest])


@settings(max_examples=100, deadline=None)
@given(sets(10))
def test_the_best_has_the_lowest_loss_that_is_a_number_and_is_the_earliest_of_equals(ones):
    found = best([as_value(Path("out"), one) for one in ones])
    measured = sorted((one.counted_loss, one.step) for one in ones if one.tear is None and one.counted_loss is not None)
    assert (found.evaluation_loss, found.step) == measured[0] if measured else found is None


@settings(max_examples=30, deadline=None)
@given(sets(7), limits)
def test_rotation_on_disk_removes_exactly_these_and_changes_nothing_else(ones, limit):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for one in ones:
            make_saved(root, one)
        before = contents(root)
        listed = list_checkpoints(root)
        assert [one.step for one in listed] == sorted(one.step for one in ones)
        assert {one.step for one in listed if one.manifest is None} == {one.step for one in ones if one.tear}
        assert all((one.manifest is None) == bool(one.fault) for one in listed)
        pinned = [checkpoint_path(root, one.step) for one in ones if one.pinned]
        expected = [checkpoint_path(root, step) for step in expected_to_go(ones, limit)]
        assert rotate(root, limit=limit, pinned=pinned) == expected
        gone = {path.name for path in expected}
        assert contents(root) == {name: held for name, held in before.items() if name.split("/")[0] not in gone}
        after = contents(root)
        assert rotate(root, limit=limit, pinned=pinned) == []
        assert contents(root) == after


OTHERS = (
    *("checkpoint-05", "checkpoint-", "checkpoint-5-old", "Checkpoint-5", "checkpoint-+5", "checkpoint--5"),
    *("checkpoint-5 ", "checkpoint-5\n", "checkpoint-٥", "checkpoint-5.0", "checkpoint-1e3", "xcheckpoint-5"),
    *("checkpoint-1234567890123456789", "checkpoint_5", ".checkpoint-5", "final", "checkpoints"),
)


@pytest.mark.parametrize("name", OTHERS)
def test_a_whole_checkpoint_of_another_name_is_not_touched(tmp_path, name):
    make(tmp_path / "whole", {"step": 5})
    (tmp_path / "whole").rename(tmp_path / name)
    for step in (20, 30):
        make(checkpoint_path(tmp_path, step), {"step": step})
    before = {key: value for key, value in contents(tmp_path).items() if not key.startswith("checkpoint-20")}
    assert [one.step for one in list_checkpoints(tmp_path)] == [20, 30]
    assert rotate(tmp_path, limit=1, pinned=[]) == [tmp_path / "checkpoint-20"]
    assert contents(tmp_path) == before


def test_a_file_of_a_checkpoints_name_is_not_touched(tmp_path):
    (tmp_path / "checkpoint-5").write_text("mine")
    for step in (20, 30):
        make(checkpoint_path(tmp_path, step), {"step": step})
    assert rotate(tmp_path, limit=1, pinned=[]) == [tmp_path / "checkpoint-20"]
    assert (tmp_path / "checkpoint-5").read_text() == "mine"


@pytest.mark.parametrize("manifest", [None, "", "{}", '{"step": 5, "files": {}}', "[]", "null", '{"written_by": "me"}'])
def test_a_directory_without_our_manifest_is_not_touched(tmp_path, manifest):
    path = checkpoint_path(tmp_path, 5)
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    if manifest is not None:
        (path / MANIFEST).write_text(manifest)
    for step in (20, 30):
        make(checkpoint_path(tmp_path, step), {"step": step})
    mine = contents(path)
    assert rotate(tmp_path, limit=1, pinned=[]) == [tmp_path / "checkpoint-20"]
    assert contents(path) == mine


@pytest.mark.parametrize("target", ["outside", "inside", "nowhere"])
def test_neither_a_link_nor_what_it_leads_to_is_touched(tmp_path, target):
    root = tmp_path / "out"
    root.mkdir()
    elsewhere = {"outside": tmp_path / "elsewhere", "inside": root / "kept", "nowhere": tmp_path / "gone"}[target]
    if target != "nowhere":
        make(elsewhere, {"step": 7, "evaluation_loss": 0.0})
    (root / "checkpoint-7").symlink_to(elsewhere)
    for step in (6, 8, 9):
        make(checkpoint_path(root, step), {"step": step})
    there = contents(elsewhere)
    assert [one.step for one in list_checkpoints(root)] == [6, 8, 9]
    assert rotate(root, limit=1, pinned=[]) == [root / "checkpoint-6", root / "checkpoint-8"]
    assert (root / "checkpoint-7").is_symlink()
    assert contents(elsewhere) == there


def test_what_a_link_inside_an_outdated_checkpoint_leads_to_stays(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_text("mine")
    root = tmp_path / "out"
    root.mkdir()
    for step in (1, 2):
        make(checkpoint_path(root, step), {"step": step})
    (root / "checkpoint-1" / "data").symlink_to(tmp_path / "data")
    assert rotate(root, limit=1, pinned=[]) == [root / "checkpoint-1"]
    assert (tmp_path / "data" / "rows").read_text() == "mine"


@pytest.mark.parametrize("spelling", ["relative", "around", "link"])
def test_a_checkpoint_is_pinned_however_its_path_is_spelled(tmp_path, monkeypatch, spelling):
    root = tmp_path / "out"
    root.mkdir()
    for step in (1, 2, 3):
        make(checkpoint_path(root, step), {"step": step})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(root)
    pinned = {"relative": Path("out"), "around": root / ".." / "out", "link": tmp_path / "link"}[spelling]
    assert rotate(root, limit=1, pinned=[pinned / "checkpoint-1"]) == [root / "checkpoint-2"]
    assert (root / "checkpoint-1" / MANIFEST).is_file()


def test_nine_comes_before_ten(tmp_path):
    for step in (10, 9, 100, 2):
        make(checkpoint_path(tmp_path, step), {"step": step})
    assert [one.step for one in list_checkpoints(tmp_path)] == [2, 9, 10, 100]
    assert rotate(tmp_path, limit=2, pinned=[]) == [tmp_path / "checkpoint-2", tmp_path / "checkpoint-9"]


def test_a_torn_checkpoint_is_listed_by_the_step_in_its_name(tmp_path):
    for step in (0, 4):
        make(checkpoint_path(tmp_path, step), {"step": step + 1})
    assert [(one.step, one.manifest) for one in list_checkpoints(tmp_path)] == [(0, None), (4, None)]


def test_an_output_directory_that_is_not_there_has_none(tmp_path):
    assert list_checkpoints(tmp_path / "missing") == []
    assert rotate(tmp_path / "missing", limit=1, pinned=[]) == []


@pytest.mark.parametrize("loss", ["0.0", [0.0], None, -math.inf])
def test_a_loss_that_is_no_number_makes_no_checkpoint_the_best(tmp_path, loss):
    for step, value in ((1, loss), (2, 3.0), (3, 4.0)):
        make(checkpoint_path(tmp_path, step), {"step": step, "evaluation_loss": value})
    assert rotate(tmp_path, limit=1, pinned=[]) == [tmp_path / "checkpoint-1"]
