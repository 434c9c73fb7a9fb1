"""The commented config that `bumble config init` prints, and built-ins written and read again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_records import MINIMAL, make_registry

from bumblecore_core.config.resolve import load_run
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.config.shape import sections
from bumblecore_core.config.starter import starter_yaml
from bumblecore_core.config.yaml import dump, parse
from bumblecore_core.errors import PluginError
from bumblecore_core.registry import PluginSwitches, load_registry

REGISTRY = make_registry()


@pytest.mark.parametrize("stage", ["sft", "pretrain", "dpo", "odd"])
def test_the_starter_resolves_for_every_stage(tmp_path: Path, stage: str):
    text = starter_yaml(stage, REGISTRY)
    assert text.startswith("# yaml-language-server: $schema=bumble.schema.json\n")
    assert max(map(len, text.splitlines())) <= 120
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    run = load_run(tmp_path / "run.yaml", (), REGISTRY)
    assert run.stage.name == stage
    assert run.config.output_dir == f"runs/{stage}"


def test_the_starter_with_all_comments_removed_is_the_same_run(tmp_path: Path):
    """What a comment shows as a key is a key, at the right depth, and its value is the default."""
    text = starter_yaml("sft", REGISTRY)
    whole = re.sub(r"^# (loss|adapter|loggers): ", r"\1: ", text, flags=re.M)
    whole = re.sub(r"^#   (\w+: )", r"  \1", whole, flags=re.M)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(whole.replace("  max_steps: null\n", ""), encoding="utf-8")
    plain = load_run(tmp_path / "run.yaml", (), REGISTRY)
    full = load_run(tmp_path / "whole.yaml", (), REGISTRY)
    assert full.to_dict() == plain.to_dict()
    written = parse(whole, place=str).data
    for name, section in sections().items():
        assert set(written[name]) == set(section.model_fields)
    assert set(written) == set(RunConfig.model_fields)


def test_the_starter_of_an_unknown_stage():
    with pytest.raises(PluginError, match=r"BC056: .*did you mean 'sft'"):
        starter_yaml("stf", REGISTRY)


BUILTINS = load_registry(PluginSwitches(builtins_only=True))


@pytest.mark.parametrize("kind", ["stages", "schedulers", "optimizers", "data_formats", "loggers"])
def test_builtin_plugins_survive_being_written_and_read(tmp_path: Path, kind: str):
    """Each built-in, chosen by name: its resolved config is a config again, and resolves to the same run."""
    keys = {"stages": "stage", "schedulers": "scheduler", "optimizers": "optimizer", "loggers": "loggers.0"}
    (tmp_path / "run.yaml").write_text(MINIMAL)
    assert BUILTINS.names(kind)
    for item in BUILTINS.all(kind):
        record = item.record
        needs_data = ["data.eval_split=0.1"] if getattr(record, "needs_metric", False) else []
        chosen = f"{keys.get(kind, 'data.format')}={record.name}"
        first = load_run(tmp_path / "run.yaml", [chosen, *needs_data], BUILTINS)
        (tmp_path / "again.yaml").write_text(dump(first.to_dict()))
        assert load_run(tmp_path / "again.yaml", (), BUILTINS).to_dict() == first.to_dict()
