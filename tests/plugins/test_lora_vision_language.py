"""LoRA on vision-language models takes modules of the language model only."""

from __future__ import annotations

import pytest

from bumblecore_core.errors import ModelError
from bumblecore_core.toolkit.vision_language import tower_parameters
from bumblecore_plugins.adapters.lora import Lora
from lora_models import options
from vision_language_models import CONFIGS, make_vision_language_model


def trained(model_type, tmp_path, **given):
    """Names of the parameters that an adapter trains."""
    model = make_vision_language_model(model_type)
    towers = {id(parameter) for parameter in tower_parameters(model).values()}
    wrapped = Lora(options(**given)).wrap(model=model, base=tmp_path, checkpoint=None)
    assert not any(parameter.requires_grad for parameter in wrapped.parameters() if id(parameter) in towers)
    return [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]


def is_in_tower(name):
    return any(part in name for part in ("visual", "vision", "audio_tower", "multi_modal", "cross_attn", "connector"))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_all_linear_leaves_towers_out(model_type, tmp_path):
    names = trained(model_type, tmp_path)
    assert names
    assert not any(map(is_in_tower, names))


@pytest.mark.parametrize("targets", [["q_proj", "fc1"], r".*q_proj"])
def test_names_and_patterns_mean_modules_of_the_language_model(targets, tmp_path):
    names = trained("llava", tmp_path, target_modules=targets)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj"}
    assert not any(map(is_in_tower, names))


def test_biases_of_the_tower_are_not_trained(tmp_path):
    names = trained("qwen2_5_vl", tmp_path, bias="all")
    assert any(name.endswith("q_proj.base_layer.bias") for name in names)
    assert not any(map(is_in_tower, names))


def test_a_name_that_only_the_tower_has_matches_nothing(tmp_path):
    with pytest.raises(ModelError, match=r"no module is called 'fc1'.*outside of the towers, which stay frozen"):
        trained("llava", tmp_path, target_modules=["fc1"])
