"""A crash at every file operation of a save: the next start finds the old checkpoint or the new one, never neither."""

import shutil

import pytest

from bumblecore_core.run.checkpoint.folder import list_checkpoints
from bumblecore_core.run.checkpoint.history import resume_history
from bumblecore_core.run.checkpoint.manifest import faults
from bumblecore_core.run.checkpoint.resume import choose_start
from bumblecore_core.run.checkpoint.writing import commit, write_part
from bumblecore_core.run.files import fresh_beside, recover
from crashes import CRASHED, run_and_crash
from resume_runs import run
from workbench import pretrain_settings, workbench, write_config

CHECKPOINT = {"save_steps": 4, "save_total_limit": 1, "save_every": None}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A workbench with a run that has saved checkpoints 1 and 2 of 4 steps, and an earlier model in `final/`."""
    bench = workbench(tmp_path_factory.mktemp("crashes"))
    settings = settings_of(bench, {"save_steps": 1, "save_total_limit": None})
    assert run(bench, settings) == 0
    output = bench / "pretrain"
    for name in ("checkpoint-3", "checkpoint-4", "final"):
        shutil.rmtree(output / name)
    temporary = fresh_beside(output / "final")
    write_part(temporary, 0, lambda directory: (directory / "config.json").write_text("old"))
    commit(temporary, output / "final", world_size=1, facts={"step": 1, "config": "another"})
    output.rename(bench / "template")
    return bench


def settings_of(bench, checkpoint, world_size=1):
    settings = pretrain_settings(bench, max_steps=4, micro_batch_size=4 // world_size)
    return {
        **settings,
        "checkpoint": checkpoint,
        "engine": {"name": "torch", "timeout_seconds": 10},
        "loggers": ["metrics_json"],
    }


def prepared(bench, *, background=False, torn=False, world_size=1):
    """A fresh copy of the template's run, and the config that goes on with it: saves step 4, deletes checkpoint 1."""
    output = bench / "pretrain"
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(bench / "template", output)
    if torn:
        shutil.copytree(output / "checkpoint-2", output / "checkpoint-4")
    settings = settings_of(bench, {**CHECKPOINT, "background": background}, world_size)
    return write_config(bench / "run.yaml", **settings)


def step_after_crash(bench) -> int:
    """Where the next start goes on; what it finds is whole."""
    output = bench / "pretrain"
    recover(output)
    start = choose_start(output, "auto")
    assert start is not None
    assert faults(start.path) == []
    assert faults(output / "final") == []
    _, events, warnings = resume_history(start.path, start.step, output)
    assert [event.step for event in events] == list(range(1, start.step + 1))
    assert warnings == []
    assert not [path.name for path in output.iterdir() if path.name.endswith((".writing", ".outgoing", ".removing"))]
    return start.step


def crash_at_each(bench, every, *, rank=0, world_size=1, **case):
    """Crashes at every `every`-th operation of a rank; the steps that the next starts found."""
    case = {**case, "world_size": world_size}
    codes, operations = run_and_crash(prepared(bench, **case), crash_at=None, rank=rank, world_size=world_size)
    assert codes == [0] * world_size
    assert operations > 5
    found = {}
    for at in [*range(1, operations + 1, every), operations]:
        config = prepared(bench, **case)
        codes, _ = run_and_crash(config, crash_at=at, rank=rank, world_size=world_size)
        assert codes[rank] == CRASHED, f"operation {at} of {operations}"
        assert all(code != 0 for code in codes), f"a rank went on without the other at operation {at}"
        found[at] = step_after_crash(bench)
    return found


def test_one_process(template):
    found = crash_at_each(template, every=9)
    assert set(found.values()) == {2, 4}
    assert sorted(found.values()) == list(found.values())  # once the new one is there it stays


@pytest.mark.slow
def test_over_a_torn_directory_of_the_same_step(template):
    found = crash_at_each(template, every=12, torn=True)
    assert set(found.values()) == {2, 4}


def test_one_of_two_ranks(template):
    assert set(crash_at_each(template, every=6, rank=1, world_size=2).values()) == {2}


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [{}, {"torn": True}, {"background": True}], ids=["plain", "torn", "background"])
def test_every_operation_of_one_process(template, case):
    assert set(crash_at_each(template, every=1, **case).values()) == {2, 4}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_every_operation_of_each_of_two_ranks(template, rank):
    found = crash_at_each(template, every=1, rank=rank, world_size=2)
    assert set(found.values()) == ({2, 4} if rank == 0 else {2})


def test_a_run_that_crashed_goes_on_to_the_end(template):
    config = prepared(template)
    assert run_and_crash(config, crash_at=20)[0] == [CRASHED]
    assert run_and_crash(config, crash_at=None)[0] == [0]
    names = [checkpoint.path.name for checkpoint in list_checkpoints(template / "pretrain")]
    assert names == ["checkpoint-2", "checkpoint-4"]
