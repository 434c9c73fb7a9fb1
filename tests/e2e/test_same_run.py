"""Whether an output directory holds this run is decided by content, once: for complete, unfinished and failed runs."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bumblecore_core.run import lock
from bumblecore_plugins.engines.torch_engine import TorchEngine
from lora_runs import ADAPTER
from resume_runs import bench_of, run, settings_of
from workbench import sentence

TRAIN = {"max_steps": 3, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "eval_steps": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bench_of(tmp_path_factory.mktemp("same"))


@pytest.fixture
def bench(made, tmp_path):
    """A workbench that a test may change."""
    return shutil.copytree(made, tmp_path / "bench", ignore=shutil.ignore_patterns("cache"))


def settings(bench, **changes):
    """Of a run that is evaluated on the rows that it trains on."""
    config = settings_of(bench, "sft", "out", **{"train": TRAIN, "checkpoint": {"save_steps": 2}, **changes})
    config["data"]["eval_path"] = config["data"]["path"]
    return config


def moved(bench, config):
    """The same run from identical copies of its files at other places."""
    shutil.copytree(bench / "start" / "final", bench / "copy of the model")
    shutil.copy(bench / "chat.json", bench / "copy of the data.json")
    config["model"]["path"] = str(bench / "copy of the model")
    config["data"]["path"] = config["data"]["eval_path"] = str(bench / "copy of the data.json")
    return config


def spoil(file):
    tensors = load_file(file)
    tensors["model.norm.weight"][5] += 1
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
def test_copies_of_data_and_model_elsewhere_are_the_same_run(bench, capsys, adapter):
    config = settings(bench, adapter=adapter)
    assert run(bench, config) == 0
    moved(bench, config)
    assert run(bench, config) == 0
    assert "holds this very run already" in capsys.readouterr().out
    shutil.rmtree(bench / "out" / "final")
    shutil.rmtree(bench / "out" / "checkpoint-3")
    assert run(bench, config) == 0
    assert "after step 2" in capsys.readouterr().out

    spoil(bench / "copy of the model" / "model.safetensors")
    for saved in ("final", "checkpoint-3"):
        assert run(bench, config) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"BC047 {bench / 'out' / saved} model.weights: was ")
        assert f"({bench / 'copy of the model'}) when this was saved" in line
        shutil.rmtree(bench / "out" / saved)


def test_a_finished_run_of_other_data_is_not_this_run(bench, capsys):
    config = settings(bench)
    assert run(bench, config) == 0
    rows = json.loads((bench / "chat.json").read_text())
    rows[3]["output"] = sentence(99, 4)
    (bench / "chat.json").write_text(json.dumps(rows))
    assert run(bench, config) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"BC050 {bench / 'out' / 'final'} {name}" for name in ("data", "evaluation_data")
    ]
    assert all("when this was saved and is 40 examples, fingerprint" in line for line in lines)


def test_newer_libraries_do_not_make_a_finished_run_another(bench, capsys, monkeypatch):
    config = settings(bench)
    assert run(bench, config) == 0
    installed, model_config = lock.installed_version, lock._model_config
    newer = ("torch", "transformers")
    monkeypatch.setattr(lock, "installed_version", lambda name: "99.0" if name in newer else installed(name))
    monkeypatch.setattr(lock, "_model_config", lambda config: {**model_config(config), "new_in_99": True})
    assert run(bench, config) == 0
    assert "holds this very run already" in capsys.readouterr().out
    shutil.rmtree(bench / "out" / "final")
    assert run(bench, config) == 2
    assert "BC070" in capsys.readouterr().err


def test_another_zero_stage_and_a_moved_deepspeed_file_are_the_same_run(bench, capsys):
    (bench / "ds.json").write_text('{"zero_optimization": {"reduce_bucket_size": 1000000}}')
    engine = {"name": "deepspeed", "zero_stage": 1, "config_file": str(bench / "ds.json")}
    config = settings(bench, engine=engine)
    assert run(bench, config) == 0
    shutil.copy(bench / "ds.json", bench / "moved.json")
    config["engine"] |= {"zero_stage": 2, "config_file": str(bench / "moved.json")}
    config["train"] |= {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    assert run(bench, config) == 0
    assert "holds this very run already" in capsys.readouterr().out
    shutil.rmtree(bench / "out" / "final")
    assert run(bench, config) == 0
    told = capsys.readouterr().out
    assert "engine.zero_stage was 1 and is 2 now: the numbers agree up to rounding" in told
    (bench / "moved.json").write_text('{"zero_optimization": {"reduce_bucket_size": 2000000}}')
    assert run(bench, config) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"BC043 {bench / 'out' / 'final'} engine.config_file: was a file ")


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
def test_a_finished_run_without_a_checkpoint_says_at_once_what_training_longer_needs(bench, capsys, adapter):
    config = settings(bench, checkpoint={"save_steps": None}, adapter=adapter)
    assert run(bench, config) == 0
    config["train"] = {**TRAIN, "max_steps": 5}
    (bench / "chat.json").rename(bench / "gone.json")  # at once: the data is not looked at
    assert run(bench, config) == 2
    assert "--allow" not in capsys.readouterr().err
    assert run(bench, config, "--allow", "train.max_steps") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"BC043 {bench / 'out'} output_dir: the finished run cannot continue with another ")
    key = "model.path" if adapter is None else "adapter.path"
    assert f"({key}: {bench / 'out' / 'final'}, and another output_dir)" in line
    (bench / "gone.json").rename(bench / "chat.json")
    if adapter is None:
        config["model"]["path"] = str(bench / "out" / "final")
    else:
        config["adapter"] = {"name": "lora", "path": str(bench / "out" / "final")}
    assert run(bench, {**config, "output_dir": str(bench / "longer")}) == 0


def test_a_finished_run_goes_on_from_its_checkpoint_as_the_message_says(bench, capsys):
    config = settings(bench)
    assert run(bench, config) == 0
    config["train"] = {**TRAIN, "max_steps": 5}
    assert run(bench, config) == 2
    advice = capsys.readouterr().err
    assert "train.max_steps: was 3 when this was saved and is 5 now" in advice
    assert "--allow train.max_steps" in advice
    assert run(bench, config, "--allow", "train.max_steps") == 0
    assert "complete: 5 steps" in capsys.readouterr().out
    assert run(bench, config) == 0
    assert "holds this very run already" in capsys.readouterr().out


def test_a_run_that_failed_before_it_saved_anything_can_be_corrected(bench, capsys):
    config = settings(bench)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TorchEngine, "forward_backward", lambda self, **inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(bench, config)
    assert json.loads((bench / "out" / "run.info.json").read_text())["status"] == "failed"
    config["optimizer"]["lr"] = 1e-4
    config["train"] = {**TRAIN, "micro_batch_size": 1}
    assert run(bench, config) == 0
    assert "complete: 3 steps" in capsys.readouterr().out
