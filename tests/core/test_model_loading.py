"""Building models from local directories: exactness of what is loaded, and the errors for what is wrong with it."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bumblecore_core import AttentionFunctions, AttentionRecord, BumbleError
from bumblecore_core.run.attention import select_attention
from bumblecore_core.run.groups import parameter_groups
from bumblecore_core.run.model import build_model, load_config, meta_model, model_directory, parameter_counts

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass
class Vocabulary:
    """Stands for a tokenizer: ids from 0 to `largest`."""

    largest: int

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(self.largest + 1)}

    def __len__(self) -> int:
        return self.largest + 1


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


def test_row_27_a_tokenizer_with_ids_beyond_the_embedding(saved):
    build(saved / "tied", tokenizer=Vocabulary(39))
    for from_config in (True, False):
        problem = problem_of(saved / "tied", tokenizer=Vocabulary(40), from_config=from_config)
        assert (problem.code, problem.field) == ("BC027", "model.tokenizer")
        assert "ids up to 40 (41 tokens)" in problem.problem
        assert "40 rows" in problem.problem


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


def test_a_path_is_a_directory_with_a_config_or_a_runs_output(saved, tmp_path):
    assert model_directory(str(saved / "tied")) == saved / "tied"
    (tmp_path / "run" / "final").mkdir(parents=True)
    shutil.copy(saved / "tied" / "config.json", tmp_path / "run" / "final")
    assert model_directory(str(tmp_path / "run")) == tmp_path / "run" / "final"


def test_a_path_that_is_not_there_gets_the_nearest_name(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, words in (
        (saved / "untide", "did you mean 'untied'"),
        (tmp_path / "empty", "no config.json"),
        (tmp_path / "file", "not a directory"),
        (Path("Qwen/Qwen3-0.6B"), "does not exist"),
    ):
        with pytest.raises(BumbleError, match=words) as caught:
            model_directory(str(path))
        assert caught.value.problems[0].code == "BC061"


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


def attention(name, priority=0, reason=None, functions=None) -> AttentionRecord:
    return AttentionRecord(
        name=name,
        summary="For a test.",
        load=lambda: functions or AttentionFunctions(),
        unsupported=lambda *, device, dtype: reason,
        priority=priority,
    )


CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def test_auto_takes_the_best_attention_that_runs_and_says_why_not_the_better():
    records = [attention("plain"), attention("best", 9, "needs CUDA"), attention("good", 5)]
    assert select_attention(records, "auto", **CPU) == ("good", ["good", "not best: needs CUDA"])
    assert select_attention(records, "plain", **CPU) == ("plain", ["plain"])


@pytest.mark.parametrize(("name", "code", "words"), [("best", "BC039", "needs CUDA"), ("god", "BC056", "'good'")])
def test_an_attention_that_is_unknown_or_cannot_run(name, code, words):
    with pytest.raises(BumbleError, match=words) as caught:
        select_attention([attention("best", 9, "needs CUDA"), attention("good")], name, **CPU)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == (code, "model.attention")


def test_no_attention_that_runs_lists_every_reason():
    with pytest.raises(BumbleError, match="not a: one; not b: two"):
        select_attention([attention("a", 1, "one"), attention("b", 0, "two")], "auto", **CPU)


def test_an_attention_of_our_own_is_called_by_the_model_and_not_saved(saved, tmp_path):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    masks, calls = [], []

    def forward(module, query, key, value, attention_mask, **kwargs):
        calls.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=True, **kwargs)

    functions = AttentionFunctions(forward=forward, mask=lambda *args, **kwargs: masks.append(1))
    name, _ = select_attention([attention("counting", functions=functions)], "auto", **CPU)
    assert name == "bumble_counting"
    for from_config in (True, False):
        calls.clear()
        model = build(saved / "tied", attention=name, from_config=from_config)
        reference = build(saved / "tied", from_config=from_config)
        ids = torch.arange(12)[None]
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits)
        assert calls == [None, None]
    model.save_pretrained(tmp_path / "out")
    assert "counting" not in (tmp_path / "out" / "config.json").read_text()
    assert load_config(tmp_path / "out")._attn_implementation != name


def test_groups_by_kind_each_tied_parameter_once(saved):
    model = build(saved / "tied")
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
