"""Adapters that PEFT made, of every shape: what is trained, saved, loaded back and merged is what PEFT has."""

import warnings

import pytest
import torch

from bumblecore_core.toolkit.adapters import fold_in
from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from lora_models import moved, save
from lora_runs import logits_of
from peft_adapters import SHAPES, make_base, peft_adapter, peft_model, saved, train, trained


def continued(shape, directory, **options):
    """(adapter, model) of a run with `adapter.path`."""
    adapter = Lora(LoraOptions(path=str(directory), **options))
    base = directory.parent / "base"
    return adapter, adapter.wrap(model=make_base(shape), base=base, checkpoint=None)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_of_peft_trains_on_as_in_peft(tmp_path, shape):
    directory = peft_adapter(shape, tmp_path)
    theirs = peft_model(shape, directory)
    adapter, ours = continued(shape, directory)
    assert trained(ours).keys() == trained(theirs).keys()
    assert train(ours) == train(theirs)
    for name, parameter in trained(theirs).items():
        assert torch.equal(trained(ours)[name], parameter), name
    theirs.save_pretrained(tmp_path / "theirs")
    (expected, tensors), (config, found) = saved(tmp_path / "theirs"), saved(save(adapter, ours, tmp_path / "ours"))
    paths = ("base_model_name_or_path", "auto_mapping", "peft_version")
    assert {key: sorted(v) if isinstance(v, list) else v for key, v in config.items() if key not in paths} == {
        key: sorted(v) if isinstance(v, list) else v for key, v in expected.items() if key not in paths
    }
    assert found.keys() <= tensors.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("shape", SHAPES)
def test_trained_saved_loaded_and_effective_tensors_are_the_same(tmp_path, shape):
    adapter, model = continued(shape, peft_adapter(shape, tmp_path))
    directory = save(adapter, moved(model), tmp_path / "ours")
    values = trained(model)
    names = [name for name in model.state_dict() if adapter.saves(name=name)]
    assert sorted(names) == sorted(values)
    assert sorted(tensor.shape for tensor in saved(directory)[1].values()) == sorted(p.shape for p in values.values())

    again = Lora(LoraOptions(path=str(tmp_path / "adapter")))
    other = again.wrap(model=make_base(shape), base=tmp_path / "base", checkpoint=directory)
    for name, parameter in trained(other).items():
        assert torch.equal(parameter, values[name]), name
    assert trained(other).keys() == values.keys()
    second = save(again, other, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (directory / file).read_bytes() == (second / file).read_bytes()

    before = outputs(model)
    for name, parameter in values.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.3
        assert not torch.equal(outputs(model), before), f"{name} changes nothing"
        parameter.data = kept


def outputs(model):
    """Logits of tokens among which are the trained ones."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 12)[None]).logits


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_in_equals_merging_in_peft(tmp_path, shape):
    directory = peft_adapter(shape, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft_model(shape, directory).merge_and_unload()
    ours = fold_in(make_base(shape), directory)
    expected = dict(theirs.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == expected.keys()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert parameter.requires_grad, name


@pytest.mark.parametrize("shape", SHAPES)
def test_the_base_policy_is_the_base_under_every_shape(tmp_path, shape):
    adapter, model = continued(shape, peft_adapter(shape, tmp_path))
    moved(model).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with adapter.base_policy(model=model), torch.no_grad():
        found = model(input_ids=torch.arange(3, 12)[None]).logits
    torch.testing.assert_close(found, logits_of(make_base(shape)), rtol=1e-5, atol=1e-5)
    assert (logits_of(model) - found).abs().max() > 0.1
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
