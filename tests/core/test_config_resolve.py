"""Resolution: what a config means, where each value comes from, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_records import MINIMAL, Colour, make_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.config.resolve import ResolvedRun, load_config, load_run, resolve
from bumblecore_core.config.shape import CHOICES, sections
from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import BumbleError, ConfigError, PluginError, Problem

REGISTRY = make_registry()


@pytest.fixture
def load(tmp_path: Path, monkeypatch):
    """Resolves YAML text, as the file run.yaml of the working directory, with overrides."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str) -> ResolvedRun:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return load_run("run.yaml", overrides, REGISTRY)

    return run


@pytest.fixture
def wrong(load):
    """The problems of YAML text with overrides."""

    def run(text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(BumbleError) as caught:
            load(text, *overrides)
        assert len(str(caught.value).splitlines()) == len(caught.value.problems)
        return list(caught.value.problems)

    return run


def brief(problems: list[Problem]) -> list[tuple[str, str, str]]:
    return [(problem.code, problem.place, problem.field) for problem in problems]


def test_the_defaults(load):
    run = load(MINIMAL)
    assert (run.stage.name, run.loss.name, run.optimizer.name, run.scheduler.name) == (
        "sft",
        "causal_lm",
        "adamw",
        "cosine",
    )
    assert run.adapter is None
    assert run.data_format is None
    assert run.formats == (None,)
    assert run.eval_formats == ()
    assert [logger.name for logger in run.loggers] == ["progress", "log_file", "metrics_json"]
    assert run.optimizer.options.lr == 1e-3
    assert run.path == Path("run.yaml")


def test_options_are_typed_by_their_owner(load):
    text = MINIMAL + "optimizer: {name: adamw, betas: [0.8, 0.9], folder: there, colour: red}\n"
    options = load(text).optimizer.options
    assert (options.betas, options.folder, options.colour) == ((0.8, 0.9), Path("there"), Colour.red)


def test_numbers_without_a_dot_are_numbers(load):
    run = load(MINIMAL + "optimizer: {lr: 1e-5}\ntrain: {max_steps: 1e3}\n")
    assert run.optimizer.options.lr == 1e-5
    assert run.config.train.max_steps == 1000


def test_formats_of_files(load):
    text = MINIMAL.replace(
        "path: rows.jsonl",
        "path: [a.json, {path: b.json, format: text}, {path: c.json, format: auto}]\n  format: alpaca\n"
        "  eval_path: d.json",
    )
    run = load(text)
    assert [chosen and chosen.name for chosen in run.formats] == ["alpaca", "text", None]
    assert [chosen and chosen.name for chosen in run.eval_formats] == ["alpaca"]
    assert run.data_format is not None


def test_a_choice_may_leave_its_default_name_out(load):
    run = load(MINIMAL + "optimizer: {lr: 0.5}\nloss: {z_loss: 0.1}\n")
    assert (run.optimizer.name, run.optimizer.options.lr) == ("adamw", 0.5)
    assert (run.loss.name, run.loss.options.z_loss) == ("causal_lm", 0.1)
    assert run.origins["optimizer.name"] == run.origins["loss.name"] == "default"


def test_an_empty_section_is_its_defaults(load):
    assert load(MINIMAL + "train:\n").config.train.epochs == 1.0


def test_origins(load):
    run = load(
        MINIMAL + "optimizer: adamw\nloggers: [progress]\n", "train.seed=7", "optimizer.lr=1e-5", "data.path.0.weight=2"
    )
    origins = run.origins
    assert origins["stage.name"] == "run.yaml:1"
    assert origins["model.path"] == "run.yaml:3"
    assert origins["data.path.0.path"] == "run.yaml:5"
    assert origins["data.path.0.weight"] == "command line"
    assert origins["optimizer.name"] == "run.yaml:7"
    assert origins["optimizer.lr"] == origins["train.seed"] == "command line"
    assert origins["loggers.0.name"] == "run.yaml:8"
    assert origins["optimizer.betas"] == origins["train.epochs"] == origins["adapter"] == "default"


@pytest.mark.parametrize("extra", ["", "train: {max_steps: 5}\n", "adapter: lora\nscheduler: {warmup_steps: 3}\n"])
def test_the_resolved_config_resolves_to_itself(load, extra: str):
    first = load(MINIMAL + extra, "loss=causal_lm_naive")
    second = load(dump(first.to_dict()))
    assert second.to_dict() == first.to_dict()
    assert second.config == second.config.model_validate(second.to_dict())
    assert set(second.origins) == set(first.origins)


def test_to_dict_is_a_copy(load):
    run = load(MINIMAL)
    run.to_dict()["train"]["seed"] = 0
    assert run.to_dict()["train"]["seed"] == 42


# --- overrides


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
        MINIMAL, "loggers.0=tensorboard", "loggers.3=progress", "data.path.1=more.jsonl", "data.path.0.path=x.json"
    )
    assert [logger.name for logger in run.loggers] == ["tensorboard", "log_file", "metrics_json", "progress"]
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


# --- wrong files; the numbers in names are the rows of the table of bad input


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


def test_the_table_of_choices_is_that_of_the_schema():
    """Every field of the schema that holds a PluginChoice is in the table, and nothing else is."""

    def choices(model, prefix=""):
        for name, field in model.model_fields.items():
            text = str(field.annotation)
            if "PluginChoice" in text:
                yield prefix + name + (".*" if "list" in text else "")
            elif "DataFile" in text:
                from bumblecore_core.config.schema import DataFile

                yield from choices(DataFile, f"{prefix}{name}.*.")
            elif name in sections() and not prefix:
                yield from choices(sections()[name], f"{name}.")

    from bumblecore_core.config.schema import RunConfig

    assert set(choices(RunConfig)) == set(CHOICES)


# --- wild input

KEYS = st.sampled_from(
    ["stage", "model", "data", "path", "format", "loss", "optimizer", "lr", "name", "adapter", "rank", "train",
     "epochs", "loggers", "eval_path", "scheduler", "output_dir", "warmup_steps", "max_steps", "attention"]
) | st.text(max_size=4)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["sft", "odd", "adamw", "lora", "auto", "plateau", "dpo_sigmoid", "raising"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


def outcome(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Resolves, and lets nothing but a `BumbleError` with one line for each problem pass."""
    try:
        run = resolve(load_config(path, overrides), REGISTRY)
    except BumbleError as error:
        problems, text = error.problems, str(error)
    else:
        assert run.to_dict()
        return
    assert problems
    assert len(text.splitlines()) == min(len(problems), 20) + (len(problems) > 20)
    assert text.encode("utf-8")


@pytest.fixture(scope="module")
def wild_file(tmp_path_factory):
    return tmp_path_factory.mktemp("wild") / "run.yaml"


@settings(max_examples=100, deadline=None)
@given(data=st.dictionaries(KEYS, VALUES, max_size=8))
def test_wild_files(wild_file: Path, data: dict[str, object]):
    wild_file.write_text(dump(data), encoding="utf-8")
    outcome(wild_file)


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.lists(KEYS | st.sampled_from("012"), min_size=1, max_size=4), VALUES), max_size=4))
def test_wild_overrides_of_a_good_file(wild_file: Path, changes: list[tuple[list[str], object]]):
    wild_file.write_text(MINIMAL, encoding="utf-8")
    flow = [f"{'.'.join(keys)}={' '.join(dump({'v': value}).split())[3:]}" for keys, value in changes]
    outcome(wild_file, tuple(flow))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20) | st.from_regex(r"[a-z.]{0,8}=[\[\]{}a-z:,0-9 !&*]{0,8}", fullmatch=True))
def test_wild_override_strings(wild_file: Path, text: str):
    wild_file.write_text(MINIMAL, encoding="utf-8")
    outcome(wild_file, (text,))


def test_a_config_error_is_what_problems_of_a_file_give(load):
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL + "optimizer: adamm\nlosss: x\n")
    assert caught.value.exit_code == 2
