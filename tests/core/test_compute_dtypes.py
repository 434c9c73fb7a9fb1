"""A model that an engine casts to half precision against transformers' own, loaded in that dtype: bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bumblecore_core.run.model import build_model
from bumblecore_plugins.engines.precision import cast
from zoo.model_types import tiny_config
from zoo.rows import ROWS

TYPES = {
    "gemma3_text": "embeddings are scaled by a computed buffer",
    "minimax": "decays are loaded buffers",
    "xglm": "sinusoids are a computed buffer",
    "falcon_h1": "multipliers are a computed buffer",
    "gptj": "sinusoids are computed in float32 in any dtype",
    "olmo_hybrid": "a parameter is float32 in any dtype",
    "deepseek_v3": "the router's weights and buffer are float32 by name",
}


def saved(directory: Path, name: str, dtype: torch.dtype) -> Path:
    """A model of random weights with a file in `dtype`."""
    torch.manual_seed(0)
    config = tiny_config(next(row for row in ROWS if row.name == name))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(directory)
    return directory


def build(directory: Path, **options):
    return build_model(directory=directory, from_config=False, attention="eager", seed=0, **options)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_what_computes_in_bf16_is_what_transformers_loads_in_bf16(tmp_path, name, stored):
    directory = saved(tmp_path, name, stored)
    twin = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.bfloat16).eval()
    model = build(directory, dtype=stored, compute_dtype=torch.bfloat16)
    cast(model, torch.bfloat16, master_weights=True, float32_gradients=True)
    for own, other in (
        (model.named_buffers(), twin.named_buffers()),
        (model.named_parameters(), twin.named_parameters()),
    ):
        expected = dict(other)
        for key, value in own:
            assert value.dtype == expected[key].dtype, key
            assert torch.equal(value, expected[key]), key
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, twin(input_ids=ids).logits)


@pytest.mark.parametrize("skeleton", [False, True])
@pytest.mark.parametrize("name", ["gemma3_text", "falcon_h1"])
def test_a_resumed_run_has_the_buffers_that_it_began_with(tmp_path, name, skeleton):
    """A run over bf16 files resumes from float32 masters; a rank without weights has the same buffers."""
    directory = saved(tmp_path, name, torch.bfloat16)
    for compute in (torch.bfloat16, torch.float32, torch.float16):
        began = build(directory, dtype=torch.bfloat16, compute_dtype=compute)
        resumed = build(directory, dtype=torch.float32, compute_dtype=compute, skeleton=skeleton)
        assert {parameter.dtype for parameter in resumed.parameters()} == {torch.float32}
        expected = dict(began.named_buffers())
        for key, buffer in resumed.named_buffers():
            assert buffer.dtype == expected[key].dtype
            assert torch.equal(buffer, expected[key]), key
        assert resumed.state_dict().keys() == began.state_dict().keys()


def test_float32_training_of_bf16_files_has_the_buffers_of_a_float32_model(tmp_path):
    directory = saved(tmp_path, "gemma3_text", torch.bfloat16)
    scale = build(directory, dtype=torch.bfloat16, compute_dtype=torch.float32).model.embed_tokens.embed_scale
    twin = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert torch.equal(scale, twin.model.embed_tokens.embed_scale)
