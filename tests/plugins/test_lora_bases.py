"""Adapters that go on, adapters of another base, and adapters on top of adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core import ModelError
from bumblecore_core.toolkit.adapters import adapter_chain, fold_in, load_model, tokenizer_source
from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from lora_models import moved, options, save, tiny_base, wrapped
from lora_runs import by_hand, logits_of
from tiny_models import make_model


@pytest.fixture
def base(tmp_path):
    """A directory with the weights of `make_model("qwen3")`."""
    return tiny_base(tmp_path / "base")


def adapted(model) -> set[str]:
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_path_goes_on_from_an_adapter(base, tmp_path):
    adapter, model = wrapped(base, init="pissa", alpha=5, target_modules=["q_proj", "up_proj"])
    first = save(adapter, moved(model), tmp_path / "first")
    further = Lora(LoraOptions(path=str(first), dropout=0.25))
    again = further.wrap(model=make_model("qwen3"), base=base, checkpoint=None)
    torch.testing.assert_close(logits_of(again), logits_of(model), rtol=1e-4, atol=1e-4)
    assert adapted(again) == {"q_proj", "up_proj"}
    assert all(".lora_" in name for name, parameter in again.named_parameters() if parameter.requires_grad)
    assert "rank 8, alpha 10, 4 modules; dropout 0.25" in further.describe(model=again)[0]  # twice the rank
    second = save(further, moved(again), tmp_path / "second")
    torch.testing.assert_close(logits_of(by_hand(base, second)), logits_of(again), rtol=1e-4, atol=1e-4)


def test_path_keeps_the_adapters_dropout_where_none_is_set(base, tmp_path):
    adapter, model = wrapped(base, dropout=0.25, target_modules=["q_proj"])
    further = Lora(LoraOptions(path=str(save(adapter, model, tmp_path / "first"))))
    again = further.wrap(model=make_model("qwen3"), base=base, checkpoint=None)
    assert "dropout 0.25" in further.describe(model=again)[0]


def test_an_adapter_is_folded_into_bf16_weights_with_one_rounding(tmp_path):
    half = make_model("qwen3", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    adapter, model = wrapped(tmp_path / "half", alpha=16)
    directory = save(adapter, moved(model), tmp_path / "adapter")
    tensors = load_file(directory / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    once = (half.get_submodule(name).weight.float() + 16 / 4 * (b @ a)).bfloat16()
    folded = load_model(directory).get_submodule(name).weight
    assert folded.dtype == torch.bfloat16
    assert (folded == once).float().mean() > 0.999  # sums of another order round otherwise at a boundary


def test_an_adapter_of_another_base_is_refused_with_both_names_and_shapes(base, tmp_path):
    adapter, model = wrapped(base)
    directory = save(adapter, model, tmp_path / "adapter")
    wider = make_model("qwen3", intermediate_size=40)
    wider.config._name_or_path = "wider-model"
    with pytest.raises(ModelError) as caught:
        Lora(LoraOptions(path=str(directory))).wrap(model=wider, base=base, checkpoint=None)
    text = str(caught.value)
    assert text.startswith(f"BC033 {directory} adapter.path: ")
    assert str(base) in text
    assert "wider-model" in text
    assert "(4, 48) and must be (4, 40)" in text
    for other in (make_model("gpt2"), make_model("qwen3", num_hidden_layers=1)):
        with pytest.raises(ModelError, match="BC033"):
            fold_in(other, directory)


def test_chains_of_adapters(base, tmp_path):
    adapter, model = wrapped(base)
    first = save(adapter, moved(model), tmp_path / "first")
    merged = fold_in(make_model("qwen3"), first)
    on_top = Lora(options(rank=2))
    model = on_top.wrap(model=merged, base=first, checkpoint=None)
    second = save(on_top, moved(model), tmp_path / "second")
    assert adapter_chain(second) == (base, (first, second))
    assert tokenizer_source(second) == base
    for nearer in (first, second):  # the last adapter's tokenizer counts
        (nearer / "tokenizer_config.json").touch()
        assert tokenizer_source(second) == nearer
    torch.testing.assert_close(logits_of(load_model(second)), logits_of(model), rtol=1e-4, atol=1e-4)
    bf16 = load_model(second, dtype=torch.bfloat16)
    for (name, rounded), (_, exact) in zip(bf16.named_parameters(), load_model(second).named_parameters(), strict=True):
        assert torch.equal(rounded, exact.bfloat16()), name


@pytest.mark.parametrize(
    ("named", "code"), [("nowhere/at-all", "BC061"), ("", "BC061"), ("Some/Hub-Name", "BC061"), ("itself", "BC064")]
)
def test_a_base_that_is_not_there(base, tmp_path, named, code):
    adapter, model = wrapped(base)
    directory = save(adapter, model, tmp_path / "adapter")
    config = json.loads((directory / "adapter_config.json").read_text())
    named = str(directory) if named == "itself" else named
    (directory / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
    with pytest.raises(ModelError, match=code) as caught:
        load_model(directory)
    assert "base_model_name_or_path" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{"])
def test_missing_and_broken_adapter_weights(base, tmp_path, content):
    adapter, model = wrapped(base)
    directory = save(adapter, model, tmp_path / "adapter")
    file = directory / "adapter_model.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ModelError, match="BC029" if content is None else "BC064"):
        load_model(directory)
