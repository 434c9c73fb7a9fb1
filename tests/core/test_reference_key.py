"""Under which name a reference's log-probabilities are kept: only what changes them changes the name."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bumblecore_core.run import reference as reference_module
from bumblecore_core.run import reference_cache
from bumblecore_core.run.attention_choice import AttentionChoice
from bumblecore_core.run.reference import wanted_reference
from bumblecore_core.run.vocabulary import Vocabulary
from core.reference_runs import Store, make_engine, make_plan, make_prepared, selected


@pytest.fixture
def key(tmp_path, monkeypatch):
    """Names of the files of a run with some parts changed. Fingerprints are those of the directories' names."""
    monkeypatch.setattr(
        reference_module,
        "weights_fingerprint",
        lambda directory, cache: hashlib.sha256(directory.name.encode()).hexdigest(),
    )
    monkeypatch.setattr(reference_module, "resolve_model_dir", lambda name, field: Path(name))
    monkeypatch.setattr(reference_module, "load_config", lambda *_, **__: None)

    def names(*, attention="sdpa", code="code", named="weights", ranks=None, **changes):
        with monkeypatch.context() as patch:
            patch.setattr(
                reference_module,
                "chosen_attention",
                lambda *_, **__: AttentionChoice(name=attention, implementation=attention),
            )
            patch.setattr(
                reference_module, "named_weights", lambda options, cache: {"path": named} if options["path"] else {}
            )
            patch.setattr(
                reference_module,
                "code_and_config",
                lambda directory, *, trust_remote_code: {code: str(trust_remote_code)},
            )
            prepared = make_prepared(tmp_path, **changes)
            wanted = wanted_reference(prepared, None, ranks or make_engine())
        assert {path.parent for path in wanted.files.values()} == {tmp_path / "cache" / "reference"}
        return tuple(path.name for path in wanted.files.values())

    return names


LORA = selected("lora")
EVALUATION = make_plan(rows=range(5), shuffle=False)


def changed(tmp_path):
    """Changes of one input each; of several to the same one, each from the others."""
    return {
        "the weights": {"model_dir": tmp_path / "another"},
        "a reference of its own": {"reference": str(tmp_path / "another" / "own")},
        "an adapter": {"adapter": LORA},
        "an option of the adapter": {"adapter": selected("lora", number=2)},
        "the adapter that it starts from": {"adapter": selected("lora", path="a")},
        "the weights of that adapter": {"adapter": selected("lora", path="a"), "named": "other weights"},
        "another adapter": {"adapter": selected("dora")},
        "the base without its adapter": {"adapter": LORA, "reference": "base"},
        "the model's configuration or code": {"code": "another"},
        "whether that code is run": {"model__trust_remote_code": True},
        "the attention": {"attention": "eager"},
        "the rows of the embeddings": {"vocabulary": Vocabulary(rows=320)},
        "the stage": {"stage": selected("kto")},
        "an option of the stage": {"stage": selected("dpo", number=2)},
        "the engine": {"engine": "deepspeed"},
        "the device": {"ranks": make_engine(device=SimpleNamespace(type="cuda"))},
        "the dtype": {"ranks": make_engine(dtype=torch.bfloat16)},
        "the rows": {"plan": make_plan(rows=range(1, 39))},
        "the number of steps": {"plan": make_plan(max_steps=5)},
        "a data file's weight": {"plan": make_plan(weights=(0.5,), max_steps=10)},
        "the evaluation": {"eval_plan": EVALUATION},
        "the evaluation's rows": {"eval_plan": make_plan(rows=range(6), shuffle=False)},
        "the data": {"store": Store(tmp_path / "store", content="another")},
        "the micro-batch": {"plan": make_plan(micro_batch_size=1, max_steps=10)},
        "accumulation": {"plan": make_plan(gradient_accumulation_steps=1, max_steps=10)},
        "the number of ranks": {"plan": make_plan(world_size=2, max_steps=10)},
        "the seed": {"plan": make_plan(seed=1, max_steps=10)},
        "packing": {"plan": make_plan(packing=True, max_steps=10)},
        "the length of a bin": {"plan": make_plan(packing=True, max_length=15, max_steps=10)},
        "the order": {"plan": make_plan(shuffle=False, max_steps=10)},
    }


def test_each_input_on_its_own_gives_another_key(key, tmp_path):
    assert make_plan().total_steps == 10  # so that `max_steps=10` changes nothing
    keys = {"nothing": key(), **{name: key(**changes) for name, changes in changed(tmp_path).items()}}
    assert len(set(keys.values())) == len(keys), keys
    assert {field.name for field in dataclasses.fields(make_plan().options)} == {
        *("micro_batch_size", "gradient_accumulation_steps", "world_size", "seed", "packing", "max_length", "shuffle")
    }


@pytest.mark.parametrize("library", reference_cache.LIBRARIES)
def test_another_version_of_a_library_has_another_key(key, monkeypatch, library):
    first, installed = key(), reference_cache.installed_version
    assert installed(library) != "not installed"
    monkeypatch.setattr(
        reference_cache, "installed_version", lambda name: "99.0" if name == library else installed(name)
    )
    assert key() != first


def test_an_edited_stage_has_another_key(key, monkeypatch):
    first, seen = key(), []
    monkeypatch.setattr(reference_cache, "code_fingerprint", lambda objects: seen.extend(objects) or "edited")
    assert key() != first
    assert seen == [selected("dpo").record.build]


SAME = {
    "logging_steps": {"train__logging_steps": 7},
    "checkpoint.save_steps": {"checkpoint__save_steps": 3},
    "the seed of an adapter that there is none of": {"train__seed": 5},
    "an adapter that the base is asked without": {"adapter": selected("lora", number=3), "reference": "base"},
}


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_figure_keeps_the_key(key, name):
    changes = SAME[name]
    plain = {**changes, "adapter": LORA} if "adapter" in changes else {}
    assert key(**changes) == key(**plain)


def test_an_evaluation_with_files_of_its_own_has_figures_of_its_own(key, tmp_path):
    other = Store(tmp_path / "evaluation", content="evaluation")
    first, second = key(eval_plan=EVALUATION, eval_store=other)
    assert first != second
    assert key(eval_plan=EVALUATION, eval_store=Store(tmp_path / "evaluation", content="another"))[0] == first
    assert len(key(eval_plan=EVALUATION)) == 1
