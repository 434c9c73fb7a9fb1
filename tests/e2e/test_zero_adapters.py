"""Adapters with biases and single tokens under ZeRO-3 on two ranks train and resume as on one process."""

import json
import warnings

import pytest
import torch

from e2e.test_zero import check_resume, check_training
from lora_models import moved
from lora_runs import make_base
from resume_runs import run
from zero_runs import SAVED, on_ranks, written, zero_bench, zero_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return zero_bench(tmp_path_factory.mktemp("zero-adapters"))


def make_adapter(bench, name, config, **given):
    """A base of random weights in `base-NAME`, and an adapter of PEFT's on it in `adapter-NAME`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_base(bench / f"base-{name}", config, seed=0)
    AutoTokenizer.from_pretrained(bench / "start" / "final").save_pretrained(bench / f"base-{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(bench / f"base-{name}", dtype=torch.float32)
        torch.manual_seed(1)
        moved(get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **given))).save_pretrained(
            bench / f"adapter-{name}"
        )


@pytest.mark.parametrize("name", ["biases", "tokens"])
def test_an_adapter_under_zero_3(bench, name):
    from transformers import AutoConfig

    given = {"bias": "all"} if name == "biases" else {"trainable_token_indices": [5, 70, 74]}
    config = AutoConfig.from_pretrained(bench / "start" / "final", attention_bias=True)
    make_adapter(bench, name, config, target_modules=["q_proj", "up_proj"], **given)
    method = f"{name}_lora"

    def settings(output, ranks):
        made = zero_settings(bench, "sft_lora", output, ranks=ranks)
        made["model"]["path"] = str(bench / f"base-{name}")
        made["adapter"] = {"name": "lora", "path": str(bench / f"adapter-{name}")}
        return made

    alone = settings(f"torch_{method}_fp32", 1)
    alone["engine"] = "torch"
    assert run(bench, alone) == 0
    left = written(bench, settings(f"z3_{method}_fp32", 2), name="deepspeed", zero_stage=3)
    resumed = written(bench, settings(f"z3_{method}_fp32_resumed", 2), name="deepspeed", zero_stage=3)
    start = str(bench / f"z3_{method}_fp32" / f"checkpoint-{SAVED}")
    assert on_ranks(bench, [["run", left], ["run", resumed, "--resume", start]]) == [[0, 0], [0, 0]]
    check_training(bench, method, 3)
    check_resume(bench, method, 3)
    adapter = json.loads((bench / f"z3_{method}_fp32" / "final" / "adapter_config.json").read_text())
    assert adapter["bias"] == given.get("bias", "none")
