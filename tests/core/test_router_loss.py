"""The routers' auxiliary loss against transformers' own, in float64, over micro-batches, passes and recomputation."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional

from bumblecore_core.toolkit.passes import ForwardPasses
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_core.values import Batch
from expert_models import (
    EXPERTS,
    FAMILIES,
    TOP_K,
    Stage,
    assert_same_gradients,
    gradients,
    make_config,
    make_experts,
    make_module,
    supervised,
)
from tiny_models import make_batch
from vision_language_models import make_vision_language_model

COEFFICIENT = 0.3
LENGTHS = [(7, 4), (3,), (5, 2, 9)]


def batch_of(lengths, seed=0) -> Batch:
    batch = make_batch(lengths, seed=seed)
    batch.count = sum(lengths) - len(lengths)
    return batch


def documents(batch):
    return torch.split(batch.input_ids[0], list(batch.document_lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_has_the_loss_and_the_gradients_of_transformers(family):
    name = "aux_loss_coef" if family == "JetMoe" else "router_aux_loss_coef"
    config = make_config(family, output_router_logits=True, **{name: COEFFICIENT})
    if family == "Dbrx":
        config.ffn_config.moe_loss_weight = COEFFICIENT
    model, batch = make_experts(config, torch.float64), batch_of((11,))
    module = make_module(model, "auto")
    output = module(batch)
    (output.loss_sum / output.count).backward()
    ours = gradients(model)
    theirs = model(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False)
    plain = functional.cross_entropy(theirs.logits[0, :-1], batch.input_ids[0, 1:])
    (plain + COEFFICIENT * theirs.aux_loss).backward()
    assert_same_gradients(ours, gradients(model))
    task = float(output.metrics["task_loss"].total / output.count)
    assert theirs.loss.item() == pytest.approx(output.loss_sum.item() / output.count, rel=1e-6)
    assert task == pytest.approx(plain.item(), rel=1e-12)
    assert float(output.metrics["router_aux_loss"].total / output.count) == pytest.approx(theirs.aux_loss.item())
    assert output.loss_sum.item() / output.count > task + 0.1


def test_a_vision_language_model_has_the_loss_of_its_language_model():
    model, batch = make_vision_language_model("qwen3_vl_moe").train(), batch_of((11,))
    module = make_module(model, COEFFICIENT)
    output = module(batch)
    (output.loss_sum / output.count).backward()
    ours = gradients(model)
    theirs = model(input_ids=batch.input_ids, use_cache=False, output_router_logits=True)
    plain = functional.cross_entropy(theirs.logits[0, :-1], batch.input_ids[0, 1:])
    (plain + COEFFICIENT * theirs.aux_loss).backward()
    assert_same_gradients(ours, gradients(model), rtol=1e-5)
    assert float(output.metrics["router_aux_loss"].total / output.count) == pytest.approx(theirs.aux_loss.item())


def twin(model, batch) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(sum of the task loss, auxiliary loss, count) of a micro-batch from a pass over each document."""
    total, layers = torch.zeros((), dtype=torch.float64), []
    for tokens in documents(batch):
        out = model(input_ids=tokens[None], use_cache=False, output_router_logits=True)
        layers.append(out.router_logits)
        total = total + functional.cross_entropy(out.logits[0, :-1], tokens[1:], reduction="sum")
    joined = tuple(torch.cat(calls) for calls in zip(*layers, strict=True))
    function = sys.modules[type(model).__module__].load_balancing_loss_func
    return total, function(joined, EXPERTS, TOP_K), batch.tokens - len(batch.document_lengths)


@pytest.mark.parametrize(
    ("family", "checkpointing"), [("Qwen3Moe", False), ("Qwen3Moe", True), ("Qwen3Next", False), ("Qwen3Next", True)]
)
def test_accumulation_weighs_micro_batches_by_their_count(family, checkpointing):
    """Qwen3Next computes the documents of a micro-batch one per forward pass."""
    model = make_experts(make_config(family), torch.float64)
    batches = [batch_of(lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    parts = [twin(model, batch) for batch in batches]
    count = sum(part[2] for part in parts)
    task, auxiliary = sum(part[0] for part in parts) / count, sum(part[1] * part[2] for part in parts) / count
    (task + COEFFICIENT * auxiliary).backward()
    theirs = gradients(model)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    module = make_module(model, COEFFICIENT)
    outputs = [module(batch) for batch in batches]
    sum(output.loss_sum / count for output in outputs).backward()
    assert_same_gradients(gradients(model), theirs, rtol=1e-5)
    assert sum(float(output.metrics["router_aux_loss"].total) for output in outputs) / count == pytest.approx(
        auxiliary.item()
    )
    assert sum(output.loss_sum.item() for output in outputs) / count == pytest.approx(
        (task + COEFFICIENT * auxiliary).item()
    )
    assert len({round(part[1].item(), 6) for part in parts}) == 3


@pytest.mark.parametrize("missing", [0, 2])
def test_several_passes_of_a_micro_batch_count_as_one(monkeypatch, missing):
    """Passes that only serve the collectives of other ranks count as none."""
    monkeypatch.setattr(ForwardPasses, "_missing_passes", lambda self, batch: missing)
    model, batch = make_experts(make_config("Mixtral"), torch.float64), batch_of((7, 4, 6))
    found = []
    for one_document in (False, True):
        module = make_module(model, COEFFICIENT)
        module.policy = make_policy(model, one_document=one_document)
        output = module(batch)
        output.loss_sum.backward()
        found.append((output, gradients(model)))
    assert_same_gradients(found[0][1], found[1][1], rtol=1e-5)
    assert torch.equal(found[0][0].expert_assignments, found[1][0].expert_assignments)
    assert found[0][0].expert_assignments.sum(1).tolist() == [17 * TOP_K] * 2


class WithEstimate(Stage):
    """Looks at another batch without gradients before it trains."""

    def step(self, *, policy, batch, loss):
        with torch.no_grad():
            policy.project(batch=batch_of((9,), seed=5), positions=torch.tensor([0]))
        return super().step(policy=policy, batch=batch, loss=loss)


def test_a_pass_without_gradients_inside_a_step_does_not_count():
    model, batch = make_experts(make_config("Mixtral")), batch_of((7, 4))
    plain, other = (make_module(model, COEFFICIENT, stage=stage)(batch) for stage in (Stage(), WithEstimate()))
    assert torch.equal(plain.expert_assignments, other.expert_assignments)
    assert plain.loss_sum == other.loss_sum


def test_evaluation_and_reference_passes_are_unaffected():
    class Asked(Stage):
        def reference_step(self, *, policy, batch):
            return {"figure": policy.project(batch=batch, positions=supervised(batch))[0].sum(1)}

    model, batch = make_experts(make_config("Mixtral")), batch_of((7, 4))
    module = make_module(model, COEFFICIENT, stage=Asked())
    with module.asking("reference_step"):
        assert set(module(batch).per_example) == {"figure"}
    trained = module(batch)
    model.eval()
    with torch.no_grad():
        output = module(batch)
    assert output.expert_assignments is None
    assert not output.metrics
    assert output.loss_sum.item() == float(trained.metrics["task_loss"].total)
    assert not [hook for part in model.modules() for hook in part._forward_hooks]


def test_a_dummy_micro_batch_reports_the_same_names():
    module, batch = make_module(make_experts(make_config("Mixtral")), COEFFICIENT), batch_of((7, 4))
    trained = module(batch)
    with torch.no_grad():
        dummy = module(batch)
    assert dummy.metrics.keys() == trained.metrics.keys()
    assert torch.equal(dummy.expert_assignments, trained.expert_assignments)


@pytest.mark.parametrize("setting", ["off", 0.0])
def test_off_and_zero_train_the_task_loss(setting):
    model, batch = make_experts(make_config("Mixtral", output_router_logits=True)), batch_of((7, 4))
    output = make_module(model, setting)(batch)
    places = supervised(batch)
    hidden, head = make_module(model, "off").policy.project(batch=batch, positions=places)
    plain = functional.cross_entropy(head.logits(hidden), batch.input_ids[0, places + 1], reduction="sum")
    assert output.loss_sum.item() == pytest.approx(plain.item())
    assert ("router_aux_loss" in output.metrics) == (setting == 0.0)
    assert output.expert_assignments is not None


def test_bf16_adds_the_loss_in_float32():
    model, batch = make_experts(make_config("Mixtral"), torch.bfloat16), batch_of((7, 4))
    output = make_module(model, COEFFICIENT)(batch)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    added = output.loss_sum.detach() - output.metrics["task_loss"].total
    assert float(added) == pytest.approx(COEFFICIENT * float(output.metrics["router_aux_loss"].total), rel=1e-3)
    assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0


def test_lora_is_trained_by_the_auxiliary_loss_too():
    import peft

    model, batch = make_experts(make_config("Qwen3Moe"), torch.float64), batch_of((7, 4))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).to(torch.float64)
    results = []
    for setting in ("off", COEFFICIENT):
        output = make_module(wrapped, setting)(batch)
        output.loss_sum.backward()
        results.append(gradients(wrapped))
    for tensor in wrapped.parameters():
        tensor.grad = None
    total, auxiliary, count = twin(wrapped.base_model.model, batch)
    (total + COEFFICIENT * count * auxiliary).backward()
    assert_same_gradients(results[1], gradients(wrapped))
    assert any(not torch.allclose(results[0][name], results[1][name]) for name in results[0])


def test_a_router_that_is_trained_in_full_next_to_lora_is_recorded_once():
    import peft

    model, batch = make_experts(make_config("Mixtral")), batch_of((7, 4))
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"])
    output = make_module(peft.get_peft_model(model, settings), COEFFICIENT)(batch)
    assert output.expert_assignments.sum(1).tolist() == [11 * TOP_K] * 2
    output.loss_sum.backward()
    trained = [name for name, gradient in gradients(model).items() if "gate." in name and gradient.abs().max() > 0]
    assert [name.split(".mlp.")[1] for name in trained] == ["gate.modules_to_save.default.weight"] * 2
