"""`stage: reward` as a user runs it: its naive twin, the saved model, resuming, adapters, chains, what is refused."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.assemble import prepare
from bumblecore_core.toolkit.seeds import derive_seed
from dpo_runs import dpo_bench, dpo_settings, entries, run
from e2e.test_exactness import trained
from lora_runs import call
from resume_runs import differences
from workbench import EVAL_ROWS, sft_settings, write_config

CENTER = 0.02
ADAPTER = {"name": "lora", "rank": 4}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return dpo_bench(tmp_path_factory.mktemp("reward"))


def reward_settings(bench, name, *, adapter=None, save_steps=None, **changes):
    settings = dpo_settings(bench, name, stage="reward", **changes)
    settings["checkpoint"]["save_steps"] = save_steps
    settings["loss"] = {"name": "bradley_terry", "center_coefficient": CENTER}
    settings["data"]["cache_dir"] = str(bench / "cache-reward")
    return {**settings, **({"adapter": adapter} if adapter else {})}


@pytest.fixture(scope="module")
def model(bench):
    """The final model of a run over two epochs, with evaluation."""
    run(bench, reward_settings(bench, "whole", save_steps=7))
    return bench / "whole" / "final"


@pytest.fixture(scope="module")
def adapter(bench):
    """What such a run saves with an adapter."""
    run(bench, reward_settings(bench, "lora", adapter=ADAPTER, save_steps=7))
    return bench / "lora" / "final"


def load(directory, **options):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(directory, **options).eval()


def conversations(bench, tokenizer, count=8):
    """(chosen, rejected) texts of the first pairs, as the chat template gives them."""
    found = []
    for row in json.loads((bench / "pairs.json").read_text())[:count]:
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row[side]}]
            found.append(tokenizer.apply_chat_template(messages, tokenize=False))
    return found


def scores_of(model, directory, bench):
    """Scores of the first pairs in one padded batch, padding right and left."""
    from transformers import AutoTokenizer

    found = []
    for side in ("right", "left"):
        tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
        batch = tokenizer(conversations(bench, tokenizer), padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            found.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    return found[0]


def naive(settings, path):
    """The same training written plainly: transformers' own scores, one sequence at a time, and TRL's formula."""
    from transformers import get_scheduler

    registry = load_registry(PluginSwitches())
    prepared = prepare(
        load_run(write_config(path, **settings), (), registry), registry, PluginSwitches(), world_size=1, progress=False
    )
    torch.manual_seed(derive_seed(42, "init"))
    model = load(settings["model"]["path"] + "/final", num_labels=1, attn_implementation="eager", dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=prepared.plan.total_steps)
    losses = []
    for window in prepared.plan.windows():
        scores = []
        for row in (row for micro in window.micro_batches[0] for row in micro.rows):
            example = prepared.store.example(row)
            for side in ("chosen", "rejected"):
                ids = torch.tensor(example[f"{side}_ids"].tolist())[None]
                scores.append(model(input_ids=ids).logits[0, 0])
        chosen, rejected = torch.stack(scores).view(-1, 2).unbind(1)
        loss = -functional.logsigmoid(chosen - rejected).mean() + CENTER * ((chosen + rejected) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_accumulated_ragged_pairs_train_as_the_naive_twin_does(bench, tmp_path):
    expected = None
    for micro, accumulation in ((6, 1), (2, 3), (1, 6)):
        train = {"max_steps": 8, "micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
        settings = reward_settings(bench, f"twin-{micro}", train={**train, "eval_steps": None})
        del settings["data"]["eval_path"]
        expected = expected or naive(settings, tmp_path / "naive.yaml")
        losses, weights = trained(settings, tmp_path / f"{micro}.yaml")
        assert losses == pytest.approx(expected[0], rel=1e-5)
        assert weights.keys() <= expected[1].keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[1][name], rtol=1e-5, atol=5e-6, msg=name)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(bench, tmp_path):
    runs = []
    for ranks, accumulation in ((1, 6), (2, 3)):
        train = {"max_steps": 8, "micro_batch_size": 2, "gradient_accumulation_steps": accumulation}
        settings = reward_settings(bench, f"ranks-{ranks}", train={**train, "eval_steps": 4})
        launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2") if ranks == 2 else ()
        runs.append(trained(settings, tmp_path / f"{ranks}.yaml", *launch))
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    for name, weight in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], weight, rtol=1e-5, atol=5e-6, msg=name)


def test_scores_learn_and_evaluation_says_what_it_means(bench, model):
    train, evaluated = (entries(bench, "whole", split) for split in ("train", "eval"))
    figures = {"rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"}
    assert figures <= train[0].keys()
    assert figures <= evaluated[0].keys()
    assert "perplexity" not in evaluated[0]
    assert train[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert evaluated[-1]["loss"] < 0.9 * evaluated[0]["loss"]
    assert evaluated[-1]["rewards/accuracies"] > 0.8
    assert evaluated[-1]["rewards/margins"] == pytest.approx(
        evaluated[-1]["rewards/chosen"] - evaluated[-1]["rewards/rejected"], abs=1e-6
    )


def test_the_saved_model_scores_as_the_run_did(bench, model):
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["pad_token_id"] == 0
    assert "score.weight" in load_file(model / "model.safetensors")
    loaded = load(model)
    assert loaded.config.num_labels == 1
    scores = scores_of(loaded, model, bench)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = conversations(bench, tokenizer, count=EVAL_ROWS)
    with torch.no_grad():
        alone = torch.stack(
            [loaded(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0] for text in texts]
        )
    torch.testing.assert_close(scores[: len(alone)], alone, rtol=1e-4, atol=1e-5)
    chosen, rejected = alone.view(-1, 2).unbind(1)  # the evaluation's rows, after the last step
    last = entries(bench, "whole", "eval")[-1]
    assert float(chosen.mean()) == pytest.approx(last["rewards/chosen"], abs=1e-5)
    assert int((chosen > rejected).sum()) == round(EVAL_ROWS * last["rewards/accuracies"])


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_a_resumed_run_is_the_same_bit_for_bit(bench, model, adapter, name):
    settings = reward_settings(bench, f"{name}-resumed", adapter=ADAPTER if name == "lora" else None, save_steps=7)
    run(bench, settings, "--resume", str(bench / name / "checkpoint-7"))
    assert differences(bench / name, bench / f"{name}-resumed") == []


def test_an_adapter_holds_the_score_and_merges_into_a_reward_model(bench, adapter, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    features = dict(json.loads((bench / "lora" / "run.info.json").read_text())["features"])
    assert "; in full: score" in features["adapter"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["score"]
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert [name for name in names if ".lora_" not in name] == ["base_model.model.score.weight"]
    assert entries(bench, "lora", "eval")[-1]["rewards/accuracies"] > 0.6

    loaded = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=1, pad_token_id=0).eval()
    assert call("merge", adapter, tmp_path / "merged") == 0
    merged = load(tmp_path / "merged")
    assert merged.config.pad_token_id == 0
    assert merged.config.num_labels == 1
    scores = scores_of(merged, tmp_path / "merged", bench)
    torch.testing.assert_close(scores, scores_of(loaded, adapter, bench), rtol=1e-4, atol=1e-5)
    assert scores.std() > 0.01


def test_an_adapter_out_of_the_base_has_no_room_for_the_score(bench, capsys):
    run(bench, reward_settings(bench, "refused", adapter={**ADAPTER, "init": "pissa"}), code=2)
    said = capsys.readouterr().err
    assert "BC039" in said
    assert "adapter.init: init pissa takes no module in full" in said


def test_runs_chain_from_models_and_adapters(bench, model, adapter):
    """An SFT adapter is folded in before the score is put on; a reward model, or its adapter, keeps its score."""
    sft = sft_settings(bench, bench / "start" / "final", max_steps=2)
    run(bench, {**sft, "adapter": ADAPTER, "output_dir": str(bench / "sft-adapter")})
    for start in ("sft-adapter", "whole", "lora"):
        settings = reward_settings(bench, f"after-{start}", train={"max_steps": 1, "eval_steps": None})
        settings["model"]["path"] = str(bench / start)
        settings["optimizer"] = {"name": "adamw", "lr": 1e-9}
        run(bench, settings)
        (evaluated,) = entries(bench, f"after-{start}", "eval")
        if start != "sft-adapter":
            of_start = entries(bench, start, "eval")[-1]
            for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies"):
                assert evaluated[name] == pytest.approx(of_start[name], abs=1e-5)


def test_bf16_and_the_plan(bench, capsys):
    settings = reward_settings(bench, "bf16", model={"dtype": "bf16"}, train={"max_steps": 2, "eval_steps": None})
    assert call("plan", write_config(bench / "plan.yaml", **settings)) == 0
    planned = capsys.readouterr().out
    run(bench, settings)
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "trainable" in line)
    assert line in planned
    assert "final  reward model, loads with AutoModelForSequenceClassification.from_pretrained" in said
    assert "a score of each sequence, at its last token" in said
    assert all(math.isfinite(entry["loss"]) and entry["mfu"] > 0 for entry in entries(bench, "bf16", "train"))


def test_a_reward_model_is_refused_where_text_is_wanted(bench, model, capsys):
    assert call("generate", model, "--prompt", "the cat") == 2
    assert "BC064" in (said := capsys.readouterr().err)
    assert "this is a reward model" in said
    run(bench, {**sft_settings(bench, model, max_steps=1), "output_dir": str(bench / "refused")}, code=2)
    said = capsys.readouterr().err
    assert "BC064" in said
    assert "Start this stage from a language model" in said


def test_weights_that_do_not_fit_are_refused(bench, model, tmp_path, capsys):
    lost = shutil.copytree(model, tmp_path / "lost")
    weights = load_file(model / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "score.weight"}, lost / "model.safetensors", {"format": "pt"})
    odd = shutil.copytree(bench / "start" / "final", tmp_path / "odd")
    weights = load_file(odd / "model.safetensors")
    save_file({**weights, "extra.weight": torch.ones(2)}, odd / "model.safetensors", {"format": "pt"})
    wide = shutil.copytree(model, tmp_path / "wide")
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "score.weight": torch.ones(2, 32)}, wide / "model.safetensors", {"format": "pt"})
    for start, problem in (
        (lost, "1 missing weights: score.weight"),
        (odd, "1 unexpected weights: extra.weight"),
        (wide, "1 misshapen weights: score.weight (2, 32) for (1, 32)"),
    ):
        settings = reward_settings(bench, "refused")
        settings["model"]["path"] = str(start)
        run(bench, settings, code=2)
        said = capsys.readouterr().err
        assert "BC030" in said
        assert problem in said, said


def test_a_tokenizer_whose_pad_ends_a_conversation_is_refused(bench, tmp_path, capsys):
    start = shutil.copytree(bench / "start" / "final", tmp_path / "start")
    file = start / "tokenizer_config.json"
    for pad, problem in (("<|im_end|>", "conversations end with the pad token '<|im_end|>'"), (None, "has no pad")):
        file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": pad}))
        settings = reward_settings(bench, "refused")
        settings["model"]["path"] = str(start)
        run(bench, settings, code=2)
        said = capsys.readouterr().err
        assert "BC039" in said
        assert "model.tokenizer" in said
        assert problem in said
