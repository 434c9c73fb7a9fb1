"""`bumble`'s root and `bumble plugins`, with distributions that are installed for the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bumblecore_core.cli import main
from core.fake_plugins import GOOD, Site, make_site

COMMAND = """
import click

from bumblecore_core import CommandRecord, hookimpl

LOADED = []


@click.command()
@click.option("--loud", is_flag=True, help="Shouts.")
def hello(loud):
    click.echo("HELLO" if loud else "hello")


def load():
    LOADED.append(1)
    return hello


@hookimpl
def bumble_commands():
    return [CommandRecord(name="hello", summary="Greets.", load=load)]
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture
def bumble(capsys):
    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(args)
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run


def test_help_lists_core_commands_without_importing_them(bumble, site, monkeypatch):
    # Another test of this process may have imported the command before.
    monkeypatch.delitem(sys.modules, "bumblecore_core.cli.plan", raising=False)
    code, out, _ = bumble("--help")
    assert code == 0
    assert all(word in out for word in ("run", "plan", "config", "plugins", "--no-plugins", "--plugin"))
    assert "bumblecore_core.cli.plan" not in sys.modules


def test_a_plugins_command_is_listed_and_loaded_only_when_called(bumble, site: Site):
    site.add("acme-hello", COMMAND)
    assert "Greets." in bumble("--help")[1]
    assert sys.modules["acme_hello"].LOADED == []
    assert bumble("hello", "--loud") == (0, "HELLO\n", "")
    assert sys.modules["acme_hello"].LOADED == [1]


def test_no_plugins_takes_the_command_away(bumble, site: Site):
    site.add("acme-hello", COMMAND)
    assert "Greets." not in bumble("--no-plugins", "--help")[1]
    code, _, err = bumble("--no-plugins", "hello")
    assert code == 2
    assert err.startswith("BC056: no command called 'hello' is installed")


def test_a_local_plugin_from_the_command_line(bumble, site: Site, tmp_path: Path, monkeypatch):
    (tmp_path / "local_hello.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert bumble("--no-plugins", "-p", "local_hello", "hello") == (0, "hello\n", "")


def test_an_unknown_command_names_the_nearest(bumble, site):
    code, out, err = bumble("rnu")
    assert (code, out) == (2, "")
    assert "did you mean 'run'?" in err
    assert "Traceback" not in err


def test_a_command_that_does_not_load(bumble, site: Site):
    site.add("acme-hello", COMMAND.replace("LOADED.append(1)", "raise OSError('gone')"))
    code, _, err = bumble("hello")
    assert code == 2
    assert err.startswith("BC060 commands.hello: ")
    assert "acme-hello" in err


def test_a_command_that_is_no_command(bumble, site: Site):
    site.add("acme-hello", COMMAND.replace("return hello", "return 3"))
    assert bumble("hello")[2].startswith("BC055 commands.hello.load: ")


def test_a_core_commands_name_is_taken(bumble, site: Site):
    site.add("acme-hello", COMMAND.replace('name="hello"', 'name="run"'))
    code, out, err = bumble("--help")
    assert code == 0
    assert "plugins" in out
    assert err.count("BC053 commands.run") == 1
    assert bumble("plugins", "list", "--load")[0] == 2


def test_a_core_command_runs_beside_a_broken_plugin(bumble, site: Site):
    site.add("acme-typo", GOOD.replace("bumble_losses", "bumble_loses"))
    assert bumble("plugins", "list")[0] == 0
    code, _, err = bumble("plugins", "show", "loss", "focal")
    assert code == 2
    assert err.startswith("BC058 bumble_loses: ")


def test_list_does_not_import_third_parties(bumble, site: Site):
    site.add("acme-bomb", "raise AssertionError('imported')\n", version="9.1")
    code, out, _ = bumble("plugins", "list")
    assert code == 0
    assert "acme_bomb" not in sys.modules
    assert "Installed, not imported" in out
    assert "acme-bomb 9.1" in out
    assert "bumblecore_plugins.loggers" in out


def test_list_load_shows_records_and_failures(bumble, site: Site):
    site.add("acme-focal", GOOD)
    site.add("acme-broken", "import does_not_exist\n")
    code, out, _ = bumble("plugins", "list", "--load")
    assert code == 0
    assert "Focal loss." in out
    assert "BC054 acme-broken" in out
    assert "does_not_exist" in out


def test_list_shows_switches(bumble, site: Site, monkeypatch):
    site.add("acme-focal", GOOD)
    monkeypatch.setenv("BUMBLE_NO_PLUGINS", "1")
    out = bumble("plugins", "list")[1]
    assert "Switched off:\n  acme-focal" in out
    assert "BUMBLE_NO_PLUGINS=1" in out


def test_list_as_json(bumble, site: Site):
    site.add("acme-focal", GOOD, version="2.0")
    data = json.loads(bumble("plugins", "list", "--load", "--json")[1])
    assert {
        "kind": "losses",
        "name": "focal",
        "summary": "Focal loss.",
        "plugin": "acme-focal",
        "distribution": "acme-focal",
        "version": "2.0",
        "module": "acme_focal",
    } in data["records"]
    assert {info["status"] for info in data["plugins"]} == {"loaded"}
    assert data["switches"] == {"builtins_only": False, "allow": None, "modules": []}


@pytest.mark.parametrize("kind", ["loss", "losses"])
def test_show_describes_options(bumble, site: Site, kind: str):
    site.add("acme-focal", GOOD)
    code, out, _ = bumble("plugins", "show", kind, "focal")
    assert code == 0
    assert "gamma: float ≥ 0" in out
    assert "default 2.0" in out
    assert "Focus." in out


def test_show_as_json(bumble, site: Site):
    site.add("acme-focal", GOOD)
    data = json.loads(bumble("plugins", "show", "loss", "focal", "--json")[1])
    assert data["options"]["properties"]["gamma"]["description"] == "Focus."


def test_show_an_unknown_kind_or_name(bumble, site):
    code, _, err = bumble("plugins", "show", "los", "focal")
    assert code == 2
    assert "did you mean 'loss'?" in err
    code, _, err = bumble("plugins", "show", "logger", "progres")
    assert code == 2
    assert "did you mean 'progress'?" in err


def test_a_defect_keeps_its_traceback(site, monkeypatch):
    monkeypatch.setattr("bumblecore_core.cli.plugins.discover", lambda switches: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["plugins", "list"])


def test_version(bumble):
    assert bumble("--version")[1].startswith("bumble ")
