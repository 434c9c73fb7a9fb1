"""Building reward models from the directories of language models and of reward models."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bumblecore_core import ModelError
from bumblecore_core.run.model import build_model, meta_model, parameter_counts
from bumblecore_core.run.speed import count_flops
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.toolkit.scorers import is_scorer

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ROTARY = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": False}
MODELS = {
    "tied": ("Qwen3", {**ROTARY, "head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "untied": ("Llama", ROTARY),
    "head with a bias": ("Phi", ROTARY),
    "head of another name": ("GPTNeoX", ROTARY),
    "absolute positions": ("GPT2", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}


def build(directory, **changes):
    return build_model(
        **{"directory": directory, "from_config": False, "attention": "sdpa", "seed": 7, "head": "score"} | changes
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("language-models")
    for name, (prefix, sizes) in MODELS.items():
        config = getattr(transformers, f"{prefix}Config")(**sizes, pad_token_id=None, bos_token_id=1, eos_token_id=2)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_gets_a_score_in_place_of_its_head(saved, name, tmp_path):
    torch.manual_seed(0)
    expected = torch.randn(2)
    torch.manual_seed(0)
    model = build(saved / name, pad_token_id=5)
    assert torch.equal(torch.randn(2), expected), "the global random numbers moved"
    stored = load_file(saved / name / "model.safetensors")
    own = model.state_dict()
    assert own.keys() - stored.keys() == {"score.weight"}
    assert all("lm_head" in key or "embed_out" in key for key in stored.keys() - own.keys())
    assert all(torch.equal(own[key], stored[key]) for key in own.keys() & stored.keys())
    assert own["score.weight"].shape == (1, 16)
    assert own["score.weight"].std() > 0
    assert torch.equal(build(saved / name).score.weight, model.score.weight)
    assert not torch.equal(build(saved / name, seed=8).score.weight, model.score.weight)
    assert model.config.get_text_config().pad_token_id == 5
    assert model.config.num_labels == 1
    make_policy(model)

    model.save_pretrained(tmp_path / "saved")
    assert is_scorer(tmp_path / "saved", ())
    assert not is_scorer(saved / name, ())
    again, plain = build(tmp_path / "saved", seed=9, pad_token_id=5), load_model(tmp_path / "saved")
    assert all(torch.equal(again.state_dict()[key], weight) for key, weight in own.items())
    assert plain.config.pad_token_id == 5
    assert again.get_input_embeddings().padding_idx == model.get_input_embeddings().padding_idx
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    planned = meta_model(saved / name, head="score")
    assert parameter_counts(planned) == parameter_counts(model)
    flops = count_flops(model)
    assert flops.per_head_position == 0
    assert flops.per_token > 0


def test_only_the_score_may_be_missing_and_only_once(saved, tmp_path):
    for name, change, problem in (
        ("fresh", {"model.norm.weight": None}, "1 missing weights: model.norm.weight"),
        ("fresh", {"more.weight": torch.ones(2)}, "1 unexpected weights: more.weight"),
        ("scorer", {"score.weight": None}, "1 missing weights: score.weight"),
        ("scorer", {"lm_head.weight": torch.ones(40, 16)}, "1 unexpected weights: lm_head.weight"),
        ("scorer", {"score.weight": torch.ones(2, 16)}, r"1 misshapen weights: score.weight \(2, 16\) for \(1, 16\)"),
    ):
        directory = tmp_path / name
        shutil.rmtree(directory, ignore_errors=True)
        if name == "fresh":
            shutil.copytree(saved / "untied", directory)
        else:
            build(saved / "untied", pad_token_id=5).save_pretrained(directory)
        file = directory / "model.safetensors"
        weights = {**load_file(file), **change}
        save_file({k: v for k, v in weights.items() if v is not None}, file, {"format": "pt"})
        with pytest.raises(ModelError, match=f"BC030.*{problem}"):
            build(directory)


def test_a_model_type_without_a_score_is_refused(tmp_path):
    config = transformers.CohereConfig(**ROTARY)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "cohere")
    with pytest.raises(ModelError, match=r"BC064.*no sequence classification"):
        build(tmp_path / "cohere")


def test_a_reward_model_is_no_language_model(saved, tmp_path):
    build(saved / "tied", pad_token_id=5).save_pretrained(tmp_path / "scorer")
    with pytest.raises(ModelError, match=r"BC064.*this is a reward model"):
        build(tmp_path / "scorer", head="language_model")
    file = tmp_path / "scorer" / "config.json"
    for odd in (None, 3, "Qwen3ForSequenceClassification", [3]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": odd}))
        assert not is_scorer(tmp_path / "scorer", ())
