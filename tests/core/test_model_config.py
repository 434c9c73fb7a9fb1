"""What is refused from config.json alone: more layers or experts than can be built, and encoders."""

import json

import pytest

from bumblecore_core.errors import ModelError
from bumblecore_core.run.model import load_config
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.model_config import read_model_config
from workbench import make_model_config


@pytest.mark.parametrize("count", [10**9, 10**40, 10_001])
@pytest.mark.parametrize(
    "path", [("num_hidden_layers",), ("n_layer",), ("num_experts",), ("text_config", "num_hidden_layers")]
)
def test_counts_of_modules_have_a_limit(tmp_path, path, count):
    make_model_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = count
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_config, load_model):
        with pytest.raises(ModelError, match=f"BC064 .*config.json model.path: {path[-1]} is .*10000 is the most"):
            load(tmp_path)


def test_other_numbers_have_none(tmp_path):
    values = {"num_hidden_layers": 126, "num_experts": 512, "max_window_layers": 10**6, "vocab_size": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path, "model.path") == values


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "camembert", "roformer", "rembert"])
def test_an_encoder_is_refused_and_its_decoder_is_not(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "is_decoder": True}))
    assert load_config(tmp_path).is_decoder
    for config in ({"model_type": kind}, {"model_type": kind, "is_decoder": False}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(
            ModelError, match=f"BC064 .*config.json model.path: model type {kind} is an encoder"
        ) as caught:
            load_config(tmp_path)
        assert "llama" in caught.value.problems[0].fix
        assert "is_decoder to true" in caught.value.problems[0].fix


@pytest.mark.parametrize("kind", ["bart", "marian", "t5", "whisper"])
def test_an_encoder_with_a_decoder_is_refused(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=f"BC064 .*model type {kind} is an encoder with a decoder"):
        load_config(tmp_path)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama", "gpt2", "xglm"])
def test_decoders_are_not_encoders(tmp_path, kind):
    """GPT-NeoX's config has `is_decoder: false` too."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert load_config(tmp_path).model_type == kind
