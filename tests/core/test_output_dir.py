"""Output directories: writable, of one run, replaced whole or not at all."""

import pytest
from config_records import make_registry

from bumblecore_core.config.resolve import load_run
from bumblecore_core.errors import RunError
from bumblecore_core.run import output_dir
from bumblecore_core.run.checkpoint.writing import STATE, commit, write_part
from bumblecore_core.run.files import fresh_beside
from bumblecore_core.run.lock import FORMAT, lock_digest
from bumblecore_core.toolkit.state_files import write_state
from core.locks import changed, make_lock

CONFIG = """
stage: sft
model: {path: base}
data: {path: rows.jsonl}
output_dir: out
"""
REGISTRY = make_registry()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The output directory `out` of the configs that `resolve` gives."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def resolve(*overrides):
    return load_run("run.yaml", overrides, REGISTRY)


def lock(*overrides):
    """As much of a lock as is compared before data and model are read."""
    return {"format": FORMAT, "config": resolve(*overrides).to_dict(), "plugins": []}


def save(directory, name, saved=None, **facts):
    def write(target):
        (target / "config.json").write_text("{}")
        if saved is not None:
            (target / STATE).mkdir(exist_ok=True)
            write_state(target / STATE, "lock", saved)

    temporary = fresh_beside(directory / name)
    write_part(temporary, 0, write)
    commit(temporary, directory / name, world_size=1, facts={"step": 4, **facts})


def started(directory, *overrides):
    output_dir.write_run_files(directory, resolve(*overrides).to_dict(), lock(*overrides))


def finished(directory, *overrides, checkpoint=False):
    started(directory, *overrides)
    if checkpoint:
        save(directory, "checkpoint-4", lock(*overrides))
    save(directory, "final", lock=lock_digest(lock(*overrides)))


def refused(*overrides):
    with pytest.raises(RunError) as caught:
        output_dir.finished_run(resolve(*overrides))
    return list(caught.value.problems)


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="BC042"):
        output_dir.require_writable(tmp_path / "file" / "run")


def test_looking_whether_a_directory_can_be_written_leaves_nothing_in_it(tmp_path):
    output_dir.require_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_a_finished_run_is_found_with_what_it_was_made_from(here):
    assert output_dir.finished_run(resolve()) is None
    finished(here)
    assert output_dir.finished_run(resolve()) == lock()
    # keys that change no number, and those that are compared by content later
    changes = [
        "train.logging_steps=5",
        "loggers=[]",
        "checkpoint.save_steps=7",
        "data.path=moved.jsonl",
        "model.path=b",
    ]
    assert output_dir.finished_run(resolve(*changes)) == lock()


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_changed_setting_is_refused_with_both_values_and_what_helps(here, checkpoint):
    finished(here, checkpoint=checkpoint)
    (one, other) = refused("train.epochs=2", "train.seed=7")
    assert (one.code, one.place, one.field) == ("BC043", "out/final", "train.epochs")
    assert (other.code, other.place, other.field) == ("BC043", "out/final", "train.seed")
    assert "was 1.0 when this was saved and is 2.0 now" in one.problem
    assert "--overwrite" in one.fix
    assert ("--allow train.epochs" in one.fix) == checkpoint
    assert ("no checkpoint to resume from; a new run can start from out/final" in one.fix) != checkpoint


def test_an_allowed_change_goes_on_from_a_checkpoint_and_else_says_what_is_needed(here):
    finished(here)
    allowed = ("train.epochs=2", "checkpoint.allow=[train]")
    (problem,) = refused(*allowed)
    assert (problem.code, problem.place) == ("BC043", "out")
    assert "with another train.epochs: there is no checkpoint to resume from" in problem.problem
    assert "model.path: out/final" in problem.fix
    save(here, "checkpoint-4", lock())
    assert output_dir.finished_run(resolve(*allowed)) == lock()
    assert "checkpoint.resume is never" in refused(*allowed, "checkpoint.resume=never")[0].problem


def test_a_run_that_saved_nothing_does_not_hold_its_directory(here):
    started(here)
    assert output_dir.finished_run(resolve("train.seed=7", "optimizer.lr=1")) is None


def test_an_unfinished_run_is_compared_with_its_checkpoint(here):
    started(here, "train.seed=9")
    save(here, "checkpoint-4", lock())
    assert output_dir.finished_run(resolve()) is None
    (problem,) = refused("train.seed=7")
    assert (problem.place, problem.field) == ("out/checkpoint-4", "train.seed")
    assert "was 42 when this was saved and is 7 now" in problem.problem
    assert output_dir.finished_run(resolve("train.seed=7", "checkpoint.allow=[train.seed]")) is None


def test_a_final_model_of_a_run_that_went_on_is_not_this_runs(here):
    finished(here)
    started(here, "train.epochs=2")
    assert "does not say what it was made from" in refused()[0].problem
    save(here, "checkpoint-4", lock("train.epochs=2"))
    assert output_dir.finished_run(resolve("train.epochs=2")) is None


@pytest.mark.parametrize("damage", ["config.json", "manifest.json", "run.lock.json"])
def test_a_damaged_final_model_is_neither_complete_nor_replaced_unasked(here, damage):
    finished(here)
    (here / damage if damage == "run.lock.json" else here / "final" / damage).unlink()
    assert "damaged" in refused()[0].problem
    save(here, "checkpoint-4", lock())
    assert output_dir.finished_run(resolve()) is None


def test_never_resuming_does_not_mean_replacing(here):
    started(here)
    save(here, "checkpoint-4", lock())
    (problem,) = refused("checkpoint.resume=never")
    assert problem.code == "BC043"
    assert "holds checkpoints (checkpoint-4)" in problem.problem
    assert "--overwrite" in problem.fix


def test_a_run_yaml_that_no_run_wrote_is_refused(here):
    (here / "run.yaml").write_text("mine")
    assert refused()[0].code == "BC069"


def test_another_split_of_the_same_work_is_the_same_run(here):
    sharded = ("engine.name=sharded",)
    finished(here, *sharded, checkpoint=True)
    split = (*sharded, "engine.parts=4", "train.micro_batch_size=2")
    assert output_dir.finished_run(resolve(*split)) == lock(*sharded)
    assert [one.field for one in refused(*sharded, "engine.clip=2")] == ["engine.clip"]


@pytest.mark.parametrize("place", ["out", "link", "elsewhere"])
def test_starting_over_is_offered_for_a_checkpoint_in_the_output_directory_however_it_is_named(here, place):
    started(here)
    (here.parent / "link").symlink_to(here)
    (here.parent / "elsewhere").mkdir()
    save(here.parent / place, "checkpoint-4", lock())
    (problem,) = refused("train.seed=7", f"checkpoint.resume={place}/checkpoint-4")
    assert problem.place == f"{place}/checkpoint-4"
    assert "--allow train.seed" in problem.fix
    assert ("--overwrite" in problem.fix) == (place != "elsewhere")


TRANSFORMERS = ("libraries.transformers", "5.0")
COMPLETE = [
    (),
    (("libraries.torch", "2.10"),),
    (("plugins.2.version", "1.1"),),
    (TRANSFORMERS, ("model.config.new_default", 1)),
    (("config.engine", {"name": "sharded", "parts": 4}),),
    (("config.train.micro_batch_size", 3), ("config.train.gradient_accumulation_steps", 2)),
]
ANOTHER = [
    ((("data.content", "f" * 64),), ("BC050", "data")),
    ((("model.config.hidden_size", 64),), ("BC047", "model.config.hidden_size")),
    ((TRANSFORMERS, ("tokenizer", "u" * 64)), ("BC050", "tokenizer")),
    ((("model.weights", "x" * 64),), ("BC047", "model.weights")),
    ((("world_size", 1),), ("BC048", "batch")),
]


def complete(changes, *overrides):
    """Whether a run is complete whose lock differs from the finished one's by `changes`."""
    saved = changed(("config.engine", {"name": "sharded", "parts": 1}))
    saved["libraries"]["transformers"] = "4.9"
    now = changed(("config.engine", {"name": "sharded", "parts": 1}), *changes)
    now["libraries"].setdefault("transformers", "4.9")
    return output_dir.is_complete(resolve("engine.name=sharded", *overrides), saved, now)


@pytest.mark.parametrize("changes", COMPLETE)
def test_a_finished_run_stays_complete_after_updates_and_in_another_shape(here, changes):
    assert complete(changes)
    save(here, "checkpoint-4", make_lock())
    assert complete(changes)


@pytest.mark.parametrize(("changes", "expected"), ANOTHER)
def test_a_finished_run_of_something_else_is_refused_and_resumes_where_that_is_allowed(here, changes, expected):
    allowed = f"checkpoint.allow=[{expected[1]}]"
    with pytest.raises(RunError) as caught:
        complete(changes)
    assert [(one.code, one.field, one.place) for one in caught.value.problems] == [(*expected, "out/final")]
    assert "no checkpoint to resume from" in caught.value.problems[0].fix
    with pytest.raises(RunError, match=f"BC043 out output_dir: .* with another {expected[1]}: there is no checkpoint"):
        complete(changes, allowed)
    save(here, "checkpoint-4", make_lock())
    with pytest.raises(RunError) as caught:
        complete(changes)
    assert f"--allow {expected[1]}" in caught.value.problems[0].fix
    assert not complete(changes, allowed)
