"""One document per forward pass on two ranks, which hold different numbers of documents, trains as one process does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from resume_runs import run
from tiny_models import RECURRENT
from zero_runs import losses, on_ranks, written, zero_bench, zero_settings

ENGINES = {"torch": {"name": "torch"}, **{f"zero{n}": {"name": "deepspeed", "zero_stage": n} for n in (2, 3)}}
CASES = [("lfm2", "sft_packed"), ("lfm2", "dpo"), ("qwen3_next", "sft_packed")]
STEPS = 3
WITHOUT_EXPERTS = {"mlp_only_layers": [0, 1]}
"""ZeRO-3 needs the same module calls on all ranks; which experts are called depends on the tokens."""


def settings_of(bench, family, method, name, ranks):
    settings = zero_settings(bench, method, name, ranks=ranks)
    settings["model"] |= {"path": str(bench / family), "attention": "sdpa"}
    settings["train"] |= {"max_steps": STEPS, "eval_steps": 2}
    settings["optimizer"]["eps"] = 1e-3  # a smaller one turns roundings of tiny gradients into updates
    settings["checkpoint"] = {"save_steps": None}
    return settings


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = zero_bench(tmp_path_factory.mktemp("documents"))
    source = bench / "start" / "final"
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    for family in {family for family, _ in CASES}:
        shutil.copytree(source, bench / family, ignore=shutil.ignore_patterns("*.safetensors"))
        prefix, options = RECURRENT[family]
        torch.manual_seed(0)
        changes = {"vocab_size": vocabulary, "eos_token_id": 2, **(WITHOUT_EXPERTS if family == "qwen3_next" else {})}
        config = getattr(transformers, f"{prefix}Config")(**{**options, **changes})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(bench / family)
    return bench


@pytest.fixture(scope="module")
def runs(bench):
    """All runs on two ranks in one launch, and each case on one process."""
    for family, method in CASES:
        settings = settings_of(bench, family, method, f"one_{family}_{method}", ranks=1)
        settings["engine"] = "torch"
        assert run(bench, settings) == 0
    configs = [
        written(bench, settings_of(bench, family, method, f"{engine}_{family}_{method}", ranks=2), **options)
        for engine, options in ENGINES.items()
        for family, method in CASES
    ]
    assert on_ranks(bench, [["run", config] for config in configs]) == [[0] * len(configs)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("family", "method"), CASES)
def test_two_ranks_train_as_one_process_does(bench, runs, engine, family, method):
    one, two = f"one_{family}_{method}", f"{engine}_{family}_{method}"
    features = dict(json.loads((bench / two / "run.info.json").read_text())["features"])
    assert features["documents"].startswith("one per forward pass")
    assert losses(bench, two) == pytest.approx(losses(bench, one), rel=1e-5)
    weights = [load_file(bench / name / "final" / "model.safetensors") for name in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=1e-4, atol=5e-6, msg=name)
