"""Adapter configs that are damaged or ask for more than the adapter has: coded errors, before PEFT builds anything."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bumblecore_core.errors import ModelError
from bumblecore_core.toolkit.adapters import fold_in, load_model, read_adapter_config
from lora_models import save, tiny_base, wrapped
from tiny_models import make_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a base model's directory, an adapter of rank 4 on it)."""
    base = tiny_base(tmp_path_factory.mktemp("base"))
    adapter, model = wrapped(base)
    return base, save(adapter, model, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def changed(made, tmp_path):
    """The adapter with other values in its config."""

    def change(**values):
        config = json.loads((made[1] / "adapter_config.json").read_text())
        directory = tmp_path / "adapter"
        directory.mkdir()
        (directory / "adapter_model.safetensors").symlink_to(made[1] / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps({**config, **values}))
        return directory

    return change


def refused(directory):
    with pytest.raises(ModelError) as raised:
        fold_in(make_model("qwen3"), directory)
    (problem,) = raised.value.problems
    assert problem.place.startswith(str(directory))
    return problem


@pytest.mark.parametrize(
    ("values", "code", "part"),
    [
        ({"target_modules": "("}, "BC064", "unterminated subpattern"),
        ({"target_modules": [["q_proj"]]}, "BC064", "PEFT cannot"),
        ({"target_modules": 3}, "BC064", "PEFT cannot"),
        ({"bias": "some"}, "BC064", "PEFT cannot"),
        ({"lora_alpha": "large"}, "BC064", "PEFT cannot"),
        ({"lora_alpha": 1e308}, "BC064", "PEFT cannot use this adapter"),
        ({"r": 10**9}, "BC064", "the rank 1000000000 (r) is larger than the adapter"),
        ({"r": 8.5}, "BC064", "PEFT cannot"),
        ({"r": -8}, "BC033", "its modules are not in this model"),
        ({"rank_pattern": {"q_proj": 10**9}}, "BC064", "rank_pattern"),
        ({"rank_pattern": {"none_such": 49}}, "BC064", "the rank 49 (rank_pattern) is larger than the adapter"),
        ({"layer_replication": [[0, 10**9]]}, "BC064", "layer_replication"),
        ({"layer_replication": [[0, 6000], [0, 6000]]}, "BC064", "layer_replication is larger than the adapter"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "BC064", "megatron_config"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "BC064", "PROMPT_TUNING does not change weights"),
        ({"peft_type": "XLORA"}, "BC064", "XLORA"),
        ({"peft_type": "NONE_SUCH"}, "BC064", "cannot read"),
        ({"peft_type": ["LORA"]}, "BC064", "cannot read"),
        ({"target_modules": ["none_such"]}, "BC033", "not in this model"),
    ],
    ids=str,
)
def test_values_that_peft_cannot_use(changed, values, code, part):
    problem = refused(changed(**values))
    assert problem.code == code
    assert part in problem.problem


@pytest.mark.parametrize("values", [{}, {"rank_pattern": {"none_such": 48}}, {"lora_alpha": 4.5}])
def test_values_that_it_can(changed, values):
    fold_in(make_model("qwen3"), changed(**values))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(changed, value):
    directory = changed()
    tensors = load_file(directory / "adapter_model.safetensors")
    tensors[min(tensors)].view(-1)[0] = value
    rewrite(directory, tensors)
    assert refused(directory).code == "BC064"


def test_weights_that_have_no_place(changed):
    directory = changed()
    rewrite(directory, {**load_file(directory / "adapter_model.safetensors"), "none_such.weight": torch.ones(2)})
    problem = refused(directory)
    assert problem.code == "BC033"
    assert problem.problem.endswith(": none_such.weight has no place")


def rewrite(directory, tensors):
    file = directory / "adapter_model.safetensors"
    file.unlink()  # a link to what other tests read
    save_file(tensors, file)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\ud800"])
def test_configs_that_are_no_object(changed, content):
    directory = changed()
    (directory / "adapter_config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    for load in (read_adapter_config, load_model):
        with pytest.raises(ModelError, match="BC064"):
            load(directory)


@pytest.mark.parametrize("base", ["~nobody_of_this_name/base", "x" * 5000, "a\0b", "\ud800", 3, ["a"], {"a": 1}])
def test_a_base_that_is_no_path(changed, base):
    with pytest.raises(ModelError, match="BC061"):
        load_model(changed(base_model_name_or_path=base))


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100])
def test_weights_that_are_none(changed, content):
    directory = changed()
    (directory / "adapter_model.safetensors").unlink()
    assert refused(directory).code == "BC029"
    (directory / "adapter_model.safetensors").write_bytes(content)
    assert refused(directory).code == "BC064"
