"""Values that no one would write by mistake, and ways to call `bumble` that end it early: lines, never a traceback."""

import os
import subprocess
import sys

import pytest

from bad_input import good
from bumblecore_core.cli import main
from bumblecore_core.errors import printable


@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("model.path=" + "x" * 300, "BC061", ["model.path", "no such path"]),
        ("model.path=rows.jsonl", "BC061", ["model.path", "not a directory"]),
        ("model.tokenizer=" + "x" * 300, "BC061", ["model.tokenizer", "no such path"]),
        ("model.chat_template=" + "x" * 300, "BC061", ["model.chat_template", "no such path"]),
        ("data.path=" + "x" * 300 + ".jsonl", "BC021", ["data.path"]),
        ("data.path=dangling.jsonl", "BC021", ["data.path", "link"]),
        ("data.path=[]", "BC038", ["data.path", "a list that is not empty"]),
        ('data.path=""', "BC038", ["data.path.0.path", "text that is not empty"]),
        ("data.path=[{path: rows.jsonl, weight: 1e-9}]", "BC008", ["--set data.path", "weights"]),
        ("data.path=[{path: rows.jsonl, weight: 1e12}]", "BC038", ["data.path.0.weight", "1000"]),
        ("data.cache_dir=rows.jsonl", "BC042", ["rows.jsonl/tokens"]),
        ("train.max_steps=999999999999", "BC038", ["train.max_steps", "1000000000"]),
        ("optimizer.lr=nan", "BC038", ["optimizer.lr", "Write a number"]),
        ('output_dir="a\\0b"', "BC020", ["NUL"]),
        ("engine.device=tpu", "BC038", ["engine.device", "'cuda'"]),
    ],
)
def test_hostile_values(scene, override, code, parts):
    scene.rows(good(3))
    (scene.directory / "dangling.jsonl").symlink_to("nowhere")
    scene.call("plan", scene.config(), "--set", override).only(code, *parts)


def test_no_config_at_all_shows_the_usage(scene):
    scene.capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["run"])
    assert ended.value.code == 2
    assert "Usage: bumble run" in scene.capsys.readouterr().err


def test_a_reader_that_goes_away_ends_the_listing_quietly():
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does, but surely before the first byte is written
    command = [sys.executable, "-m", "bumblecore_core", "plugins", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


PLUGIN = """
from bumblecore_core import LoggerRecord, hookimpl

class Logger:
    def start(self, *, info):
        raise ValueError("\\x1b[2Jforged")
    step = saved = finish = start

@hookimpl
def bumble_loggers():
    return [LoggerRecord(name="hostile", summary="Clears \\x1b[2J the screen.", build=lambda *, options: Logger())]
"""


def test_row_74_escape_sequences_of_rows_paths_and_plugins_are_shown_escaped(scene, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    scene.file("hostile_loggers.py", PLUGIN)
    text = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202e the cat sat"
    scene.rows([{"text": text} for _ in range(4)])
    out = scene.directory / "out\x1b[2J"
    config = scene.config("pretrain", output_dir=out, loggers=["log_file", "hostile"])
    answer = scene.call("-p", "hostile_loggers", "run", config, code=0)
    listed = scene.call("-p", "hostile_loggers", "plugins", "list", code=0)
    log = (out / "logs" / "train.log").read_text(encoding="utf-8")
    for shown in (answer.out, answer.err, listed.out, log):
        assert printable(shown, keep="\n") == shown.replace("\t", r"\t")
        assert r"\x1b[2J" in shown
    for shown in (answer.out, log):
        assert r"\x1b]0;title\x07 \x9b31m \u202e the cat sat" in shown
    assert r"'hostile' raised ValueError: \x1b[2Jforged" in answer.err
