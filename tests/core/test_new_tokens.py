"""New tokens and resized embeddings, compared with transformers' own resizing."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, Qwen3Config

from bumblecore_core import BumbleError
from bumblecore_core.run.model import build_model
from bumblecore_core.toolkit.new_tokens import add_tokens, resize_embeddings
from bumblecore_core.toolkit.tokenizers import tokenizer_fingerprint
from tiny_models import make_model
from workbench import make_tokenizer

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "tied": Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True),
    "untied": Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=False),
    "head with a bias": GPTJConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=32),
}


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return directory


def saved(directory, kind, dtype=torch.float32):
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=dtype).save_pretrained(directory)
    return directory


def built(directory, **changes):
    return build_model(**{"directory": directory, "from_config": False, "attention": "eager", "seed": 7, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_rows_are_those_of_transformers_and_new_ones_the_mean(tmp_path, kind, dtype):
    directory = saved(tmp_path, kind, dtype)
    twin = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    old = {name: value.clone() for name, value in twin.named_parameters()}
    twin.resize_token_embeddings(48, mean_resizing=False)
    own, shapes = built(directory, rows=48), {name: value.shape for name, value in twin.named_parameters()}
    assert {name: value.shape for name, value in own.named_parameters()} == shapes
    assert own.config.vocab_size == 48
    tied = kind == "tied"
    assert (own.get_output_embeddings().weight is own.get_input_embeddings().weight) == tied
    resized = 0
    for name, value in own.named_parameters():
        if value.shape == old[name].shape:
            assert torch.equal(value, old[name])
            continue
        resized += 1
        mean = old[name].double().mean(0)
        assert torch.equal(value[:40], old[name])
        torch.testing.assert_close(value[40:], mean.expand_as(value[40:]).to(dtype), rtol=1e-2, atol=1e-6)
        assert torch.equal(value[40:], value[40:41].expand_as(value[40:]))
    assert resized == {"tied": 1, "untied": 2, "head with a bias": 3}[kind]


def test_the_mean_of_transformers_is_ours_up_to_its_noise(tmp_path):
    directory = saved(tmp_path, "untied")
    twin = AutoModelForCausalLM.from_pretrained(directory)
    twin.resize_token_embeddings(48, mean_resizing=True)
    own = built(directory, rows=48)
    ids = torch.arange(3, 48)[None]
    assert (own(input_ids=ids).logits - twin(input_ids=ids).logits).abs().max() < 1e-3


def test_as_many_rows_or_more_change_nothing(tmp_path):
    directory = saved(tmp_path, "untied")
    state = torch.random.get_rng_state()
    for rows in (None, 12, 40):
        assert built(directory, rows=rows).config.vocab_size == 40
    built(directory, rows=64)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("how", [{"from_config": True}, {"skeleton": True}])
def test_models_without_weights_have_the_rows(tmp_path, how):
    model = built(saved(tmp_path, "untied"), rows=48, **how)
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (48, 16)


def test_a_model_that_cannot_be_resized(monkeypatch):
    model = make_model("qwen3")

    def refuse(*_args, **_options):
        raise NotImplementedError("no resizing here")

    monkeypatch.setattr(model, "resize_token_embeddings", refuse)
    with pytest.raises(BumbleError) as raised:
        resize_embeddings(model, 1000)
    (problem,) = raised.value.problems
    assert (problem.code, problem.field) == ("BC101", "model.resize_embeddings")
    assert "no resizing here" in problem.problem


def test_added_tokens_are_found_in_any_text_and_shown(tokenizer_directory, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    before = tokenizer_fingerprint(tokenizer)
    rows = len(tokenizer)
    add_tokens(tokenizer, ["<tool>", "cat", "<|im_end|>", "<tool>"])
    assert tokenizer_fingerprint(tokenizer) != before
    assert tokenizer.convert_tokens_to_ids("<tool>") == rows
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = again("a<tool>b", add_special_tokens=False).input_ids
    assert rows in ids
    assert again.decode(ids, skip_special_tokens=True) == "a<tool>b"
    assert again.convert_tokens_to_ids("<|im_end|>") == 2


def test_known_tokens_change_nothing(tokenizer_directory):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    before = tokenizer_fingerprint(tokenizer)
    add_tokens(tokenizer, ["<|im_end|>", "a"])
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\ud800"])
def test_texts_that_cannot_be_tokens(tokenizer_directory, text):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    with pytest.raises(BumbleError) as raised:
        add_tokens(tokenizer, [text])
    (problem,) = raised.value.problems
    assert (problem.code, problem.field) == ("BC102", "model.add_tokens")
