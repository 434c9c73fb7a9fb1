"""What `model.router_aux_loss` decides for models with and without routers, and what the start summary states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from bumblecore_core.errors import ConfigError
from bumblecore_core.run.router_loss import FEATURE, router_training
from bumblecore_core.toolkit.routers import experts_per_token, find_auxiliary_loss, find_routers, recorded
from bumblecore_core.values import StepOutput
from expert_models import EXPERTS, FAMILIES, TOP_K, make_config, make_experts
from tiny_models import ROTARY, SPECIAL_TOKENS, make_batch, make_model

DEEPSEEK = {
    **SPECIAL_TOKENS,
    **ROTARY,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
LLAMA4 = {
    **SPECIAL_TOKENS,
    **ROTARY,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48,
    "head_dim": 8,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 64,
}


def meta(config):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def decided(config, setting):
    training, lines = router_training(meta(config), setting)
    return training, dict(lines).get(FEATURE)


def test_auto_follows_the_configuration():
    training, line = decided(make_config("Mixtral", output_router_logits=True, router_aux_loss_coef=0.02), "auto")
    assert training.auxiliary is not None
    assert training.coefficient == 0.02
    assert line == "0.02 × the load-balancing loss of each micro-batch (config.json)"
    training, line = decided(make_config("Mixtral"), "auto")
    assert training.auxiliary is None
    assert len(training.routers) == 2
    assert line == ("off (config.json: output_router_logits false); set model.router_aux_loss to 0.001 to use it")


def test_off_and_a_coefficient_beat_the_configuration():
    config = make_config("Qwen3Moe", output_router_logits=True)
    training, line = decided(config, "off")
    assert training.auxiliary is None
    assert line == "off (model.router_aux_loss)"
    training, line = decided(make_config("Qwen3Moe"), 0.5)
    assert training.coefficient == 0.5
    assert line == "0.5 × the load-balancing loss of each micro-batch (model.router_aux_loss)"


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_a_model_without_routers_has_no_line(setting):
    assert router_training(make_model("qwen3"), setting) == (None, [])


def refusal(model, setting=0.1):
    with pytest.raises(ConfigError) as caught:
        router_training(model, setting)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == ("BC100", "model.router_aux_loss")
    assert problem.fix == "Set it to auto or off"
    return problem.problem


def test_a_coefficient_is_refused_where_there_is_nothing_to_balance():
    assert refusal(make_model("qwen3")) == "the model type 'qwen3' has no routers that transformers records"
    deepseek = meta(transformers.DeepseekV3Config(**DEEPSEEK))
    assert refusal(deepseek) == "the auxiliary loss is not available for the model type 'deepseek_v3'"


def test_a_type_without_the_loss_says_so():
    config = transformers.DeepseekV3Config(**DEEPSEEK, output_router_logits=True)
    training, line = decided(config, "auto")
    assert training.auxiliary is None
    assert line == "off: not available for the model type 'deepseek_v3'"


def test_routers_that_are_not_called_as_modules_are_refused():
    training, _ = router_training(make_experts(make_config("Mixtral")), 0.1)
    with training.recorded() as routing:
        pass
    with pytest.raises(ConfigError, match="BC100"):
        training.complete(StepOutput(loss_sum=torch.zeros(()), count=1), routing)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_has_the_experts_and_the_top_k_of_the_model(family):
    model = meta(make_config(family))
    loss = find_auxiliary_loss(model)
    assert (loss.experts, loss.top_k) == (EXPERTS, TOP_K)
    assert experts_per_token(model) == TOP_K
    assert len(find_routers(model)) == (4 if family == "JetMoe" else 2)


def test_a_reward_model_has_the_loss_of_its_type():
    model = transformers.AutoModelForSequenceClassification.from_config(make_config("Mixtral"))
    training, _ = router_training(model, 0.1)
    assert (training.auxiliary.experts, training.auxiliary.top_k, len(training.routers)) == (EXPERTS, TOP_K, 2)


def test_routers_are_found_behind_an_adapter():
    import peft

    model = make_experts(make_config("Qwen3Moe"))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert [router.module for router in find_routers(wrapped)] == [layer.mlp.gate for layer in model.model.layers]
    training, _ = router_training(wrapped, 0.1)
    assert training.auxiliary.experts == EXPERTS


def test_every_form_in_which_a_class_declares_its_routers(monkeypatch):
    model = meta(make_config("Mixtral"))
    routers = [layer.mlp.gate for layer in model.model.layers]
    kind = type(routers[0])
    inside = SimpleNamespace(target_class=kind, index=2, layer_name="layers.1.mlp")
    forms = {
        "a class, with the logits as its second output": (kind, [(routers[0], 1), (routers[1], 1)]),
        "a part of the name": (inside, [(routers[1], 2)]),
        "a list": ([inside, kind], [(routers[1], 2), (routers[0], 1)]),
        "a name of a class only": (SimpleNamespace(target_class=None, class_name="Gate", index=0, layer_name=None), []),
    }
    for name, (declared, expected) in forms.items():
        monkeypatch.setattr(transformers.MixtralPreTrainedModel, "_can_record_outputs", {"router_logits": declared})
        assert [(router.module, router.index) for router in find_routers(model)] == expected, name


def run(model):
    """The assignments of a batch, and the router's inputs of its last layer."""
    batch = make_batch((9,))
    with torch.no_grad(), recorded(find_routers(model)) as routing:
        model(input_ids=batch.input_ids, use_cache=False)
    return routing


def test_the_router_states_its_own_selection():
    """A bias moves DeepSeek's selection away from the largest logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.DeepseekV3Config(**DEEPSEEK))
    model.model.layers[1].mlp.gate.e_score_correction_bias[:2] = 100.0
    found = run(model).assignments(2)
    assert found.tolist() == [[9, 9, 0, 0, 0, 0, 0, 0]]


def test_a_router_that_states_no_selection_is_counted_by_its_logits():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.Llama4TextConfig(**LLAMA4))
    routing = run(model)
    logits = routing.logits()
    expected = [torch.bincount(layer.reshape(-1, 4).argmax(-1), minlength=4).tolist() for layer in logits]
    assert routing.assignments(1).tolist() == expected
    assert routing.assignments(None) is None
