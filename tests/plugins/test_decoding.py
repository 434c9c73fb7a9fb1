"""Decoding in batches and with a cache gives the tokens of complete forward passes over single prompts."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MiniMaxConfig, RwkvConfig

from bumblecore_core import BumbleError
from bumblecore_plugins.commands.decoding import Sampling, choose_decoding, continuations
from tiny_models import make_model

PROMPTS = [[5, 9, 30], [7, 8, 9, 31, 33, 21, 19, 4], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]]
MINIMAX = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8,
    "layer_types": ["linear_attention", "full_attention"], "initializer_range": 0.2, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2),
    "rwkv": RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, context_length=64, attention_hidden_size=16),
    "minimax": MiniMaxConfig(**MINIMAX),
}
ONE_BY_ONE = {"rwkv", "minimax"}


def made(kind):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).eval()


def by_forward_passes(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def greedy(count=6):
    return Sampling(max_new_tokens=count, temperature=0.0, top_p=1.0, stop=(), pad=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_ragged_prompts(kind):
    model, notes = made(kind), []
    before = model.generation_config
    found = list(continuations(model, PROMPTS, greedy(), 3, notes.append))
    assert found == [by_forward_passes(model, prompt, 6) for prompt in PROMPTS]
    assert bool(notes) == (kind in ONE_BY_ONE)
    assert model.generation_config is before


def decoding_of(model, prompts, batch_size=3):
    notes = []
    return choose_decoding(model, prompts, batch_size=batch_size, pad=0, note=notes.append), notes


def test_prompts_of_one_length_stay_together():
    decoding, notes = decoding_of(made("rwkv"), [PROMPTS[0]] * 3)
    assert (decoding.batch_size, notes) == (3, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_difference(dtype):
    decoding, notes = decoding_of(make_model("qwen3").to(dtype), PROMPTS)
    assert (decoding.use_cache, decoding.batch_size, notes) == (True, 3, [])


def test_a_cache_that_changes_the_logits_is_not_used(monkeypatch):
    model = made("gpt2")
    forward = model.forward

    def with_a_wrong_cache(*args, **options):
        output = forward(*args, **options)
        if output.past_key_values is not None:
            for layer in output.past_key_values.layers:
                layer.keys = layer.keys * 0
        return output

    monkeypatch.setattr(model, "forward", with_a_wrong_cache)
    decoding, notes = decoding_of(model, PROMPTS)
    assert not decoding.use_cache
    assert "without a cache" in notes[0]
    assert list(continuations(model, PROMPTS, greedy(), 3)) == [by_forward_passes(model, one, 6) for one in PROMPTS]


def test_a_model_that_cannot_generate_is_an_error(monkeypatch):
    model = made("gpt2")

    def fail(**_options):
        raise TypeError("no such cache")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(BumbleError) as raised:
        list(continuations(model, PROMPTS, greedy(), 3))
    (problem,) = raised.value.problems
    assert problem.code == "BC064"
    assert "no such cache" in problem.problem
