"""DPO with new tokens: the reference has the same rows as the policy."""

import json
import math

import pytest

from dpo_runs import ADAPTER, dpo_bench, dpo_settings, entries, run

NEW = {"add_tokens": ["<tool>", "</tool>"], "resize_embeddings": True, "resize_multiple_of": 8}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = dpo_bench(tmp_path_factory.mktemp("dpo-new-tokens"))
    pairs = json.loads((bench / "pairs.json").read_text())
    (bench / "pairs.json").write_text(
        json.dumps([{**pair, "chosen": f"<tool>{pair['chosen']}</tool>"} for pair in pairs])
    )
    return bench


def settings_of(bench, name, *, reference, adapter, **model):
    stage = {"name": "dpo", "reference": reference}
    settings = dpo_settings(bench, name, stage=stage, adapter=adapter, model={**NEW, **model})
    settings["train"] |= {"max_steps": 1, "eval_steps": None}
    settings["scheduler"] = "constant"
    return settings


@pytest.mark.parametrize(
    ("reference", "adapter"), [("start", None), ("start", ADAPTER), ("base", ADAPTER)], ids=["full", "start", "base"]
)
def test_at_step_0_the_policy_is_its_reference(bench, reference, adapter):
    name = f"{reference}{'lora' if adapter else 'full'}"
    run(bench, settings_of(bench, name, reference=reference, adapter=adapter))
    assert entries(bench, name)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_reference_model_with_fewer_rows_is_resized_as_the_policy_is(bench):
    """The start model by its path: a second model, whose figures the policy has at step 0."""
    run(bench, settings_of(bench, "named", reference=str(bench / "start"), adapter=None))
    assert entries(bench, "named")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_figures_of_other_rows_are_not_reused(bench, capsys):
    for multiple in (8, 64):
        name = f"rows-{multiple}"
        run(bench, settings_of(bench, name, reference="start", adapter=None, resize_multiple_of=multiple))
        assert "computed by an earlier run" not in capsys.readouterr().out
        assert entries(bench, name)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
