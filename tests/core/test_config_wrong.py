"""Wrong config files; the numbers in names are the rows of the table of bad input."""

from __future__ import annotations

import pytest
from config_records import MINIMAL, brief

from bumblecore_core.errors import ConfigError, PluginError


@pytest.mark.parametrize(
    ("line", "field", "hint"),
    [
        ("trian: {epochs: 3}", "trian", "'train'"),
        ("train: {epoch: 3}", "train.epoch", "'epochs'"),
        (
            "optimizer: {name: adamw, learning_rate: 3}",
            "optimizer.learning_rate",
            "betas, colour",
        ),
        ("adapter: {name: lora, target_module: all}", "adapter.target_module", "'target_modules'"),
        ("max_steps: 3", "max_steps", "'train.max_steps'"),
        ("lr: 1e-5", "lr", "'optimizer.lr'"),
        ("engine: {name: torch, zero: 1}", "engine.zero", "takes no options"),
        ('"a\\nb": 3', "a\\nb", "Known"),
    ],
)
def test_row_34_unknown_key(wrong, line: str, field: str, hint: str):
    problems = wrong(MINIMAL + line)
    assert brief(problems) == [("BC034", "run.yaml:7", field)]
    assert hint in problems[0].fix


def test_row_34_unknown_key_of_a_file_entry(wrong):
    problems = wrong(MINIMAL.replace("path: rows.jsonl", "path:\n    - a.json\n    - path: b.json\n      wieght: 2"))
    assert brief(problems) == [("BC034", "run.yaml:8", "data.path.1.wieght")]


def test_row_34_unknown_key_of_a_nested_option(wrong):
    text = MINIMAL.replace("stage: sft", "stage: {name: odd, size: 4, label: ab, share: 0.5, inner: {detph: 3}}")
    assert brief(wrong(text)) == [("BC034", "run.yaml:1", "stage.inner.detph")]


def test_row_35_duplicate_key(wrong):
    problems = wrong(MINIMAL + "train:\n  seed: 1\n  seed: 2\n")
    assert brief(problems) == [("BC035", "run.yaml:9", "train.seed")]
    assert "lines 8 and 9" in problems[0].problem


@pytest.mark.parametrize(
    ("line", "field", "spelled"),
    [
        ("output_dir: off", "output_dir", "off"),
        ("output_dir: 010", "output_dir", "010"),
        ("output_dir: 1e5", "output_dir", "1e5"),
        ("output_dir: 2024", "output_dir", "2024"),
        ("optimizer: off", "optimizer", "off"),
        ("adapter: no", "adapter", "no"),
        ("optimizer: {name: 010}", "optimizer.name", "010"),
        ("optimizer: {mode: off}", "optimizer.mode", "off"),
        ("optimizer: {colour: off}", "optimizer.colour", "off"),
        ("optimizer: {folder: 010}", "optimizer.folder", "010"),
        ("train: {seed: 010}", "train.seed", "010"),
        ("adapter: {name: lora, target_modules: [on]}", "adapter.target_modules.0", "on"),
    ],
)
def test_row_37_text_read_as_something_else(wrong, line: str, field: str, spelled: str):
    text = MINIMAL.replace("output_dir: out\n", "") if line.startswith("output_dir") else MINIMAL
    problems = wrong(text + line + "\n")
    assert [(problem.code, problem.field) for problem in problems] == [("BC037", field)]
    assert problems[0].place == f"run.yaml:{len(text.splitlines()) + 1}"
    assert f'"{spelled}"' in problems[0].fix


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("train: {epochs: many}", "train.epochs", "expected a number, got the text 'many'"),
        ('train: {seed: "3"}', "train.seed", "expected a whole number, got the text '3'"),
        ("train: {seed: 2.5}", "train.seed", "expected a whole number, got 2.5"),
        ("train: {seed: yes}", "train.seed", "expected a whole number, got true"),
        ("train: {seed: -1}", "train.seed", "expected a value greater than or equal to 0, got -1"),
        ("train: {epochs: 0}", "train.epochs", "expected a value greater than 0, got 0"),
        ("train: {epochs: null}", "train.epochs", "expected a number, got null"),
        ("train: {epochs: [1]}", "train.epochs", "expected a number, got a list"),
        ("train: 3", "train", "expected a mapping of keys, got 3"),
        ("loggers: progress", "loggers", "expected a list, got the text 'progress'"),
        ("loggers: [null]", "loggers.0", "expected a plugin's name or {name: …, option: …}, got null"),
        ("optimizer: [adamw]", "optimizer", "expected a plugin's name or {name: …, option: …}, got a list"),
        ("optimizer: {lr: 0}", "optimizer.lr", "expected a value greater than 0, got 0"),
        ("optimizer: {betas: [1]}", "optimizer.betas.1", "required, but not set"),
        ("optimizer: {mode: maybe}", "optimizer.mode", "expected 'on' or 'off', got the text 'maybe'"),
        ("adapter: {name: lora, target_modules: 3}", "adapter.target_modules", "expected a list or 'all', got 3"),
        ("adapter: {rank: 3}", "adapter.name", "required, but not set"),
        ("checkpoint: {max_shard_size: big}", "checkpoint.max_shard_size", "got the text 'big'"),
    ],
)
def test_row_38_wrong_type_or_range(wrong, line: str, field: str, words: str):
    problems = wrong(MINIMAL + line)
    assert brief(problems) == [("BC038", "run.yaml:7", field)]
    assert words in problems[0].problem


def test_row_38_missing_keys(wrong):
    assert brief(wrong("model:\n  tokenizer: there\n")) == [
        ("BC038", "run.yaml", "stage"),
        ("BC038", "run.yaml", "data"),
        ("BC038", "run.yaml", "output_dir"),
        ("BC038", "run.yaml:1", "model.path"),
    ]


@pytest.mark.parametrize("text", ["- a\n", "3\n", "words\n"])
def test_row_38_a_file_that_is_no_mapping(wrong, text: str):
    assert brief(wrong(text)) == [("BC038", "run.yaml:1", "")]


def test_an_empty_file_lacks_everything(wrong):
    assert [problem.field for problem in wrong("")] == ["stage", "model", "data", "output_dir"]


@pytest.mark.parametrize(
    ("lines", "line", "field", "other"),
    [
        ("train:\n  epochs: 1\n  max_steps: 3", 9, "train.max_steps", "train.epochs, set at run.yaml:8"),
        ("train: {eval_steps: 3}", 7, "train.eval_steps", "data.eval_path or data.eval_split"),
        ("scheduler: plateau", 7, "scheduler", "data.eval_path nor data.eval_split"),
        ("loss: dpo_sigmoid", 7, "loss", "'sft' needs a token loss"),
        ("scheduler: {warmup_ratio: 0.1, warmup_steps: 3}", 7, "scheduler", "warmup_ratio conflicts with warmup_steps"),
    ],
)
def test_row_39_conflicts(wrong, lines: str, line: int, field: str, other: str):
    problems = wrong(MINIMAL + lines)
    assert brief(problems) == [("BC039", f"run.yaml:{line}", field)]
    assert other in problems[0].problem


def test_row_39_two_kinds_of_evaluation_data(wrong):
    text = MINIMAL.replace("path: rows.jsonl", "path: rows.jsonl\n  eval_path: x.json\n  eval_split: 0.1")
    assert brief(wrong(text)) == [("BC039", "run.yaml:7", "data.eval_split")]


def test_what_needs_evaluation_data_takes_either_form(load):
    text = MINIMAL + "scheduler: plateau\ntrain: {eval_steps: 2}\n"
    load(text, "data.eval_split=0.1")
    load(text, "data.eval_path=x.json")
    load(MINIMAL + "train: {max_steps: null, epochs: 2}\n")


def test_the_same_layer_conflicts_on_the_command_line_too(wrong):
    assert brief(wrong(MINIMAL, "train.epochs=2", "train.max_steps=2")) == [("BC039", "--set", "train.max_steps")]


def test_row_56_unknown_plugins_are_placed(load):
    text = MINIMAL.replace("path: base", "path: base\n  attention: varlenn") + "optimizer: adamm\nloggers: [progres]\n"
    with pytest.raises(PluginError) as caught:
        load(text)
    assert brief(list(caught.value.problems)) == [
        ("BC056", "run.yaml:4", "model.attention"),
        ("BC056", "run.yaml:8", "optimizer"),
        ("BC056", "run.yaml:9", "loggers.0"),
    ]
    assert "did you mean 'adamw'" in str(caught.value)


def test_all_problems_of_a_file_come_together_by_line(wrong):
    text = (
        "stage: sfft\nmodel: {pth: x}\ndata: {path: [], max_length: 2}\noptimizer: {lr: -1, lrr: 3}\noutput_dir: 010\n"
    )
    problems = wrong(text, "train.seed=x")
    assert brief(problems) == [
        ("BC056", "run.yaml:1", "stage"),
        ("BC038", "run.yaml:2", "model.path"),
        ("BC034", "run.yaml:2", "model.pth"),
        ("BC038", "run.yaml:3", "data.path"),
        ("BC038", "run.yaml:3", "data.max_length"),
        ("BC038", "run.yaml:4", "optimizer.lr"),
        ("BC034", "run.yaml:4", "optimizer.lrr"),
        ("BC037", "run.yaml:5", "output_dir"),
        ("BC038", "--set", "train.seed"),
    ]


def test_options_that_raise_name_their_plugin(load):
    with pytest.raises(PluginError, match=r"BC060 run.yaml:7 optimizer: .*'raising' raised KeyError"):
        load(MINIMAL + "optimizer: raising\n")


def test_a_config_error_is_what_problems_of_a_file_give(load):
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL + "optimizer: adamm\nlosss: x\n")
    assert caught.value.exit_code == 2


def test_a_file_whose_name_is_read_as_a_number(wrong):
    problems = wrong(MINIMAL.replace("path: rows.jsonl", "path: {path: 010}"))
    assert brief(problems) == [("BC037", "run.yaml:5", "data.path.0.path")]
    assert '"010"' in problems[0].fix


def test_a_negative_number_that_float32_cannot_hold(wrong):
    odd = "stage: {name: odd, size: 4, label: ab, share: 0.5, extra: {a: -1e300}}"
    assert brief(wrong(MINIMAL.replace("stage: sft", odd))) == [("BC038", "run.yaml:1", "stage.extra.a")]


def test_a_number_that_float32_cannot_hold(wrong):
    problems = wrong(MINIMAL + "optimizer: {name: adamw, lr: 1e300}")
    assert brief(problems) == [("BC038", "run.yaml:7", "optimizer.lr")]
    assert "which float32 can hold, got 1e+300" in problems[0].problem
