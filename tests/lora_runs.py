"""Small LoRA runs for tests: settings, trained bases, and a naive LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.cli import main
from workbench import make_model_config, sft_settings, workbench, write_config

STEPS = 6
ADAPTER = {"name": "lora", "rank": 4}


def lora_bench(directory: Path, **model: Any) -> Path:
    """A workbench with a base model of random weights in `base/`."""
    from transformers import AutoConfig, AutoTokenizer

    bench = workbench(directory)
    make_model_config(bench / "model", **model)
    make_base(bench / "base", AutoConfig.from_pretrained(bench / "model"), seed=0)
    AutoTokenizer.from_pretrained(bench / "model").save_pretrained(bench / "base")
    return bench


def make_base(directory: Path, config: Any, *, seed: int) -> None:
    """A model whose weights are large enough for every part to matter."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(directory)


def lora_settings(bench: Path, name: str, *, adapter: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """A fine-tuning run with LoRA over `chat.json` into `name/`."""
    settings = sft_settings(bench, bench / "base", **train)
    settings["adapter"] = {**ADAPTER, **(adapter or {})}
    settings["optimizer"] = {"name": "adamw", "lr": 1e-2}
    settings["loggers"] = ["metrics_json"]
    settings["output_dir"] = str(bench / name)
    return settings


def by_hand(base: Path, adapter: Path) -> torch.nn.Module:
    """The base with W + s·B·A written into each adapted weight, from PEFT's files and nothing of PEFT itself."""
    from transformers import AutoModelForCausalLM

    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in tensors.items():
            path = name.removeprefix("base_model.model.")
            if ".lora_A." in path:
                update = scale * tensors[name.replace(".lora_A.", ".lora_B.")].float() @ tensor.float()
                model.get_submodule(path.removesuffix(".lora_A.weight")).weight += update
            elif ".lora_" not in path:
                model.get_parameter(path).copy_(tensor)
    return model


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """(1, 9, V) in float32."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 12)[None]).logits.float()


def initial_adapter(base: Path, *, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(A, B) by the weight that they change, as `ADAPTER` starts: A from the run's own stream, in module order; B zero.

    A is PEFT's own draw: uniform between ±1/√in, as torch's linear layers begin, after a draw of the same kind for the
    layers' making.
    """
    from transformers import AutoModelForCausalLM

    from bumblecore_core.toolkit.seeds import derive_seed

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head = model.get_output_embeddings()
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "adapter"))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                a = torch.nn.Linear(module.in_features, ADAPTER["rank"], bias=False)
                torch.nn.Linear(ADAPTER["rank"], module.out_features, bias=False)  # B's making draws too
                torch.nn.init.kaiming_uniform_(a.weight, a=5**0.5)
                b = torch.zeros(module.out_features, ADAPTER["rank"])
                found[f"{name}.weight"] = (a.weight.detach(), b)
    return found


def call(*arguments: object) -> int:
    """The exit code of `bumble`."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def run(bench: Path, settings: dict[str, Any], *options: str) -> int:
    """The exit code of `bumble run`."""
    return call("run", write_config(bench / f"{Path(settings['output_dir']).name}.yaml", **settings), *options)


def settings_of(bench: Path, name: str, case: dict[str, Any], **train: Any) -> dict[str, Any]:
    """The same with accumulation and evaluation, saving at every step; `case`: changes of adapter and model."""
    settings = lora_settings(
        bench, name, adapter=case.get("adapter"), max_steps=STEPS, micro_batch_size=2, gradient_accumulation_steps=2
    )
    settings["train"] |= {"eval_steps": 3, **train}
    settings["data"]["eval_path"] = str(bench / "eval.json")
    settings["model"] |= case.get("model", {})
    settings["checkpoint"] = {"save_steps": 1, "save_total_limit": None}
    return settings
