"""Adapters that PEFT saved on a resized base: loading and merging them resizes the base again."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config

from bumblecore_core.run.model import build_model
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.new_tokens import adapter_rows, resize_embeddings
from lora_models import moved

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
IDS = torch.arange(30, 44)[None]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("saves", ["embeddings", "tokens"])
def test_the_base_gets_the_adapters_rows(tmp_path, saves, tied):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, tie_word_embeddings=tied))
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    resize_embeddings(base, 44)
    rows = {} if saves == "embeddings" else {"embed_tokens": [40, 43]}
    if rows and not tied:
        rows["lm_head"] = [40, 43]
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows or None, task_type="CAUSAL_LM")
    adapter = moved(get_peft_model(base, config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=saves == "embeddings")
    assert adapter_rows(tmp_path / "adapter") == 44
    twin = PeftModel.from_pretrained(_resized(tmp_path / "base"), tmp_path / "adapter").merge_and_unload()
    built = build_model(directory=tmp_path / "adapter", from_config=False, attention="eager", seed=0)
    for model in (load_model(tmp_path / "adapter"), built):
        assert model.config.vocab_size == 44
        torch.testing.assert_close(model(input_ids=IDS).logits, twin(input_ids=IDS).logits)


def _resized(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    resize_embeddings(model, 44)
    return model
