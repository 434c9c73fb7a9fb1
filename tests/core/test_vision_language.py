"""Which class loads a vision-language checkpoint, what is frozen, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from bumblecore_core.errors import ModelError
from bumblecore_core.run.model import build_model, meta_model, parameter_counts
from bumblecore_core.run.speed import count_flops
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.tokenizers import load_tokenizer
from bumblecore_core.toolkit.vision_language import (
    auto_class,
    tower_features,
    tower_parameters,
    tower_pattern,
    unchanged_weights,
)
from tiny_models import make_model
from vision_language_models import CONFIGS, make_config, make_vision_language_model, save_vision_language_model
from workbench import make_tokenizer


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_directory_is_loaded_as_the_class_that_saved_it(model_type, tmp_path):
    directory = save_vision_language_model(model_type, tmp_path)
    saved = json.loads((directory / "config.json").read_text())["architectures"]
    assert [type(build_model(directory=directory, from_config=False, attention="eager", seed=0)).__name__] == saved
    assert [type(load_model(directory)).__name__] == saved


@pytest.mark.parametrize("model_type", ["qwen3_5", "llama4", "mllama"])
def test_architectures_decide_between_the_complete_and_the_text_only_class(model_type):
    config = make_config(model_type)
    name = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    assert auto_class(config) is transformers.AutoModelForImageTextToText
    config.architectures = [name]
    assert auto_class(config) is transformers.AutoModelForCausalLM


@pytest.mark.parametrize("model_type", ["mistral3", "voxtral"])
def test_text_only_models_and_audio_models(model_type):
    assert auto_class(make_config(model_type).text_config) is transformers.AutoModelForCausalLM
    audio = model_type == "voxtral"
    wanted = transformers.AutoModelForMultimodalLM if audio else transformers.AutoModelForImageTextToText
    assert auto_class(make_config(model_type)) is wanted


def test_a_model_of_text_has_no_tower():
    model = make_model("qwen3")
    assert (tower_parameters(model), tower_pattern(model), tower_features(model, saved=True)) == ({}, None, [])


def test_counts_and_flops_leave_the_tower_out(tmp_path):
    directory = save_vision_language_model("llava", tmp_path)
    model = meta_model(directory)
    tower = sum(parameter.numel() for parameter in tower_parameters(model).values())
    counts = parameter_counts(model)
    assert counts.trainable == counts.total - tower
    assert tower_features(model, saved=True) == [("vision tower", f"frozen ({tower:,} parameters), saved unchanged")]
    text = transformers.AutoModelForCausalLM.from_config(model.config.text_config)
    assert counts.trainable == parameter_counts(text).total
    assert count_flops(model).per_token == count_flops(text).per_token > 0


def test_layers_of_mllama_that_attend_to_images_are_frozen():
    frozen = tower_parameters(make_vision_language_model("mllama"))
    layers = {name.split(".layers.")[1][0] for name in frozen if "language_model.layers." in name}
    assert layers == {"1"}
    assert any("vision_model" in name for name in frozen)


def test_the_tower_of_an_audio_model_is_named_so():
    assert [name for name, _ in tower_features(make_vision_language_model("voxtral"), saved=True)] == ["audio tower"]


def test_values_that_are_kept_for_saving_are_those_that_were_loaded():
    model = make_vision_language_model("qwen2_5_vl").to(torch.bfloat16)
    kept, names = unchanged_weights(model, values=True), unchanged_weights(model, values=False)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    model.float()
    assert kept.keys() == names.keys() == tower_parameters(model).keys()
    assert all(torch.equal(kept[name], before[name]) and kept[name].dtype == torch.bfloat16 for name in kept)
    assert all(tensor.is_meta for tensor in names.values())


@pytest.mark.parametrize(
    ("model_type", "head", "reason"),
    [
        ("florence2", "language_model", "florence2 is an encoder with a decoder"),
        ("diffusion_gemma", "language_model", "diffusion_gemma cannot be trained on text: it generates text by diff"),
        ("qwen2_5_vl", "score", "qwen2_5_vl cannot be trained on text: transformers has no reward model"),
        ("chameleon", "language_model", "chameleon cannot be trained on text: its image tokenizer is a part"),
    ],
)
def test_types_that_cannot_be_trained_are_named_with_the_reason(model_type, head, reason, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=reason) as caught:
        build_model(directory=tmp_path, from_config=True, attention="eager", seed=0, head=head, pad_token_id=0)
    assert caught.value.problems[0].code == "BC064"
    assert caught.value.problems[0].field == "model.path"


def test_a_template_that_only_the_processor_has_is_the_tokenizers(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert load_tokenizer(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert load_tokenizer(tmp_path).chat_template == "{{ messages[0].content }}"
