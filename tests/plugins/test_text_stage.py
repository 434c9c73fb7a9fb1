"""The stages `pretrain` and `continue_pretrain`: documents in pieces, from BOS to EOS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_examples import arrays, build, context

from bumblecore_core import Dropped, ModelError, RowError, TextSample


def test_text_ends_in_eos_and_trains_all_but_its_first_token():
    ctx = context()
    (pieces,) = build("pretrain", ctx).encode(samples=[TextSample(text="The old lighthouse")])
    (example,) = pieces
    expected = [*ctx.tokenizer("The old lighthouse").input_ids, ctx.tokenizer.eos_token_id]
    assert list(example.columns["input_ids"]) == expected
    assert (example.length, example.count) == (len(expected), len(expected) - 1)
    ((without,),) = build("pretrain", ctx, append_eos=False).encode(samples=[TextSample(text="The old lighthouse")])
    assert list(without.columns["input_ids"]) == expected[:-1]


def test_text_begins_with_bos_where_the_tokenizer_wants_one():
    from tokenizers import processors

    ctx = context("llama2")
    tokenizer = ctx.tokenizer
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    (example,), empty = build("continue_pretrain", ctx).encode(samples=[TextSample(text="ships"), TextSample(text="")])
    assert list(example.columns["input_ids"]) == [*tokenizer("ships").input_ids, tokenizer.eos_token_id]
    assert example.columns["input_ids"][0] == tokenizer.bos_token_id
    assert isinstance(empty, Dropped)  # EOS after BOS is nothing to learn
    assert empty.code == "BC066"


@given(repeats=st.integers(1, 60), max_length=st.integers(8, 20))
@settings(max_examples=40, deadline=None)
def test_long_documents_are_cut_without_loss(repeats, max_length):
    ctx = context(max_length=max_length)
    text = " q" * repeats
    (pieces,) = build("pretrain", ctx).encode(samples=[TextSample(text=text)])
    tokens = [token for piece in pieces for token in piece.columns["input_ids"]]
    assert tokens == [*ctx.tokenizer(text).input_ids, ctx.tokenizer.eos_token_id]
    assert all(2 <= piece.length <= max_length and piece.count == piece.length - 1 for piece in pieces)
    assert len(pieces) == -(-len(tokens) // max_length)


def test_empty_text_is_dropped_and_a_surrogate_is_that_rows_error():
    good = TextSample(text="fog")
    entries = build("pretrain", context()).encode(samples=[good, TextSample(text=""), TextSample(text="\udc00"), good])
    assert isinstance(entries[1], Dropped)
    assert isinstance(entries[2], RowError)
    assert entries[2].problem.code == "BC020"
    assert len(entries[0]) == len(entries[3]) == 1


def test_no_eos_is_an_error_unless_not_wanted():
    ctx = context()
    ctx.tokenizer.eos_token = None
    with pytest.raises(ModelError) as caught:
        build("pretrain", ctx)
    assert "stage.append_eos" in str(caught.value)
    build("pretrain", ctx, append_eos=False)


def test_preview_of_a_text_shows_that_its_first_token_is_not_trained():
    ctx = context()
    stage = build("pretrain", ctx)
    ((example,),) = stage.encode(samples=[TextSample(text="The old lighthouse")])
    ids = list(example.columns["input_ids"])
    first, whole = (ctx.tokenizer.decode(part) for part in (ids[:1], ids))
    assert first
    assert stage.preview(example=arrays(example)) == [(first, False), (whole.removeprefix(first), True)]
