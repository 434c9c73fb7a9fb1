"""Saved generation configs: the tokens that end a reply, and settings that transformers would not save."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bumblecore_core import ModelError
from bumblecore_core.toolkit.generation import add_stop_ids, save_model, take_generation_config
from tiny_models import make_model


def stop_of(directory):
    return [json.loads((directory / name).read_text())["eos_token_id"] for name in STOP_FILES]


STOP_FILES = ("config.json", "generation_config.json")


@pytest.mark.parametrize("own", [7, [7], [7, 5]])
def test_stop_ids_follow_the_models_own(tmp_path, own):
    model = make_model("qwen3")
    model.config.eos_token_id = model.generation_config.eos_token_id = own
    add_stop_ids(model, [5, 7])
    save_model(model, tmp_path)
    assert stop_of(tmp_path) == [[7, 5], [7, 5]]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [7, 5]


def test_nothing_changes_without_ids_or_with_known_ones():
    model = make_model("qwen3")
    model.generation_config.eos_token_id = 7
    for ids in ([], [7]):
        add_stop_ids(model, ids)
        assert model.generation_config.eos_token_id == 7


def test_contradicting_settings_are_saved_as_they_are(tmp_path):
    model = make_model("qwen3")
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.6, eos_token_id=3)
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "refused")
    save_model(model, tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["temperature"], saved["eos_token_id"]) == (0.6, 3)
    assert model.generation_config.temperature == 0.6
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_unusable_generation_config_of_an_adapter(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "end"}')
    with pytest.raises(ModelError) as raised:
        take_generation_config(make_model("qwen3"), tmp_path)
    assert raised.value.problems[0].code == "BC064"
