"""Each hook, from an installed distribution to a lookup by kind and name."""

from __future__ import annotations

import pytest

from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.registry.validate import HOOKS
from core.fake_plugins import Site, make_site

HEADER = "from bumblecore_core import *\n\n\n@hookimpl\n"
SOURCES = {
    "bumble_stages": """
def bumble_stages():
    return [StageRecord(name="mine", summary="Mine.", build=lambda *, options, context: "built",
                        reads="text", loss_kind="token", default_loss="causal_lm")]
""",
    "bumble_losses": """
def bumble_losses():
    return [LossRecord(name="mine", summary="Mine.", build=lambda *, options: "built", loss_kind="preference")]
""",
    "bumble_optimizers": """
def bumble_optimizers():
    return [OptimizerRecord(name="mine", summary="Mine.", build=lambda *, options, groups: "built")]
""",
    "bumble_schedulers": """
def bumble_schedulers():
    return [SchedulerRecord(name="mine", summary="Mine.", build=lambda *, options, optimizer, total_steps: "built")]
""",
    "bumble_data_formats": """
def bumble_data_formats():
    return [DataFormatRecord(name="mine", summary="Mine.", build=lambda *, options: "built", detect=lambda row: None)]
""",
    "bumble_adapters": """
def bumble_adapters():
    return [AdapterRecord(name="mine", summary="Mine.", build=lambda *, options: "built")]
""",
    "bumble_engines": """
def bumble_engines():
    return [EngineRecord(name="mine", summary="Mine.", build=lambda *, options, context: "built")]
""",
    "bumble_loggers": """
def bumble_loggers():
    return [LoggerRecord(name="mine", summary="Mine.", build=lambda *, options: "built")]
""",
    "bumble_attentions": """
def bumble_attentions():
    return [AttentionRecord(name="mine", summary="Mine.", load=lambda: "built",
                            unsupported=lambda *, device, dtype: None)]
""",
    "bumble_commands": """
def bumble_commands():
    return [CommandRecord(name="mine", summary="Mine.", load=lambda: "built")]
""",
}
ARGUMENTS = {
    "stages": ("options", "context"),
    "optimizers": ("options", "groups"),
    "schedulers": ("options", "optimizer", "total_steps"),
    "engines": ("options", "context"),
    "attentions": (),
    "commands": (),
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    yield from make_site(tmp_path / "site", monkeypatch)


def test_every_live_hook_is_here():
    assert SOURCES.keys() == HOOKS.keys()


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_brings_its_record_in(hook: str, site: Site):
    site.add("acme-mine", HEADER + SOURCES[hook].lstrip())
    kind = HOOKS[hook].kind
    found = load_registry(PluginSwitches()).provided(kind, "mine")
    assert type(found.record) is HOOKS[hook]
    assert found.plugin.distribution == "acme-mine"
    make = getattr(found.record, "build", None) or found.record.load
    assert make(**dict.fromkeys(ARGUMENTS.get(kind, ("options",)))) == "built"
