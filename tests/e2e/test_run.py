"""`bumble run` and `bumble plan` as a user meets them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bumblecore_core.cli import main
from warm_processes import run_warm
from workbench import make_model_config, pretrain_settings, sft_settings, workbench, write_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pretrained(bench):
    """A finished pretraining run, and the code that it ended with."""
    return write_config(bench / "pretrain.yaml", **pretrain_settings(bench)), bumble(
        "run", str(bench / "pretrain.yaml")
    )


def bumble(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    return ended.value.code or 0


def run_with(bench: Path, name: str, **changes) -> dict[str, torch.Tensor]:
    settings = sft_settings(bench, bench / "pretrain")
    settings["output_dir"] = str(bench / name)
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            settings.setdefault(section, {})[field] = value
        else:
            settings[section] = value
    assert bumble("run", str(write_config(bench / f"{name}.yaml", **settings))) == 0
    return load_file(bench / name / "final" / "model.safetensors")


def history(directory: Path) -> list[dict]:
    return json.loads((directory / "metrics.json").read_text())


def test_the_output_directory_holds_what_was_promised(bench, pretrained):
    output = bench / "pretrain"
    assert pretrained[1] == 0
    promised = {"final", "logs", "metrics.json", "run.yaml", "run.lock.json", "run.info.json"}
    promised |= {"tensorboard", "training_loss.png"}
    assert {path.name for path in output.iterdir()} == {*promised, ".lock"}
    entries = history(output)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[-1]["loss"] < entries[0]["loss"]
    lock = json.loads((output / "run.lock.json").read_text())
    assert {"kind": "stages", "name": "pretrain", "distribution": "bumblecore"}.items() <= lock["plugins"][0].items()
    log = (output / "logs" / "train.log").read_text()
    assert "trained part between" in log
    assert "complete after 4 steps" in log


def test_the_final_model_loads_without_us(bench, pretrained):
    code = (
        "import sys, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "k = t.AutoTokenizer.from_pretrained(sys.argv[1]); assert k.chat_template;"
        "assert not any(n.startswith('bumblecore') for n in sys.modules); print(m.num_parameters())"
    )
    done = run_warm("-c", code, bench / "pretrain" / "final")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(w.numel() for w in load_file(bench / "pretrain/final/model.safetensors").values())


def test_the_same_run_again_is_left_as_it_is_and_another_is_refused(bench, pretrained, capsys):
    path, _ = pretrained
    before = (bench / "pretrain" / "metrics.json").stat().st_mtime_ns
    assert bumble("run", str(path)) == 0
    assert "holds this very run already" in capsys.readouterr().out
    assert (bench / "pretrain" / "metrics.json").stat().st_mtime_ns == before
    assert bumble("run", str(path), "--set", "train.seed=7") == 2
    assert "BC043" in (said := capsys.readouterr().err)
    assert "train.seed" in said


def test_overwrite_trains_it_anew(bench, pretrained, tmp_path):
    settings = pretrain_settings(bench, max_steps=1)
    settings["output_dir"] = str(tmp_path / "out")
    path = str(write_config(tmp_path / "p.yaml", **settings))
    assert bumble("run", path) == 0
    assert bumble("run", path, "--set", "train.max_steps=2", "--overwrite") == 0
    assert len(history(tmp_path / "out")) == 2


def test_the_written_run_yaml_is_the_same_run(bench, pretrained, capsys):
    assert bumble("run", str(bench / "pretrain" / "run.yaml")) == 0
    assert "holds this very run already" in capsys.readouterr().out


def test_a_chain_takes_an_earlier_output_as_its_model(bench, tmp_path, capsys):
    first = pretrain_settings(bench, max_steps=2)
    first["output_dir"] = str(tmp_path / "first")
    second = sft_settings(bench, tmp_path / "first", max_steps=2)
    second["output_dir"] = str(tmp_path / "second")
    paths = [write_config(tmp_path / f"{name}.yaml", **s) for name, s in (("first", first), ("second", second))]
    assert bumble("run", *map(str, paths)) == 0
    assert (tmp_path / "second" / "final" / "config.json").exists()
    said = capsys.readouterr().out
    assert "⟦" in said
    assert said.count("complete: 2 steps") == 2
    assert "final  model, loads with AutoModelForCausalLM.from_pretrained and `bumble generate`" in said


def test_a_wrong_config_stops_a_chain_before_anything_trains(bench, tmp_path, capsys):
    first = pretrain_settings(bench, max_steps=2)
    first["output_dir"] = str(tmp_path / "first")
    good = write_config(tmp_path / "good.yaml", **first)
    bad = write_config(tmp_path / "bad.yaml", **{**first, "stagee": "sft"})
    assert bumble("run", str(good), str(bad)) == 2
    assert "BC034" in capsys.readouterr().err
    assert not (tmp_path / "first").exists()


def test_the_same_config_gives_the_same_bits_whatever_the_workers(bench, pretrained):
    one = run_with(bench, "bits-one", data__packing=True)
    two = run_with(bench, "bits-two", data__packing=True)
    workers = run_with(bench, "bits-workers", data__packing=True, data__num_workers=2)
    for name in one:
        assert torch.equal(one[name], two[name]), name
        assert torch.equal(one[name], workers[name]), name
    other = run_with(bench, "bits-seed", data__packing=True, train__seed=1)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_gradient_checkpointing_changes_no_weight(bench, pretrained):
    plain = run_with(bench, "plain")
    checkpointed = run_with(bench, "checkpointed", model__gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=1e-5, atol=1e-6)


def test_bf16_trains_and_saves_bf16(bench, pretrained):
    weights = run_with(bench, "bf16", model__dtype="bf16")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    run_with(bench, "fp32")
    losses, exact = ([entry["loss"] for entry in history(bench / name)] for name in ("bf16", "fp32"))
    assert losses == pytest.approx(exact, rel=2e-2)


def test_evaluation_holds_out_rows_and_reports(bench, pretrained):
    run_with(bench, "evaluated", data__eval_split=0.25, train__eval_steps=2)
    found = [entry for entry in history(bench / "evaluated") if entry["split"] == "eval"]
    assert [entry["step"] for entry in found] == [2, 4]
    assert all(entry["loss"] > 0 and entry["perplexity"] > 1 for entry in found)


def test_a_plateau_schedule_reads_the_evaluation_loss(bench, pretrained):
    scheduler = {"name": "reduce_on_plateau", "patience": 0, "threshold": 0.9, "factor": 0.1}
    run_with(bench, "plateau", data__eval_split=0.25, train__eval_steps=1, scheduler=scheduler)
    rates = [entry["learning_rate"] for entry in history(bench / "plateau") if entry["split"] == "train"]
    assert rates[-1] < rates[0]


def test_untied_models_train_and_save_both_matrices(bench, tmp_path):
    make_model_config(bench / "untied", tie_word_embeddings=False)
    settings = pretrain_settings(bench, max_steps=2)
    settings["model"] = {"path": str(bench / "untied"), "tokenizer": str(bench / "model"), "dtype": "fp32"}
    settings["output_dir"] = str(tmp_path / "out")
    assert bumble("run", str(write_config(tmp_path / "p.yaml", **settings))) == 0
    weights = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_plan_says_the_same_and_trains_nothing(bench, pretrained, tmp_path, capsys):
    settings = sft_settings(bench, bench / "pretrain")
    settings["output_dir"] = str(tmp_path / "planned")
    path = str(write_config(tmp_path / "sft.yaml", **settings))
    assert bumble("plan", path, "--devices", "2") == 0
    said = capsys.readouterr().out
    for fact in ("supervised", "estimated memory", "8 rows a step", "× 2 devices", "attention", "⟦"):
        assert fact in said
    assert not (tmp_path / "planned").exists()


def test_a_run_can_be_stopped_by_the_keyboard(bench, pretrained, monkeypatch, tmp_path, capsys):
    import bumblecore_core.run.loop as loop

    real, steps = loop._accumulate, []

    def interrupt(*args):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "_accumulate", interrupt)
    settings = sft_settings(bench, bench / "pretrain")
    settings["output_dir"] = str(tmp_path / "out")
    assert bumble("run", str(write_config(tmp_path / "sft.yaml", **settings))) == 130
    assert len(history(tmp_path / "out")) == 2
    assert "interrupted after 2 steps" in (tmp_path / "out" / "logs" / "train.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_a_stage_that_raises_is_named(bench, pretrained, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken_loss.py").write_text(
        "from bumblecore_core import LossRecord, hookimpl\n"
        "def build(*, options):\n"
        "    def loss(**inputs):\n"
        "        raise ValueError('no idea')\n"
        "    return loss\n"
        "@hookimpl\n"
        "def bumble_losses():\n"
        "    return [LossRecord(name='broken', summary='Raises.', build=build, loss_kind='token')]\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = sft_settings(bench, bench / "pretrain")
    settings |= {"loss": "broken", "output_dir": str(tmp_path / "out")}
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert bumble("-p", "broken_loss", "run", str(path)) == 2
    said = capsys.readouterr().err
    assert "BC060" in said
    assert "the loss 'broken' (module broken_loss) raised ValueError: no idea" in said
    assert "Traceback" not in said
