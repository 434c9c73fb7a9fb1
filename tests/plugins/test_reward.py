"""The stage `reward` and its loss: one pass over the shared layout against transformers' own score of each sequence."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from bumblecore_core import ConfigError, Dropped, ModelError, PreferenceSample, RowError, StageContext, TokenExample
from bumblecore_core.toolkit.policy import make_policy
from bumblecore_plugins.losses.reward import BradleyTerry
from bumblecore_plugins.stages import RewardOptions
from bumblecore_plugins.stages.reward import RewardStage
from reward_models import make_scorer
from tiny_models import FAMILIES, VOCABULARY, register_attentions
from workbench import make_tokenizer, sentence

CENTER = 0.05
SCORERS = sorted(FAMILIES.keys() - {"granite", "cohere"})  # of which transformers has no sequence classification


@pytest.fixture(autouse=True)
def registered():
    register_attentions()


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return directory


@pytest.fixture
def tokenizer(tokenizer_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir)


def stage_of(tokenizer, max_length=64):
    return RewardStage(RewardOptions(), StageContext(tokenizer=tokenizer, max_length=max_length))


def ids(seed, count):
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


def pair(chosen, rejected):
    return {"chosen_ids": np.asarray(chosen, np.int32), "rejected_ids": np.asarray(rejected, np.int32)}


PROMPT = ids(0, 6)
PAIRS = [
    pair(PROMPT + ids(1, 5), PROMPT + ids(2, 8)),
    pair([*PROMPT, 7, 8, 9, 10], [*PROMPT, 7, 8, 11, 12, 13]),
    pair([5, *ids(3, 7)], [6, *ids(4, 4)]),  # nothing in common
    pair([*PROMPT, 7, 8, 9], [*PROMPT, 7, 8]),  # one is the beginning of the other
    pair([*PROMPT, 7], [*PROMPT, 7, 8, 9, 20]),
    pair([*PROMPT, 7], [*PROMPT, 8]),
    pair([4], [9]),
    pair([*PROMPT, 0, 7, 0, 8], [*PROMPT, 0, 9]),  # padding inside a sequence is no padding
]


def alone(model, example):
    """(chosen, rejected) scores by `model(row)`, one sequence at a time."""
    sequences = [torch.from_numpy(example[f"{side}_ids"].astype(np.int64))[None] for side in ("chosen", "rejected")]
    return [model(input_ids=sequence, use_cache=False).logits[0, 0] for sequence in sequences]


def by_hand(model, examples):
    """TRL's reward loss, as its sum over the pairs: a mean of logistic losses, and one of squared sums."""
    scores = torch.stack([torch.stack(alone(model, example)) for example in examples])
    chosen, rejected = scores[:, 0], scores[:, 1]
    mean = -functional.logsigmoid(chosen - rejected).mean() + CENTER * torch.mean((chosen + rejected) ** 2)
    return mean * len(examples), scores.detach()


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


class Recording(BradleyTerry):
    """The loss, which keeps the scores that it is given."""

    def __call__(self, *, chosen, rejected):
        object.__setattr__(self, "scores", torch.stack([chosen, rejected], 1).detach())
        return super().__call__(chosen=chosen, rejected=rejected)


CASES = [(family, attention) for family in SCORERS for attention in ("varlen", "sdpa", "eager")]


@pytest.mark.parametrize(("family", "attention"), [*CASES, ("qwen3_next", "eager")])
def test_one_pass_over_the_shared_layout_equals_the_model_on_each_row(family, attention, tokenizer):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("Gemma 2 has no SDPA")
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = make_scorer(family, attention=attention, **dropouts).train()
    policy = make_policy(model, share_prefixes=True)
    features = dict(policy.features)
    shared = features["shared prefixes"]
    assert shared == "computed once" if attention == "varlen" else shared.startswith("repeated")
    assert features["head"] == "a score of each sequence, at its last token"
    stage, loss = stage_of(tokenizer), Recording(center_coefficient=CENTER)
    given = []
    for part in (PAIRS[:3], PAIRS[3:4], PAIRS[4:]):  # gradients add up over micro-batches
        batch = stage.collate(examples=part, rows=range(len(part)), counts=[1] * len(part))
        assert batch.scored == 2 * len(part)
        output = stage.step(policy=policy, batch=batch, loss=loss)
        assert output.count == batch.count == len(part)
        (output.loss_sum / len(PAIRS)).backward()
        given.append(loss.scores)
    ours = gradients(model)
    total, scores = by_hand(model, PAIRS)
    (total / len(PAIRS)).backward()
    theirs = gradients(model)
    assert scores.std() > 0.1
    torch.testing.assert_close(torch.cat(given), scores, rtol=1e-5, atol=1e-5)
    assert ours.keys() == theirs.keys()
    assert "score.weight" in ours
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_the_layout_holds_the_common_beginning_once(tokenizer):
    batch = stage_of(tokenizer).collate(examples=PAIRS[:2], rows=[4, 9], counts=[1, 1])
    assert batch.document_lengths == (11, 8, 10, 3)
    assert batch.shared_prefixes == (0, 6, 0, 8)
    assert batch.rows == (4, 9)
    assert not batch.extras


def test_the_loss_and_its_figures():
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    output = BradleyTerry(center_coefficient=0.1)(chosen=chosen, rejected=rejected)
    expected = sum(
        np.log1p(np.exp(-(w - s))) + 0.1 * (w + s) ** 2 for w, s in zip([2, -1, 0.5], [1, 1, 0.5], strict=True)
    )
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-6)
    assert output.count == 3
    figures = {name: float(metric.total) / metric.weight for name, metric in output.metrics.items()}
    assert figures == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": 2.5 / 3,
            "rewards/accuracies": 1 / 3,  # equal scores are no success
            "rewards/margins": -1 / 3,
        }
    )
    assert {metric.reduce for metric in output.metrics.values()} == {"mean"}


def message(text, role="assistant"):
    return {"role": role, "content": text}


def sample(chosen, rejected, prompt="the cat"):
    return PreferenceSample(prompt=(message(prompt, "user"),), chosen=(message(chosen),), rejected=(message(rejected),))


def test_a_pair_is_the_template_of_both_conversations(tokenizer):
    stage = stage_of(tokenizer)
    samples = [sample(sentence(at, 2 + at), sentence(at + 5, 4)) for at in range(3)]
    for example, entry in zip(stage.encode(samples=samples), samples, strict=True):
        assert isinstance(example, TokenExample)
        for side in ("chosen", "rejected"):
            messages = [*entry.prompt, *getattr(entry, side)]
            whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            assert example.columns[f"{side}_ids"].tolist() == whole
        assert example.count == 1
        segments = stage.preview(example=example.columns)
        replies = [getattr(entry, side)[0]["content"] + "<|im_end|>" for side in ("chosen", "rejected")]
        assert [text for text, trained in segments if trained] == replies


def test_pairs_that_are_too_long_or_equal_are_dropped_and_errors_name_the_side(tokenizer):
    stage = stage_of(tokenizer, max_length=40)
    long, short = sentence(1, 60), sentence(2, 2)
    found = stage.encode(
        samples=[
            sample(long, short),
            sample(short, long),
            sample(short, short),
            sample(short, "\ud800"),
            sample(short, sentence(3, 2)),
        ]
    )
    assert [entry.code for entry in found[:3]] == ["BC028", "BC028", "BC017"]
    assert all(isinstance(entry, Dropped) for entry in found[:3])
    assert isinstance(found[3], RowError)
    assert found[3].problem.code == "BC020"
    assert isinstance(found[4], TokenExample)
    assert not found[4].truncated
    exact = max(len(found[4].columns[f"{side}_ids"]) for side in ("chosen", "rejected"))
    assert isinstance(stage_of(tokenizer, exact).encode(samples=[sample(short, sentence(3, 2))])[0], TokenExample)
    assert isinstance(stage_of(tokenizer, exact - 1).encode(samples=[sample(short, sentence(3, 2))])[0], Dropped)


def test_a_pad_token_that_would_be_mistaken_is_refused(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match=r"BC039.*no pad token"):
        stage_of(tokenizer)
    tokenizer.pad_token = "<|im_end|>"
    usual = [sample("a mat", "the sea")]
    with pytest.raises(ConfigError, match=r"BC039 model\.tokenizer: conversations end with the pad token '<\|im_end"):
        stage_of(tokenizer).encode(samples=usual)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{{ '\\n' }}{% endfor %}"
    (example,) = stage_of(tokenizer).encode(samples=usual)
    assert tokenizer.decode(example.columns["chosen_ids"][-2:]) == "<|im_end|>\n"


def test_a_model_that_does_not_score_its_last_token_is_refused():
    model = make_scorer("qwen3", attention="varlen")
    forward = model.forward

    def first_token(**inputs):
        output = forward(**inputs)
        output.logits = output.logits + 1
        return output

    model.forward = first_token
    with pytest.raises(ModelError, match=r"BC064.*does not score a sequence by its module 'score'"):
        make_policy(model)
    model.forward = forward
    model.config.pad_token_id = 45  # the probe's last token
    make_policy(model)
