"""Installed libraries outside the range that bumblecore requires end a run before it reads anything."""

from __future__ import annotations

import re

import pytest

from architecture.repository import ROOT
from bumblecore_core.cli import main
from bumblecore_core.errors import RunError
from bumblecore_core.toolkit import packages
from bumblecore_core.toolkit.packages import MODEL_LIBRARIES, require_supported, supported_versions
from workbench import pretrain_settings, workbench, write_config


@pytest.fixture
def install(monkeypatch):
    """`install(deepspeed="0.20.0")`: from then on the library seems to be installed in that version."""
    installed = packages.distribution_version

    def pretend(**versions):
        monkeypatch.setattr(packages, "distribution_version", lambda name: versions.get(name) or installed(name))

    return pretend


@pytest.fixture
def required(monkeypatch):
    """`required("deepspeed<0.20,>=0.19.1")`: what bumblecore's metadata requires."""

    def pretend(*lines):
        monkeypatch.setattr(packages.metadata, "requires", lambda name: list(lines))

    supported_versions.cache_clear()
    yield pretend
    supported_versions.cache_clear()


def test_the_ranges_are_those_of_the_installed_metadata(required):
    required("deepspeed<0.20,>=0.19.1", 'wandb>=0.20; extra == "wandb"', 'numpy>=2; python_version >= "3"')
    assert {name: str(range_) for name, range_ in supported_versions().items()} == {
        "deepspeed": "<0.20,>=0.19.1",
        "numpy": ">=2",
    }


@pytest.mark.parametrize("version", ["0.19.0", "0.20.0", "1.0", "0.20.1+local"])
def test_versions_outside_are_refused(required, install, version):
    required("deepspeed<0.20,>=0.19.1")
    install(deepspeed=version)
    with pytest.raises(RunError) as caught:
        require_supported("deepspeed", field="engine")
    expected = (
        f"BC094 engine: deepspeed {version} is installed, and bumblecore requires deepspeed <0.20,>=0.19.1. "
        "Install a supported version: pip install 'deepspeed<0.20,>=0.19.1'."
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize("version", ["0.19.1", "0.19.8+cu130", "0.19.9rc1", "0.19.9.dev3"])
def test_versions_inside_are_accepted(required, install, version):
    required("deepspeed<0.20,>=0.19.1")
    install(deepspeed=version)
    require_supported("deepspeed", "a_library_that_is_not_installed", "click")


def test_a_run_that_needs_the_library_ends(tmp_path, install, capsys):
    settings = {**pretrain_settings(workbench(tmp_path), max_steps=1), "stage": "continue_pretrain"}
    plain = write_config(tmp_path / "plain.yaml", **settings)
    cases = [(plain, name) for name in MODEL_LIBRARIES]
    cases.append((write_config(tmp_path / "lora.yaml", **settings, adapter="lora"), "peft"))
    cases.append((write_config(tmp_path / "zero.yaml", **settings, engine="deepspeed"), "deepspeed"))
    for config, library in cases:
        install(**{library: "0.0.1"})
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(config)])
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("BC")]
        assert ended.value.code == 2
        assert re.match(rf"BC094.* {library} 0\.0\.1 is installed", line), line


def test_generating_and_merging_need_supported_libraries(tmp_path, install):
    from bumblecore_core.toolkit.adapters import load_model, read_adapter_config

    install(transformers="4.57.6", peft="0.1")
    with pytest.raises(RunError, match=r"BC094: transformers 4\.57\.6"):
        load_model(tmp_path)
    with pytest.raises(RunError, match=r"BC094: peft 0\.1"):
        read_adapter_config(tmp_path)


def test_every_required_library_has_a_lower_bound():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    assert len(lines) > 10
    assert [line for line in lines if not re.match(r'    "[\w-]+>=[\d.]+(,<[\d.]+)?",$', line)] == []
