"""`tie_word_embeddings` follows the weight files where it contradicts them, with a warning."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from bumblecore_core import ModelError
from bumblecore_core.run.model import build_model, load_config, meta_model
from bumblecore_core.toolkit.adapters import load_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CONFIG = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    """An untied model that the tests change."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(**CONFIG, tie_word_embeddings=False)).save_pretrained(tmp_path)
    return tmp_path


def state(directory, *, tied, change=lambda tensors: None):
    """Has config.json state `tied`, and the weights changed."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def loaded(directory):
    """(warnings, the model of a run, that of the commands), which are alike."""
    warnings: list[str] = []
    load_config(directory, warnings=warnings)
    built = build_model(directory=directory, from_config=False, attention="eager", seed=0)
    return warnings, built, load_model(directory)


def test_true_with_a_head_that_differs(directory, tmp_path_factory):
    tensors = state(directory, tied=True)
    warnings, *models = loaded(directory)
    assert "differs from the embedding" in warnings[0]
    assert str(directory / "config.json") in warnings[0]
    assert meta_model(directory).lm_head.weight is not meta_model(directory).model.embed_tokens.weight
    for model in models:
        assert torch.equal(model.lm_head.weight, tensors[HEAD])
        assert not model.config.tie_word_embeddings
    models[0].save_pretrained(out := tmp_path_factory.mktemp("out"))
    assert not json.loads((out / "config.json").read_text())["tie_word_embeddings"]


def test_one_number_in_the_last_row_is_a_difference(directory):
    def change(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][-1, -1] += 1

    state(directory, tied=True, change=change)
    assert len(loaded(directory)[0]) == 1


def test_false_without_a_head(directory):
    tensors = state(directory, tied=False, change=lambda tensors: tensors.pop(HEAD))
    warnings, *models = loaded(directory)
    assert f"no {HEAD}" in warnings[0]
    for model in models:
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, tensors[EMBEDDING])
        assert model.config.tie_word_embeddings


def test_false_without_a_head_where_another_tensor_may_be_it(directory):
    def change(tensors):
        tensors["output.weight"] = tensors.pop(HEAD)

    state(directory, tied=False, change=change)
    with pytest.raises(ModelError) as raised:
        build_model(directory=directory, from_config=False, attention="eager", seed=0)
    assert {problem.code for problem in raised.value.problems} == {"BC030"}


@pytest.mark.parametrize("case", ["untied", "tied", "tied, with an equal head"])
def test_what_agrees_is_left_alone(directory, case):
    def change(tensors):
        if case == "tied":
            tensors.pop(HEAD)
        elif case != "untied":
            tensors[HEAD] = tensors[EMBEDDING].clone()

    state(directory, tied=case != "untied", change=change)
    warnings, *models = loaded(directory)
    assert warnings == []
    assert all(model.config.tie_word_embeddings == (case != "untied") for model in models)
