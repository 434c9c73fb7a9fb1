"""LoRA runs through the command line: what they train, save, take up again, and what can be done with their output."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.run.checkpoint.compare import checkpoint_differences
from e2e.test_exactness import trained as trained_under
from lora_runs import STEPS, by_hand, logits_of, lora_bench, lora_settings, run, settings_of
from resume_runs import differences
from warm_processes import run_warm

CASES = {
    "plain": {},
    "bf16": {"model": {"dtype": "bf16"}},
    "dropout": {"adapter": {"dropout": 0.3}},
    "pissa in bf16": {"adapter": {"init": "pissa"}, "model": {"dtype": "bf16"}},
    "LoRA+ and DoRA": {"adapter": {"lr_ratio": 8, "use_dora": True}},
    "in full": {"adapter": {"modules_to_save": ["norm"], "target_modules": ["q_proj", "up_proj"]}},
}
FOREIGN = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
assert not any(name.startswith("bumblecore") for name in sys.modules)
base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(3, 12)[None]).logits, out)
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return lora_bench(tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_same_bit_for_bit(bench, case):
    name = case.replace(" ", "-").replace("+", "")
    whole = settings_of(bench, f"whole-{name}", CASES[case])
    assert run(bench, whole) == 0
    again = settings_of(bench, f"resumed-{name}", CASES[case])
    again["checkpoint"]["save_steps"] = STEPS
    assert run(bench, again, "--resume", str(bench / f"whole-{name}" / "checkpoint-3")) == 0
    assert differences(bench / f"whole-{name}", bench / f"resumed-{name}", STEPS) == []
    first, last = (
        load_file(bench / f"whole-{name}" / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (3, STEPS)
    )
    assert any(not torch.equal(first[key], last[key]) for key in first)


def test_a_checkpoint_differs_where_its_adapter_does(plain, tmp_path):
    shutil.copytree(plain / "final", tmp_path / "other")
    tensors = load_file(plain / "final" / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 1e-6
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "other" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert checkpoint_differences(plain / "final", tmp_path / "other") == [f"the weight {name} differs"]


def test_saved_weights_have_the_size_of_the_adapter(plain, bench):
    config = json.loads((bench / "base" / "config.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, value = heads * config["num_attention_heads"], heads * config["num_key_value_heads"]
    ends = (hidden + query) * 2 + (hidden + value) * 2 + (hidden + inner) * 3
    for name in ("final", f"checkpoint-{STEPS}"):
        directory = plain / name
        assert {file.name for file in directory.iterdir()} >= {"adapter_config.json", "tokenizer.json"}
        assert [file.name for file in directory.glob("*.safetensors")] == ["adapter_model.safetensors"]
        assert not (directory / "config.json").exists()
        numbers = sum(tensor.numel() for tensor in load_file(directory / "adapter_model.safetensors").values())
        assert numbers == 4 * ends * config["num_hidden_layers"]
    optimizer = sum(file.stat().st_size for file in (plain / f"checkpoint-{STEPS}" / "state" / "rank-0").iterdir())
    assert optimizer < 3 * 4 * numbers + 60_000  # two moments; the base has no state


def test_the_base_stays_as_it_was_and_half_precision_has_masters_for_the_adapter_alone(bench):
    settings = settings_of(bench, "whole-masters", {"model": {"dtype": "bf16"}})
    assert run(bench, settings) == 0
    from bumblecore_core.toolkit.state_files import read_state

    state = read_state(bench / "whole-masters" / f"checkpoint-{STEPS}" / "state" / "rank-0", "engine")
    assert state["masters"].keys() == set(state["names"])
    assert all(".lora_" in name for name in state["names"])
    assert all(master.dtype == torch.float32 for master in state["masters"].values())
    saved = load_file(bench / "whole-masters" / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_the_start_says_what_is_trained(bench, capsys):
    settings = lora_settings(bench, "said", max_steps=1, adapter={"target_modules": ["q_proj", "qkv"]})
    assert run(bench, settings) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "adapter lora: rank 4, alpha 8, 2 modules" in out
    assert "adapter, loads with PeftModel.from_pretrained and `bumble generate`" in out
    assert "trainable 512 (" in out
    assert "warning BC032 adapter.target_modules: no module is called 'qkv'" in out
    info = json.loads((bench / "said" / "run.info.json").read_text())
    assert ["adapter", "lora: rank 4, alpha 8, 2 modules"] in info["features"]


@pytest.mark.parametrize("init", ["default", pytest.param("pissa", marks=pytest.mark.slow)])
def test_a_process_without_bumblecore_gets_the_same_logits(bench, tmp_path, init):
    settings = settings_of(bench, f"foreign-{init}", {"adapter": {"init": init}}, max_steps=2)
    assert run(bench, settings) == 0
    adapter = bench / f"foreign-{init}" / "final"
    done = run_warm("-c", FOREIGN, bench / "base", adapter, tmp_path / "logits.pt")
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, logits_of(by_hand(bench / "base", adapter)), rtol=1e-5, atol=1e-5)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(bench / "base")


def test_lora_trains_as_full_fine_tuning_of_its_own_parameters_does(bench, plain):
    """The naive twin: the same rows through W + s·B·A made of plain tensors, torch's own AdamW."""
    from torch.func import functional_call
    from transformers import AutoModelForCausalLM

    from bumblecore_core.config.resolve import load_run
    from bumblecore_core.registry import PluginSwitches, load_registry
    from bumblecore_core.run.assemble import prepare
    from e2e.test_exactness import padded_loss
    from lora_runs import initial_adapter

    registry = load_registry(PluginSwitches())
    resolved = load_run(bench / "plain.yaml", (), registry)
    prepared = prepare(resolved, registry, PluginSwitches(), world_size=1, progress=False)
    model = AutoModelForCausalLM.from_pretrained(bench / "base", dtype=torch.float32, attn_implementation="eager")
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    pairs = initial_adapter(bench / "base", seed=resolved.config.train.seed)
    leaves = [part.requires_grad_() for pair in pairs.values() for part in pair]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS)).item())
    )
    losses = []
    for window in prepared.plan.windows():
        rows = [row for micro in window.micro_batches[0] for row in micro.rows]
        weights = {**base, **{name: base[name] + 2 * b @ a for name, (a, b) in pairs.items()}}

        def forward(weights=weights, **inputs):
            return functional_call(model, weights, kwargs=inputs)

        total, count = padded_loss(forward, [prepared.store.example(row) for row in rows])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    history = json.loads((plain / "metrics.json").read_text())
    assert [entry["loss"] for entry in history if entry["split"] == "train"] == pytest.approx(losses, rel=1e-5)
    saved = load_file(plain / "final" / "adapter_model.safetensors")
    for name, (a, b) in pairs.items():
        key = "base_model.model." + name.removesuffix(".weight")
        torch.testing.assert_close(saved[f"{key}.lora_A.weight"], a.detach(), rtol=1e-4, atol=5e-6)
        torch.testing.assert_close(saved[f"{key}.lora_B.weight"], b.detach(), rtol=1e-4, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"init": "pissa"}], ids=["default", "pissa"])
def test_two_ranks_train_as_one_process_does(bench, tmp_path, adapter):
    weights = []
    for name, accumulation, launch in (
        ("one", 4, ()),
        ("two", 2, ("torch.distributed.run", "--standalone", "--nproc-per-node=2")),
    ):
        settings = lora_settings(
            bench,
            f"{name}-{adapter.get('init')}",
            adapter=adapter,
            max_steps=4,
            micro_batch_size=2,
            gradient_accumulation_steps=accumulation,
        )
        weights.append(trained_under(settings, tmp_path / f"{name}.yaml", *launch, file="adapter_model.safetensors"))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-5)
    for name, tensor in weights[0][1].items():
        torch.testing.assert_close(weights[1][1][name], tensor, rtol=1e-5, atol=2e-6, msg=name)
