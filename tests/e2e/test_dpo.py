"""`stage: dpo` as a user runs it: step 0, the reference, its cache, resuming, and what is refused."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.cli import main
from dpo_runs import dpo_bench, dpo_settings, entries, run
from resume_runs import STEPS, differences
from workbench import write_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return dpo_bench(tmp_path_factory.mktemp("dpo"))


LOSSES = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "exo_pair": None,
    "apo_zero": 1.0,
    "simpo": None,
    "orpo": None,
    "robust": math.log(2),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_starts_where_its_formula_says(bench, loss):
    settings = dpo_settings(bench, f"each-{loss}", loss=loss, train={"max_steps": 3, "eval_steps": None})
    run(bench, settings)
    found = entries(bench, f"each-{loss}")
    if LOSSES[loss] is not None:
        assert found[0]["loss"] == pytest.approx(LOSSES[loss], abs=1e-6)
    assert all(math.isfinite(entry["loss"]) for entry in found)
    assert {"rewards/accuracies", "rewards/margins", "logps/chosen"} <= found[0].keys()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_at_step_0_the_policy_is_its_reference(bench, dtype):
    settings = dpo_settings(bench, f"zero-{dtype}", model={"dtype": dtype}, train={"max_steps": 1, "eval_steps": None})
    run(bench, settings)
    first = entries(bench, f"zero-{dtype}")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_the_loss_falls_and_margins_rise(bench):
    settings = dpo_settings(bench, "falls", train={"max_steps": 30, "eval_steps": 30}, checkpoint={"save_steps": None})
    settings["data"]["eval_path"] = settings["data"]["path"]
    run(bench, settings)
    train = [entry for entry in entries(bench, "falls") if entry["split"] == "train"]
    assert train[-1]["loss"] < 0.9 * train[0]["loss"]
    assert train[-1]["rewards/margins"] > 0.1
    evaluated = [entry for entry in entries(bench, "falls") if entry["split"] == "eval"]
    assert evaluated[-1]["rewards/accuracies"] > 0.7
    assert "perplexity" not in evaluated[-1]  # e to the loss of a pair means nothing


def test_a_resumed_run_is_the_same_bit_for_bit_with_and_without_the_kept_reference(bench, capsys):
    run(bench, dpo_settings(bench, "whole"))
    assert "no second model" in capsys.readouterr().out
    settings = dpo_settings(bench, "whole-resumed")
    run(bench, settings, "--resume", str(bench / "whole" / "checkpoint-3"))
    assert "computed by an earlier run" in capsys.readouterr().out
    assert differences(bench / "whole", bench / "whole-resumed") == []
    shutil.rmtree(bench / "cache-whole" / "reference")
    settings = dpo_settings(bench, "whole-again")
    run(bench, settings, "--resume", str(bench / "whole" / "checkpoint-8"))
    assert "and freed" in capsys.readouterr().out
    assert differences(bench / "whole", bench / "whole-again") == []
    assert (bench / f"whole/checkpoint-{STEPS}").is_dir()


def test_another_reference_is_asked_and_freed(bench, capsys):
    run(bench, dpo_settings(bench, "trained", train={"max_steps": 20, "eval_steps": None}))
    reference = str(bench / "trained")
    settings = dpo_settings(bench, "named", stage={"name": "dpo", "reference": reference}, train={"max_steps": 1})
    settings["data"]["cache_dir"] = str(bench / "cache-named")
    run(bench, settings)
    assert "trained/final, computed in" in capsys.readouterr().out
    first = entries(bench, "named")[0]
    assert first["rewards/margins"] < -0.01  # the reference is further on than the start model
    again = {**settings, "output_dir": str(bench / "named-again")}
    run(bench, again)
    assert "computed by an earlier run" in capsys.readouterr().out
    one, other = (load_file(bench / name / "final" / "model.safetensors") for name in ("named", "named-again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_does_not_fit_is_refused(bench, capsys):
    for changes, parts in (
        ({"stage": {"name": "dpo", "reference": "none"}}, ("BC039", "dpo.yaml:", "stage", "simpo")),
        ({"stage": {"name": "dpo", "reference": "base"}}, ("BC039", "adapter")),
        ({"stage": {"name": "dpo", "reference": str(bench / "nowhere")}}, ("BC061", "nowhere")),
        ({"loss": "causal_lm"}, ("BC039", "preference loss")),
    ):
        run(bench, dpo_settings(bench, "refused", **changes), code=2)
        said = capsys.readouterr().err
        assert all(part in said for part in parts), said


def test_losses_without_a_reference_ask_for_none(bench, capsys):
    settings = dpo_settings(
        bench, "free", loss="simpo", stage={"name": "dpo", "reference": "none"}, train={"max_steps": 2}
    )
    run(bench, settings)
    out = capsys.readouterr().out
    assert "reference  " not in out.split("features")[0].split("data and steps")[1]
    assert not (bench / "cache-free" / "reference").exists()


def test_the_models_positions_are_compared_with_a_sequence_and_not_with_a_pair(bench, tmp_path, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bench / "start" / "final")
    longest = max(
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": pair["instruction"]}, {"role": "assistant", "content": pair[side]}],
                return_dict=False,
            )
        )
        for pair in json.loads((bench / "pairs.json").read_text())
        for side in ("chosen", "rejected")
    )
    shutil.copytree(bench / "start" / "final", tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    settings = dpo_settings(bench, "short", model={"path": str(tmp_path / "short")})
    for positions, warned in ((longest, False), (longest - 1, True)):
        changed = {**config, "max_position_embeddings": positions}
        (tmp_path / "short" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(write_config(tmp_path / "plan.yaml", **settings))])
        assert not ended.value.code
        said = " ".join(capsys.readouterr().out.split())
        assert (f"the longest example has {longest} tokens" in said) == warned
        assert ("config.json says" in said) == warned


def test_a_chain_looks_for_its_later_runs_reference_model_first(bench, capsys):
    later = bench / "later.yaml"
    first = dpo_settings(bench, "ahead-first", train={"max_steps": 1, "eval_steps": None})
    second = dpo_settings(bench, "ahead-second", train={"max_steps": 1, "eval_steps": None})
    second["stage"] = {"name": "dpo", "reference": str(bench / "nowhere")}
    write_config(later, **second)
    run(bench, first, str(later), code=2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
    assert line.startswith("BC061")
    assert "nowhere stage.reference" in line
    assert not (bench / "ahead-first").exists()
    second["stage"]["reference"] = str(bench / "ahead-first")
    write_config(later, **second)
    run(bench, first, str(later))
    assert (bench / "ahead-second" / "final").is_dir()
