"""The three built-in stages: what they make of samples, how they collate and what a step asks of policy and loss."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_examples import BY_NAME, RECORDS, arrays, build, chat, context
from templates import tokenizer_for

from bumblecore_core import (
    Dropped,
    ModelError,
    StageContext,
    StepOutput,
    TextSample,
    TokenExample,
)
from bumblecore_core.toolkit.causal import CausalStage, causal_example, fit_spans
from bumblecore_core.toolkit.packing import pack, ranges
from bumblecore_plugins.stages import SftOptions, TextOptions

# Records


def test_records():
    assert {name for name, record in RECORDS.items() if record.loss_kind == "token"} == {
        "pretrain",
        "continue_pretrain",
        "sft",
    }
    assert (RECORDS["pretrain"].model_from, RECORDS["pretrain"].smooth) == ("config", False)
    assert RECORDS["continue_pretrain"].model_from == "weights"
    assert (RECORDS["sft"].reads, RECORDS["sft"].model_from, RECORDS["sft"].smooth) == ("chat", "weights", True)
    for options in (TextOptions, SftOptions):
        assert all(field.description for field in options.model_fields.values())


# Chat


def test_sft_counts_and_columns():
    (example,) = build("sft", context()).encode(samples=[chat("One.", "Two.")])
    spans = np.asarray(example.columns["spans"]).reshape(-1, 2)
    assert len(spans) == 2
    assert example.count == int((spans[:, 1] - spans[:, 0]).sum())
    (last,) = build("sft", context(), train_on="last").encode(samples=[chat("One.", "Two.")])
    assert list(last.columns["spans"]) == spans[1].tolist()


def test_sft_strict_makes_an_error_of_an_empty_reply():  # row 15
    (dropped,) = build("sft", context()).encode(samples=[chat("")])
    (error,) = build("sft", context(strict=True)).encode(samples=[chat("")])
    assert (dropped.code, error.problem.code) == ("BC015", "BC015")


def test_template_is_needed_at_build():  # row 22
    ctx = context()
    ctx.tokenizer.chat_template = None
    with pytest.raises(ModelError) as caught:
        build("sft", ctx)
    assert caught.value.problems[0].code == "BC022"


def test_prompt_that_does_not_fit_is_dropped():  # row 28
    (entry,) = build("sft", context(max_length=8)).encode(samples=[chat("One.")])
    assert isinstance(entry, Dropped)
    assert entry.code == "BC028"


IDS = np.arange(100, 140, dtype=np.int32)
SPANS = [(5, 12), (20, 30), (35, 39)]


@pytest.mark.parametrize(
    ("max_length", "length", "spans", "truncated"),
    [
        (64, 40, [5, 12, 20, 30, 35, 39], False),
        (40, 40, [5, 12, 20, 30, 35, 39], False),
        (39, 39, [5, 12, 20, 30, 35, 39], True),
        (38, 30, [5, 12, 20, 30], True),
        (29, 12, [5, 12], True),
        (12, 12, [5, 12], True),
        (11, 11, [5, 11], True),
        (6, 6, [5, 6], True),
    ],
)
def test_truncation_keeps_whole_turns_where_it_can(max_length, length, spans, truncated):
    example = fit_spans(IDS, SPANS, max_length=max_length)
    assert list(example.columns["input_ids"]) == IDS[:length].tolist()
    assert list(example.columns["spans"]) == spans
    assert (example.length, example.truncated) == (length, truncated)
    assert example.count == sum(b - a for a, b in zip(spans[::2], spans[1::2], strict=True))


def test_truncation_drops_what_could_train_nothing():
    for max_length in (5, 4):
        assert fit_spans(IDS, SPANS, max_length=max_length).code == "BC028"
    assert fit_spans(IDS, [(0, 1), (20, 30)], max_length=10).code == "BC028"


# Collating


def naive(examples):
    """The batch's extras token by token."""
    positions, targets, place = [], [], 0
    for ids, spans in examples:
        trained = {at for start, end in spans for at in range(start, end)}
        for at in range(len(ids)):
            if at + 1 < len(ids) and at + 1 in trained:
                positions.append(place + at)
                targets.append(int(ids[at + 1]))
        place += len(ids)
    return positions, targets


@st.composite
def documents(draw):
    length = draw(st.integers(2, 12))
    edges = sorted(draw(st.sets(st.integers(0, length), min_size=0, max_size=6)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    return draw(st.lists(st.integers(0, 300), min_size=length, max_size=length)), spans


@given(st.lists(documents(), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_collate_against_a_naive_twin(docs):
    examples = [causal_example(ids, spans) for ids, spans in docs]
    stage = CausalStage(lambda samples, context: [], context())
    batch = stage.collate(
        examples=[arrays(example) for example in examples],
        rows=list(range(len(docs))),
        counts=[example.count for example in examples],
    )
    positions, targets = naive(docs)
    assert batch.extras["positions"].tolist() == positions
    assert batch.extras["targets"].tolist() == targets
    assert batch.count == len(positions) == sum(example.count for example in examples)
    assert batch.input_ids.tolist() == [[token for ids, _ in docs for token in ids]]
    assert batch.position_ids.tolist() == [[at for ids, _ in docs for at in range(len(ids))]]
    assert batch.document_lengths == tuple(len(ids) for ids, _ in docs)
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *batch.document_lengths]).tolist()
    dtypes = {batch.input_ids.dtype, batch.position_ids.dtype, *(extra.dtype for extra in batch.extras.values())}
    assert dtypes == {torch.int64}
    assert batch.cu_seqlens.dtype == torch.int32


def test_a_stored_count_that_does_not_fit_is_not_trained_on():
    stage = CausalStage(lambda samples, context: [], context())
    with pytest.raises(ValueError, match=r"rows \[7\]"):
        stage.collate(examples=[arrays(causal_example([1, 2, 3], [(1, 3)]))], rows=[7], counts=[3])


def test_pack_and_ranges():
    batch = pack([np.array([3, 4]), np.array([5])], rows=[9, 2], count=1, extras={"x": np.array([1.0])})
    assert (batch.rows, batch.count, batch.tokens, batch.max_seqlen) == ((9, 2), 1, 3, 2)
    assert batch.extras["x"].dtype == torch.float64
    assert ranges(np.array([0, 5, 3]), np.array([2, 5, 6])).tolist() == [0, 1, 3, 4, 5]
    assert ranges(np.array([5, 1]), np.array([3, 2])).tolist() == [1]
    assert ranges(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []


# A step, the preview, and travel to worker processes


def test_step_hands_kept_positions_to_the_loss():
    stage = build("sft", context())
    (example,) = stage.encode(samples=[chat("One.", "Two.")])
    batch = stage.collate(examples=[arrays(example)], rows=[0], counts=[example.count])
    table = torch.randn(600 + 10, 4)
    head = object()
    seen = {}

    def project(*, batch, positions):
        return table[batch.input_ids[0]].index_select(0, positions), head

    def loss(*, hidden, head, targets):
        seen.update(hidden=hidden, head=head, targets=targets)
        return StepOutput(loss_sum=hidden.sum(), count=len(targets))

    output = stage.step(policy=SimpleNamespace(project=project), batch=batch, loss=loss)
    assert output.count == example.count
    assert seen["head"] is head
    spans = np.asarray(example.columns["spans"]).reshape(-1, 2).tolist()
    ids = list(example.columns["input_ids"])
    assert seen["targets"].tolist() == [ids[at] for start, end in spans for at in range(start, end)]
    previous = [ids[at - 1] for start, end in spans for at in range(start, end)]
    assert torch.equal(seen["hidden"], table[previous])


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_preview_shows_what_is_trained(kind):
    ctx = StageContext(tokenizer=tokenizer_for(BY_NAME["chatml"], kind), max_length=64)
    stage = build("sft", ctx)
    (example,) = stage.encode(samples=[chat("One reply.", " Two.")])
    segments = stage.preview(example=arrays(example))
    assert [text for text, trained in segments if trained] == ["One reply.<|im_end|>", " Two.<|im_end|>"]
    whole = ctx.tokenizer.apply_chat_template(list(chat("One reply.", " Two.").messages), tokenize=False)
    assert "".join(text for text, _ in segments) == whole


def test_stages_pickle_and_encode_alike():
    for name, sample in (("sft", chat("One.")), ("pretrain", TextSample(text="fog"))):
        stage = build(name, context())
        twin = pickle.loads(pickle.dumps(stage))
        first, second = stage.encode(samples=[sample])[0], twin.encode(samples=[sample])[0]
        first, second = (entry if isinstance(entry, TokenExample) else entry[0] for entry in (first, second))
        assert list(first.columns["input_ids"]) == list(second.columns["input_ids"])
        assert first.count == second.count
