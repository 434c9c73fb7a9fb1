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

from bumblecore_core.run import layer_shapes, speed
from bumblecore_core.run.memory import MemoryInputs, estimate
from bumblecore_core.run.speed import Attention
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
    assert windowed == [Attention(32, 4), Attention(32, 4)]
    gemma2 = speed.count_flops(make_model("gemma2", attention="eager")).attention
    assert {layer.window for layer in gemma2} == {None, 4}


@pytest.mark.parametrize(
    ("settings", "attention", "unknown"),
    [
        ({"head_dim": 16}, [Attention(64)] * 3, []),  # wider than the hidden size divided by the heads
        ({"head_dim": None}, [Attention(32)] * 3, []),
        ({"sliding_window": 7}, [Attention(32, 7)] * 3, []),
        ({"sliding_window": 7, "use_sliding_window": False}, [Attention(32)] * 3, []),
        (
            {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "conv"]},
            [Attention(32, 7), Attention(32)],  # a layer without attention has no pairs
            [],
        ),
        (
            {"attention_chunk_size": 5, "layer_types": ["chunked_attention", "linear_attention", "indexed_attention"]},
            [Attention(32, chunk=5)],
            ["1 layers of indexed_attention", "1 layers of linear_attention"],
        ),
        (
            {"attention_layers": ["global", "local", "global"], "window_size": 6},
            [Attention(32), Attention(32, 6), Attention(32)],
            [],
        ),
        ({"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 4}, [Attention(56)] * 3, []),
        ({"num_attention_heads": None}, [], ["3 layers of linear_attention"]),
        ({"num_hidden_layers": None}, [], ["attention, since config.json does not state the number of layers"]),
    ],
    ids=str,
)
def test_layers_attend_with_the_heads_and_windows_of_the_config(settings, attention, unknown):
    config = SimpleNamespace(**{"num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 3, **settings})
    assert speed._attention(config) == (attention, unknown)


@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (4, 4), (11, 4), (12, 4)])
def test_pairs_of_chunks_are_those_within_a_chunk(length, chunk):
    seen = [(q, k) for q in range(length) for k in range(q + 1) if q // chunk == k // chunk]
    assert speed._layer_pairs(length, Attention(1, chunk=chunk)) == len(seen)


@pytest.mark.parametrize("name", ["gemma4_text", "deepseek_v3"])
def test_attention_is_that_which_torch_counts(name):
    """Eager attention multiplies all positions with all others: T² pairs."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    small = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    of_type = {
        "gemma4_text": {
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
        },
        "deepseek_v3": {
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 4,
            "v_head_dim": 20,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "first_k_dense_replace": 2,
        },
    }
    config = CONFIG_MAPPING[name](**small, **of_type[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 6, dtype=torch.long), use_cache=False)
    products = {str(operator).split(".")[-1]: count for operator, count in counter.get_flop_counts()["Global"].items()}
    rotary = 2 * 6 * sum(4 if name == "deepseek_v3" else width // 2 for width in (8, 16))  # outer products of positions
    widths = sum(layer.width for layer in speed.count_flops(model).attention)
    assert abs(products["bmm"] - 4 * widths * 6 * 6) <= rotary


def test_estimates_hold_for_every_config_of_a_causal_language_model():
    """No config raises; each part is a positive number or unknown, and what is unknown has a reason."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    unknown = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # has no defaults
            continue
        inputs = {"parameters": 1, "trainable": 1, "weight_bytes": 2, "tokens": 8, "supervised": 4, "config": config}
        for flag in (True, False):
            estimated = estimate(
                MemoryInputs(**inputs, master_weights=flag, float32_gradients=flag, gradient_checkpointing=flag)
            )
            assert {"activations", "head"} == (estimated.sizes.keys() | estimated.unknown) & {"activations", "head"}
            assert all(estimated.sizes[part] > 0 for part in ("activations", "head") if part in estimated.sizes), name
            assert all(estimated.unknown.values()), name
        attention, unknown[name] = speed._attention(layer_shapes.text_config(config))
        assert attention or unknown[name], name
    stated = {name for name, parts in unknown.items() if not parts}
    assert stated >= {"llama", "gpt2", "gpt_neo", "mpt", "xglm", "gemma3n_text", "gemma4_text", "deepseek_v3"}
    assert {"mamba", "rwkv", "deepseek_v32", "qwen3_next"}.isdisjoint(stated)


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


def test_shared_experts_and_fused_ones_count_as_what_they_are():
    plain = torch.nn.Parameter(torch.zeros(4, 8))
    fused, filters = torch.nn.Parameter(torch.zeros(4, 8, 3)), torch.nn.Parameter(torch.zeros(4, 1, 3))
    assert speed._is_expert("layers.0.mlp.experts.0.up_proj.weight", plain, 4)
    assert not speed._is_expert("layers.0.mlp.shared_experts.up_proj.weight", plain, 4)
    assert speed._is_expert("layers.0.mlp.input_linear.weight", fused, 4)
    assert not speed._is_expert("layers.0.conv.weight", filters, 4)


def test_unknown_flops_are_named_with_the_peak(monkeypatch):
    engine = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, world_size=1, sum_over_ranks=lambda values: values
    )
    model = make_model("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert speed.speed_of(engine, model, 1.0).words == (
        "1 TFLOP/s, as stated; FLOPs unknown: 1 layers of linear_attention, so that mfu is a lower bound"
    )


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
