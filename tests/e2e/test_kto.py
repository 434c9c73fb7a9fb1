"""`stage: kto` as a user runs it: step 0, learning, the reference, resuming, and what is refused."""

import json
import math
import shutil
import subprocess
import sys

import pytest

from bumblecore_core.cli import main
from resume_runs import STEPS, bench_of, differences, settings_of
from workbench import EVAL_ROWS, sentence, write_config


def row(index):
    return {
        "prompt": sentence(index, 3 + index % 5),
        "completion": sentence(index + 1, 2 + index * 3 % 17),
        "label": index % 5 < 3,
    }


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = bench_of(tmp_path_factory.mktemp("kto"))
    (bench / "feedback.json").write_text(json.dumps([row(index) for index in range(40)]))
    (bench / "eval-feedback.json").write_text(json.dumps([row(index) for index in range(EVAL_ROWS)]))
    return bench


def kto_settings(bench, name, **changes):
    stage = changes.pop("stage", "kto")
    settings = {**settings_of(bench, "kto", name, **changes), "stage": stage}
    settings["data"] |= {"path": str(bench / "feedback.json"), "eval_path": str(bench / "eval-feedback.json")}
    settings["data"]["max_length"] = 96
    settings["data"]["cache_dir"] = str(bench / f"cache-{name.split('-')[0]}")
    return settings


def run(bench, settings, *options, command="run", code=0):
    config = write_config(bench / "kto.yaml", **settings)
    with pytest.raises(SystemExit) as ended:
        main([command, str(config), *options])
    assert (ended.value.code or 0) == code


def entries(bench, name, split="train"):
    return [entry for entry in json.loads((bench / name / "metrics.json").read_text()) if entry["split"] == split]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_at_step_0_the_policy_is_its_reference(bench, dtype):
    train = {"max_steps": 1, "eval_steps": None, "gradient_accumulation_steps": 20}  # all rows, so of both labels
    run(bench, kto_settings(bench, f"zero-{dtype}", model={"dtype": dtype}, train=train))
    (first,) = entries(bench, f"zero-{dtype}")
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    for figure in ("kl", "rewards/chosen", "rewards/rejected"):
        assert first[figure] == pytest.approx(0.0, abs=1e-5), figure
    assert first["logps/chosen"] < -1


def test_the_loss_falls_and_rewards_separate(bench):
    run(bench, kto_settings(bench, "falls", train={"max_steps": 40, "eval_steps": 20, "micro_batch_size": 4}))
    last, evaluated = entries(bench, "falls")[-1], entries(bench, "falls", "eval")[-1]
    assert evaluated["loss"] < 0.45
    assert "perplexity" not in evaluated
    assert evaluated["rewards/chosen"] > evaluated["rewards/rejected"] + 0.2
    assert all(math.isfinite(last[name]) for name in ("loss", "kl", "grad_norm"))


def test_a_step_without_one_of_the_labels_reports_no_figure_for_it(bench):
    path = bench / "good.jsonl"
    path.write_text("".join(json.dumps({**row(index), "label": True}) + "\n" for index in range(8)))
    settings = kto_settings(bench, "good", train={"max_steps": 2, "eval_steps": None})
    settings["data"] |= {"path": str(path), "eval_path": None}
    run(bench, settings)
    found = entries(bench, "good")
    assert all(entry["rewards/rejected"] is None or math.isnan(entry["rewards/rejected"]) for entry in found)
    assert all(math.isfinite(entry["rewards/chosen"]) and math.isfinite(entry["loss"]) for entry in found)


def test_a_resumed_run_is_the_same_bit_for_bit_with_and_without_the_kept_reference(bench, capsys):
    run(bench, kto_settings(bench, "whole"))
    assert "no second model" in capsys.readouterr().out
    run(bench, kto_settings(bench, "whole-resumed"), "--resume", str(bench / "whole" / "checkpoint-3"))
    assert "computed by an earlier run" in capsys.readouterr().out
    assert differences(bench / "whole", bench / "whole-resumed") == []
    shutil.rmtree(bench / "cache-whole" / "reference")
    run(bench, kto_settings(bench, "whole-again"), "--resume", str(bench / "whole" / "checkpoint-8"))
    assert "and freed" in capsys.readouterr().out
    assert differences(bench / "whole", bench / "whole-again") == []
    assert (bench / f"whole/checkpoint-{STEPS}").is_dir()


def test_an_adapters_base_is_the_reference(bench, capsys):
    settings = kto_settings(bench, "adapted", stage={"name": "kto", "reference": "base"}, train={"max_steps": 3})
    settings["adapter"] = {"name": "lora", "rank": 4}
    run(bench, settings)
    assert "the base model without its adapter" in capsys.readouterr().out
    assert entries(bench, "adapted")[0]["loss"] == pytest.approx(0.5, abs=1e-6)


def test_a_step_of_one_row_needs_kl_off_or_packing(bench, capsys):
    single = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 2, "eval_steps": None}
    run(bench, kto_settings(bench, "single", train=single), code=2)
    said = capsys.readouterr().err
    assert all(part in said for part in ("BC039", "kto.yaml:", "train.micro_batch_size", "2"))
    assert not (bench / "cache-single").exists()
    run(bench, kto_settings(bench, "single", stage={"name": "kto", "kl": False}, train=single))
    assert all("kl" not in entry for entry in entries(bench, "single"))
    packed = kto_settings(bench, "packed", train=single)
    packed["data"]["packing"] = True
    run(bench, packed)
    assert all(entry["kl"] >= 0 for entry in entries(bench, "packed"))


def test_what_does_not_fit_is_refused(bench, capsys):
    pairs = bench / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    for changes, parts in (
        ({"loss": "sigmoid"}, ("BC039", "feedback loss")),
        ({"stage": {"name": "kto", "reference": "base"}}, ("BC039", "adapter")),
        ({"data": {"path": str(pairs)}}, ("BC063", "pairs.jsonl:1", "feedback")),
        ({"stage": "dpo", "loss": "sigmoid"}, ("BC063", "feedback.json row 1", "preference")),
    ):
        settings = kto_settings(bench, "refused", **changes)
        settings["data"] |= changes.get("data", {})
        run(bench, settings, code=2)
        said = capsys.readouterr().err
        assert all(part in said for part in parts), said


def test_bad_rows_are_named_by_their_place(bench, capsys):
    path = bench / "bad.jsonl"
    without = {key: value for key, value in row(1).items() if key != "label"}
    path.write_text("".join(json.dumps(one) + "\n" for one in (row(0), without, row(2), {**row(3), "label": "yes"})))
    settings = kto_settings(bench, "bad")
    settings["data"]["path"] = str(path)
    run(bench, settings, code=2)
    said = capsys.readouterr().err.splitlines()
    assert any(f"BC007 {path}:2 label" in line for line in said), said
    assert any(f"BC011 {path}:4 label" in line and "true or false" in line for line in said), said


@pytest.mark.slow
def test_the_number_of_tokenizing_processes_changes_no_other_completion(bench):
    path = bench / "many.jsonl"
    path.write_text("".join(json.dumps(row(index % 97)) + "\n" for index in range(1200)))
    contents = []
    for processes in (0, 3):
        settings = kto_settings(bench, f"processes{processes}", train={"max_steps": 1, "eval_steps": None})
        settings["data"] |= {"path": str(path), "eval_path": None, "num_proc": processes}
        run(bench, settings, command="plan")
        (meta,) = (bench / f"cache-processes{processes}" / "tokens").glob("*/meta.json")
        contents.append(json.loads(meta.read_text())["content"])
    assert len(set(contents)) == 1


def test_no_number_depends_on_how_a_steps_rows_are_split(bench):
    found = []
    for micro in (12, 3):
        train = {"micro_batch_size": micro, "gradient_accumulation_steps": 12 // micro, "max_steps": 6, "eval_steps": 6}
        run(bench, kto_settings(bench, f"split{micro}", train=train))
        found.append(entries(bench, f"split{micro}") + entries(bench, f"split{micro}", "eval"))
    for left, right in zip(*found, strict=True):
        for figure in ("loss", "kl", "rewards/chosen", "rewards/rejected"):
            assert left[figure] == pytest.approx(right[figure], rel=2e-5, abs=1e-6), figure
    assert found[0][-1]["kl"] > 0.1


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(bench):
    """They deal a step's rows to other micro-batches, and the estimate is the step's."""
    train = {"max_steps": 6, "eval_steps": None}
    launches = {
        "ranks1": ((), 3, 4),
        "ranks2": (("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), 2, 3),
    }
    for name, (launch, micro, accumulation) in launches.items():
        batches = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
        settings = kto_settings(bench, name, train={**train, **batches})
        config = write_config(bench / f"{name}.yaml", **settings)
        command = [sys.executable, *launch, "-m", "bumblecore_core", "run", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    one, two = (entries(bench, name) for name in launches)
    for left, right in zip(one, two, strict=True):
        for figure in ("loss", "kl", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen"):
            assert left[figure] == pytest.approx(right[figure], rel=1e-3, abs=1e-5), figure
    assert one[-1]["kl"] > 0
