"""Building models from local directories: exactness of what is loaded, and the errors for what is wrong with it."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bumblecore_core import BumbleError, ConfigError
from bumblecore_core.run.model import (
    build_model,
    check_positions,
    meta_model,
    parameter_counts,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Two models: `tied` (Qwen3 with a tied head) and `untied` (Llama, in two shards)."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)).save_pretrained(root / "tied")
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    llama.save_pretrained(root / "untied", max_shard_size="10KB")
    assert (root / "untied" / "model.safetensors.index.json").exists()
    return root


@pytest.fixture
def copy(saved, tmp_path):
    def make(name: str) -> Path:
        return Path(shutil.copytree(saved / name, tmp_path / name))

    return make


def build(directory: Path, **changes):
    arguments = {"directory": directory, "from_config": False, "attention": "sdpa", "seed": 7, **changes}
    return build_model(**arguments)


def problem_of(directory: Path, **changes):
    with pytest.raises(BumbleError) as caught:
        build(directory, **changes)
    assert caught.value.exit_code == 2
    return caught.value.problems[0]


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_trained_weights_are_loaded_as_they_are_without_any_network(saved, name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = build(saved / name)
    expected = AutoModelForCausalLM.from_pretrained(saved / name).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (name == "tied")


@pytest.mark.parametrize(
    ("stored", "claimed", "expected"),
    [
        (torch.bfloat16, "bfloat16", torch.bfloat16),
        (torch.float16, "float16", torch.float16),
        (torch.float32, "bfloat16", torch.float32),
        (torch.bfloat16, "float32", torch.bfloat16),
        (None, "bfloat16", torch.float32),
    ],
    ids=str,
)
def test_the_dtype_is_that_of_the_files_not_of_the_config(copy, stored, claimed, expected):
    directory = copy("tied")
    weights = load_file(directory / "model.safetensors")
    mixed = {key: torch.float32 if "norm" in key else torch.bfloat16 for key in weights}
    weights = {key: tensor.to(stored or mixed[key]) for key, tensor in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    edit_config(directory, dtype=claimed)
    model = build(directory)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    for key, tensor in weights.items():
        assert torch.equal(model.state_dict()[key].float(), tensor.float()), key


def edit_config(directory: Path, **values) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(saved):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (build(saved / "tied", from_config=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_from_config_needs_no_weights(copy):
    directory = copy("tied")
    (directory / "model.safetensors").unlink()
    assert build(directory, from_config=True) is not None
    assert (problem_of(directory).code, problem_of(directory).place) == ("BC029", str(directory))


def test_more_tokens_than_positions():
    rotary = LlamaConfig(**SIZES, max_position_embeddings=16)
    assert check_positions(rotary, 16) == ()
    assert "17 tokens" in check_positions(rotary, 17)[0]
    learned = GPT2Config(n_positions=16)
    assert check_positions(learned, 16) == ()
    with pytest.raises(ConfigError, match=r"BC039 data\.max_length: .* 17 tokens.* 16 or less"):
        check_positions(learned, 17)
    assert check_positions(BloomConfig(), 10**6) == ()  # no position table at all


def test_row_29_a_missing_shard_is_named(copy):
    directory = copy("untied")
    gone = sorted(directory.glob("model-*.safetensors"))[0]
    gone.unlink()
    problem = problem_of(directory)
    assert (problem.code, problem.place) == ("BC029", str(gone))


def test_row_30_missing_unexpected_and_misshapen_weights(copy, capfd):
    directory = copy("tied")
    weights = load_file(directory / "model.safetensors")
    lost = sorted(key for key in weights if "layers.0" in key)
    for key in lost:
        del weights[key]
    weights["extra.weight"] = torch.ones(2)
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BumbleError) as caught:
        build(directory)
    assert [problem.code for problem in caught.value.problems] == ["BC030"] * 3
    missing, unexpected, misshapen = (problem.problem for problem in caught.value.problems)
    assert missing == f"{len(lost)} missing weights: {', '.join(lost[:5])} …"
    assert unexpected == "1 unexpected weights: extra.weight"
    assert "model.norm.weight (5,) for (16,)" in misshapen
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", ["short", "long", "header", "empty", "not json"])
def test_row_64_a_corrupt_weight_file(copy, damage):
    directory = copy("tied")
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(
        {
            "short": data[:-7],
            "long": data + b"0",
            "header": b"\xff" * 8 + data[8:],
            "empty": b"",
            "not json": data[:8] + b"}" + data[9:],
        }[damage]
    )
    problem = problem_of(directory)
    assert (problem.code, problem.place) == ("BC064", str(file))


def test_row_64_an_unreadable_index(copy):
    directory = copy("untied")
    index = directory / "model.safetensors.index.json"
    index.write_text("[]")
    assert (problem_of(directory).code, problem_of(directory).place) == ("BC064", str(index))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen33"}, "qwen33"),
        ({}, "model_type"),
        ({"model_type": "clip_vision_model"}, "no causal language model"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "brings its own code"),
    ],
    ids=["unknown", "none", "not causal", "remote code"],
)
@pytest.mark.parametrize("from_config", [True, False])
def test_row_64_a_config_that_makes_no_causal_model(copy, config, words, from_config):
    directory = copy("tied")
    (directory / "config.json").write_text(json.dumps(config))
    problem = problem_of(directory, from_config=from_config)
    assert problem.code == "BC064"
    assert words in problem.problem


def test_row_64_a_config_that_is_no_json(copy):
    directory = copy("tied")
    (directory / "config.json").write_text("{")
    assert problem_of(directory).code == "BC064"


def test_gradient_checkpointing_changes_no_gradient(saved):
    ids = torch.arange(12)[None]
    found = []
    for on in (True, False):
        model = build(saved / "tied", gradient_checkpointing=on).train()
        assert all(layer.gradient_checkpointing is on for layer in model.model.layers)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_counting_on_the_meta_device_takes_no_memory(saved):
    for name in ("tied", "untied"):
        model = meta_model(saved / name)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        counts, real = parameter_counts(model), build(saved / name)
        assert counts.total == counts.trainable == sum(parameter.numel() for parameter in real.parameters())
        assert counts.embedding == 40 * 16
    configs = (LlamaConfig(**SIZES, tie_word_embeddings=tied) for tied in (True, False))
    tied, untied = (parameter_counts(LlamaForCausalLM(config)) for config in configs)
    assert untied.total - tied.total == 40 * 16
