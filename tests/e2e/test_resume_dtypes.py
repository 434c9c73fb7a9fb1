"""Resuming is bit-identical whatever the dtypes of the model's files and of the run, the engine and the adapter."""

import itertools
import shutil

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from bumblecore_core.run.model import build_model
from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from resume_runs import bench_of, differences, run, settings_of
from zero_runs import on_ranks, written

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTERS = {
    "none": None,
    "lora": {"name": "lora", "rank": 4},
    "modules_to_save": {
        "name": "lora",
        "rank": 4,
        "modules_to_save": ["norm"],
        "target_modules": ["q_proj", "up_proj"],
    },
}
STEPS, SAVED = 4, 2
FAST = {
    ("bf16", "fp32", True, "torch", "none"),
    ("bf16", "fp32", True, "torch", "modules_to_save"),
    ("fp16", "fp32", True, "deepspeed", "none"),
}


def cases():
    for case in itertools.product(DTYPES, ("fp32", "bf16"), (True, False), ("torch", "deepspeed"), ADAPTERS):
        _, dtype, masters, engine, _ = case
        if masters or (dtype == "bf16" and engine == "torch"):  # the other engine always keeps float32 masters
            yield pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with the same start model in files of each dtype, in `start-fp32` and so on."""
    bench = bench_of(tmp_path_factory.mktemp("dtypes"))
    weights = load_file(bench / "start" / "final" / "model.safetensors")
    for name, dtype in DTYPES.items():
        shutil.copytree(bench / "start" / "final", bench / f"start-{name}")
        tensors = {key: weight.to(dtype) for key, weight in weights.items()}
        save_file(tensors, bench / f"start-{name}" / "model.safetensors", metadata={"format": "pt"})
    return bench


def settings(bench, name, file, dtype, masters, engine, adapter, processes=1):
    changes = {
        "model": {"path": str(bench / f"start-{file}"), "dtype": dtype, "master_weights": masters},
        "train": {
            "max_steps": STEPS,
            "micro_batch_size": 2 // processes,
            "gradient_accumulation_steps": 1,
            "eval_steps": None,
        },
        "checkpoint": {"save_steps": SAVED},
        "adapter": ADAPTERS[adapter],
    }
    return {**settings_of(bench, "sft", name, **changes), "engine": engine}


@pytest.mark.parametrize(("file", "dtype", "masters", "engine", "adapter"), list(cases()))
def test_a_resumed_run_is_bit_identical(bench, file, dtype, masters, engine, adapter):
    name = f"{file}-{dtype}-{masters}-{engine}-{adapter}"
    case = (file, dtype, masters, engine, adapter)
    assert run(bench, settings(bench, name, *case)) == 0
    start = bench / name / f"checkpoint-{SAVED}"
    assert run(bench, settings(bench, f"{name}-resumed", *case), "--resume", str(start)) == 0
    assert differences(bench / name, bench / f"{name}-resumed", STEPS) == []


def test_a_scale_that_is_rounded_when_a_model_is_loaded_stays_so(bench):
    """Gemma scales its embeddings by a buffer in the dtype of the start model's files."""
    config = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        eos_token_id=2,
        pad_token_id=0,
    )
    AutoTokenizer.from_pretrained(bench / "start-bf16").save_pretrained(bench / "start-gemma")
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(bench / "start-gemma")
    case = ("gemma", "fp32", True, "torch", "none")
    assert run(bench, settings(bench, "gemma", *case)) == 0
    start = bench / "gemma" / f"checkpoint-{SAVED}"
    assert run(bench, settings(bench, "gemma-resumed", *case), "--resume", str(start)) == 0
    assert differences(bench / "gemma", bench / "gemma-resumed", STEPS) == []


def test_an_adapter_to_train_further_is_not_rounded_to_its_base(bench):
    base = bench / "start-bf16"
    once = settings(bench, "adapter", "bf16", "fp32", True, "torch", "modules_to_save")
    once["train"]["max_steps"], once["scheduler"] = 1, "constant"
    assert run(bench, once) == 0
    saved = load_file(bench / "adapter" / "final" / "adapter_model.safetensors")
    options = LoraOptions(path=str(bench / "adapter" / "final"))
    model = build_model(directory=base, from_config=False, attention="sdpa", seed=0)
    model = Lora(options).wrap(model=model, base=base, checkpoint=None)
    for name, tensor in get_peft_model_state_dict(model).items():
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.slow
def test_two_ranks_resume_bit_identically_under_zero(bench):
    """Rank 1 of ZeRO-3 builds the model without its weights, and must agree with rank 0 on every dtype."""
    names, runs = [], []
    for stage, adapter in itertools.product((2, 3), ("none", "modules_to_save")):
        name = f"zero{stage}-{adapter}"
        for made, options in ((name, []), (f"{name}-resumed", ["--resume", str(bench / name / f"checkpoint-{SAVED}")])):
            config = settings(bench, made, "bf16", "fp32", True, "deepspeed", adapter, processes=2)
            runs.append(["run", written(bench, config, name="deepspeed", zero_stage=stage), *options])
        names.append(name)
    assert on_ranks(bench, runs) == [[0] * len(runs)] * 2
    for name in names:
        assert differences(bench / name, bench / f"{name}-resumed", STEPS) == [], name
