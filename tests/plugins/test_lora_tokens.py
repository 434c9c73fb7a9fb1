"""Rows of new tokens that an adapter trains, in tied and untied models, and values that an adapter brings along."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from bumblecore_core import ConfigError, ModelError
from bumblecore_core.toolkit.adapters import fold_in
from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from lora_models import moved, options, save, tiny_base
from lora_runs import logits_of
from peft_adapters import saved, trained
from tiny_models import VOCABULARY, make_model

NEW = (VOCABULARY - 2, VOCABULARY - 1)
IDS = torch.tensor([[3, *NEW, 4, NEW[0], 5]])


def with_tokens(family, tmp_path, **given):
    """(adapter, model) of a run that adds the last two tokens of the vocabulary."""
    adapter = Lora(options(**given))
    torch.manual_seed(1)
    return adapter, adapter.wrap(model=make_model(family), base=tmp_path / "base", checkpoint=None, new_tokens=NEW)


@pytest.mark.parametrize(
    ("family", "ends", "given"),
    [
        ("qwen3", 2, {"use_dora": True}),
        ("qwen3", 2, {"init": "pissa"}),
        ("qwen3_tied", 1, {}),
        ("qwen3_tied", 1, {"init": "pissa"}),
        ("gpt2", 1, {"bias": "all"}),
    ],
)
def test_new_tokens_are_trained_saved_and_folded_in(tmp_path, family, ends, given):
    adapter, model = with_tokens(family, tmp_path, **given)
    rows = {name: p for name, p in trained(model).items() if "trainable_tokens_delta" in name}
    assert [tuple(p.shape) for p in rows.values()] == [(2, 32)] * ends
    before = model(input_ids=IDS).logits
    torch.testing.assert_close(before, make_model(family)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)

    moved(model).eval()
    directory = save(adapter, model, tmp_path / "adapter")
    assert {name for name in model.state_dict() if adapter.saves(name=name)} == trained(model).keys()
    config, tensors = saved(directory)
    assert len([name for name in tensors if "trainable_tokens" in name]) == ends
    assert len(config["trainable_token_indices"]) == ends

    merged = fold_in(make_model(family), directory).eval()
    torch.testing.assert_close(merged(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    old, new = make_model(family).get_input_embeddings().weight, merged.get_input_embeddings().weight
    changed = (old != new).any(1)
    assert changed.nonzero()[:, 0].tolist() == list(NEW)
    assert (merged.get_output_embeddings().weight is new) == (ends == 1)

    with adapter.base_policy(model=model), torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=1e-4, atol=1e-4)

    again = Lora(options(**given))
    other = again.wrap(model=make_model(family), base=tmp_path / "base", checkpoint=directory, new_tokens=NEW)
    assert trained(other).keys() == trained(model).keys()
    for name, parameter in trained(model).items():
        assert torch.equal(trained(other)[name], parameter), name


def test_rows_of_an_output_layer_with_a_bias_are_refused(tmp_path):
    import transformers

    config = transformers.PhiConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=r"BC103 adapter: .*without its bias, and base_model.model.lm_head has one"):
        Lora(options(target_modules=["q_proj"])).wrap(model=model, base=tmp_path, checkpoint=None, new_tokens=NEW)


def peft_made(tmp_path, family="qwen3", **given):
    """An adapter directory made by PEFT."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_model(family), LoraConfig(r=4, task_type="CAUSAL_LM", **given))
        moved(model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_a_continued_adapter_takes_no_new_tokens(tmp_path):
    directory, _ = peft_made(tmp_path, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"BC039 .*adapter.path, model.add_tokens"):
        Lora(LoraOptions(path=str(directory))).wrap(
            model=make_model("qwen3"), base=tmp_path, checkpoint=None, new_tokens=NEW
        )


def test_lora_matrices_in_shared_memory_are_refused(tmp_path):
    directory, _ = peft_made(tmp_path, "qwen3_tied", target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(ConfigError, match=r"BC103 adapter.path: .*same memory.*ensure_weight_tying"):
        Lora(LoraOptions(path=str(directory))).wrap(model=make_model("qwen3_tied"), base=tmp_path, checkpoint=None)


def test_weights_of_the_base_that_an_adapter_brings_along_are_saved_again(tmp_path):
    base = tiny_base(tmp_path / "base")
    directory, theirs = peft_made(tmp_path, target_modules=["q_proj"])
    file = directory / "adapter_model.safetensors"
    tensors, name = load_file(file), "base_model.model.model.embed_tokens.weight"
    tensors[name] = make_model("qwen3").model.embed_tokens.weight.detach() + 1
    save_file(tensors, file, metadata={"format": "pt"})
    adapter = Lora(LoraOptions(path=str(directory)))
    model = adapter.wrap(model=make_model("qwen3"), base=base, checkpoint=None)
    assert not torch.equal(logits_of(model), logits_of(theirs))
    found = saved(save(adapter, moved(model), tmp_path / "again"))[1]
    assert torch.equal(found[name], tensors[name])
    torch.testing.assert_close(
        logits_of(fold_in(make_model("qwen3"), tmp_path / "again")), logits_of(model), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("given", "expected"), [({}, 0.25), ({"dropout": 0.0}, 0.0), ({"dropout": 0.1}, 0.1)])
def test_dropout_is_the_adapters_unless_it_is_set(tmp_path, given, expected):
    directory, _ = peft_made(tmp_path, target_modules=["q_proj"], lora_dropout=0.25)
    model = Lora(LoraOptions(path=str(directory), **given)).wrap(
        model=make_model("qwen3"), base=tmp_path, checkpoint=None
    )
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert getattr(layer.lora_dropout["default"], "p", 0.0) == expected
    assert model.peft_config["default"].lora_dropout == expected


def test_an_adapter_next_to_its_bases_config_is_an_adapter(tmp_path):
    directory, theirs = peft_made(tmp_path, target_modules=["q_proj"])
    make_model("qwen3").config.save_pretrained(directory)
    model = Lora(LoraOptions(path=str(directory))).wrap(model=make_model("qwen3"), base=tmp_path, checkpoint=None)
    torch.testing.assert_close(logits_of(model), logits_of(theirs))
    make_model("qwen3").save_pretrained(directory)  # now also weights: a model, with an adapter's files left over
    assert json.loads((directory / "config.json").read_text())["model_type"] == "qwen3"
    with pytest.raises(ModelError, match=r"BC064 .*this is a model, not an adapter"):
        Lora(LoraOptions(path=str(directory))).wrap(model=make_model("qwen3"), base=tmp_path, checkpoint=None)


def test_weights_without_memory_take_what_is_loaded(tmp_path):
    """As on a rank that gets the base's weights from another one."""
    directory, theirs = peft_made(tmp_path, "llama", target_modules=["q_proj"], bias="lora_only")
    model = make_model("llama")
    for parameter in model.parameters():
        parameter.data = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    ours = Lora(LoraOptions(path=str(directory))).wrap(model=model, base=tmp_path, checkpoint=None)
    for name, parameter in trained(theirs).items():
        assert torch.equal(trained(ours)[name], parameter), name


def test_the_base_cannot_be_restored_while_ranks_share_its_biases(tmp_path):
    directory, _ = peft_made(tmp_path, "llama", target_modules=["q_proj"], bias="lora_only")
    adapter = Lora(LoraOptions(path=str(directory)))
    model = adapter.wrap(model=make_model("llama"), base=tmp_path, checkpoint=None)
    bias = model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias")
    bias.ds_shape, bias.data = bias.shape, torch.empty(0)
    expected = pytest.raises(ConfigError, match=r"BC103 adapter: .*q_proj.base_layer.bias.*ZeRO-3")
    with expected, adapter.base_policy(model=model):
        pass


@pytest.mark.parametrize("given", [{}, {"bias": "lora_only"}, {"use_dora": True}])
def test_the_score_of_a_reward_model_is_trained_and_saved(tmp_path, given):
    import transformers

    config = make_model("llama").config
    config.num_labels = 1
    torch.manual_seed(0)
    base = transformers.AutoModelForSequenceClassification.from_config(config)
    adapter = Lora(options(target_modules=["q_proj"], **given))
    model = adapter.wrap(model=base, base=tmp_path, checkpoint=None)
    tensors = saved(save(adapter, moved(model), tmp_path / "adapter"))[1]
    assert {name for name in model.state_dict() if adapter.saves(name=name)} == trained(model).keys()
    assert torch.equal(tensors["base_model.model.score.weight"], trained(model)[SCORE])


SCORE = "base_model.model.score.modules_to_save.default.weight"
