"""What is proven of model families: on a miniature that is made from the config alone, and on the model itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from broken_attentions import BROKEN
from bumblecore_core import ModelError
from bumblecore_core.run.attention import register
from bumblecore_core.run.attention_proof import Workload, examine, model_states, proof_config, verdict_on
from bumblecore_core.toolkit.miniature import make_miniature
from bumblecore_core.toolkit.policy import Policy
from bumblecore_core.toolkit.proofs import failure, prove
from bumblecore_plugins.attention import bumble_attentions
from small_families import ALONE, FAMILIES, VOCABULARY, family_config

CPU = torch.device("cpu")
RECORDS = {record.name: record for record in bumble_attentions()}
CASES = [(family, name, fault) for family, (_, _, faults) in FAMILIES.items() for name, fault in faults.items()]


@pytest.mark.parametrize(("family", "attention", "fault"), CASES)
def test_the_verdict_on_a_family(family, attention, fault):
    workload = Workload(config=family_config(family))
    small = proof_config(workload)
    assert small is not None
    record = RECORDS[attention]
    verdict = verdict_on(small, record, register(record), workload, device=CPU, dtype=torch.float32)
    found = verdict.causality or verdict.isolation
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize(("family", "attention", "fault"), CASES)
def test_the_model_itself_gives_the_same_verdict(family, attention, fault):
    """The limits of these configs are such that documents of a proof exceed them at their own size, too."""
    config = family_config(family)
    config.max_position_embeddings = 16 if family == "dynamic rope" else 256
    implementation = register(RECORDS[attention])

    def build():
        return AutoModelForCausalLM.from_config(config, attn_implementation=implementation)

    try:
        verdict = prove(model_states(Policy(make_miniature(build))), vocabulary=VOCABULARY, device=CPU)
        found = verdict.causality or verdict.isolation
    except Exception as error:
        found = "no other can be added" if isinstance(error, KeyError) else failure(error)
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize(
    ("name", "several", "leak"),
    [
        ("varlen", True, None),
        ("leaks_from_the_second_neighbour", True, ALONE),
        ("leaks_from_the_second_neighbour", False, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_without_a_miniature_is_examined_itself(name, several, leak, dtype):
    model = make_llama(name, dtype).train()
    found = examine(model, several_documents=several)
    assert found is None if leak is None else leak in found
    assert all(module.training for module in model.modules())


def test_a_model_without_a_miniature_that_is_not_causal_is_refused():
    model = make_llama("peeks_beyond_16_tokens", torch.float32)
    with pytest.raises(ModelError, match=r"^BC065.*changes with the tokens after it"):
        examine(model, several_documents=False)


def make_llama(attention, dtype):
    implementation = register({**RECORDS, **BROKEN}[attention])
    return AutoModelForCausalLM.from_config(family_config("llama"), attn_implementation=implementation, dtype=dtype)
