"""A run whose tokens have weights against its naive twin in float64: plan, shards, loop, evaluation, ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.cli import main
from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.assemble import prepare
from workbench import pretrain_settings, workbench, write_config

PLUGIN = """
from bumblecore_core import LossRecord, StageRecord, StepOutput, hookimpl
from bumblecore_core.toolkit.causal import CausalStage, fit_spans

WEIGHTS = ([0.01, 1.0, 0.01], [0.0, 2.5, 1 / 3], None)


def encode(samples, context):
    found = []
    for ids in context.tokenizer([sample.text for sample in samples]).input_ids:
        third, half, end = len(ids) // 3, len(ids) // 2, len(ids)
        spans = [(0, third), (third, half), (half, end)]
        weights = WEIGHTS[len(ids) % 3]
        found.append(fit_spans(ids, spans, max_length=context.max_length, weights=weights))
    return found


@hookimpl
def bumble_stages():
    return [
        StageRecord(
            name="weighted", summary="x", reads="text", loss_kind="token", default_loss="causal_lm",
            build=lambda *, options, context: CausalStage(encode, context),
        )
    ]


def plain(*, hidden, head, targets):
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(head.logits(hidden).float(), targets, reduction="sum")
    return StepOutput(loss_sum=losses, count=targets.numel())


@hookimpl
def bumble_losses():
    return [LossRecord(name="plain", summary="x", loss_kind="token", build=lambda *, options: plain)]
"""
SWITCHES = PluginSwitches(modules=("weighting",))
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-2}
RATE = 1e-2


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with the plugin `weighting` and an initial model in `init/`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = workbench(tmp_path_factory.mktemp("bench"))
    (directory / "weighting.py").write_text(PLUGIN)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory / "model"))
    model.save_pretrained(directory / "init")
    AutoTokenizer.from_pretrained(directory / "model").save_pretrained(directory / "init")
    return directory


@pytest.fixture(autouse=True)
def inside(bench, monkeypatch):
    monkeypatch.chdir(bench)


def settings_of(bench, name, *, packing=False, loss="causal_lm", **train):
    settings = pretrain_settings(bench, max_grad_norm=None, **train)
    settings["stage"] = "weighted"
    settings["model"] = {"path": str(bench / "init"), "dtype": "fp32"}
    settings["data"] |= {"packing": packing, "max_length": 40}
    # Plain SGD: its steps are as exact as the gradients, where AdamW makes much of the smallest ones.
    settings["optimizer"] = {"name": "sgd", "lr": RATE, "momentum": 0.0}
    settings["scheduler"] = "constant"
    settings["loss"] = loss if isinstance(loss, dict) else {"name": loss}
    settings["loggers"] = ["metrics_json"]
    settings["output_dir"] = str(bench / name)
    return settings


def trained(bench, settings, *launch):
    """(history, weights) of `bumble run`, in this process or under a launcher."""
    config = write_config(bench / "run.yaml", **settings)
    if launch:
        command = [sys.executable, "-m", *launch, "-m", "bumblecore_core", "-p", "weighting", "run", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        assert call("run", config) == 0
    output = bench / settings["output_dir"]
    return json.loads((output / "metrics.json").read_text()), load_file(output / "final" / "model.safetensors")


def call(command, config):
    with pytest.raises(SystemExit) as ended:
        main(["-p", "weighting", command, str(config)])
    return ended.value.code or 0


def naive(bench, settings, label_smoothing=0.0, z_loss=0.0):
    """(losses, weights) of the same training, row by row and token by token in float64; it shares the token shards and
    the batch plan, and nothing else."""
    from transformers import AutoModelForCausalLM

    registry = load_registry(SWITCHES)
    resolved = load_run(write_config(bench / "twin.yaml", **settings), (), registry)
    prepared = prepare(resolved, registry, SWITCHES, world_size=1, progress=False)
    model = AutoModelForCausalLM.from_pretrained(bench / "init", attn_implementation="eager").double()
    losses = []
    for window in prepared.plan.windows():
        total, count = torch.zeros((), dtype=torch.float64), 0.0
        for row in (row for micro in window.micro_batches[0] for row in micro.rows):
            example = prepared.store.example(row)
            ids, spans = torch.tensor(example["input_ids"].tolist()), example["spans"].reshape(-1, 2).tolist()
            weights = example["weights"].view(np.float32).tolist() or [1.0] * len(spans)
            logits = model(input_ids=ids[None]).logits[0]
            for (start, end), weight in zip(spans, weights, strict=True):
                for at in range(max(start, 1), end):
                    lse = torch.logsumexp(logits[at - 1], 0)
                    right, even = lse - logits[at - 1, ids[at]], lse - logits[at - 1].mean()
                    smooth = (1 - label_smoothing) * right + label_smoothing * even
                    total, count = total + weight * (smooth + z_loss * lse**2), count + weight
        gradients = torch.autograd.grad(total / count, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= RATE * gradient
        losses.append(total.item() / count)
    return losses, {name: value.float() for name, value in model.state_dict().items()}


def assert_same(found, losses, weights):
    assert [entry["loss"] for entry in found[0]] == pytest.approx(losses, rel=2e-6)
    assert found[1]
    for name, weight in found[1].items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=2e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("packing", "options"), [(False, OPTIONS), (True, {})], ids=["rows", "packed"])
def test_every_split_of_a_step_trains_as_the_naive_twin_does(bench, packing, options):
    expected = None
    for micro, accumulation in ((6, 1), (1, 6)):
        loss = {"name": "causal_lm" if micro == 6 else "causal_lm_naive", **options}
        split = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "max_steps": 3}
        settings = settings_of(bench, f"{packing}-{micro}", packing=packing, loss=loss, **split)
        expected = expected or naive(bench, settings, **options)
        assert_same(trained(bench, settings), *expected)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_two_ranks_train_as_the_naive_twin_does(bench, packing):
    loss = {"name": "causal_lm", **OPTIONS}
    one = settings_of(bench, "one", packing=packing, loss=loss, micro_batch_size=3, gradient_accumulation_steps=2)
    two = settings_of(bench, f"two-{packing}", packing=packing, loss=loss, micro_batch_size=3)
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert_same(trained(bench, two, *launch), *naive(bench, one, **OPTIONS))


def test_a_plan_shows_the_sum_of_weights_and_an_evaluation_weighs_too(bench, capsys):
    settings = settings_of(bench, "evaluated", micro_batch_size=5, max_steps=1, eval_steps=1)
    settings["data"]["eval_path"] = str(bench / "text.jsonl")
    config = write_config(bench / "evaluated.yaml", **settings)
    assert call("plan", config) == 0
    assert "tokens whose weights add up to" in capsys.readouterr().out
    settings["optimizer"]["lr"] = 1e-12  # the evaluation is that of the initial model
    history, _ = trained(bench, settings)
    (evaluated,) = [entry for entry in history if entry["split"] == "eval"]
    losses, _ = naive(bench, settings_of(bench, "whole", micro_batch_size=60, max_steps=1))
    assert evaluated["loss"] == pytest.approx(losses[0], rel=2e-6)
    assert evaluated["perplexity"] == pytest.approx(math.exp(losses[0]), rel=1e-5)


def test_a_loss_without_the_keyword_is_refused_where_weights_matter(bench, capsys):
    settings = settings_of(bench, "refused", loss="plain", micro_batch_size=40, max_steps=1)
    assert call("run", write_config(bench / "refused.yaml", **settings)) == 2
    message = "BC085 losses.plain: the loss 'plain' (module weighting) does not accept `weights`"
    assert message in capsys.readouterr().err
