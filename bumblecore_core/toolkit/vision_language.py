"""Checkpoints of models that also read images, audio or video, trained on text.

Such a model is a language model and towers that encode the other inputs. The language model is trained; towers and
projectors are frozen, see no batch, and are saved as they were loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import BumbleError, ModelError, one
from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.values import ModelHead

if TYPE_CHECKING:
    import torch

NOT_CAUSAL = {
    "diffusion_gemma": "it generates text by diffusion over blocks of tokens, not token by token",
    "blip": "its decoder attends to an image in every row",
    "chameleon": "its image tokenizer is a part of its language model",
    "evolla": "its decoder attends to a protein in every row",
    "idefics": "its decoder attends to an image in every row",
    "pi0": "it outputs robot actions, not text",
}
"""Why a model type has no causal language model that text could train."""
PREFIX_MODELS = {"paligemma"}
"""Types whose attention modules are marked as not causal, and become so by the mask that the complete model makes."""
ROPE_OF_ITS_OWN = {"hunyuan_vl_text", "neomme_text"}
"""Text configs with `mrope_section` whose model takes positions of two dimensions only."""


def auto_class(config: Any, head: ModelHead = "language_model") -> Any:
    """The class of transformers that loads a model of `config`: for a multimodal checkpoint the complete model, unless
    `architectures` names the text-only class of its type. Raises `ModelError` BC064 where the type has no causal
    language model, or no reward model with a tower."""
    import transformers
    from transformers.models.auto import modeling_auto

    complete = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING.get(type(config), None)
    if complete is not None and config.is_encoder_decoder:
        raise _refused(config, "it is an encoder-decoder model")
    if config.model_type in NOT_CAUSAL:
        raise _refused(config, NOT_CAUSAL[config.model_type])
    if head == "score":
        scores = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
        if is_composed(config) and (scores is None or scores.config_class is not type(config)):
            raise _refused(config, "transformers has no reward model of this type that keeps its tower")
        return transformers.AutoModelForSequenceClassification
    if complete is None or not (is_composed(config) or complete.__name__.endswith("ForCausalLM")):
        return transformers.AutoModelForCausalLM
    return getattr(transformers, loader_name(config.model_type, config.architectures or [complete.__name__]))


def loader_name(model_type: str, architectures: Sequence[str]) -> str:
    """The name of the class of transformers that loads a model of this type as one of `architectures`."""
    from transformers.models.auto import modeling_auto

    if modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) in architectures:
        return "AutoModelForCausalLM"
    if model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "AutoModelForImageTextToText"
    if model_type in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return "AutoModelForMultimodalLM"
    return "AutoModelForCausalLM"


def is_composed(config: Any) -> bool:
    """Whether `config` describes a language model among other parts."""
    try:
        return config.get_text_config() is not config
    except ValueError:  # several text models, none of which is the one
        return False


def without_adapter(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (its adapted layers stay in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def language_model(model: Any) -> Any:
    """The causal language model in a transformers `model`: mostly `model` itself, which reads text like any other; the
    one inside where that has an output head of its own (Llama 4)."""
    if not is_composed(model.config):
        return model
    decoder = model.get_decoder()
    return model if decoder.get_output_embeddings() is None else decoder


def text_backbone(model: Any) -> Any:
    """The decoder of a multimodal `model`, whose output is the last hidden state: it never looks for images. None for a
    model of text only, and where the model names no decoder."""
    if not is_composed(model.config):
        return None
    decoder = model.get_decoder()
    return None if decoder is model else decoder


def text_positions(config: Any, position_ids: torch.Tensor) -> torch.Tensor:
    """Positions of text (1, T) as the model of `config` reads them: (4, 1, T) with multimodal rotary embeddings, where
    the first row tells documents apart and the others are time, height and width, all alike for text."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if "mrope_section" not in rope or text.model_type in ROPE_OF_ITS_OWN:
        return position_ids
    return position_ids[None].expand(4, *position_ids.shape)


def tower_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters of a transformers `model` that text does not reach, by name: towers, projectors, and layers that
    attend to images (Mllama). Mostly none in a model of text only. With an adapter, those of the model inside."""
    model = without_adapter(model)
    modules = _text_modules(model) if is_composed(model.config) else [model]
    across = {id(parameter) for layer in _image_layers(model) for parameter in layer.parameters()}
    reached = {id(parameter) for module in modules for parameter in module.parameters()} - across
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in reached}


def freeze_towers(model: Any) -> None:
    """Takes gradients off the parameters that text does not reach, in a model with an adapter too."""
    for parameter in tower_parameters(model).values():
        parameter.requires_grad_(False)


def prepare_for_text(model: Any) -> None:
    """Freezes what text does not reach, and makes the attention of text causal where images and prompts would be read
    in both directions (PaliGemma passes a mask for that, which rows of text have not). Raises `ModelError` BC064 where
    the class names no decoder or no head."""
    if is_composed(model.config):
        _require_parts(model)
    freeze_towers(model)
    if model.config.model_type in PREFIX_MODELS:
        for module in text_backbone(model).modules():
            if hasattr(module, "is_causal"):
                module.is_causal = True


def tower_pattern(model: Any) -> str | None:
    """A regular expression that matches the names of the modules that text does not reach; None without any."""
    frozen = {id(parameter) for parameter in tower_parameters(model).values()}
    names = _outermost(model, frozen) if frozen else []
    return rf"(?:{'|'.join(map(re.escape, names))})(?:\..*)?" if names else None


def tower_features(model: Any, *, saved: bool) -> list[tuple[str, str]]:
    """The line of the summary about the tower. `saved`: the run saves the complete model."""
    from bumblecore_core.toolkit.shards import whole_shape

    count = sum(whole_shape(parameter).numel() for parameter in tower_parameters(model).values())
    if not count:
        return []
    reads = {kind: getattr(model.config, f"{kind}_config", None) for kind in ("vision", "audio")}
    name = "audio tower" if reads["audio"] is not None and reads["vision"] is None else "vision tower"
    return [(name, f"frozen ({count:,} parameters), {'saved unchanged' if saved else 'without an adapter'}")]


def unchanged_weights(model: Any, *, values: bool) -> Mapping[str, torch.Tensor]:
    """The weights of the towers of a just loaded `model`, by name: to be saved as they are now, whatever dtype an
    engine casts them to. Without `values` on the meta device."""
    frozen = tower_parameters(model)
    return {name: parameter.data if values else parameter.data.to("meta") for name, parameter in frozen.items()}


def _require_parts(model: Any) -> None:
    try:
        parts = text_backbone(model), model.get_input_embeddings(), model.get_output_embeddings() or score_of(model)
    except Exception as error:  # some classes do not implement these methods
        raise _refused(model.config, "its class does not name its decoder and its head") from error
    if None in parts:
        raise _refused(model.config, "its class does not name its decoder and its head")


def _text_modules(model: Any) -> list[torch.nn.Module]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings(), score_of(model))
    found = [text_backbone(model), language_model(model) if language_model(model) is not model else None, *ends]
    return [module for module in found if module is not None]


def _image_layers(model: Any) -> list[torch.nn.Module]:
    if not getattr(model.config.get_text_config(), "cross_attention_layers", None):
        return []
    return [module for module in model.modules() if type(module).__name__.endswith("CrossAttentionDecoderLayer")]


def _outermost(module: Any, frozen: set[int], prefix: str = "") -> list[str]:
    """Names of the largest modules whose parameters are all in `frozen` (ids)."""
    names = []
    for name, child in module.named_children():
        own = [id(parameter) for parameter in child.parameters()]
        if own and frozen.issuperset(own):
            names.append(prefix + name)
        else:
            names += _outermost(child, frozen, f"{prefix}{name}.")
    return names


def _refused(config: Any, reason: str) -> BumbleError:
    problem = f"the model type {config.model_type} cannot be trained on text: {reason}"
    fix = "Use a model with a causal language model, such as qwen2_5_vl or gemma3"
    return one(ModelError, "BC064", problem, fix, field="model.path")
