"""A whole run against its naive twin: padded batches, transformers' own logits, torch's cross entropy and AdamW."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bumblecore_core.cli import main
from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.assemble import prepare
from workbench import make_model_config, sft_settings, workbench, write_config

STEPS = 4
SPLITS = {"tied": [(6, 1), (2, 3)], "untied": [(3, 2), (1, 6)]}
"""(rows of a micro-batch, accumulated micro-batches)."""


@pytest.fixture(scope="module", params=["tied", "untied"])
def bench(request, tmp_path_factory):
    """A workbench with an initial model in `init/`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = workbench(tmp_path_factory.mktemp(request.param))
    make_model_config(directory / "model", tie_word_embeddings=request.param == "tied")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory / "model"))
    model.save_pretrained(directory / "init")
    AutoTokenizer.from_pretrained(directory / "model").save_pretrained(directory / "init")
    return directory


def settings_of(bench: Path, stage: str, packing: bool, name: str, **train) -> dict:
    settings = sft_settings(bench, bench / "init", epochs=1.0, **train)
    settings["train"].pop("max_steps")
    settings["stage"] = stage
    settings["data"]["path"] = str(bench / ("chat.json" if stage == "sft" else "text.jsonl"))
    settings["data"]["packing"] = packing
    settings["output_dir"] = str(bench / name)
    settings["optimizer"] = {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1}
    settings["scheduler"] = {"name": "cosine", "warmup_steps": 2}
    settings["loggers"] = ["metrics_json"]
    return settings


def trained(
    settings: dict, path: Path, *launch: str, file: str = "model.safetensors"
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses, weights) of `bumble run`, in this process or under a launcher."""
    config = write_config(path, **settings)
    if launch:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *launch, "-m", "bumblecore_core", "run", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(config)])
        assert ended.value.code in (0, None)
    output = Path(settings["output_dir"])
    history = json.loads((output / "metrics.json").read_text())
    return [entry["loss"] for entry in history], load_file(output / "final" / file)


def naive(settings: dict, path: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training written plainly; it shares the token shards and the batch plan, and nothing else."""
    from transformers import AutoModelForCausalLM, get_scheduler

    registry = load_registry(PluginSwitches())
    resolved = load_run(write_config(path, **settings), (), registry)
    prepared = prepare(resolved, registry, PluginSwitches(), world_size=1, progress=False)
    model = AutoModelForCausalLM.from_pretrained(settings["model"]["path"], attn_implementation="eager").float()
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2]
    others = [p for name, p in model.named_parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=3e-3
    )
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=prepared.plan.total_steps)
    losses = []
    for window in prepared.plan.windows():
        rows = [row for micro in window.micro_batches[0] for row in micro.rows]
        total, count = padded_loss(model, [prepared.store.example(row) for row in rows])
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total.item() / count)
    return losses, model.state_dict()


def padded_loss(model, examples) -> tuple[torch.Tensor, int]:
    longest = max(len(example["input_ids"]) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for at, example in enumerate(examples):
        tokens = torch.tensor(example["input_ids"].tolist())
        ids[at, : len(tokens)], mask[at, : len(tokens)] = tokens, 1
        for start, end in example["spans"].reshape(-1, 2).tolist():
            labels[at, start:end] = tokens[start:end]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    targets = labels[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return loss, int((targets != -100).sum())


def assert_same(found, expected, rtol=1e-5, atol=2e-6):
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, expected[1][name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stage", ["sft", "continue_pretrain"])
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_every_split_of_a_step_trains_as_the_naive_twin_does(bench, stage, packing, tmp_path):
    expected = None
    for micro, accumulation in SPLITS[bench.name.rstrip("0123456789")]:
        name = f"{stage}-{packing}-{micro}x{accumulation}"
        settings = settings_of(
            bench, stage, packing, name, micro_batch_size=micro, gradient_accumulation_steps=accumulation
        )
        if expected is None:
            expected = naive(settings, tmp_path / "naive.yaml")
            assert len(expected[0]) > 1
        assert_same(trained(settings, tmp_path / f"{name}.yaml"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_two_ranks_train_as_one_process_does(bench, packing, tmp_path):
    one = settings_of(bench, "sft", packing, f"one-{packing}", micro_batch_size=2, gradient_accumulation_steps=6)
    two = settings_of(bench, "sft", packing, f"two-{packing}", micro_batch_size=2, gradient_accumulation_steps=3)
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert_same(trained(two, tmp_path / "two.yaml", *launch), trained(one, tmp_path / "one.yaml"))


def test_the_plain_loss_trains_as_the_fused_one_does(bench, tmp_path):
    runs = []
    for loss in ("causal_lm", "causal_lm_naive"):
        settings = settings_of(bench, "sft", False, loss, micro_batch_size=4)
        settings["loss"] = loss
        runs.append(trained(settings, tmp_path / f"{loss}.yaml"))
    assert_same(*runs)
