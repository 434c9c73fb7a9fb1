"""What a run notes of what it was made from: each part on its own is a difference to a later run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from config_records import make_registry

from bumblecore_core.config.resolve import load_run
from bumblecore_core.run import lock as lock_module
from bumblecore_core.run.checkpoint.resume import lock_problems
from bumblecore_core.run.lock import make_lock

REGISTRY = make_registry()
CONFIG = "stage: {stage}\nmodel: {{path: base}}\ndata: {{path: rows.jsonl}}\noutput_dir: out\n"


class Store:
    """As much of a token store as a lock describes."""

    def __init__(self, content="c", weights=(1.0,), examples=3):
        self.content, self.weights, self.examples = content, weights, examples

    def __len__(self):
        return self.examples


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """Makes a lock with some of its parts changed. The fingerprint of weights is the directory's name."""
    monkeypatch.setattr(lock_module, "weights_fingerprint", lambda directory, cache: str(directory))

    def make(*overrides, stage="sft", model=None, **changes):
        (tmp_path / "run.yaml").write_text(CONFIG.format(stage=stage))
        config = {"hidden_size": 8, "_name_or_path": "base", "dtype": "float32", **(model or {})}
        parts = {
            "model_dir": "base",
            "tokenizer_fingerprint": "t",
            "store": Store(),
            "eval_store": Store("e"),
            "world_size": 2,
            "reference": "r",
            **changes,
        }
        return make_lock(
            resolved=load_run(str(tmp_path / "run.yaml"), overrides, REGISTRY),
            registry=REGISTRY,
            model_config=SimpleNamespace(to_json_string=lambda use_diff: json.dumps(config)),
            **parts,
        )

    return make


def differences(tmp_path, left, right):
    found = lock_problems(left, right, allowed=[], reshaping=[], place=tmp_path)
    return [problem.field for problem in found]


CHANGES = [
    ({"store": Store("other")}, "data"),
    ({"store": Store(weights=(2.0,))}, "data"),
    ({"store": Store(examples=4)}, "data"),
    ({"eval_store": Store("other")}, "evaluation_data"),
    ({"eval_store": None}, "evaluation_data"),
    ({"tokenizer_fingerprint": "other"}, "tokenizer"),
    ({"model_dir": "other"}, "model.weights"),
    ({"model": {"hidden_size": 16}}, "model.config.hidden_size"),
    ({"model": {"new": 1}}, "model.config.new"),
    ({"reference": "other"}, "reference.weights"),
    ({"world_size": 1}, "batch"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_each_part_is_a_difference_of_its_own(locked, tmp_path, change, name):
    assert differences(tmp_path, locked(), locked(**change)) == [name]
    assert differences(tmp_path, locked(**change), locked()) == [name]


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("train.seed=7", "train.seed"),
        ("optimizer.betas=[0.5,0.999]", "optimizer.betas.0"),
        ("loss.z_loss=1", "loss.z_loss"),
    ],
)
def test_a_setting_is_a_difference(locked, tmp_path, override, name):
    assert differences(tmp_path, locked(), locked(override)) == [name]


def test_what_changes_no_number_is_no_difference(locked, tmp_path):
    harmless = ["loggers=[log_file]", "train.logging_steps=7", "checkpoint.save_steps=3", "output_dir=elsewhere"]
    other = locked(*harmless, "data.num_workers=1", "data.cache_dir=c", model={"_name_or_path": "b", "dtype": "x"})
    assert other != locked()
    assert differences(tmp_path, locked(), other) == []


def test_a_model_that_is_made_from_its_configuration_has_no_weights_to_compare(locked, tmp_path):
    assert locked(stage="pretrain")["model"]["weights"] is None
    assert differences(tmp_path, locked(stage="pretrain"), locked(stage="pretrain", model_dir="other")) == []
