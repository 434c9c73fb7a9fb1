"""Kept reference figures: what makes them others, what does not, and that damaged ones are never trained against."""

import json
import math
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run import reference_cache
from bumblecore_core.run.assemble import prepare
from bumblecore_core.run.build import build_engine
from bumblecore_core.run.reference import wanted_reference
from dpo_runs import ADAPTER, dpo_bench, dpo_settings, entries, run
from resume_runs import differences
from workbench import write_config

SHORT = {"max_steps": 2, "eval_steps": None}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return dpo_bench(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def registry():
    return load_registry(PluginSwitches())


@pytest.fixture
def key(bench, registry, tmp_path):
    """The names of the files in which a run with these settings keeps and looks for figures."""

    def find(settings):
        resolved = load_run(write_config(tmp_path / "run.yaml", **settings), (), registry)
        engine = build_engine(resolved, registry)
        try:
            prepared = prepare(resolved, registry, PluginSwitches(), world_size=1, progress=False)
            return tuple(path.name for path in wanted_reference(prepared, registry, engine).files.values())
        finally:
            engine.close()

    return find


def settings_of(bench, **changes):
    return dpo_settings(bench, "key-run", **{"model": {"path": str(bench / "start" / "final")}, **changes})


CHANGED = {
    "the stage's options": {"stage": {"name": "dpo", "reference": "start", "ld_alpha": 0.5}},
    "an adapter": {"adapter": ADAPTER},
    "the dtype": {"model": {"dtype": "bf16"}},
    "the attention": {"model": {"attention": "eager"}},
    "the micro-batch": {"train": {"micro_batch_size": 1}},
    "the seed": {"train": {"seed": 5}},
    "the length": {"train": {"max_steps": 20}},
    "packing": {"data": {"packing": True}},
    "the evaluation rows": {"data": {"eval_path": None, "eval_split": 0.2}},
}
SAME = {
    "loggers": {"loggers": []},
    "logging_steps": {"train": {"logging_steps": 7}},
    "eval_steps": {"train": {"eval_steps": None}},
    "checkpoint": {"checkpoint": {"save_steps": 3, "background": False}},
    "output_dir": {"output_dir": "elsewhere"},
    "the optimizer": {"optimizer": {"lr": 1.0}, "scheduler": "constant"},
    "the loss": {"loss": "hinge"},
    "num_workers": {"data": {"num_workers": 1}},
}


def changed(bench, changes):
    """The settings of `settings_of` with `changes` made afterwards, since its helpers set some of these keys."""
    settings = settings_of(bench)
    for section, values in changes.items():
        merged = isinstance(values, dict) and section not in ("stage", "adapter", "scheduler")
        settings[section] = {**settings[section], **values} if merged else values
    return settings


def test_each_thing_that_changes_figures_has_a_key_of_its_own(bench, key):
    keys = {"nothing": key(settings_of(bench)), **{name: key(changed(bench, CHANGED[name])) for name in CHANGED}}
    assert len(set(keys.values())) == len(keys), keys
    weighted = settings_of(bench)
    weighted["data"]["path"] = [{"path": str(bench / "pairs.json"), "weight": 0.5}]
    assert key(weighted) not in keys.values()


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_figure_keeps_the_key(bench, key, name):
    assert key(changed(bench, SAME[name])) == key(settings_of(bench))


def test_another_model_or_other_data_has_another_key(bench, key, tmp_path):
    shutil.copytree(bench / "start" / "final", tmp_path / "model")
    shutil.copy(bench / "pairs.json", tmp_path / "pairs.json")
    settings = settings_of(bench, model={"path": str(tmp_path / "model")})
    settings["data"]["path"] = str(tmp_path / "pairs.json")
    first = key(settings)
    assert first == key(settings_of(bench)), "a copy elsewhere is the same"
    config = tmp_path / "model" / "config.json"
    written = config.read_text()
    config.write_text(json.dumps({**json.loads(written), "rms_norm_eps": 1e-3}))
    assert key(settings) != first
    config.write_text(written)
    assert key(settings) == first
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.norm.weight"][-1] += 1e-3
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert key(settings) != first
    pairs = json.loads((tmp_path / "pairs.json").read_text())
    pairs[0]["chosen"] += " rain"
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    settings["model"]["path"] = str(bench / "start" / "final")
    assert key(settings) != first


def test_the_adapter_that_a_run_starts_from_counts_with_its_weights(bench, key, tmp_path):
    run(bench, dpo_settings(bench, "grown", adapter=ADAPTER, train=SHORT))
    shutil.copytree(bench / "grown" / "final", tmp_path / "adapter")
    settings = settings_of(bench, adapter={"name": "lora", "path": str(tmp_path / "adapter")})
    first = key(settings)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors[min(tensors)] += 1e-3
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert key(settings) != first


def test_rows_that_an_earlier_run_left_out_are_asked_about(bench):
    """A file's weight decides which rows an epoch reaches; the figures of the others were never computed."""
    half, whole = ({"path": [{"path": str(bench / "pairs.json"), "weight": weight}]} for weight in (0.5, 1.0))
    train = {"max_steps": None, "epochs": 1, "micro_batch_size": 4, "eval_steps": None}
    common = {"train": train, "scheduler": "constant"}
    for name, data in (("left-half", half), ("left-whole", whole)):
        settings = dpo_settings(bench, name, **common)
        settings["data"] |= {**data, "eval_path": None}
        settings["optimizer"]["lr"] = 1e-9  # the policy stays its reference
        run(bench, settings)
        losses = [entry["loss"] for entry in entries(bench, name, "train")]
        assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-4)


def evaluated_on_its_own_rows(bench, name):
    """Settings of a run whose cache holds one file of reference figures."""
    settings = dpo_settings(bench, name, train=SHORT)
    settings["data"]["eval_path"] = settings["data"]["path"]
    return settings


def test_damaged_figures_are_noticed_and_computed_again(bench, capsys):
    run(bench, evaluated_on_its_own_rows(bench, "harm"))
    capsys.readouterr()
    (file,) = (bench / "cache-harm" / "reference").iterdir()
    intact, generator = file.read_bytes(), random.Random(0)
    harmed = [b"", intact[:-1], intact[: len(intact) // 2], bytes(len(intact)), intact + b"\0"]
    for at in (0, 35, 60, len(intact) - 1, *(generator.randrange(len(intact)) for _ in range(60))):
        harmed.append(intact[:at] + bytes([intact[at] ^ (1 << generator.randrange(8))]) + intact[at + 1 :])
    for data in harmed:
        file.write_bytes(data)
        with pytest.raises(reference_cache.DamagedFigures):
            reference_cache.read_figures(file, ["x"], 40)
    file.write_bytes(harmed[-1])
    run(bench, evaluated_on_its_own_rows(bench, "harm-again"))
    said = " ".join(capsys.readouterr().out.split())
    assert "warning BC075 damaged cache files were rebuilt: 1" in said
    assert "no second model" in said
    assert file.read_bytes() == intact
    assert differences(bench / "harm", bench / "harm-again", steps=2) == []
    run(bench, evaluated_on_its_own_rows(bench, "harm-last"))
    said = capsys.readouterr().out
    assert "computed by an earlier run" in said
    assert "BC075" not in said


def test_a_directory_in_the_place_of_figures_ends_in_one_line(bench, capsys):
    run(bench, evaluated_on_its_own_rows(bench, "blocked"))
    (file,) = (bench / "cache-blocked" / "reference").iterdir()
    file.unlink()
    file.mkdir()
    run(bench, evaluated_on_its_own_rows(bench, "blocked-again"), code=2)
    assert "BC042" in capsys.readouterr().err
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("reference", ["start", "another"])
def test_bc047_a_run_is_not_resumed_against_another_reference(bench, tmp_path, capsys, reference):
    """Without the kept figures, the start model or the named one is asked again: it must be the same one."""
    shutil.copytree(bench / "start" / "final", tmp_path / "model")
    changes = {"train": {"max_steps": 4, "eval_steps": None}, "loggers": []}
    if reference == "start":
        changes["model"] = {"path": str(tmp_path / "model")}
    else:
        changes["stage"] = {"name": "dpo", "reference": str(tmp_path / "model")}
    name = f"other{reference}"
    settings = dpo_settings(bench, name, **changes)
    run(bench, settings)
    again = {**settings, "output_dir": str(bench / f"{name}-again")}
    options = ["--resume", str(bench / name / "checkpoint-2")]
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.norm.weight"][-1] += 0.1
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    run(bench, again, *options, code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
    changed = ["reference.weights"] if reference == "another" else ["model.weights", "reference.weights"]
    for line, name in zip(lines, changed, strict=True):
        assert line.startswith("BC047")
        assert f"--allow {name}" in line
    run(bench, again, *options, *(part for name in changed for part in ("--allow", name)))
