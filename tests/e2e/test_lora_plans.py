"""What is known of a LoRA run before it trains: `bumble plan`, and the later configs of a chain."""

import json

import pytest

from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.planning import plan_run
from bumblecore_plugins.adapters.lora import Lora
from lora_runs import call, lora_bench, lora_settings, run
from workbench import write_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return lora_bench(tmp_path_factory.mktemp("lora"))


PLANNED = {
    "none": None,
    "default": {},
    "a list": {"target_modules": ["q_proj", "qkv"]},
    "in full": {"modules_to_save": ["norm"], "target_modules": ["q_proj", "up_proj"], "lr_ratio": 4},
    "pissa": {"init": "pissa"},
    "fast pissa": {"init": "pissa_niter_4"},
    "olora": {"init": "olora"},
    "orthogonal": {"init": "orthogonal"},
    "DoRA": {"use_dora": True},
    "further": {"path": "plain"},
}


@pytest.mark.parametrize("case", PLANNED)
def test_plan_says_what_the_run_says(plain, bench, case):
    settings = lora_settings(bench, f"planned-{case.replace(' ', '-')}", max_steps=1, adapter=PLANNED[case])
    if case == "none":
        settings["adapter"] = None
    elif case == "further":
        settings["adapter"] = {"name": "lora", "path": str(plain)}
    registry = load_registry(PluginSwitches())
    resolved = load_run(write_config(bench / "planned.yaml", **settings), (), registry)
    planned = plan_run(resolved, registry, PluginSwitches(), devices=1)
    assert run(bench, settings) == 0
    told = json.loads((bench / settings["output_dir"] / "run.info.json").read_text())
    names = {"warning", "parameters", "  weights", "  gradients", "  AdamW moments", "  activations"}
    facts = [[name, value] for name, value in planned.facts if name in names]
    assert {name for name, _ in facts} >= names - {"warning"}
    assert facts == [fact for fact in told["facts"] if fact[0] in names]
    assert list(planned.features[0]) == told["features"][0]
    assert planned.features[0][0] == "adapter"


def test_plan_refuses_an_adapter_as_the_run_does(bench, capsys):
    settings = lora_settings(bench, "unplanned", max_steps=1, adapter={"target_modules": ["c_attn"]})
    assert call("plan", write_config(bench / "unplanned.yaml", **settings)) == 2
    said = capsys.readouterr().err
    assert "BC031" in said
    assert "q_proj" in said


def test_a_plan_that_cannot_see_an_adapter_says_so(bench, monkeypatch, capsys):
    def needs_numbers(self, *, model, base, checkpoint):
        model.get_input_embeddings().weight.sum().item()

    monkeypatch.setattr(Lora, "wrap", needs_numbers)
    settings = lora_settings(bench, "unseen", max_steps=1)
    assert call("plan", write_config(bench / "unseen.yaml", **settings)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "what the adapter trains is known only once the weights are there: the adapter 'lora' (module" in said
    assert "(100.00%)" in said


def test_a_chain_looks_for_its_later_runs_adapters_first(bench, tmp_path, capsys):
    first = lora_settings(bench, "chain-first", max_steps=1)
    second = lora_settings(bench, "chain-second", max_steps=1)
    paths = [write_config(tmp_path / "first.yaml", **first), tmp_path / "second.yaml"]
    for adapter, code, place in (
        (tmp_path / "nowhere", "BC061", "nowhere"),
        (tmp_path, "BC064", str(tmp_path)),
    ):
        second["adapter"] = {"name": "lora", "path": str(adapter)}
        write_config(paths[1], **second)
        assert call("run", *paths) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
        assert line.startswith(code)
        assert f"{place} adapter.path" in line
        assert not (bench / "chain-first").exists()
    second["adapter"] = {"name": "lora", "path": str(bench / "chain-first")}
    write_config(paths[1], **second)
    assert call("run", *paths) == 0
    assert f"from {bench / 'chain-first'}" in " ".join(capsys.readouterr().out.split())
