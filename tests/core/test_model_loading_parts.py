"""What surrounds a model's loading: the choice of attention, and parameter groups by kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bumblecore_core import AttentionFunctions, AttentionRecord, BumbleError
from bumblecore_core.run.attention import candidates, register
from bumblecore_core.run.groups import parameter_groups
from bumblecore_core.run.model import build_model, load_config


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    """A Qwen3 with a tied head."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    directory = tmp_path_factory.mktemp("models") / "tied"
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


def build(directory: Path, **changes):
    return build_model(**{"directory": directory, "from_config": False, "attention": "sdpa", "seed": 7, **changes})


def attention(name, priority=0, reason=None, functions=None) -> AttentionRecord:
    return AttentionRecord(
        name=name,
        summary="For a test.",
        load=lambda: functions or AttentionFunctions(),
        unsupported=lambda *, device, dtype: reason,
        priority=priority,
    )


CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def test_auto_tries_the_attention_of_the_highest_priority_first():
    records = [attention("plain"), attention("best", 9, "needs CUDA"), attention("good", 5)]
    found = candidates(records, "auto", **CPU)
    assert [(each.record.name, each.unsupported) for each in found] == [
        ("best", "needs CUDA"),
        ("good", None),
        ("plain", None),
    ]
    assert [each.record.name for each in candidates(records, "plain", **CPU)] == ["plain"]


@pytest.mark.parametrize(("name", "code", "words"), [("best", "BC039", "needs CUDA"), ("god", "BC056", "'good'")])
def test_an_attention_that_is_unknown_or_cannot_run(name, code, words):
    with pytest.raises(BumbleError, match=words) as caught:
        candidates([attention("best", 9, "needs CUDA"), attention("good")], name, **CPU)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == (code, "model.attention")


def test_no_attention_that_runs_lists_every_reason():
    with pytest.raises(BumbleError, match="not a: one; not b: two"):
        candidates([attention("a", 1, "one"), attention("b", 0, "two")], "auto", **CPU)


def test_an_attention_of_our_own_is_called_by_the_model_and_not_saved(tied, tmp_path):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    masks, calls = [], []

    def forward(module, query, key, value, attention_mask, **kwargs):
        calls.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=True, **kwargs)

    functions = AttentionFunctions(forward=forward, mask=lambda *args, **kwargs: masks.append(1))
    name = register(attention("counting", functions=functions))
    assert name == "bumble_counting"
    for from_config in (True, False):
        calls.clear()
        model = build(tied, attention=name, from_config=from_config)
        reference = build(tied, from_config=from_config)
        ids = torch.arange(12)[None]
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits)
        assert calls == [None, None]
    model.save_pretrained(tmp_path / "out")
    assert "counting" not in (tmp_path / "out" / "config.json").read_text()
    assert load_config(tmp_path / "out")._attn_implementation != name


def test_groups_by_kind_each_tied_parameter_once(tied):
    model = build(tied)
    model.model.layers[1].mlp.up_proj.weight.requires_grad = False
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, no_decay = parameter_groups(model)
    assert (decay.name, decay.decay, no_decay.name, no_decay.decay) == ("decay", True, "no_decay", False)
    plain = [names[id(parameter)] for parameter in no_decay.params]
    decayed = [names[id(parameter)] for parameter in decay.params]
    assert all("norm" in name for name in plain)
    assert {"model.norm.weight", "model.layers.0.self_attn.q_norm.weight"} <= set(plain)
    assert "model.embed_tokens.weight" in decayed
    assert not any("norm" in name for name in decayed)
    assert len(plain) + len(decayed) == len(names) - 1
    assert "model.layers.1.mlp.up_proj.weight" not in decayed


def test_biases_and_matrix_shaped_norms_do_not_decay():
    class ScaleNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 2))

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), ScaleNorm())
    decay, no_decay = parameter_groups(model)
    assert [id(p) for p in decay.params] == [id(model[0].weight)]
    assert [id(p) for p in no_decay.params] == [id(model[0].bias), id(model[1].weight)]
    model[0].weight.requires_grad = False
    assert [group.name for group in parameter_groups(model)] == ["no_decay"]


def test_a_model_without_memory_has_the_dtypes_of_a_loaded_one(tmp_path):
    """Ranks that get their weights from rank 0 wait for tensors of exactly these dtypes; a router is in float32."""
    config = Glm4MoeConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=0,
    )
    Glm4MoeForCausalLM(config).save_pretrained(tmp_path)
    loaded, skeleton = (build(tmp_path, dtype=torch.bfloat16, skeleton=skeleton) for skeleton in (False, True))
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert dtypes["model.layers.0.mlp.gate.weight"] == torch.float32
    assert {name: tensor.dtype for name, tensor in skeleton.state_dict().items()} == dtypes
