"""Which parts of mixture-of-experts and state-space models LoRA reaches, next to plain sums of matrices and to PEFT."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

from bumblecore_core import ConfigError, ModelError
from bumblecore_core.toolkit.adapters import fold_in
from bumblecore_plugins.adapters import LoraOptions
from bumblecore_plugins.adapters.lora import Lora
from lora_models import moved, save
from lora_runs import logits_of
from moe_models import make_moe
from peft_adapters import saved, train, trained

FUSED = ["mixtral", "qwen3_moe", "gpt_oss"]
EXPERTS = {"target_parameters": "all-experts"}


def wrapped(model_type, tmp_path, **given):
    """(adapter, model) as training begins."""
    adapter = Lora(LoraOptions(**{"rank": 2, **given}))
    torch.manual_seed(1)
    return adapter, adapter.wrap(model=make_moe(model_type), base=tmp_path / "base", checkpoint=None)


def adapted(model):
    """Short names of what LoRA adapts, fused parameters under their own names."""
    from peft.tuners.lora import LoraLayer

    return {
        getattr(layer, "parameter_name", "weight").replace("weight", name.rsplit(".", 1)[-1])
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def experts_by_hand(model_type, directory):
    """The base with W + s·B·A of each expert, from PEFT's file: A is (experts · rank, in), B is (out, rank · experts),
    the experts innermost."""
    config, tensors = saved(directory)
    model = make_moe(model_type)
    scale, rank = config["lora_alpha"] / config["r"], config["r"]
    with torch.no_grad():
        for name, a in tensors.items():
            if not name.endswith(".lora_A.weight"):
                continue
            b = tensors[name.replace("lora_A", "lora_B")]
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            if ".experts" not in path:
                model.get_submodule(path).weight += scale * b @ a
                continue
            holder, inner = path.split(".experts")
            # PEFT wraps gate_up_proj, then down_proj around it: the inner one is the base layer of the other
            weight = model.get_parameter(f"{holder}.experts.{'gate_up_proj' if inner else 'down_proj'}")
            for expert in range(len(weight)):
                update = b[:, expert :: len(weight)] @ a[expert * rank : (expert + 1) * rank]
                weight[expert] += scale * (update if update.shape == weight[expert].shape else update.T)
    return model


@pytest.mark.parametrize("model_type", FUSED)
def test_fused_experts_train_as_in_peft_and_compute_what_the_file_says_by_hand(tmp_path, model_type):
    from peft import PeftModel

    adapter, model = wrapped(model_type, tmp_path, **EXPERTS)
    assert {"gate_up_proj", "down_proj", "q_proj"} <= adapted(model)
    first = save(adapter, moved(model), tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(make_moe(model_type), first, is_trainable=True)
    assert train(model) == train(theirs)
    for name, parameter in trained(theirs).items():
        assert torch.equal(trained(model)[name], parameter), name
    last = save(adapter, model, tmp_path / "last")
    torch.testing.assert_close(logits_of(experts_by_hand(model_type, last)), logits_of(model), rtol=1e-4, atol=1e-4)
    with adapter.base_policy(model=model):
        torch.testing.assert_close(logits_of(model), logits_of(make_moe(model_type)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", FUSED)
def test_fused_experts_are_taken_up_and_folded_in(tmp_path, model_type):
    from peft import PeftModel

    adapter, model = wrapped(model_type, tmp_path, **EXPERTS)
    directory = save(adapter, moved(model), tmp_path / "adapter")
    assert {name for name in model.state_dict() if adapter.saves(name=name)} == trained(model).keys()
    again = Lora(LoraOptions(rank=2, **EXPERTS))
    other = again.wrap(model=make_moe(model_type), base=tmp_path / "base", checkpoint=directory)
    further = Lora(LoraOptions(path=str(directory)))
    third = further.wrap(model=make_moe(model_type), base=tmp_path / "base", checkpoint=None)
    for name, parameter in trained(model).items():
        assert torch.equal(trained(other)[name], parameter), name
        assert torch.equal(trained(third)[name], parameter), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(make_moe(model_type), directory).merge_and_unload()
    merged = fold_in(make_moe(model_type), directory)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor), name
    torch.testing.assert_close(logits_of(merged), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "expected", "left_out"),
    [
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}, "mlp.experts.gate_up_proj, mlp.experts.down_proj"),
        # layer 1 is dense, with names that PEFT reads as those of experts
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, "mlp.gate.weight"),
        ("glm4_moe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, "mlp.gate.weight"),
        ("llama4_text", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, "router.weight"),
        ("phimoe", {"q_proj", "k_proj", "v_proj", "o_proj"}, "mlp.router.weight"),
        ("mamba", {"in_proj"}, "mixer.out_proj.weight"),
        ("jamba", {"in_proj", "x_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj"}, "feed_forward.experts"),
        ("falcon", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}, ""),
    ],
)
def test_all_linear_reaches_what_it_can_and_names_the_rest(tmp_path, model_type, expected, left_out):
    adapter, model = wrapped(model_type, tmp_path)
    assert adapted(model) - {"gate_proj", "up_proj", "down_proj"} == expected - {"gate_proj", "up_proj", "down_proj"}
    assert adapted(model) >= expected
    about = adapter.describe(model=model)[0]
    assert left_out in about
    assert ("does not reach" in about) == bool(left_out)
    moved(model).train()(input_ids=torch.arange(3, 12)[None]).logits.square().mean().backward()
    without = {name for name, parameter in trained(model).items() if parameter.grad is None}
    assert not without
    directory = save(adapter, model, tmp_path / "adapter")
    assert (logits_of(model) - logits_of(make_moe(model_type))).abs().max() > 1e-3
    torch.testing.assert_close(
        logits_of(fold_in(make_moe(model_type), directory)), logits_of(model), rtol=1e-4, atol=1e-4
    )


def test_the_indexer_of_sparse_attention_is_left_alone(tmp_path):
    adapter, model = wrapped("deepseek_v32", tmp_path)
    assert not [name for name in trained(model) if ".indexer." in name]
    assert "self_attn.indexer.wq_b.weight" in adapter.describe(model=model)[0]


def test_layers_that_peft_renames_are_left_out_where_it_cannot_take_them_as_parameters(tmp_path):
    adapter, model = wrapped("qwen3_moe", tmp_path, dropout=0.1)
    assert adapted(model) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "mlp.gate_proj.weight" in adapter.describe(model=model)[0]
    for given in ({"dropout": 0.1}, {"use_dora": True}):
        with pytest.raises(ConfigError, match=r"BC103 adapter.target_modules: PEFT takes .*down_proj' for an expert"):
            wrapped("qwen3_moe", tmp_path, target_modules=["q_proj", "down_proj"], **given)


def test_names_of_experts_that_are_no_modules_are_said_to_be_parameters(tmp_path):
    adapter, model = wrapped("mixtral", tmp_path, target_modules=["q_proj", "w1", "w2", "w3"])
    assert adapted(model) == {"q_proj"}
    _, by_pattern = wrapped("mixtral", tmp_path, target_modules=r".*\.(q_proj|w[123])")
    assert adapted(by_pattern) == {"q_proj"}
    (warning,) = adapter.describe(model=model)[1]
    assert warning.startswith("BC032 adapter.target_modules: no module is called 'w1', 'w2', 'w3'; ")
    assert "adapter.target_parameters takes them" in warning


@pytest.mark.parametrize(
    ("model_type", "given", "code", "found"),
    [
        ("mamba", {"target_modules": ["in_proj", "out_proj"]}, "BC103", "LoRA on it has no effect"),
        ("llama4_text", {"target_modules": ["router"]}, "BC031", "is a Llama4Router"),
        ("falcon", {"target_parameters": "all-experts"}, "BC031", "no parameter holds fused experts"),
        ("mixtral", {"target_parameters": ["gate_up"]}, "BC031", "mlp.experts.gate_up_proj, mlp.experts.down_proj"),
        ("mixtral", {"target_parameters": ["input_layernorm.weight"]}, "BC031", "has 1 dimensions"),
        ("mixtral", {"target_parameters": ["q_proj.weight"]}, "BC039", "belongs to a module"),
        ("falcon", {"init": "pissa", "rank": 64, "target_modules": ["dense"]}, "BC039", "a dimension of 32"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path, model_type, given, code, found):
    with pytest.raises((ModelError, ConfigError)) as caught:
        wrapped(model_type, tmp_path, **given)
    assert caught.value.problems[0].code == code
    assert found in str(caught.value)


def test_parameters_by_name(tmp_path):
    names = ["experts.down_proj", "gate.weight", "nothing"]
    adapter, model = wrapped("mixtral", tmp_path, target_modules=[], target_parameters=names)
    assert adapted(model) == {"down_proj", "gate"}
    about, (warning,) = adapter.describe(model=model)
    assert warning == "BC032 adapter.target_parameters: no parameter is called 'nothing'"
    assert about == "rank 2, alpha 4, 2 modules; 2 parameters (down_proj)"


@pytest.mark.parametrize(
    "given", [{"dropout": 0.1}, {"use_dora": True}, {"init": "pissa"}, {"init": "orthogonal"}, {"path": "a"}]
)
def test_options_that_conflict_with_parameters(given):
    with pytest.raises(ValueError, match=r"conflict: .*target_parameters"):
        LoraOptions(**EXPERTS, **given)
    with pytest.raises(ValueError, match="name at least one module"):
        LoraOptions(target_modules=[])


def test_one_layer_of_several_that_peft_renames(tmp_path):
    _, model = wrapped("glm4_moe", tmp_path, target_modules=r".*\.layers\.1\..*(down_proj|q_proj)")
    assert {name.split(".lora_A")[0].removeprefix("base_model.model.model.layers.") for name in trained(model)} >= {
        "1.self_attn.q_proj",
        "1.mlp.shared_experts.down_proj",
    }
    assert not [name for name in trained(model) if ".layers.0." in name]


def adapter_of_separate_experts(model_type, directory):
    """An adapter as PEFT saved it while the experts of these models were linear layers."""
    from peft import LoraConfig

    names = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    block = "block_sparse_moe" if model_type == "mixtral" else "mlp"
    LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", *names], task_type="CAUSAL_LM").save_pretrained(directory)
    model = make_moe(model_type)
    shapes = {f"model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in (0, 1)}
    for layer in (0, 1) if model_type == "mixtral" else (0,):  # layer 1 of the other is dense
        inner = model.model.layers[layer].mlp.experts.down_proj.shape[-1]
        for expert in range(4):
            for name, shape in zip(names, ((32, inner), (32, inner), (inner, 32)), strict=True):
                shapes[f"model.layers.{layer}.{block}.experts.{expert}.{name}"] = shape
    torch.manual_seed(3)
    tensors = {}
    for name, (width, height) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.1 * torch.randn(2, width)
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.1 * torch.randn(height, 2)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_an_adapter_of_experts_that_were_modules_is_continued(tmp_path, model_type):
    from peft import PeftModel

    directory = adapter_of_separate_experts(model_type, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(make_moe(model_type), directory)
    adapter = Lora(LoraOptions(path=str(directory)))
    model = adapter.wrap(model=make_moe(model_type), base=tmp_path / "base", checkpoint=None)
    assert (logits_of(model) - logits_of(make_moe(model_type))).abs().max() > 0.1
    assert torch.equal(logits_of(model), logits_of(theirs))
    again = save(adapter, moved(model), tmp_path / "again")
    torch.testing.assert_close(logits_of(fold_in(make_moe(model_type), again)), logits_of(model), rtol=1e-4, atol=1e-4)
