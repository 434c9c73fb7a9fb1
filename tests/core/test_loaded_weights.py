"""The check of what transformers loaded: it finds wrong weights by name, and has nothing to say about right ones."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bumblecore_core.errors import ModelError
from bumblecore_core.run.model import build_model
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.loaded_weights import check_loaded_weights
from tiny_models import FAMILIES, ROTARY, SPECIAL_TOKENS, make_model

MOE = {**SPECIAL_TOKENS, **ROTARY, "num_experts_per_tok": 2}


def randomized(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # no norm weight stays one, no bias zero
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture
def saved(tmp_path):
    """A directory with a Qwen3 whose head is tied."""
    randomized(make_model("qwen3_tied")).save_pretrained(tmp_path)
    return tmp_path


def load(directory, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def rewrite(directory, change):
    """Changes the stored tensors."""
    tensors = load_file(directory / "model.safetensors")
    save_file(change(tensors), directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_weights_of_every_family_and_dtype(tmp_path, family, dtype):
    randomized(make_model(family, attention="eager")).save_pretrained(tmp_path)
    check_loaded_weights(load(tmp_path, dtype), tmp_path)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
def test_experts_that_transformers_fuses_are_left_out(tmp_path, name):
    options = {"num_local_experts": 4} if name == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    config = getattr(transformers, f"{name}Config")(**MOE, **options)
    randomized(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    model = load(tmp_path)
    check_loaded_weights(model, tmp_path)
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
    with pytest.raises(ModelError, match=r"BC030 .* 1 weights \(model\.norm\.weight\)"):
        check_loaded_weights(model, tmp_path)


def test_norm_weights_that_stayed_ones(saved):
    model = load(saved)
    norms = [name for name, _ in model.named_parameters() if "norm" in name]
    with torch.no_grad():
        for name in norms:
            model.get_parameter(name).fill_(1)
    with pytest.raises(ModelError) as caught:
        check_loaded_weights(model, saved)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.place) == ("BC030", "model.path", str(saved))
    assert problem.problem.startswith(f"{len(norms)} weights (model.layers.0.input_layernorm.weight, ")
    assert f"transformers {transformers.__version__}" in problem.fix


@pytest.mark.parametrize("index", [0, 15, -1])
def test_a_place_that_is_sampled(saved, index):
    model = load(saved)
    with torch.no_grad():
        model.model.norm.weight[index] += 1
    with pytest.raises(ModelError, match="BC030"):
        check_loaded_weights(model, saved)


def test_files_of_mixed_dtypes(saved):
    rewrite(saved, lambda tensors: {n: t if t.dim() == 1 else t.bfloat16() for n, t in tensors.items()})
    for dtype in (torch.float32, torch.bfloat16, "auto"):
        check_loaded_weights(load(saved, dtype), saved)


def test_values_that_are_not_finite_are_equal_to_themselves(saved):
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")])
    rewrite(saved, lambda tensors: {**tensors, "model.norm.weight": torch.cat([odd, tensors["model.norm.weight"][3:]])})
    check_loaded_weights(load(saved), saved)


def test_names_without_the_base_models_prefix(saved):
    rewrite(saved, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    model = load(saved)
    check_loaded_weights(model, saved)
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        check_loaded_weights(model, saved)


def test_a_tied_weight_is_loaded_where_one_of_its_names_is(saved):
    """Older files hold a head that is not used besides the embedding."""
    model = load(saved)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    rewrite(saved, lambda tensors: {**tensors, "lm_head.weight": torch.zeros(model.lm_head.weight.shape)})
    check_loaded_weights(model, saved)


def test_shards_are_all_compared(tmp_path):
    randomized(make_model("llama")).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = load(tmp_path)
    check_loaded_weights(model, tmp_path)
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.zero_()
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            check_loaded_weights(model, tmp_path)
        with torch.no_grad():
            parameter.copy_(before)


def test_a_weight_that_no_file_holds(saved):
    model = load(saved)
    rewrite(saved, lambda tensors: {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    with pytest.raises(ModelError, match=r"BC030 .* 1 weights \(model\.norm\.weight\) were not loaded"):
        check_loaded_weights(model, saved)
    check_loaded_weights(model, saved, fresh=["model.norm.weight"])


def test_the_padding_row_that_a_model_zeroes_is_not_compared(saved):
    model = load(saved)
    assert model.model.embed_tokens.padding_idx == 0
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = 0
    check_loaded_weights(model, saved)
    with torch.no_grad():
        model.model.embed_tokens.weight[-1] = 0
    with pytest.raises(ModelError, match="embed_tokens"):
        check_loaded_weights(model, saved)


def test_rules_of_another_version_say_nothing(saved):
    model = load(saved)
    model._weight_conversions = [object()]
    with torch.no_grad():
        model.model.norm.weight.fill_(1)
    check_loaded_weights(model, saved)


def test_pickled_weights_are_not_compared(saved):
    model = load(saved)
    (saved / "model.safetensors").unlink()
    check_loaded_weights(model, saved)


@pytest.mark.parametrize("loader", ["run", "commands"])
def test_every_way_of_loading_a_model_is_checked(saved, monkeypatch, loader):
    original = transformers.AutoModelForCausalLM.from_pretrained

    def forgets_norms(*args, **options):
        result = original(*args, **options)
        with torch.no_grad():
            (result[0] if isinstance(result, tuple) else result).model.norm.weight.fill_(1)
        return result

    def build():
        if loader == "run":
            return build_model(directory=saved, from_config=False, attention="sdpa", seed=0)
        return load_model(saved)

    build()
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", forgets_norms)
    with pytest.raises(ModelError, match=r"BC030 .*model\.norm\.weight"):
        build()


def test_an_index_names_the_files(tmp_path):
    randomized(make_model("qwen3")).save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "stray.safetensors")
    assert "stray.safetensors" not in index["weight_map"].values()
    check_loaded_weights(load(tmp_path), tmp_path)
