"""FLOPs against what torch counts while it computes, the peak, and the memory."""

import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bumblecore_core.run import speed
from tiny_models import FAMILIES, make_batch, make_model

LENGTHS = (9, 4, 14)
PRODUCTS = ("mm", "addmm")
STATUS = Path("/proc/self/status")


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
    products = replace(speed.count_flops(model), attention=())
    assert products.of(batch) == torch_counts(model, batch, positions)


def test_frozen_weights_cost_no_weight_gradient():
    model, batch, positions = make_model("qwen3"), make_batch(LENGTHS), torch.tensor([1, 5])
    batch.count = len(positions)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name or "norm" in name)
    products = replace(speed.count_flops(model), attention=())
    assert products.of(batch) == torch_counts(model, batch, positions)


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


@pytest.mark.parametrize(
    ("settings", "attention"),
    [
        ({"head_dim": 16}, [(64, None)] * 3),  # wider than the hidden size divided by the heads
        ({"head_dim": None}, [(32, None)] * 3),
        ({"sliding_window": 7}, [(32, 7)] * 3),
        ({"sliding_window": 7, "use_sliding_window": False}, [(32, None)] * 3),
        (
            {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "conv"]},
            [(32, 7), (32, None)],  # a layer without attention has no pairs
        ),
    ],
    ids=str,
)
def test_layers_attend_with_the_heads_and_windows_of_the_config(settings, attention):
    config = SimpleNamespace(num_attention_heads=4, hidden_size=32, num_hidden_layers=3, **settings)
    assert speed._attention(config) == attention


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


def test_the_measured_peak_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert speed.measured_peak(torch.device("cpu"), torch.float32) > 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("limit", "best"), [(10.0, 0.25), (0.75, 0.25), (0.5, 0.25), (0.3, 0.5)], ids=lambda value: str(value)
)
def test_the_measured_peak_is_that_of_the_fastest_product_within_the_time_limit(monkeypatch, limit, best):
    seconds = (0.5, 0.25, 1.0)
    readings = [0.0]  # the start of the measurement; then the start and end of each product, and the time limit's check
    for end, length in zip(accumulate(seconds), seconds, strict=True):
        readings += [end - length, end, end]
    clock = iter(readings)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(speed, "PROBE_SIZE", {"cpu": 8, "cuda": 8})
    monkeypatch.setattr(speed, "PROBE_SECONDS", limit)
    monkeypatch.setattr(speed, "PROBE_REPEATS", len(seconds))
    assert speed.measured_peak(torch.device("cpu"), torch.float32) == 2 * 8**3 / best


def test_the_peak_of_each_device_and_dtype_is_measured_once_per_process(monkeypatch):
    measured = []
    monkeypatch.setattr(speed, "measured_peak", lambda device, dtype: measured.append((device, dtype)) or len(measured))
    speed.known_peak.cache_clear()
    device = torch.device("cpu")
    try:
        found = [speed.known_peak(device, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)]
    finally:
        speed.known_peak.cache_clear()
    assert found == [1, 2, 1]
    assert measured == [(device, torch.float32), (device, torch.bfloat16)]


@pytest.mark.parametrize(
    ("stated", "peak", "words"),
    [
        (100.0, 2.5e14, "250 TFLOP/s on 2 devices, as stated"),
        (None, 7.5e12, "7.5 TFLOP/s on 2 devices, measured by a matrix product"),
    ],
)
def test_the_peak_is_the_sum_over_all_devices(monkeypatch, stated, peak, words):
    monkeypatch.setattr(speed, "known_peak", lambda device, dtype: 3e12)
    engine = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        world_size=2,
        sum_over_ranks=lambda values: [2.5 * value for value in values],  # the other device is half as fast again
    )
    model = make_model("qwen3")
    found = speed.speed_of(engine, model, stated)
    assert (found.peak, found.words) == (peak, words)
    assert found.flops == speed.count_flops(model)


def test_the_peak_memory_of_a_gpu_is_the_allocators_highest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7_000)
    assert speed.peak_memory(torch.device("cuda")) == 9_000.0


@pytest.mark.parametrize(
    ("status", "peak"),
    [("VmPeak:\t 90 kB\nVmHWM:\t      70 kB\nVmRSS:\t      60 kB\n", 70 * 1024), ("Name:\tpython\n", 0)],
    ids=["stated", "not stated"],
)
def test_the_peak_memory_of_a_process_is_its_highest_resident_size(monkeypatch, status, peak):
    monkeypatch.setattr(speed, "Path", lambda path: SimpleNamespace(read_text=lambda: status))
    assert speed.peak_memory(torch.device("cpu")) == peak


@pytest.mark.skipif(not STATUS.exists(), reason="the system has no /proc")
def test_the_peak_memory_is_at_least_what_the_process_holds_now():
    kilobytes = int(re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())[1])
    assert speed.peak_memory(torch.device("cpu")) >= kilobytes * 1024 - 2**20  # the kernel counts pages in batches
