"""Text that others wrote reaches terminals and logs without control characters."""

import json
import logging
import subprocess
import sys

import pytest

from bumblecore_core.cli import main
from bumblecore_core.errors import Problem, printable
from bumblecore_core.run.console import say
from bumblecore_core.toolkit.summary import summary_lines
from bumblecore_core.toolkit.terminal import echo, escape_logs, show_defect, to_json
from bumblecore_core.values import RunInfo

CLEAR, TITLE, CSI = "\x1b[2J", "\x1b]0;title\x07", "\x9b31m"
HOSTILE = f"{CLEAR}{TITLE}{CSI}\r\b\x7f\x00\u202e\u2066\u2028\x85\ud800"
ESCAPED = r"\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\x7f\x00\u202e\u2066\u2028\x85\ud800"


def test_unprintable_characters_are_escaped_and_scripts_are_not():
    assert printable(HOSTILE) == ESCAPED
    for text in ("Grüße", "中文　全角", "שלום", "👩‍👩‍👧 a\u00a0b", "می‌خواهم", r"C:\x1b"):
        assert printable(text) == text
    assert printable("a\nb\tc", keep="\n\t") == "a\nb\tc"
    assert printable("a\nb\tc") == r"a\nb\tc"


def test_a_problem_is_one_line_whatever_it_quotes():
    problem = Problem(code="BC061", place=f"a\n{HOSTILE}", field=f"x{CLEAR}", problem=f"no {HOSTILE}", fix=f"Use {CSI}")
    assert str(problem).isprintable()
    assert r"a\n\x1b[2J" in str(problem)


def test_the_start_summary_keeps_its_lines():
    info = RunInfo(
        output_dir="out",
        stage="sft",
        total_steps=1,
        first_step=0,
        config={"key": f"{CLEAR}\nforged: line"},
        facts=[("warning", f"BC032 {CSI}")],
        features=[(f"name{CLEAR}", HOSTILE)],
        sample=[(f"two\nlines\t{TITLE}", True)],
    )
    lines = summary_lines(info)
    assert all(printable(line, keep="\t") == line for line in lines)
    assert r"  key: \x1b[2J\nforged: line" in lines
    assert lines[-2:] == ["  | ⟦two", "  | lines\t\\x1b]0;title\\x07⟧"]


def test_lines_beside_the_loggers(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="bumblecore"):
        say(f"warning: {HOSTILE}\nsecond")
    assert capsys.readouterr().err == f"warning: {ESCAPED}\\nsecond\n"
    assert caplog.messages == [f"warning: {ESCAPED}\\nsecond"]


def test_messages_of_libraries(capsys):
    before = logging.getLogRecordFactory()
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("some.library")
    try:
        escape_logs()
        logger.addHandler(handler)
        logger.warning("You are using a model of type %s\nto instantiate %d", HOSTILE, 3)
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(before)
    assert capsys.readouterr().err == f"You are using a model of type {ESCAPED}\nto instantiate 3\n"


def test_a_defect_is_shown_escaped(capsys):
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        show_defect(ValueError, error, error.__traceback__)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == f"ValueError: {ESCAPED}"


def test_json_stays_json(capsys):
    value = {HOSTILE: ["é", HOSTILE]}
    for indent in (None, 2):
        echo(to_json(value, indent=indent))
        out = capsys.readouterr().out
        assert printable(out, keep="\n") == out
        assert json.loads(out) == value
        assert "é" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", f"{HOSTILE[:-1]}.yaml"),
        ("config", "show", "run.yaml", "--set", f"a{CSI}b=1"),
        ("checkpoint", "list", f"none{CLEAR}"),
        (f"no{CLEAR}command",),
        ("plugins", "show", f"l{CSI}", "x"),
        ("-p", f"no{CLEAR}", "plugins", "list"),
    ],
)
def test_arguments_in_messages(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text('stage: sft\nmodel: {path: "\\e[2J"}\ndata: {path: "\\e[2J"}\noutput_dir: out\n')
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    printed = "".join(capsys.readouterr())
    assert printable(printed, keep="\n") == printed
    assert r"\x" in printed


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_locale_without_utf8_does_not_limit_names(tmp_path, encoding):
    config = tmp_path / "grüße.yaml"
    config.write_text("stage: sft\nmodel: {path: modèle}\ndata: {path: 資料}\noutput_dir: aus\n", encoding="utf-8")
    environ = {"PATH": "/usr/bin:/bin", "BUMBLE_NO_PLUGINS": "1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    if encoding == "ascii":
        environ["PYTHONUTF8"] = "0"
    command = [sys.executable, "-m", "bumblecore_core", "config", "show", str(config)]
    done = subprocess.run(command, capture_output=True, env=environ, check=False, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"modèle"' in done.stdout
    assert f"{config}:2" in done.stdout
