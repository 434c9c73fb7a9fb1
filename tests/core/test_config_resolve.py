"""Resolution: what a config means, and where each value comes from."""

from __future__ import annotations

import contextlib
import cProfile
from pathlib import Path

import pytest
from config_records import MINIMAL, Colour

from bumblecore_core.config.origins import located
from bumblecore_core.config.schema import DEFAULT_LOGGERS
from bumblecore_core.config.shape import CHOICES, sections
from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import ConfigError, one


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
    assert [logger.name for logger in run.loggers] == list(DEFAULT_LOGGERS)
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


@pytest.mark.parametrize(
    ("written", "value"),
    [("auto", "auto"), ("off", "off"), ('"off"', "off"), ("false", "off"), ("0", 0.0), ("1e-3", 1e-3)],
)
def test_the_auxiliary_loss_of_routers(load, written, value):
    run = load(MINIMAL, f"model.router_aux_loss={written}")
    assert run.config.model.router_aux_loss == value
    assert type(run.config.model.router_aux_loss) is type(value)
    assert run.to_dict()["model"]["router_aux_loss"] == value


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("-0.1", "a value greater than or equal to 0 or 'auto' or 'off', got -0.1"),
        ("yes", "a number or 'auto' or 'off', got true"),
        ("some", "a number or 'auto' or 'off', got the text 'some'"),
        ("null", "a number or 'auto' or 'off', got null"),
    ],
)
def test_a_wrong_coefficient_of_routers(wrong, written, words):
    (problem,) = wrong(MINIMAL, f"model.router_aux_loss={written}")
    assert (problem.code, problem.field) == ("BC038", "model.router_aux_loss")
    assert words in problem.problem


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


def test_a_list_of_which_one_item_is_overridden_comes_from_the_command_line(load):
    run = load(MINIMAL + "optimizer: {betas: [0.8, 0.9]}\n", "optimizer.betas.1=0.3")
    assert run.optimizer.options.betas == (0.8, 0.3)
    assert run.origins["optimizer.betas"] == "command line"


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("optimizer.lr", "--set"),
        ("optimizer", "--set"),
        ("train.max_steps", "run.yaml:7"),
        ("data.path[0]", "run.yaml:5"),
        ("train.seed, model.path", "run.yaml"),  # the first one counts, and it is a default
        ("train.max", ""),  # the beginning of a key is none
        ("", ""),
    ],
)
def test_a_problem_that_a_run_finds_is_placed_where_its_key_is_written(load, field, place):
    run = load(MINIMAL + "train: {max_steps: 3}\n", "optimizer.lr=1e-5")
    with pytest.raises(ConfigError) as caught, located(run):
        raise one(ConfigError, "BC039", "a problem", "a fix", field=field)
    assert [(problem.field, problem.place) for problem in caught.value.problems] == [(field, place)]


def test_a_problem_keeps_its_own_place(load):
    with pytest.raises(ConfigError) as caught, located(load(MINIMAL)):
        raise one(ConfigError, "BC039", "a problem", "a fix", place="elsewhere:1", field="model.path")
    assert caught.value.problems[0].place == "elsewhere:1"


@pytest.mark.parametrize(("written", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("null", None)])
def test_the_time_between_checkpoints_in_seconds(load, written, seconds):
    assert load(MINIMAL + f"checkpoint: {{save_every: {written}}}\n").config.checkpoint.save_every_seconds == seconds


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


def calls_of(action) -> int:
    """How many function calls an action takes: a measure of its time that does not depend on the machine."""
    profile = cProfile.Profile()
    profile.runcall(action)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("wrong", [False, True])
def test_the_time_grows_linearly_with_the_number_of_values(load, wrong):
    def resolved(count: int):
        entry = "{path: 1, weight: x}" if wrong else "a.json"
        text = MINIMAL.replace("path: rows.jsonl", "path: [" + ", ".join([entry] * count) + "]")
        with pytest.raises(ConfigError) if wrong else contextlib.nullcontext():
            load(text)

    resolved(10)  # fills caches
    assert calls_of(lambda: resolved(400)) < 5 * calls_of(lambda: resolved(100))
