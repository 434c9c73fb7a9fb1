"""Bad configs, output directories and plugins, and losses that are not finite."""

import json

import pytest

from bad_input import SECRET, good

PLUGIN = """
from bumblecore_core import LossRecord, Options, hookimpl

def build(*, options):
    return None

@hookimpl
def bumble_losses():
    return [LossRecord(name="{name}", summary="{summary}", build=build, loss_kind="token", options=Options)]
"""


def change(config, old, new):
    """Replaces a line's text in a config file; returns `file:line`."""
    lines = config.read_text().splitlines()
    at = next(at for at, line in enumerate(lines) if line.strip() == old)
    lines[at] = lines[at].replace(old, new)
    config.write_text("\n".join(lines) + "\n")
    return f"{config}:{at + 1}"


# -- config -----------------------------------------------------------------------------------------------------------


def test_row_34_an_unknown_key_names_the_nearest(scene):
    config = scene.config()
    place = change(config, "micro_batch_size: 2", "micro_batchsize: 2")
    scene.call("plan", config).only("BC034", f" {place} train.micro_batchsize", "'micro_batch_size'")
    scene.call("plan", scene.config(), "--set", "optimizer.learning=1").only("BC034", " --set optimizer.learning", "lr")


def test_row_35_a_duplicate_key_names_both_lines(scene):
    config = scene.config()
    place = change(config, "max_length: 128", "max_length: 128\n  path: other.jsonl")
    first = scene.line_of(config, "max_length").rpartition(":")[2]
    number = int(place.rpartition(":")[2])
    assert number == int(first)
    scene.call("plan", config).only(
        "BC035", f" {config}:{number + 1} data.path", f"lines {number - 1} and {number + 1}"
    )


def test_row_36_1e_5_is_a_number(scene):
    scene.rows(good(3))
    config = scene.config(optimizer={"name": "adamw", "lr": 12345})
    change(config, "lr: 12345", "lr: 1e-5")
    assert "optimizer.lr: 1e-05" in scene.call("plan", config, code=0).out


@pytest.mark.parametrize(("written", "read"), [("off", "false"), ("010", "8"), ("1e3", "1000"), ("null", "null")])
def test_row_37_yaml_that_reads_text_as_something_else_asks_for_quotes(scene, written, read):
    config = scene.config(output_dir="here")
    place = change(config, "output_dir: here", f"output_dir: {written}")
    code = "BC038" if written == "null" else "BC037"
    line = scene.call("plan", config).only(code, f" {place} output_dir", read)
    assert written == "null" or f'"{written}"' in line


@pytest.mark.parametrize(
    ("old", "new", "key", "expected", "got"),
    [
        ("max_length: 128", "max_length: long", "data.max_length", "a whole number", "'long'"),
        ("max_length: 128", "max_length: 2", "data.max_length", "greater than or equal to 8", "got 2"),
        ("stage: sft", "stage: [sft]", "stage", "a plugin's name", "a list"),
        ("dtype: fp32", "dtype: fp8", "model.dtype", "'bf16'", "'fp8'"),
        ("max_steps: 2", 'max_steps: "2"', "train.max_steps", "a whole number", "'2'"),
        ("max_steps: 2", "seed: true", "train.seed", "a whole number", "true"),
        ("- metrics_json", "- [metrics_json]", "loggers.0", "a plugin's name", "a list"),
    ],
)
def test_row_38_a_wrong_type_names_expected_and_got(scene, old, new, key, expected, got):
    config = scene.config()
    place = change(config, old, new)
    scene.call("plan", config).only("BC038", f" {place} {key}: ", expected, got)


def test_row_39_conflicting_options_name_both_keys(scene):
    config = scene.config(train__epochs=3)
    line = scene.call("plan", config).only("BC039", "train.epochs", "train.max_steps")
    assert all(scene.line_of(config, key) in line for key in ("epochs", "max_steps"))


def test_problems_of_a_config_are_told_together_and_in_order(scene):
    config = scene.config(train__seed=-1, data__max_length="long", stage="stf", model__dtype="fp8", colour="blue")
    lines = scene.call("plan", config).lines
    assert [line.split()[2].rstrip(":") for line in lines] == [
        "stage", "model.dtype", "data.max_length", "train.seed", "colour",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content", ["", "# nothing\n", "- a\n- b\n", "sft\n", "{}", "model: {path: [}\n", "a: !!python/x 1"]
)
def test_a_file_that_is_no_config(scene, content):
    config = scene.file("run.yaml", content)
    answer = scene.call("run", config)
    assert all(f" {config}" in line for line in answer.lines)


def test_a_config_that_is_not_there_or_not_utf8(scene):
    config = scene.config()
    scene.call("run", "rnu.yaml").only("BC061", " rnu.yaml", "'run.yaml'")
    scene.call("run", scene.directory).only("BC061", "directory")
    config.write_bytes(config.read_text().encode("utf-16"))
    scene.call("run", config).only("BC003", f" {config}", "UTF-8")


# -- output directories -----------------------------------------------------------------------------------------------


def test_row_42_an_unwritable_output_directory_is_found_before_the_model_is_read(scene):
    taken = scene.file("taken", "a file")
    config = scene.config(output_dir=taken / "out", model__path="nowhere")
    answer = scene.call("run", config)
    answer.only("BC042", f" {taken / 'out'} output_dir", "Not a directory")


def test_row_43_the_output_directory_of_another_run_names_what_differs(scene):
    scene.rows([{"text": row["messages"][1]["content"]} for row in good(8)])
    config = scene.config("pretrain")
    scene.call("run", config, code=0)
    answer = scene.call("run", config, "--set", "train.seed=7")
    values = "was 42 when this was saved and is 7 now"
    answer.only("BC043", f" {scene.directory / 'out' / 'final'} train.seed", values, "--overwrite")
    assert "holds this very run already" in scene.call("run", config, code=0).out
    assert "complete: 2 steps" in scene.call("run", config, "--set", "train.seed=7", "--overwrite", code=0).out


def test_a_config_that_names_itself_as_output(scene):
    scene.rows(good(3))
    config = scene.config(output_dir="run.yaml")
    before = config.read_bytes()
    scene.call("run", config, "--overwrite").only("BC042", " run.yaml output_dir")
    assert config.read_bytes() == before


def test_a_config_that_lies_in_its_own_output_directory_survives(scene):
    scene.rows(good(3))
    scene.file("out/notes.txt", "mine")
    config = scene.config(name="out/run.yaml")
    before = config.read_bytes()
    for flags in ((), ("--overwrite",)):
        scene.call("run", config, *flags).only("BC069", f" {config} output_dir", "no run wrote")
        assert config.read_bytes() == before


def test_a_runs_own_run_yaml_runs_again_in_place(scene):
    texts(scene)
    scene.call("run", scene.config("pretrain", data__path="text.jsonl"), code=0)
    config = scene.directory / "out" / "run.yaml"
    before = config.read_bytes()
    assert "complete: 2 steps" in scene.call("run", config, "--overwrite", code=0).out
    (scene.directory / "text.jsonl").unlink()
    scene.call("run", config, "--overwrite").only("BC021", " text.jsonl data.path")
    assert config.read_bytes() == before


# -- several runs -----------------------------------------------------------------------------------------------------


def test_a_later_config_that_is_wrong_stops_the_first(scene):
    scene.rows([{"text": row["messages"][1]["content"]} for row in good(8)])
    first = scene.config("pretrain", name="one.yaml", output_dir=scene.directory / "one")
    second = scene.config(name="two.yaml", output_dir=scene.directory / "two", model__path="nowhere")
    scene.call("run", first, second).only("BC061", " nowhere model.path")
    scene.config(name="two.yaml", output_dir=scene.directory / "two", data__path="nowhere.json")
    scene.call("run", first, second).only("BC021", " nowhere.json data.path")
    scene.config(name="two.yaml", output_dir=scene.directory / "one")
    scene.call("run", first, second).only("BC039", f" {scene.line_of(second, 'output_dir')} output_dir")
    scene.file("two/run.yaml", "mine: true")
    scene.config(name="two.yaml", output_dir=scene.directory / "two")
    scene.call("run", first, second).only("BC069", str(scene.directory / "two"))
    assert not (scene.directory / "one").exists()


def test_a_later_config_may_start_from_an_earlier_ones_output(scene):
    path = scene.rows(good(8), "chat.jsonl")
    scene.rows([{"text": row["messages"][1]["content"]} for row in good(8)])
    first = scene.config("pretrain", name="one.yaml", output_dir="one")
    second = scene.config(name="two.yaml", output_dir="two", model__path="one", data__path=path)
    assert scene.call("run", first, second, code=0).out.count("complete: 2 steps") == 2


# -- plugins ----------------------------------------------------------------------------------------------------------


def test_row_53_two_plugins_of_one_name_name_both(scene):
    for module in ("first_one", "second_one"):
        scene.file(f"{module}.py", PLUGIN.format(name="soft", summary="A loss."))
    answer = scene.call("-p", "first_one", "-p", "second_one", "plan", scene.config())
    answer.only("BC053", " losses.soft", "(first_one)", "(second_one)")


def test_row_54_a_module_that_does_not_import(scene):
    scene.file("broken_one.py", f"raise RuntimeError('no')\n# {SECRET}")
    scene.call("-p", "broken_one", "plan", scene.config()).only("BC054", " -p broken_one", "RuntimeError: no")
    scene.call("-p", "not_there", "plan", scene.config()).only("BC054", " -p not_there", "ModuleNotFoundError")


def test_row_55_a_wrong_record_names_plugin_hook_and_field(scene):
    scene.file("wrong_one.py", PLUGIN.format(name="Soft Loss", summary=""))
    answer = scene.call("-p", "wrong_one", "plan", scene.config())
    answer.has("BC055", "bumble_losses", ".name", "'wrong_one'")
    answer.has("BC055", "bumble_losses", ".summary", "'wrong_one'")


@pytest.mark.parametrize(
    ("key", "name", "near"), [("stage", "stf", "sft"), ("loss", "causal_ml", "causal_lm"), ("engine", "torhc", "torch")]
)
def test_row_56_a_plugin_that_is_not_installed_names_the_nearest(scene, key, name, near):
    config = scene.config(**{key: name})
    answer = scene.call("plan", config)
    answer.only("BC056", f" {scene.line_of(config, key)} {key}", f"'{name}'", f"'{near}'", "pip install")


def test_a_plugin_that_raises_is_named(scene):
    scene.rows(good(3))
    scene.file(
        "angry_one.py", PLUGIN.format(name="angry", summary="A loss.").replace("return None", "raise KeyError(7)")
    )
    answer = scene.call("-p", "angry_one", "run", scene.config("pretrain", loss="angry", data__path=texts(scene)))
    answer.only("BC060", "loss 'angry'", "KeyError", "angry_one.py:5")


def test_a_file_that_a_plugin_names_and_is_not_there_is_said_before_data_is_read(scene):
    option = (
        'class Named(Options):\n    table: Annotated[str, ByContent()] = Field("none.json", description="A file.")\n'
    )
    source = PLUGIN.format(name="tabled", summary="A loss.").replace("options=Options", "options=Named")
    imports = "from typing import Annotated\nfrom pydantic import Field\nfrom bumblecore_core import ByContent\n"
    scene.file("tabled_one.py", source.replace("def build", imports + option + "def build"))
    for command in ("plan", "run"):
        answer = scene.call("-p", "tabled_one", command, scene.config("pretrain", loss="tabled", data__path="none.txt"))
        answer.only("BC061", " none.json loss.table", "'tabled'")


# -- training ---------------------------------------------------------------------------------------------------------


def texts(scene):
    return scene.rows([{"text": row["messages"][1]["content"]} for row in good(12)], "text.jsonl")


def test_row_57_a_loss_that_is_not_finite_names_step_rank_and_rows(scene):
    path = texts(scene)
    config = scene.config(
        "pretrain",
        data__path=path,
        optimizer={"name": "adamw", "lr": 1e36, "weight_decay": 0.0},
        scheduler="constant",
        train={"micro_batch_size": 2, "max_steps": 12, "max_skipped_steps": 2, "max_grad_norm": None},
    )
    line = scene.call("run", config).only("BC057", "at step ", "rank 0", "3 steps in a row; 3 skipped in all")
    assert f"{path}:" in line
    history = json.loads((scene.directory / "out" / "metrics.json").read_text())
    assert history[-1]["skipped_steps"] >= 2
    assert not (scene.directory / "out" / "final").exists()
