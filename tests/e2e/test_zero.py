"""ZeRO 0 to 3 on two gloo ranks train as one process with the engine `torch` does, and resume bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from resume_runs import run
from warm_processes import run_warm
from zero_runs import METHODS, SAVED, STEPS, losses, on_ranks, written, zero_bench, zero_settings

FAST = {("sft", 3), ("dpo_lora", 3)}
SLOW = {("sft", 2), ("sft_packed", 1), ("sft_untied", 3), ("dpo_reference", 3)}
EVERY = {(method, stage) for method in METHODS for stage in range(4)}
BF16_BOUND = 2e-3
"""On losses. Two ranks round sums of gradients otherwise: that moved them by up to 6e-4 in DPO and 4e-5 in SFT."""
FOREIGN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from peft import PeftModel

assert not any(name.startswith("bumblecore") for name in sys.modules)
base, adapters, models = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
for directory in adapters + models:
    if directory in adapters:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    else:
        model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        found[directory] = model(input_ids=torch.arange(3, 23)[None]).logits.double().sum(-1).flatten().tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return zero_bench(tmp_path_factory.mktemp("zero"))


def trained(bench, cases, dtype="fp32"):
    """Runs each case on two ranks under ZeRO, and its method once on one process with torch."""
    for method in sorted({method for method, _ in cases}):
        settings = zero_settings(bench, method, f"torch_{method}_{dtype}", ranks=1, dtype=dtype)
        settings["engine"] = "torch"
        assert run(bench, settings) == 0
    runs = []
    for method, stage in sorted(cases):
        name = f"z{stage}_{method}_{dtype}"
        config = written(
            bench, zero_settings(bench, method, name, ranks=2, dtype=dtype), name="deepspeed", zero_stage=stage
        )
        resumed = zero_settings(bench, method, f"{name}_resumed", ranks=2, dtype=dtype)
        again = written(bench, resumed, name="deepspeed", zero_stage=stage)
        runs += [["run", config], ["run", again, "--resume", str(bench / name / f"checkpoint-{SAVED}")]]
    assert on_ranks(bench, runs) == [[0] * len(runs)] * 2
    return cases


@pytest.fixture(scope="module")
def fast(bench):
    return trained(bench, FAST)


@pytest.fixture(scope="module")
def slow(bench):
    return trained(bench, SLOW)


def check_training(bench, method, stage, dtype="fp32"):
    name = f"z{stage}_{method}_{dtype}"
    found, expected = losses(bench, name), losses(bench, f"torch_{method}_{dtype}")
    assert len(found) == STEPS + 1
    assert found == pytest.approx(expected, rel=1e-5 if dtype == "fp32" else BF16_BOUND)
    if dtype != "fp32":
        return
    file = "adapter_model.safetensors" if method.endswith("lora") else "model.safetensors"
    weights = load_file(bench / f"torch_{method}_fp32" / "final" / file)
    own = load_file(bench / name / "final" / file)
    assert own.keys() == weights.keys()
    for key, weight in own.items():
        assert weight.numel()
        torch.testing.assert_close(weight, weights[key], rtol=1e-4, atol=5e-6)


def check_resume(bench, method, stage, dtype="fp32"):
    """The resumed run has a cache of its own: it asks its reference anew."""
    left, right = bench / f"z{stage}_{method}_{dtype}", bench / f"z{stage}_{method}_{dtype}_resumed"
    state = list((left / f"checkpoint-{STEPS}" / "state").rglob("zero-shards.safetensors"))
    assert len(state) == (1 if stage == 0 else 2)
    assert any(name.endswith(".exp_avg") for file in state for name in load_file(file))
    assert history_differences(left / "metrics.json", right / "metrics.json") == []
    assert checkpoint_differences(left / f"checkpoint-{STEPS}", right / f"checkpoint-{STEPS}") == []


@pytest.mark.parametrize(("method", "stage"), sorted(FAST))
def test_two_ranks_train_as_one_process_does(bench, fast, method, stage):
    check_training(bench, method, stage)


@pytest.mark.parametrize(("method", "stage"), sorted(FAST))
def test_a_resumed_run_equals_the_run_left_alone_bit_for_bit(bench, fast, method, stage):
    check_resume(bench, method, stage)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), sorted(SLOW))
def test_other_methods_train_and_resume_on_two_ranks(bench, slow, method, stage):
    check_training(bench, method, stage)
    check_resume(bench, method, stage)


def test_a_checkpoint_goes_on_under_another_stage_and_number_of_ranks(bench, fast):
    start = str(bench / "z3_sft_fp32" / f"checkpoint-{SAVED}")
    for stage in (1, 3):
        settings = zero_settings(bench, "sft", f"one_{stage}", ranks=1)
        settings["engine"] = {"name": "deepspeed", "zero_stage": stage, "timeout_seconds": 60}
        assert run(bench, settings, "--resume", start) == 0
        assert losses(bench, f"one_{stage}") == pytest.approx(losses(bench, "z3_sft_fp32"), rel=1e-5)


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_checkpoint_of_the_other_engine_is_refused_in_words(bench, fast, capsys, engine):
    other = "z3_sft_fp32" if engine == "torch" else "torch_sft_fp32"
    settings = zero_settings(bench, "sft", f"other_{engine}", ranks=1)
    settings["engine"] = engine
    assert run(bench, settings, "--resume", str(bench / other / f"checkpoint-{SAVED}"), "--allow", "engine") == 2
    told = capsys.readouterr().err
    assert "BC049" in told
    assert "another engine" in told
    assert "Traceback" not in told


def test_the_files_load_in_a_process_that_knows_nothing_of_this_project(bench, fast):
    pairs = [
        (
            method,
            str(bench / f"z{stage}_{method}_fp32" / f"checkpoint-{STEPS}"),
            str(bench / f"torch_{method}_fp32/final"),
        )
        for method, stage in sorted(FAST)
    ]
    adapters, models = (
        sorted({path for method, *paths in pairs for path in paths if method.endswith("lora") == wanted})
        for wanted in (True, False)
    )
    assert adapters
    assert models
    done = run_warm("-c", FOREIGN, bench / "start" / "final", json.dumps(adapters), json.dumps(models))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for _, own, expected in pairs:
        assert found[own] == pytest.approx(found[expected], rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_method_at_every_stage(tmp_path_factory, dtype):
    bench = zero_bench(tmp_path_factory.mktemp("every"))
    for method, stage in sorted(trained(bench, EVERY, dtype)):
        check_training(bench, method, stage, dtype)
        check_resume(bench, method, stage, dtype)
