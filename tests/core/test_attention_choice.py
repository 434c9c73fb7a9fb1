"""The attention of a run: the best with which the model is exact, for the lengths and layouts of the run."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import LlamaConfig

from broken_attentions import BROKEN, record
from bumblecore_core import BumbleError, PluginError
from bumblecore_core.run.attention_choice import choose_attention
from bumblecore_core.run.attention_proof import Workload
from bumblecore_core.toolkit.miniature import RunSizes
from bumblecore_plugins.attention import bumble_attentions
from small_families import family_config

CPU = torch.device("cpu")


def choose(family="llama", *, name="auto", records=(), changes=None, **workload):
    config = family_config(family, **(changes or {}))
    return choose_attention(
        [*bumble_attentions(), *records],
        name,
        Workload(config=config, **workload),
        device=CPU,
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    ("family", "chosen", "reason"),
    [
        ("llama", "varlen", "not flash_attention_2: it needs a CUDA device"),
        ("chunks", "sdpa", "not varlen: attention 'varlen' cannot run"),
        ("positions not passed on", "sdpa", "not varlen: a document's hidden states change"),
        ("alibi in a mask", "sdpa", "not varlen: this model type has its own attention"),
        ("masks of its own", "eager", "not varlen: a token's hidden state changes with the tokens after it"),
        ("local attention", "eager", "not sdpa: the model fails with it: GPTNeoForCausalLM does not support"),
    ],
)
def test_auto_takes_the_first_that_is_exact_and_says_why_not_the_better(family, chosen, reason):
    choice = choose(family)
    assert (choice.name, choice.proven) == (chosen, True)
    assert any(line.startswith(reason) for line in choice.lines), choice.lines


@pytest.mark.parametrize(
    ("family", "name", "chosen"),
    [
        ("state space", "auto", "varlen"),
        ("convolution", "auto", "varlen"),
        ("dynamic rope", "auto", "varlen"),
        ("bloom", "auto", "eager"),
        ("mpt", "auto", "eager"),
        ("long rope", "sdpa", "sdpa"),
        ("positions not passed on", "varlen", "varlen"),
    ],
)
def test_a_model_that_keeps_no_documents_apart_computes_one_per_forward_pass(family, name, chosen):
    choice = choose(family, name=name)
    assert choice.name == chosen
    assert "a document's hidden states" in choice.against_isolation
    assert f"{chosen}; one document per forward pass: a document's" in dict(choice.features)["attention"]
    assert choose(family, name=name, several_documents=False).against_isolation is None


def test_a_buffer_of_positions_that_a_micro_batch_exceeds_has_documents_computed_apart():
    """GPT-Neo slices its causal mask from one; the documents fit into it."""
    changes = {"max_position_embeddings": 128}
    small, large = (
        choose("local attention", changes=changes, sizes=RunSizes(document=100, batch=batch)) for batch in (128, 129)
    )
    assert (small.name, small.against_isolation) == ("eager", None)
    assert "must match" in large.against_isolation


def test_a_sparse_indexer_with_few_heads_has_documents_computed_apart():
    """Its scores are often all 0 behind a ReLU: which keys it chooses then depends on the other documents."""
    for heads, reason in ((64, None), (2, "a document's hidden states")):
        found = choose("sparse indexer", name="sdpa", changes={"index_n_heads": heads}).against_isolation
        assert found is None if reason is None else reason in found


def test_a_named_attention_is_not_replaced_by_another():
    with pytest.raises(BumbleError, match=r"^BC065 .*bloom.*varlen: a token's hidden state changes"):
        choose("bloom", name="varlen")


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "shares_too_much"])
def test_a_broken_attention_is_found_and_passed_over(name):
    choice = choose(records=[BROKEN[name]])
    assert choice.name == "varlen"
    reason = choice.lines[0].removeprefix(f"not {name}: ")
    assert reason.startswith("a token's hidden state" if name.startswith("peeks") else "a document's hidden states")


def test_a_broken_shared_prefix_is_repeated():
    choice = choose(records=[BROKEN["shares_too_much"]], shares_prefixes=True)
    assert choice.name == "shares_too_much"
    assert "other hidden states" in dict(choice.features)["shared prefixes"]
    assert choose(shares_prefixes=True).against_sharing is None


@pytest.mark.parametrize("family", ["long rope", "dynamic rope"])
def test_prefixes_are_not_shared_where_their_states_change_with_the_length_of_a_document(family):
    with pytest.raises(BumbleError, match="first tokens change with its length") as caught:
        choose(family, shares_prefixes=True)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == ("BC098", "data.max_length")
    assert choose(family, shares_prefixes=True, sizes=RunSizes(document=16, batch=50)).name == "varlen"


def test_an_encoder_is_refused_with_every_attention():
    with pytest.raises(BumbleError, match=r"varlen: .*sdpa: .*eager: .*is_decoder") as caught:
        choose("encoder")
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == ("BC065", "model.attention")


@pytest.mark.parametrize(
    ("family", "sizes", "chosen"),
    [
        ("long rope", RunSizes(document=16, batch=500), "varlen"),
        ("dynamic rope", RunSizes(document=256, batch=500), "varlen"),
        ("chunks", RunSizes(document=10, batch=16), "varlen"),
        ("chunks", RunSizes(document=10, batch=17), "sdpa"),
    ],
)
def test_limits_that_a_run_does_not_exceed_do_not_matter(family, sizes, chosen):
    assert choose(family, sizes=sizes).name == chosen


def test_a_plugin_that_breaks_its_contract_is_named():
    broken = record("nothing", lambda *args, **kwargs: None)
    with pytest.raises(PluginError, match="nothing") as caught:
        choose(records=[broken])
    assert caught.value.problems[0].code == "BC060"


def test_an_attention_that_raises_is_passed_over():
    def fails(*args, **kwargs):
        raise ValueError("no such kernel")

    choice = choose(records=[record("failing", fails)])
    assert choice.name == "varlen"
    assert "no such kernel" in choice.lines[0]


def test_a_config_that_cannot_be_shrunk_leaves_the_proof_to_the_model():
    choice = choose(changes={"hidden_act": "no such activation"})
    assert (choice.name, choice.proven) == ("varlen", False)


def test_the_proof_takes_little_time_whatever_the_size_of_the_model():
    config = LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8
    )
    random_state = torch.random.get_rng_state()
    start = time.process_time()
    choice = choose_attention(bumble_attentions(), "auto", Workload(config=config), device=CPU, dtype=torch.float32)
    assert choice.name == "varlen"
    assert time.process_time() - start < 2
    assert torch.equal(torch.random.get_rng_state(), random_state)
