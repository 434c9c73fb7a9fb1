"""The adapter `lora` beside LoRA by hand: forward, gradients, and what is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.run.groups import parameter_groups
from bumblecore_core.run.model import _enable_checkpointing
from bumblecore_core.toolkit.adapters import fold_in
from bumblecore_plugins.adapters.lora import Lora
from lora_models import moved, options, save, tiny_base, wrapped
from lora_runs import by_hand, logits_of
from tiny_models import make_model

INITS = ["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4"]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path):
    """A directory with the weights of `make_model("qwen3")`."""
    return tiny_base(tmp_path / "base")


@pytest.mark.parametrize("init", INITS)
def test_what_is_saved_says_by_hand_what_the_model_computes(base, tmp_path, init):
    adapter, model = wrapped(base, init=init)
    untrained = logits_of(make_model("qwen3"))
    torch.testing.assert_close(logits_of(model), untrained, rtol=1e-4, atol=1e-4)  # no init changes the start
    directory = save(adapter, moved(model), tmp_path / "adapter")
    assert (logits_of(model) - untrained).abs().max() > 0.1
    torch.testing.assert_close(logits_of(by_hand(base, directory)), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "given", [{"alpha": 3}, {"use_rslora": True}, {"rank": 2, "use_rslora": True, "init": "pissa"}]
)
def test_scales(base, tmp_path, given):
    adapter, model = wrapped(base, **given)
    directory = save(adapter, moved(model), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(by_hand(base, directory)), logits_of(model), rtol=1e-4, atol=1e-4)


def test_one_layer_is_base_plus_scaled_b_a(base):
    _, model = wrapped(base, alpha=6, target_modules=["q_proj"])
    moved(model)
    layer = model.get_submodule(Q)
    x = torch.randn(5, 32)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + 6 / 4 * update).T)


def test_gradients_reach_the_adapter_alone(base):
    _, model = wrapped(base, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    model(input_ids=torch.arange(3, 12)[None]).logits.square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(with_gradient) == 2 * 2 * 2 + 1
    assert all(".lora_" in name or "lm_head.modules_to_save" in name for name in with_gradient)


def test_a_checkpointed_model_has_the_same_gradients(base):
    gradients = []
    for checkpointing in (False, True):
        model = make_model("qwen3")
        if checkpointing:
            _enable_checkpointing(model)
        torch.manual_seed(1)
        model = moved(Lora(options()).wrap(model=model, base=base, checkpoint=None)).train()
        model(input_ids=torch.arange(3, 12)[None]).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("given", [{}, {"init": "pissa"}, {"dropout": 0.5}, {"modules_to_save": ["lm_head"]}])
def test_the_base_policy_is_the_base_and_training_goes_on_after_it(base, given):
    adapter, model = wrapped(base, **given)
    moved(model).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with adapter.base_policy(model=model), torch.no_grad():
        found = model(input_ids=torch.arange(3, 12)[None]).logits
    torch.testing.assert_close(found, logits_of(make_model("qwen3")), rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == (name in trainable)
    model.train()(input_ids=torch.arange(3, 12)[None]).logits.square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable


@pytest.mark.parametrize("given", [{}, {"init": "pissa"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_checkpoint_is_taken_up_to_the_bit(base, tmp_path, given):
    adapter, model = wrapped(base, **given)
    directory = save(adapter, moved(model), tmp_path / "adapter")
    torch.manual_seed(99)
    again = Lora(options(**given))
    other = again.wrap(model=make_model("qwen3"), base=base, checkpoint=directory)
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.requires_grad == two.requires_grad, name
    second = save(again, other, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (directory / file).read_bytes() == (second / file).read_bytes()


def test_float32_values_of_a_module_in_full_keep_their_bits_on_a_bf16_base(base, tmp_path):
    given = {"modules_to_save": ["lm_head"]}
    adapter, model = wrapped(base, **given)
    directory = save(adapter, moved(model), tmp_path / "adapter")
    half = make_model("qwen3", dtype=torch.bfloat16)
    other = dict(Lora(options(**given)).wrap(model=half, base=base, checkpoint=directory).named_parameters())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "base_model.model.lm_head.modules_to_save.default.weight" in trained
    for name, expected in trained.items():
        assert torch.equal(other[name].float(), expected), name


def test_pissa_is_taken_up_to_the_bit_from_bf16_too(base, tmp_path):
    adapter, model = wrapped(base, init="pissa")
    state = {name: tensor.bfloat16() for name, tensor in moved(model).state_dict().items() if adapter.saves(name=name)}
    (tmp_path / "adapter").mkdir()
    adapter.save(model=model, state=state, directory=tmp_path / "adapter")
    other = Lora(options(init="pissa")).wrap(model=make_model("qwen3"), base=base, checkpoint=tmp_path / "adapter")
    assert torch.equal(model.get_submodule(Q).base_layer.weight, other.get_submodule(Q).base_layer.weight)


@pytest.mark.parametrize("given", [{}, {"use_dora": True}, {"init": "pissa"}, {"modules_to_save": ["lm_head", "norm"]}])
def test_folding_in_gives_the_same_logits_and_a_model_that_trains(base, tmp_path, given):
    adapter, model = wrapped(base, **given)
    expected = logits_of(moved(model))
    directory = save(adapter, model, tmp_path / "adapter")
    merged = fold_in(make_model("qwen3"), directory)
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in make_model("qwen3").named_parameters()
    ]
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(logits_of(adapter.merge(model=model)), expected, rtol=1e-4, atol=1e-4)


def test_the_files_hold_the_adapter_alone_and_name_the_base_by_its_whole_path(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = Lora(options())
    model = adapter.wrap(model=make_model("qwen3"), base=base.relative_to(tmp_path), checkpoint=None)
    directory = save(adapter, model, tmp_path / "adapter")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(t.numel() for t in load_file(directory / "adapter_model.safetensors").values()) == trainable
    assert {file.name for file in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])


def test_b_learns_faster_by_the_ratio(base):
    adapter, model = wrapped(base, lr_ratio=16, modules_to_save=["norm"])
    groups = {group.name: group for group in parameter_groups(model, lambda name: adapter.lr_scale(name=name))}
    assert {name: group.lr_scale for name, group in groups.items()} == {"decay": 1, "no_decay": 1, "decay_x16": 16}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-3] for p in groups["decay_x16"].params} == {"lora_B"}
    assert {names[id(p)].split(".")[-3] for p in groups["decay"].params} == {"lora_A"}


def test_b_of_an_embedding_learns_faster_by_the_ratio_too(base):
    adapter, model = wrapped(base, lr_ratio=16, target_modules=["embed_tokens"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = {name.split(".")[-2]: adapter.lr_scale(name=name) for name in trained}
    assert rates == {"lora_embedding_A": 1, "lora_embedding_B": 16}


def test_what_it_says_of_itself(base):
    adapter, model = wrapped(base, target_modules=["q_proj", "v_proj"], dropout=0.1)
    words, warnings = adapter.describe(model=model)
    assert words == "rank 4, alpha 8, 4 modules; dropout 0.1"
    assert warnings == []
