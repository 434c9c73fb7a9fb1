"""`--set`: what an override changes, and wrong ones."""

from __future__ import annotations

import pytest
from config_records import MINIMAL, brief

from bumblecore_core.config.schema import DEFAULT_LOGGERS


def test_an_override_replaces_a_choice(load):
    run = load(MINIMAL + "loss: {name: causal_lm, z_loss: 0.1}\n", "loss=causal_lm_naive")
    assert (run.loss.name, run.loss.options.z_loss) == ("causal_lm_naive", 0.0)


@pytest.mark.parametrize("written", ["", "optimizer: adamw\n", "optimizer: {name: adamw, betas: [0.8, 0.9]}\n"])
def test_an_override_of_an_option_keeps_the_choice(load, written: str):
    run = load(MINIMAL + written, "optimizer.lr=1e-5")
    assert (run.optimizer.name, run.optimizer.options.lr) == ("adamw", 1e-5)
    assert run.optimizer.options.betas == ((0.8, 0.9) if "betas" in written else (0.9, 0.999))


def test_null_switches_off(load):
    text = MINIMAL + "adapter: {name: lora, rank: 4}\n"
    assert load(text).adapter.options.rank == 4
    run = load(text, "adapter=null")
    assert run.adapter is None
    assert run.origins["adapter"] == "command line"


def test_list_items_can_be_changed_and_appended(load):
    run = load(
        MINIMAL, "loggers.0=tensorboard", "loggers.5=progress", "data.path.1=more.jsonl", "data.path.0.path=x.json"
    )
    assert [logger.name for logger in run.loggers] == ["tensorboard", *DEFAULT_LOGGERS[1:], "progress"]
    assert [file.path for file in run.config.data.path] == ["x.json", "more.jsonl"]
    assert run.origins["loggers.1.name"] == "default"


def test_later_overrides_win_and_values_are_yaml(load):
    run = load(
        MINIMAL, "train.seed=1", "train.seed=2", "optimizer={name: adamw, betas: [0.1, 0.2]}", "optimizer.betas.1=0.3"
    )
    assert run.config.train.seed == 2
    assert run.optimizer.options.betas == (0.1, 0.3)
    assert run.origins["optimizer.betas"] == "command line"


@pytest.mark.parametrize(
    ("text", "override", "dropped"),
    [
        ("train: {epochs: 3}\n", "train.max_steps=5", "epochs"),
        ("train: {max_steps: 5}\n", "train.epochs=3", "max_steps"),
    ],
)
def test_the_command_line_beats_an_exclusive_key_of_the_file(load, text: str, override: str, dropped: str):
    run = load(MINIMAL + text, override)
    assert (run.config.train.max_steps is None) == (dropped == "max_steps")
    assert run.origins.get(f"train.{dropped}", "default") == "default"


def test_a_wrong_override_is_reported_as_it_is_written_and_not_as_the_file_has_it(wrong):
    (problem,) = wrong(MINIMAL.replace("output_dir: out", "output_dir: 010"), "output_dir=null")
    assert brief([problem]) == [("BC038", "--set", "output_dir")]
    assert "got null" in problem.problem


@pytest.mark.parametrize(
    ("override", "code", "field"),
    [
        ("train.epochs", "BC038", ""),
        ("=3", "BC038", ""),
        ("train..epochs=3", "BC038", ""),
        ("train.epochs=[", "BC068", ""),
        ("train.epochs={a: 1, a: 2}", "BC035", "a"),
        ("train.epohcs=3", "BC034", "train.epohcs"),
        ("optimizer.lrr=3", "BC034", "optimizer.lrr"),
        ("model.path.x=3", "BC034", "model.path.x"),
        ("data.path.5.weight=3", "BC034", "data.path.5"),
        ("data.path.first.weight=3", "BC034", "data.path.first"),
        ("data.path.².weight=3", "BC034", "data.path.²"),
        ("train.epochs=many", "BC038", "train.epochs"),
        ("output_dir=010", "BC037", "output_dir"),
        ("adapter.rank=4", "BC038", "adapter.name"),
        ("optimizer=null", "BC038", "optimizer"),
        ("optimizer=adam", "BC056", "optimizer"),
        ("train=3", "BC038", "train"),
        ("a.b.c=3", "BC034", "a"),
    ],
)
def test_wrong_overrides(wrong, override: str, code: str, field: str):
    assert brief(wrong(MINIMAL, override)) == [(code, "--set", field)]
