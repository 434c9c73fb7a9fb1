"""FLOPs against what torch counts while it computes, the peak, and the memory."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bumblecore_core.run import speed
from tiny_models import FAMILIES, make_batch, make_model

LENGTHS = (9, 4, 14)
PRODUCTS = ("mm", "addmm")


def torch_counts(model, batch, positions):
    """FLOPs of matrix products in forward and backward pass with the head at `positions`, as torch sees them. Attention
    is computed by other operators (bmm, SDPA)."""
    model.train()
    with FlopCounterMode(display=False) as counter:
        logits = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, logits_to_keep=positions, use_cache=False
        ).logits[0]
        functional.cross_entropy(logits.float(), torch.zeros(len(positions), dtype=torch.long)).backward()
    found = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in found.items() if str(operator).split(".")[-1] in PRODUCTS)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt2"}))
def test_products_are_those_that_torch_counts(family):
    model = make_model(family, attention="eager")
    batch, positions = make_batch(LENGTHS), torch.tensor([1, 5, 11, 20])
    batch.count = len(positions)
    flops = speed.count_flops(model)
    products = flops.per_token * batch.tokens + flops.per_head_position * batch.scored
    assert products == torch_counts(model, batch, positions)


def test_frozen_weights_cost_no_weight_gradient():
    model, batch, positions = make_model("qwen3"), make_batch(LENGTHS), torch.tensor([1, 5])
    batch.count = len(positions)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name or "norm" in name)
    flops = speed.count_flops(model)
    products = flops.per_token * batch.tokens + flops.per_head_position * batch.scored
    assert products == torch_counts(model, batch, positions)


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (3, 3), (2, 5), (12, 1)])
def test_pairs_are_those_that_attend(length, window):
    seen = [
        (query, key) for query in range(length) for key in range(query + 1) if window is None or query - key < window
    ]
    assert speed._pairs(length, window) == len(seen)


def test_attention_counts_pairs_layers_and_windows():
    batch = make_batch(LENGTHS)
    plain = speed.Flops(per_token=0, per_head_position=0, attention=speed.count_flops(make_model("qwen3")).attention)
    assert plain.of(batch) == 12 * 32 * 2 * sum(length * (length + 1) / 2 for length in LENGTHS)
    windowed = speed.count_flops(make_model("mistral")).attention
    assert windowed == [(32, 4), (32, 4)]
    assert {window for _, window in speed.count_flops(make_model("gemma2", attention="eager")).attention} == {None, 4}


def test_a_mixture_counts_the_experts_that_a_token_meets():
    from transformers import MixtralConfig, MixtralForCausalLM

    settings = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    few, many = (
        speed.count_flops(MixtralForCausalLM(MixtralConfig(**settings, num_local_experts=count))).per_token
        for count in (4, 8)
    )
    routers = 6 * 2 * 32 * 4  # four more rows in each layer's router
    assert many - few == routers


def test_the_measured_peak_is_a_rate_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    found = speed.measured_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < found < 1e15
    assert torch.equal(before, torch.get_rng_state())


def test_peak_memory_grows_with_what_is_held():
    before = speed.peak_memory(torch.device("cpu"))
    held = torch.ones(60_000_000)
    after = speed.peak_memory(torch.device("cpu"))
    assert held.numel() * 4 * 0.5 < after - before + 200e6
    assert after >= before > 50e6
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]
        assert after >= int(kilobytes) * 1024
