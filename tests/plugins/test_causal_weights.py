"""Weights of spans: what is encoded, stored, cut and collated, against a twin that goes token by token."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.data.encode import LengthPolicy, encode_samples
from bumblecore_core.run.data.loader import collate
from bumblecore_core.run.data.report import PrepareReport
from bumblecore_core.run.data.store import StoreWriter, TokenStore
from bumblecore_core.toolkit.causal import CausalStage, causal_example, fit_spans
from bumblecore_core.toolkit.token_weights import from_column
from bumblecore_core.values import StepOutput, TextSample

CAUSAL, LENGTHS = Plugin("stages", "causal", "here"), LengthPolicy(max_length=99)
IDS = np.arange(100, 120)
SPANS = [(2, 5), (7, 8), (11, 16)]


def stage_of(*examples):
    return CausalStage(lambda samples, context: list(examples), SimpleNamespace(tokenizer=None))


def arrays(example):
    return {name: np.asarray(values) for name, values in example.columns.items()}


def spans_of(example):
    """[(start, end, weight)] of an example."""
    spans = np.asarray(example.columns["spans"]).reshape(-1, 2).tolist()
    weights = from_column(example.columns["weights"], len(spans)).tolist()
    return [(*span, weight) for span, weight in zip(spans, weights, strict=True)]


def collated(*examples):
    rows, counts = list(range(len(examples))), [example.count for example in examples]
    return stage_of().collate(examples=[arrays(example) for example in examples], rows=rows, counts=counts)


@st.composite
def documents(draw):
    length = draw(st.integers(2, 12))
    edges = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    weight = st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.25])
    weights = draw(st.none() | st.lists(weight, min_size=len(spans), max_size=len(spans)))
    return draw(st.lists(st.integers(0, 300), min_size=length, max_size=length)), spans, weights


def naive(docs):
    """(positions, targets, weights) token by token; a token with the weight 0 is not trained."""
    found, place = [], 0
    for ids, spans, weights in docs:
        factors = weights if weights is not None else [1.0] * len(spans)
        of_token = {at: w for (start, end), w in zip(spans, factors, strict=True) for at in range(start, end)}
        for at in range(1, len(ids)):
            if of_token.get(at, 0.0):
                found.append((place + at - 1, ids[at], of_token[at]))
        place += len(ids)
    return tuple(map(list, zip(*found, strict=True))) if found else ([], [], [])


@given(st.lists(documents(), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_collate_against_a_naive_twin(docs):
    examples = [causal_example(ids, spans, weights=weights) for ids, spans, weights in docs]
    batch = collated(*examples)
    positions, targets, weights = naive(docs)
    float32 = np.asarray(weights, dtype=np.float32)
    assert batch.extras["positions"].tolist() == positions
    assert batch.extras["targets"].tolist() == targets
    assert batch.count == pytest.approx(float32.sum(dtype=np.float64), rel=1e-12)
    assert batch.counted == batch.scored == len(positions)
    if any(len(example.columns["weights"]) for example in examples):
        assert batch.extras["weights"].dtype == torch.float32
        assert batch.extras["weights"].tolist() == float32.tolist()
    else:
        assert set(weights) <= {1.0}
        assert "weights" not in batch.extras
        assert type(batch.count) is int


def test_weights_of_1_are_not_stored_and_spans_of_weight_0_are_left_out():
    plain = causal_example(IDS, SPANS)
    assert spans_of(causal_example(IDS, SPANS, weights=[1.0, 1, 1.0])) == spans_of(plain)
    assert not len(causal_example(IDS, SPANS, weights=[1.0, 1, 1.0]).columns["weights"])
    kept = causal_example(IDS, SPANS, weights=[1.0, 0.0, 1.0])
    assert not len(kept.columns["weights"])
    assert (spans_of(kept), kept.count) == ([(2, 5, 1.0), (11, 16, 1.0)], 8)
    weighted = causal_example(IDS, SPANS, weights=[0.5, 0, 2.0])
    assert (spans_of(weighted), weighted.count) == ([(2, 5, 0.5), (11, 16, 2.0)], 11.5)
    assert type(causal_example(IDS, SPANS, weights=[2.0, 1, 0.2]).count) is float
    assert type(causal_example(IDS, SPANS, weights=[2.0, 1, 3.0]).count) is int
    with pytest.raises(ValueError, match="2 weights for 3 spans"):
        causal_example(IDS, SPANS, weights=[1.0, 2.0])


@pytest.mark.parametrize(
    ("max_length", "weights", "spans", "count"),
    [
        (20, [0.5, 1, 2], [(2, 5, 0.5), (7, 8, 1.0), (11, 16, 2.0)], 12.5),
        (15, [0.5, 1, 2], [(2, 5, 0.5), (7, 8, 1.0)], 2.5),
        (15, [0.5, 0, 2], [(2, 5, 0.5)], 1.5),
        (15, [0, 0, 2], [(11, 15, 2.0)], 8),  # cut inside the first span that is trained
        (4, [0.5, 1, 2], [(2, 4, 0.5)], 1.0),
    ],
)
def test_cut_spans_keep_their_own_weights(max_length, weights, spans, count):
    example = fit_spans(IDS, SPANS, max_length=max_length, weights=weights)
    assert (spans_of(example), example.count) == (spans, count)
    assert example.truncated == (max_length < len(IDS))
    assert example.length <= max_length


def test_a_cut_inside_a_later_span_keeps_that_spans_weight():
    """A document's first token has no position that could predict it, so the first span has nothing to train."""
    example = fit_spans(IDS, [(0, 1), (3, 18)], max_length=10, weights=[0.5, 2.0])
    assert (spans_of(example), example.count) == ([(3, 10, 2.0)], 14)


def test_what_has_no_weight_at_all_is_dropped():
    for max_length in (20, 4):
        assert fit_spans(IDS, SPANS, max_length=max_length, weights=[0, 0, 0]).code == "BC066"
    assert fit_spans(IDS, SPANS, max_length=9, weights=[0, 0, 1]).code == "BC028"


def test_a_stored_sum_of_weights_that_does_not_fit_is_not_trained_on():
    example = causal_example(IDS, SPANS, weights=[0.1, 1, 0.7])
    for factor, fits in ((1 + 1e-9, True), (1 + 1e-5, False)):
        inputs = {"examples": [arrays(example)], "rows": [7], "counts": [example.count * factor]}
        if fits:
            assert stage_of().collate(**inputs).counted == 9
            continue
        with pytest.raises(ValueError, match=r"rows \[7\]"):
            stage_of().collate(**inputs)


def test_step_passes_weights_only_where_there_are_any():
    table, passed = torch.randn(600, 4), []

    def project(*, batch, positions):
        return table[batch.input_ids[0]].index_select(0, positions), "head"

    def loss(**inputs):
        passed.append(inputs)
        return StepOutput(loss_sum=inputs["hidden"].sum(), count=len(inputs["targets"]))

    for weights in (None, [1, 1, 1], [1, 1, 0.25]):
        batch = collated(causal_example(IDS, SPANS, weights=weights))
        stage_of().step(policy=SimpleNamespace(project=project), batch=batch, loss=loss)
    plain, ones, weighted = passed
    assert plain.keys() == ones.keys() == {"hidden", "head", "targets"}
    assert weighted["weights"].tolist() == [1.0] * 4 + [0.25] * 5


def test_weights_come_back_from_the_token_shards(tmp_path):
    given = [
        causal_example(IDS, SPANS, weights=[0.1, 1, 0.7]),
        causal_example(IDS[:9], SPANS[:2]),
        causal_example(IDS[:5], SPANS[:1], weights=[0.3]),
    ]
    stage = stage_of(given)
    encoded = encode_samples(stage, [TextSample(text="x")], CAUSAL, LENGTHS)
    writer = StoreWriter(tmp_path, stage.columns, shard_bytes=40)
    writer.add(encoded, source=0, lines=np.arange(1))
    report = PrepareReport(rows=1, examples=3, tokens=writer.tokens, supervised=writer.supervised)
    writer.finish(fingerprint="f", files=["a.jsonl"], report=report)
    store = TokenStore(tmp_path)
    assert store.counts.tolist() == [example.count for example in given]
    assert store.report.supervised == pytest.approx(0.1 * 3 + 1 + 0.7 * 5 + 4 + 0.3 * 3)
    assert store.has_values("weights")
    found, direct = collate(store, stage, [0, 1, 2]), collated(*given)
    assert torch.equal(found.extras["weights"], direct.extras["weights"])
    assert (found.count, found.items) == (direct.count, 16)
    assert "weights" not in collate(store, stage, [1]).extras
    assert collate(store, stage, [1]).count == 4


def test_whole_counts_are_reported_as_integers(tmp_path):
    stage = stage_of([causal_example(IDS, SPANS, weights=[0.5, 1, 0.5])])
    encoded = encode_samples(stage, [TextSample(text="x")], CAUSAL, LENGTHS)
    writer = StoreWriter(tmp_path, stage.columns)
    for _ in range(2):
        writer.add(encoded, source=0, lines=np.arange(1))
    assert (writer.supervised, type(writer.supervised)) == (10, int)
    writer.close()
