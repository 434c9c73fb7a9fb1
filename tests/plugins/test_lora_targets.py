"""Which modules the adapter `lora` takes, and which options exclude one another."""

import json

import pytest
import torch

from bumblecore_core import ConfigError, ModelError
from bumblecore_core.toolkit import limits
from bumblecore_core.toolkit.adapters import fold_in
from bumblecore_plugins.adapters import LoraOptions
from lora_models import moved, save, tiny_base, wrapped
from lora_runs import logits_of
from tiny_models import make_model


@pytest.fixture
def base(tmp_path):
    """A directory with the weights of `make_model("qwen3")`."""
    return tiny_base(tmp_path / "base")


def adapted(model) -> set[str]:
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_all_linear_leaves_the_head_alone(base):
    _, model = wrapped(base)
    assert adapted(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_regular_expression_matches_whole_names(base):
    _, model = wrapped(base, target_modules=r"model\.layers\.1\..*(q|v)_proj")
    assert adapted(model) == {"q_proj", "v_proj"}
    assert not any("layers.0" in name for name, p in model.named_parameters() if p.requires_grad)


def test_names_without_a_match_are_warned_of(base):
    adapter, model = wrapped(base, target_modules=["q_proj", "qkv", "c_attn"], modules_to_save=["norm", "score"])
    assert adapted(model) == {"q_proj"}
    targets, saved = adapter.describe(model=model)[1]
    assert targets.startswith("BC032 adapter.target_modules: no module is called 'qkv', 'c_attn'; ")
    assert "q_proj" in targets
    assert saved == "BC032 adapter.modules_to_save: no module is called 'score'"
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert trained == {"base_model.model.model.norm.modules_to_save.default.weight"}  # and no layer's own norm


@pytest.mark.parametrize(
    ("given", "code", "found"),
    [
        ({"target_modules": ["qkv"]}, "BC031", "down_proj, gate_proj, k_proj"),
        ({"target_modules": "q_proj"}, "BC031", "Write [q_proj]"),
        ({"target_modules": ".*nothing.*"}, "BC031", "down_proj"),
        ({"target_modules": ["self_attn"]}, "BC031", "model.layers.0.self_attn is a Qwen3Attention"),
        ({"target_modules": ["q_norm"]}, "BC031", "Qwen3RMSNorm"),
        ({"modules_to_save": ["score"]}, "BC031", "lm_head"),
        ({"target_modules": ["embed_tokens"], "init": "pissa"}, "BC039", "embed_tokens"),
    ],
)
def test_targets_that_cannot_be_taken(base, given, code, found):
    with pytest.raises((ModelError, ConfigError)) as caught:
        wrapped(base, **given)
    assert caught.value.problems[0].code == code
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ".*(lm_head|q_proj)"},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_tied_weights_are_refused(base, given):
    with pytest.raises(ConfigError, match=r"BC039 adapter.*tie_word_embeddings"):
        wrapped(base, "qwen3_tied", **given)
    wrapped(base, "qwen3", **given)


def test_tied_models_keep_their_tie(base, tmp_path):
    adapter, model = wrapped(base, "qwen3_tied")
    directory = save(adapter, moved(model), tmp_path / "adapter")
    merged = fold_in(make_model("qwen3_tied"), directory)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(logits_of(merged), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "a", "rank": 16}, "rank"),
        ({"path": "a", "alpha": 16, "init": "pissa"}, "alpha and init"),
        ({"init": "pissa", "dropout": 0.1}, "dropout"),
        ({"init": "olora", "modules_to_save": ["norm"]}, "modules_to_save"),
        ({"init": "orthogonal", "rank": 3}, "even"),
        ({"target_modules": ["norm"], "modules_to_save": ["norm"]}, "norm"),
    ],
)
def test_options_that_conflict(given, said):
    with pytest.raises(ValueError, match=f"conflict: .*{said}"):
        LoraOptions(**given)


@pytest.mark.parametrize(
    "given", [{"target_modules": "("}, {"target_modules": []}, {"init": "eva"}, {"init": "pissa_"}]
)
def test_options_that_are_wrong(given):
    with pytest.raises(ValueError, match="Value error"):
        LoraOptions(**given)


def test_a_regular_expression_that_takes_exponential_time(base, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TICK_SECONDS", 0.1)
    slow = r"(\w+\.?)+!"
    with pytest.raises(ModelError, match=r"BC092 adapter.target_modules: matching .* took more than 0.1 seconds"):
        wrapped(base, target_modules=slow)
    adapter, model = wrapped(base)
    config = save(adapter, model, tmp_path / "adapter") / "adapter_config.json"
    for key, value in (("target_modules", slow), ("rank_pattern", {slow: 2})):
        config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
        with pytest.raises(ModelError, match=f"BC092 {config} model.path"):
            fold_in(model.get_base_model(), tmp_path / "adapter")


@pytest.mark.parametrize("pattern", ["(", "(" * 5000 + ")" * 5000, "a{99999999999}"])
def test_what_is_no_regular_expression(pattern):
    with pytest.raises(ValueError, match="not a regular expression"):
        LoraOptions(target_modules=pattern)


def test_a_rank_above_every_dimension_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"BC039 adapter.rank: the rank 1000000000 is larger than every dimension"):
        wrapped(tmp_path, rank=10**9)
