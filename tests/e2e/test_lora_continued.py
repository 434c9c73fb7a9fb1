"""Runs that continue an adapter made by PEFT, and runs with LoRA on fused experts, next to a plain loop with PEFT."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

from e2e.test_exactness import padded_loss
from lora_models import moved
from lora_runs import STEPS, call, logits_of, lora_bench, make_base, run, settings_of
from resume_runs import differences

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
ADAPTERS = {
    "biases": {"target_modules": ["q_proj", "up_proj"], "bias": "lora_only", "trainable_token_indices": [5, 70, 74]},
    "experts": {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with the adapters of `ADAPTERS` and a base for each."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3MoeConfig

    bench = lora_bench(tmp_path_factory.mktemp("continued"))
    plain = Qwen3Config.from_pretrained(bench / "model").to_dict()
    plain = {key: value for key, value in plain.items() if key not in ("model_type", "architectures")}
    make_base(bench / "base-biases", Qwen3Config(**{**plain, "attention_bias": True}), seed=0)
    make_base(bench / "base-experts", Qwen3MoeConfig(**{**plain, **MOE}), seed=0)
    for name, given in ADAPTERS.items():
        AutoTokenizer.from_pretrained(bench / "model").save_pretrained(bench / f"base-{name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = AutoModelForCausalLM.from_pretrained(bench / f"base-{name}", dtype=torch.float32)
            torch.manual_seed(1)
            model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **given))
            moved(model).save_pretrained(bench / f"adapter-{name}")
    return bench


def settings_for(bench, name, output):
    settings = settings_of(bench, output, {})
    settings["model"]["path"] = str(bench / f"base-{name}")
    settings["adapter"] = {"name": "lora", "path": str(bench / f"adapter-{name}")}
    settings["optimizer"]["weight_decay"] = 0.0
    return settings


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_continued_adapter_trains_as_in_a_plain_loop_with_peft_and_resumes(bench, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from bumblecore_core.config.resolve import load_run
    from bumblecore_core.registry import PluginSwitches, load_registry
    from bumblecore_core.run.assemble import prepare

    assert run(bench, settings_for(bench, name, f"run-{name}")) == 0
    registry = load_registry(PluginSwitches())
    resolved = load_run(bench / f"run-{name}.yaml", (), registry)
    prepared = prepare(resolved, registry, PluginSwitches(), world_size=1, progress=False)
    base = AutoModelForCausalLM.from_pretrained(
        bench / f"base-{name}", dtype=torch.float32, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, bench / f"adapter-{name}", is_trainable=True).train()
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS)).item())
    )
    losses = []
    for window in prepared.plan.windows():
        rows = [row for micro in window.micro_batches[0] for row in micro.rows]
        total, count = padded_loss(model, [prepared.store.example(row) for row in rows])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    model.save_pretrained(bench / f"theirs-{name}")
    history = json.loads((bench / f"run-{name}" / "metrics.json").read_text())
    assert [entry["loss"] for entry in history if entry["split"] == "train"] == pytest.approx(losses, rel=1e-5)
    file = "adapter_model.safetensors"
    expected, found = load_file(bench / f"theirs-{name}" / file), load_file(bench / f"run-{name}" / "final" / file)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)

    again = settings_for(bench, name, f"resumed-{name}")
    again["checkpoint"]["save_steps"] = STEPS
    assert run(bench, again, "--resume", str(bench / f"run-{name}" / "checkpoint-3")) == 0
    assert differences(bench / f"run-{name}", bench / f"resumed-{name}", STEPS) == []

    assert call("merge", bench / f"run-{name}", bench / f"merged-{name}") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(bench / f"base-{name}", dtype=torch.float32),
            bench / f"run-{name}" / "final",
        ).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(bench / f"merged-{name}", dtype=torch.float32)
    assert torch.equal(logits_of(merged), logits_of(theirs))


def test_an_adapter_directory_with_its_bases_config_is_continued(bench, capsys):
    shutil.copytree(bench / "adapter-biases", bench / "with-config")
    shutil.copy(bench / "base-biases" / "config.json", bench / "with-config")
    settings = settings_for(bench, "biases", "from-config")
    settings["adapter"] = {"name": "lora", "path": str(bench / "with-config"), "dropout": 0.0}
    settings["train"] |= {"max_steps": 1}
    assert run(bench, settings) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 modules; biases: lora_only; 3 token embeddings; from" in out
