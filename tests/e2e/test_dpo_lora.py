"""`stage: dpo` with an adapter: what its references say at step 0, resuming, and two ranks beside one process."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.run import loop
from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from bumblecore_plugins.engines.torch_engine import TorchEngine
from dpo_runs import ADAPTER, dpo_bench, dpo_settings, entries, run
from e2e.test_exactness import trained
from lora_runs import call
from resume_runs import STEPS, differences
from workbench import write_config

START = {"name": "dpo", "reference": "start"}
BASE = {"name": "dpo", "reference": "base"}
SAID = {"start": "the start model", "base": "the base model without its adapter"}
RESUMED = {
    "start": {"stage": START},
    "base": {"stage": BASE},
    "bf16": {"stage": BASE, "model": {"dtype": "bf16"}},
    "pissa": {"stage": BASE, "adapter": {**ADAPTER, "init": "pissa"}},
    "dropout": {"stage": START, "adapter": {**ADAPTER, "dropout": 0.2}},
    "in full": {"stage": BASE, "adapter": {**ADAPTER, "target_modules": ["q_proj", "up_proj"]}},
}
RESUMED["in full"]["adapter"] |= {"modules_to_save": ["norm"]}
SLOW = {"start", "base", "bf16", "in full"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return dpo_bench(tmp_path_factory.mktemp("dpo-lora"))


@pytest.fixture(scope="module")
def trained_adapter(bench):
    """An adapter that has moved away from its base."""
    run(bench, dpo_settings(bench, "moved", adapter=ADAPTER, train={"max_steps": 10, "eval_steps": None}))
    return bench / "moved"


@pytest.mark.parametrize(
    ("dtype", "reference", "init"),
    [("fp32", START, "default"), ("bf16", START, "pissa"), ("bf16", BASE, "default"), ("fp32", BASE, "pissa")],
    ids=["fp32-start-default", "bf16-start-pissa", "bf16-base-default", "fp32-base-pissa"],
)
def test_at_step_0_the_policy_is_its_reference(bench, dtype, reference, init, capsys):
    name = f"zero-{dtype}-{reference['reference']}-{init}"
    settings = dpo_settings(bench, name, stage=reference, model={"dtype": dtype}, adapter={**ADAPTER, "init": init})
    settings["train"] |= {"max_steps": 1, "eval_steps": None}
    settings["scheduler"] = "constant"
    shutil.rmtree(bench / "cache-zero" / "reference", ignore_errors=True)  # each asks for itself
    run(bench, settings)
    said = " ".join(capsys.readouterr().out.split())
    assert f"reference {SAID[reference['reference']]}, computed in" in said
    assert "no second model" in said
    first = entries(bench, name)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_that_goes_on_is_its_own_start_and_not_its_base(bench, trained_adapter, dtype):
    found = {}
    for stage in (START, BASE):
        name = f"further-{dtype}-{stage['reference']}"
        settings = dpo_settings(bench, name, stage=stage, model={"dtype": dtype})
        settings["adapter"] = {"name": "lora", "path": str(trained_adapter)}
        settings["train"] |= {"max_steps": 1, "eval_steps": None}
        settings["scheduler"] = "constant"
        run(bench, settings)
        found[stage["reference"]] = entries(bench, name)[0]
    assert found["start"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(found["base"]["rewards/margins"]) > 0.01
    assert found["base"]["logps/chosen"] == found["start"]["logps/chosen"]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in RESUMED]
)
def test_a_resumed_run_is_the_same_bit_for_bit_with_and_without_the_kept_reference(bench, case, capsys):
    changes = {"adapter": ADAPTER, **RESUMED[case]}
    name = f"whole_{case.replace(' ', '_')}"
    run(bench, dpo_settings(bench, name, **changes))
    first, last = (load_file(bench / name / step / "adapter_model.safetensors") for step in ("checkpoint-3", "final"))
    assert any(not torch.equal(first[key], last[key]) for key in first)
    capsys.readouterr()
    run(bench, dpo_settings(bench, f"{name}-resumed", **changes), "--resume", str(bench / name / "checkpoint-3"))
    assert "computed by an earlier run" in capsys.readouterr().out
    assert differences(bench / name, bench / f"{name}-resumed") == []
    shutil.rmtree(bench / f"cache-{name}" / "reference")
    run(bench, dpo_settings(bench, f"{name}-again", **changes), "--resume", str(bench / name / "checkpoint-8"))
    said = capsys.readouterr().out
    assert ("and freed" if changes["stage"] == START else "no second model") in said
    assert differences(bench / name, bench / f"{name}-again") == []


@pytest.mark.parametrize(
    "adapter", [pytest.param(None, id="full", marks=pytest.mark.slow), pytest.param(ADAPTER, id="lora")]
)
def test_a_run_that_is_stopped_in_the_middle_of_a_window_loses_nothing(bench, adapter, monkeypatch):
    kind = "lora" if adapter else "full"
    changes = {"adapter": adapter, "dropout": True, "checkpoint": {"save_steps": None}}
    run(bench, dpo_settings(bench, f"alone-{kind}", **changes))
    forward_backward, calls = TorchEngine.forward_backward, []

    def counted(self, **inputs):
        calls.append(None)
        if len(calls) == 3 * 3 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(self, **inputs)

    monkeypatch.setattr(TorchEngine, "forward_backward", counted)
    monkeypatch.setattr(loop, "LONG_WINDOW", -1.0)  # signals are looked for after each micro-batch
    settings = dpo_settings(bench, f"stopped-{kind}", **changes)
    run(bench, settings, code=128 + signal.SIGTERM)
    monkeypatch.undo()
    assert [path.name for path in (bench / f"stopped-{kind}").glob("checkpoint-*")] == ["checkpoint-3"]
    run(bench, settings)
    left, right = bench / f"alone-{kind}", bench / f"stopped-{kind}"
    assert history_differences(left / "metrics.json", right / "metrics.json") == []
    assert checkpoint_differences(left / "final", right / "final") == []


def test_runs_that_are_killed_end_in_the_same_weights(bench):
    """SIGKILL as soon as a checkpoint is there, again and again."""
    from e2e.test_kills import run_killed_after

    run(bench, dpo_settings(bench, "kills", adapter=ADAPTER, stage=BASE))
    settings = dpo_settings(bench, "kills-often", adapter=ADAPTER, stage=BASE)
    settings["loggers"] = ["metrics_json", "kill_when_saved"]
    config = write_config(bench / "kills-often.yaml", **settings)
    for _ in range(2):
        assert not run_killed_after(config, None, "-p", "bumblecore_core.testing.killer")
    settings["loggers"] = ["metrics_json"]
    assert run_killed_after(write_config(config, **settings), None)
    assert differences(bench / "kills", bench / "kills-often") == []
    assert (bench / "kills-often" / f"checkpoint-{STEPS}").is_dir()


def test_the_merged_model_of_a_run_has_its_adapters_log_probabilities(bench, trained_adapter):
    """Its evaluation, begun from the merged weights, reports what the run's last one did."""
    assert call("merge", trained_adapter, bench / "merged") == 0
    settings = dpo_settings(bench, "judged", stage={"name": "dpo", "reference": str(bench / "start")})
    settings["model"]["path"], settings["optimizer"] = str(bench / "merged"), {"name": "sgd", "lr": 1e-30}
    settings["scheduler"], settings["train"]["max_steps"] = "constant", 1
    run(bench, settings)
    (merged,), adapted = entries(bench, "judged", "eval"), entries(bench, "moved", "eval")[-1]
    for figure in ("loss", "logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies"):
        assert merged[figure] == pytest.approx(adapted[figure], rel=1e-5, abs=1e-5), figure


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
def test_two_ranks_train_as_one_process_does(bench, adapter, accumulation):
    """Each computes its own reference: nothing of one run is kept for the other. With one accumulated micro-batch, six
    steps leave rows out, so that evaluation has rows that training met and others in the same micro-batches."""
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    launches = {"one": (), "two": ("torch.distributed.run", "--standalone", "--nproc-per-node=2")}
    found = {}
    for number, (name, launch) in enumerate(launches.items(), 1):
        full_name = f"{name}-{file[:5]}-{accumulation}"
        settings = dpo_settings(bench, full_name, adapter=adapter, checkpoint={"save_steps": None})
        settings["train"] |= {"gradient_accumulation_steps": accumulation * 2 // number, "max_steps": 6}
        settings["data"]["cache_dir"] = str(bench / f"cache-{full_name}")
        losses, weights = trained(settings, bench / f"{full_name}.yaml", *launch, file=file)
        found[name] = losses, weights, entries(bench, full_name)
    assert len(found["one"][0]) == len(found["two"][0]) > 6
    assert found["two"][0] == pytest.approx(found["one"][0], rel=1e-5)
    for one, two in zip(found["one"][2], found["two"][2], strict=True):
        for figure in ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
            assert two[figure] == pytest.approx(one[figure], rel=1e-5, abs=1e-5), figure
    for name, tensor in found["one"][1].items():
        torch.testing.assert_close(found["two"][1][name], tensor, rtol=1e-5, atol=2e-6, msg=name)
    config = json.loads((bench / "start" / "final" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True  # so that the embedding's gradient comes from both ends
