"""Tiny checkpoints of vision-language models of many families, with random weights, for tests without images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 300
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
QWEN3_VISION = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5},
}
GLM_ROPE = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
GLM_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def _with(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": model_type, **changes}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, **MROPE},
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {"text_config": {**TEXT, **MROPE}, "vision_config": QWEN3_VISION},
    "qwen3_vl_moe": {"text_config": {**TEXT, **EXPERTS, **MROPE}, "vision_config": QWEN3_VISION},
    "qwen3_5": {"text_config": {**TEXT, **LINEAR}, "vision_config": QWEN3_VISION},
    "qwen3_5_moe": {
        "text_config": {**TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 24},
        "vision_config": QWEN3_VISION,
    },
    "gemma3": {
        "text_config": {**TEXT, **WINDOWS, "query_pre_attn_scalar": 8},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 290,
    },
    "gemma4": {
        "text_config": {
            **TEXT,
            **WINDOWS,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "global_head_dim": 16,
            "num_global_key_value_heads": 2,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "position_embedding_size": 16,
        },
        "audio_config": None,
        "image_token_id": 290,
        "audio_token_id": 293,
        "video_token_id": 294,
    },
    "mistral3": {
        "text_config": _with("mistral", sliding_window=None),
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": 290,
    },
    "llama4": {
        "text_config": {
            **TEXT,
            "attention_chunk_size": 64,
            "interleave_moe_layer_step": 1,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "no_rope_layers": [1, 0],
        },
        "vision_config": {**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "mllama": {
        "text_config": {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "rope_parameters": ROPE},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "max_num_tiles": 1,
        },
    },
    "internvl": {
        "text_config": _with("qwen2"),
        "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 290,
    },
    "llava": {
        "text_config": _with("llama"),
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 290,
    },
    "llava_next": {
        "text_config": _with("mistral"),
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 290,
    },
    "llava_onevision": {
        "text_config": _with("qwen2"),
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "image_token_index": 290,
        "video_token_index": 291,
    },
    "smolvlm": {"text_config": _with("llama"), "vision_config": VISION, "image_token_id": 290, "scale_factor": 2},
    "paligemma": {
        "text_config": _with("gemma"),
        "vision_config": {**VISION, "projection_dim": 32},
        "image_token_index": 290,
        "projection_dim": 32,
    },
    "glm4v": {"text_config": {**TEXT, **GLM_ROPE}, "vision_config": {**QWEN_VISION, "image_size": 56}},
    "glm4v_moe": {
        "text_config": {**TEXT, **GLM_EXPERTS, **GLM_ROPE},
        "vision_config": {**QWEN_VISION, "image_size": 56},
    },
    "aya_vision": {
        "text_config": _with("cohere2", sliding_window=8),
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "image_token_index": 290,
        "downsample_factor": 2,
    },
    "voxtral": {
        "text_config": _with("llama"),
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_mel_bins": 8,
            "max_source_positions": 16,
        },
        "audio_token_id": 290,
    },
}
"""Model type to configuration: multimodal rotary embeddings, windows, chunks, experts, linear attention, layers that
attend to images, and an audio model."""
ONE_DOCUMENT_AT_A_TIME = {"qwen3_5", "qwen3_5_moe"}
"""Types whose layers carry a state across documents of a sequence."""


def make_config(model_type: str, **changes: Any) -> Any:
    """The configuration of a tiny model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**{**CONFIGS[model_type], **changes})


def make_vision_language_model(model_type: str, **changes: Any) -> Any:
    """The complete model (language model and towers), in evaluation mode, with weights large enough to matter."""
    torch.manual_seed(0)
    config = make_config(model_type, **changes)
    model = transformers.AutoModelForMultimodalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.numel() > 32:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


def save_vision_language_model(
    model_type: str, directory: Path, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """A directory as such a model is published: weights, config.json, and processor files."""
    model = make_vision_language_model(model_type, **changes)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    return directory
