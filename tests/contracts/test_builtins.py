"""Every built-in, whichever is registered, keeps the contract of its kind."""

from __future__ import annotations

import inspect
import math

import click
import pytest
import torch

from bumblecore_core import (
    AttentionFunctions,
    ChatSample,
    EngineContext,
    FeedbackSample,
    ParameterGroup,
    PreferenceSample,
    StageContext,
    TextSample,
    TokenExample,
)
from bumblecore_core.protocols import Adapter, Engine
from bumblecore_core.records import RECORDS
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.testing import (
    check_data_format,
    check_feedback_loss,
    check_logger,
    check_preference_loss,
    check_record,
    check_reward_loss,
    check_token_loss,
)
from tiny_models import make_model
from workbench import make_tokenizer, sentence

REGISTRY = load_registry(PluginSwitches(builtins_only=True))
STEPS = 12
ROWS = {
    "text": [{"text": "Some plain text."}],
    "alpaca": [
        {"instruction": "Say something.", "input": "", "output": "Something."},
        {"instruction": "Add these.", "input": "1 and 2", "output": "They make 3.", "system": "Be brief and kind."},
        {"instruction": "Say something.", "input": "", "output": "No, never.", "kto_tag": False},
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "Good morning"}, {"from": "gpt", "value": "Good morning to you"}]}
    ],
    "openai": [
        {"messages": [{"role": "user", "content": "Good morning"}, {"role": "assistant", "content": "And to you"}]},
        {"prompt": "Good morning", "completion": "Good morning to you", "label": True},
    ],
    "xlam": [{"query": "Good morning", "tools": "[]", "answers": '[{"name": "greet_back", "arguments": {}}]'}],
}
"""Good rows of each built-in data format; a new format needs its line."""


def records(kind: str) -> list:
    return [pytest.param(item.record, id=item.record.name) for item in REGISTRY.all(kind)]


def with_defaults(record):
    """The record's options where all have a default; a required one is a contract of its own kind."""
    required = [name for name, field in record.options.model_fields.items() if field.is_required()]
    assert not required, f"{record.name} works only with the options {required}"
    return record.options()


def test_no_builtin_failed():
    assert {(info.name, info.error) for info in REGISTRY.plugins if info.status == "failed"} == set()


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.kind)
def test_records_are_valid_and_say_what_they_are(cls):
    for item in REGISTRY.all(cls.kind):
        check_record(item.record)
        assert item.record.summary.endswith("."), item.record.summary
        assert len(item.record.summary) <= 100, item.record.summary


@pytest.mark.parametrize("record", records("losses"))
def test_losses(record):
    loss = record.build(options=with_defaults(record))
    if record.loss_kind == "token":
        check_token_loss(loss)
    elif record.loss_kind == "preference":
        check_preference_loss(loss, reference=record.needs_reference)
    elif record.loss_kind == "feedback":
        check_feedback_loss(loss, reference=record.needs_reference)
    else:
        check_reward_loss(loss)


@pytest.mark.parametrize("record", records("loggers"))
def test_loggers(record, tmp_path):
    check_logger(record.build(options=with_defaults(record)), directory=tmp_path)


def test_every_data_format_has_rows_here():
    assert {item.record.name for item in REGISTRY.all("data_formats")} <= ROWS.keys()


@pytest.mark.parametrize("record", records("data_formats"))
def test_data_formats(record):
    check_data_format(record.build(options=with_defaults(record)), ROWS[record.name], record=record)


def test_a_row_has_one_format():
    for name, rows in ROWS.items():
        for row in rows:
            claims = [item.record.name for item in REGISTRY.all("data_formats") if item.record.detect(row)]
            assert claims == [name]


def parameter_groups() -> list[ParameterGroup]:
    torch.manual_seed(0)
    matrix, bias = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))
    return [
        ParameterGroup(name="decay", params=[matrix], decay=True),
        ParameterGroup(name="no_decay", params=[bias], decay=False, lr_scale=0.5),
    ]


@pytest.mark.parametrize("record", records("optimizers"))
def test_optimizers(record):
    groups = parameter_groups()
    optimizer = record.build(options=with_defaults(record), groups=groups)
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(rates[0] * 0.5)
    before = [parameter.detach().clone() for group in groups for parameter in group.params]
    for group in groups:
        for parameter in group.params:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = [parameter.detach() for group in groups for parameter in group.params]
    assert all(torch.isfinite(new).all() and not torch.equal(new, old) for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("record", records("schedulers"))
def test_schedulers(record):
    groups = [{"params": group.params, "lr": 0.1 * group.lr_scale} for group in parameter_groups()]
    optimizer = torch.optim.SGD(groups)
    schedule = record.build(options=with_defaults(record), optimizer=optimizer, total_steps=STEPS)
    for _ in range(STEPS):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(math.isfinite(rate) and 0 <= rate <= 0.1 for rate in rates), rates
        assert rates[1] == pytest.approx(rates[0] * 0.5), "groups keep their scale"
        optimizer.step()
        schedule.step(1.0) if record.needs_metric else schedule.step()
    assert schedule.state_dict()


@pytest.mark.parametrize("record", records("attentions"))
def test_attentions(record):
    why = record.unsupported(device=torch.device("cpu"), dtype=torch.float32)
    assert why is None or (isinstance(why, str) and why)
    if why is None:
        assert isinstance(record.load(), AttentionFunctions)


def test_some_attention_runs_on_a_cpu():
    places = [(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16)]
    for device, dtype in places:
        assert any(item.record.unsupported(device=device, dtype=dtype) is None for item in REGISTRY.all("attentions"))


@pytest.mark.parametrize("record", records("engines"))
def test_engines_have_the_protocols_methods(record):
    engine = record.build(options=with_defaults(record), context=EngineContext(dtype="fp32"))
    try:
        for name, method in inspect.getmembers(Engine, inspect.isfunction):
            if not name.startswith("_"):
                wanted = list(inspect.signature(method).parameters)[1:]
                assert list(inspect.signature(getattr(engine, name)).parameters) == wanted, name
        assert (engine.rank, engine.world_size) == (0, 1)
        assert engine.sum_over_ranks([1.0, 2.5]) == [1.0, 2.5]
    finally:
        engine.close()
        engine.close()


@pytest.mark.parametrize("record", records("adapters"))
def test_adapters(record, tmp_path):
    make_model("qwen3").save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    adapter = record.build(options=with_defaults(record))
    for name, method in inspect.getmembers(Adapter, inspect.isfunction):
        if not name.startswith("_"):
            wanted = list(inspect.signature(method).parameters)[1:]
            assert list(inspect.signature(getattr(adapter, name)).parameters) == wanted, name
    model = adapter.wrap(model=make_model("qwen3"), base=tmp_path / "base", checkpoint=None)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < sum(p.numel() for p in trained.values()) < sum(p.numel() for p in model.parameters()) / 2
    assert all(adapter.lr_scale(name=name) > 0 and adapter.saves(name=name) for name in trained)
    words, warnings = adapter.describe(model=model)
    assert words
    assert not warnings
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.02  # as training would: far larger updates leave float32's rounding behind
        changed = model(input_ids=ids).logits
        with adapter.base_policy(model=model):
            base = model(input_ids=ids).logits
        torch.testing.assert_close(base, make_model("qwen3")(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        state = {name: tensor for name, tensor in model.state_dict().items() if adapter.saves(name=name)}
        adapter.save(model=model, state=state, directory=tmp_path)
        again = record.build(options=with_defaults(record))
        other = again.wrap(model=make_model("qwen3"), base=tmp_path / "base", checkpoint=tmp_path)
        assert torch.equal(other(input_ids=ids).logits, changed)
        torch.testing.assert_close(adapter.merge(model=model)(input_ids=ids).logits, changed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("record", records("commands"))
def test_commands(record):
    command = record.load()
    assert isinstance(command, click.Command)
    assert command.help


def messages(*texts: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts))


SAMPLES = {
    "text": [TextSample(text=sentence(seed, 6 + seed)) for seed in range(3)],
    "chat": [ChatSample(messages=messages(sentence(seed, 3), sentence(seed, 5 + seed))) for seed in range(3)],
    "preference": [
        PreferenceSample(
            prompt=messages(sentence(seed, 3)),
            chosen=({"role": "assistant", "content": sentence(seed, 4)},),
            rejected=({"role": "assistant", "content": sentence(seed + 9, 6)},),
        )
        for seed in range(3)
    ],
    "feedback": [
        FeedbackSample(
            prompt=messages(sentence(seed, 3)),
            completion=({"role": "assistant", "content": sentence(seed, 4 + seed)},),
            label=seed != 1,
        )
        for seed in range(3)
    ],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("record", records("stages"))
def test_stages(record, tokenizer):
    import numpy as np

    assert record.default_loss in REGISTRY.names("losses")
    assert REGISTRY.get("losses", record.default_loss).loss_kind == record.loss_kind
    context = StageContext(tokenizer=tokenizer, max_length=128)
    stage = record.build(options=with_defaults(record), context=context)
    encoded = stage.encode(samples=SAMPLES[record.reads])
    assert len(encoded) == 3
    examples = [part for entry in encoded for part in ([entry] if isinstance(entry, TokenExample) else entry)]
    assert all(set(example.columns) == set(stage.columns) for example in examples)
    assert all(example.count > 0 and 0 < example.length <= 128 for example in examples)
    columns = [{name: np.asarray(value, np.int32) for name, value in example.columns.items()} for example in examples]
    counts = [example.count for example in examples]
    batch = stage.collate(examples=columns, rows=range(len(examples)), counts=counts)
    assert batch.count == sum(counts)
    assert batch.input_ids.shape == batch.position_ids.shape == (1, sum(batch.document_lengths))
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(batch.document_lengths).tolist()]
    shared = batch.shared_prefixes or (0,) * len(batch.document_lengths)
    for start, prefix in zip(batch.cu_seqlens[:-1].tolist(), shared, strict=True):
        assert batch.position_ids[0, start] == prefix
    assert sum(example.length for example in examples) == batch.tokens
    for arrays in columns:
        segments = stage.preview(example=arrays)
        assert any(trained for _, trained in segments)
        assert "".join(text for text, _ in segments)
