"""Collection: entry points, provenance, switches, remembered failures, clashes, lookups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bumblecore_core.errors import ConfigError, PluginError
from bumblecore_core.registry import PluginSwitches, Registry, load_registry
from core.fake_plugins import GOOD, Site, make_site


@pytest.fixture
def site(tmp_path, monkeypatch):
    yield from make_site(tmp_path / "site", monkeypatch)


def codes(error: PluginError) -> list[str]:
    return [problem.code for problem in error.problems]


def load(**switches) -> Registry:
    return load_registry(PluginSwitches(**switches))


def plugin(registry: Registry, name: str):
    return next(info for info in registry.plugins if info.name == name)


def test_builtins_come_through_entry_points():
    registry = load(builtins_only=True)
    assert {info.distribution for info in registry.plugins if info.status == "loaded"} == {"bumblecore"}
    assert registry.get("loggers", "progress").summary


def test_a_record_and_its_provenance(site: Site):
    site.add("acme-focal", GOOD, version="2.3")
    registry = load()
    assert registry.get("losses", "focal").options().gamma == 2.0
    info = registry.provided("losses", "focal").plugin
    assert (info.distribution, info.version, info.module, info.status) == ("acme-focal", "2.3", "acme_focal", "loaded")
    names = registry.names("losses")
    assert names == sorted(names)
    assert "focal" in names


def test_an_entry_point_may_name_an_object(site: Site):
    site.add(
        "acme-object",
        GOOD.replace("@hookimpl\ndef", "class P:\n  @staticmethod\n  @hookimpl\n  def").replace(
            "    return [Loss", "      return [Loss"
        )
        + "\n\nplugin = P()\n",
    )
    (site.path / "acme_object-1.0.dist-info" / "entry_points.txt").write_text("[bumblecore]\no = acme_object:plugin\n")
    assert load().get("losses", "focal")


@pytest.mark.parametrize("broken", ["import does_not_exist", "raise SystemExit(3)", "def ("])
def test_an_import_failure_is_remembered(site: Site, broken: str):
    site.add("acme-broken", broken + "\n")
    registry = load()
    info = plugin(registry, "acme-broken")
    assert info.status == "failed"
    assert info.code == "BC054"
    assert registry.get("loggers", "progress")


def test_a_failed_plugin_is_fatal_only_for_its_names(site: Site):
    site.add("acme-broken", "import does_not_exist\nLossRecord(name='mine', summary='other')\n")
    registry = load()
    with pytest.raises(PluginError) as caught:
        registry.get("losses", "mine", place="run.yaml:3", field="loss")
    assert codes(caught.value) == ["BC054"]
    assert str(caught.value).startswith("BC054 run.yaml:3 loss: loss 'mine'")
    assert "does_not_exist" in str(caught.value)
    with pytest.raises(PluginError) as caught:
        registry.get("losses", "other")
    assert codes(caught.value) == ["BC056"]
    assert "does_not_exist" in str(caught.value)


def test_a_hook_that_raises_is_remembered_with_none_of_its_records(site: Site):
    site.add("acme-raises", GOOD + "\n\n@hookimpl\ndef bumble_loggers():\n    raise ValueError('no\\nlogger')\n")
    registry = load()
    info = plugin(registry, "acme-raises")
    assert (info.status, info.code) == ("failed", "BC060")
    with pytest.raises(PluginError) as caught:
        registry.get("losses", "focal")
    assert codes(caught.value) == ["BC060"]
    assert "bumble_loggers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_nothing_provides():
    with pytest.raises(PluginError) as caught:
        load(builtins_only=True).get("loggers", "progres", place="run.yaml:9", field="loggers[0]")
    text = str(caught.value)
    assert codes(caught.value) == ["BC056"]
    assert text.startswith("BC056 run.yaml:9 loggers[0]: no logger called 'progres' is installed")
    assert "did you mean 'progress'?" in text
    assert "pip install" in text
    assert caught.value.exit_code == 2


def test_a_name_that_the_caller_knows_is_suggested_too():
    error = load(builtins_only=True).missing("loggers", "consol", also=["console"])
    assert codes(error) == ["BC056"]
    assert "did you mean 'console'?" in str(error)


def test_an_unknown_kind_is_a_defect():
    with pytest.raises(ValueError, match="losses"):
        load(builtins_only=True).get("loss", "x")


def test_a_clash_names_both_distributions(site: Site):
    site.add("acme-one", GOOD, version="1.5")
    site.add("acme-two", GOOD)
    with pytest.raises(PluginError) as caught:
        load()
    assert codes(caught.value) == ["BC053"]
    assert "acme-one 1.5 (acme_one)" in str(caught.value)
    assert "acme-two 1.0 (acme_two)" in str(caught.value)


def test_a_third_party_cannot_replace_a_builtin(site: Site):
    site.add(
        "acme-progress",
        "from bumblecore_core import LoggerRecord, hookimpl\n\n@hookimpl\ndef bumble_loggers():\n"
        "    return [LoggerRecord(name='progress', summary='Mine.', build=lambda *, options: None)]\n",
    )
    with pytest.raises(PluginError, match=r"BC053.*bumblecore .*acme-progress"):
        load()


def test_all_breaches_are_reported_at_once(site: Site):
    site.add("acme-one", GOOD)
    site.add("acme-two", GOOD)
    site.add("acme-typo", GOOD.replace("bumble_losses", "bumble_loses").replace("focal", "focal3"))
    with pytest.raises(PluginError) as caught:
        load()
    assert sorted(codes(caught.value)) == ["BC053", "BC058"]


def test_builtins_only(site: Site):
    site.add("acme-bomb", "raise AssertionError('imported')\n")
    registry = load(builtins_only=True)
    assert plugin(registry, "acme-bomb").status == "off"
    assert "acme_bomb" not in sys.modules
    with pytest.raises(PluginError, match="switched off: acme-bomb"):
        registry.get("losses", "bomb")


@pytest.mark.parametrize("allowed", ["acme-focal", "Acme_Focal", "acme.focal", "focal-entry"])
def test_the_allow_list_takes_distributions_and_entry_points(site: Site, allowed: str):
    site.add("acme-focal", GOOD, entry="focal-entry")
    site.add("acme-other", GOOD.replace('"focal"', '"other"'))
    registry = load(allow=(allowed,))
    assert registry.names("losses").count("focal") == 1
    assert plugin(registry, "acme-other").status == "off"
    assert registry.get("loggers", "progress")


def test_a_misspelt_allow_list_is_an_error(site: Site):
    site.add("acme-focal", GOOD)
    with pytest.raises(PluginError, match=r"BC056 BUMBLE_PLUGINS: .*'acme-fokal'.*did you mean 'acme-focal'"):
        load(allow=("acme-fokal",))


def test_an_allow_list_that_has_no_effect_is_not_checked(site: Site):
    site.add("acme-focal", GOOD)
    assert plugin(load(builtins_only=True, allow=("acme-fokal",)), "acme-focal").status == "off"


def test_a_local_module(tmp_path: Path, monkeypatch, site: Site):
    (site.path / "here").mkdir()
    (site.path / "here" / "my_local_plugin.py").write_text(GOOD)
    monkeypatch.chdir(site.path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry = load(builtins_only=True, modules=("my_local_plugin", "my_local_plugin"))
    assert registry.provided("losses", "focal").plugin.local
    assert [info.name for info in registry.plugins if info.local] == ["my_local_plugin"]
    assert sys.path[-1] == str(site.path / "here")


def test_a_local_module_that_does_not_import_is_fatal(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(PluginError, match=r"BC054 -p nothing_here: .*No module named") as caught:
        load(builtins_only=True, modules=("nothing_here",))
    assert codes(caught.value) == ["BC054"]


def test_naming_an_installed_plugin_with_p_is_no_clash(site: Site):
    module = site.add("acme-focal", GOOD)
    assert load(modules=(module,)).get("losses", "focal")


def test_two_entry_points_of_one_name_in_two_distributions(site: Site):
    site.add("acme-one", GOOD, entry="plugin")
    site.add("acme-two", GOOD.replace('"focal"', '"other"'), entry="plugin")
    assert {"focal", "other"} <= set(load().names("losses"))


@pytest.mark.parametrize(
    ("environ", "builtins_only", "allow"),
    [
        ({}, False, None),
        ({"BUMBLE_NO_PLUGINS": "1"}, True, None),
        ({"BUMBLE_NO_PLUGINS": "0"}, False, None),
        ({"BUMBLE_NO_PLUGINS": ""}, False, None),
        ({"BUMBLE_PLUGINS": "a, b,"}, False, ("a", "b")),
        ({"BUMBLE_PLUGINS": ""}, False, None),
    ],
)
def test_switches_from_the_environment(environ, builtins_only, allow):
    assert PluginSwitches.from_environment(environ) == PluginSwitches(builtins_only, allow)


def test_the_command_line_adds_to_the_environment():
    switches = PluginSwitches.from_environment({"BUMBLE_NO_PLUGINS": "0"}, no_plugins=True, modules=("m",))
    assert switches == PluginSwitches(True, None, ("m",))


def test_switches_are_shown_as_they_are_set():
    assert PluginSwitches().describe() == []
    assert PluginSwitches(True, ("a", "b"), ("m", "n")).describe() == [
        "BUMBLE_NO_PLUGINS=1 or --no-plugins: built-ins only",
        "BUMBLE_PLUGINS: a, b",
        "-p m",
        "-p n",
    ]


def test_a_switch_that_is_none():
    with pytest.raises(ConfigError, match=r"BC038 BUMBLE_NO_PLUGINS"):
        PluginSwitches.from_environment({"BUMBLE_NO_PLUGINS": "maybe"})
