"""Files, texts and paths for `bumble generate`, `tokenizer train` and others that nobody writes by hand."""

from __future__ import annotations

import json

import pytest

from bumblecore_core import DataError, ModelError
from bumblecore_core.cli import main
from bumblecore_core.toolkit.tokenizers import load_tokenizer
from bumblecore_plugins.commands.generate import encode_prompts, read_prompts
from bumblecore_plugins.commands.tokenizer import strings_of
from workbench import make_tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.jsonl", DEEP, "BC001"),
        ("a.json", '{"a": ' * 50_000 + "1" + "}" * 50_000, "BC001"),
        ("a.json", "[" * 100_000, "BC001"),
        ("a.jsonl", "1" * 5000, "BC001"),
        ("a.csv", 'a,b\n"x' + "y" * 200_000 + '",2\n', None),
        ("a.csv", "a\0,b\nc,d\n", None),
        ("a.json", "[" * 900 + '"the leaf"' + "]" * 900, None),
        ("a.jsonl", '{"\\ud800": "x"}', None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_files_to_train_a_tokenizer_on(tmp_path, name, content, code):
    (tmp_path / name).write_text(content)
    if code is None:
        assert list(strings_of(tmp_path / name))
        return
    with pytest.raises(DataError) as raised:
        list(strings_of(tmp_path / name))
    assert (raised.value.problems[0].code, raised.value.problems[0].place.split(":")[0]) == (code, str(tmp_path / name))


def test_texts_come_in_the_order_in_which_they_are_written(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"a": "1", "b": ["2", {"c": "3"}]}, "4"]))
    assert list(strings_of(tmp_path / "a.json")) == ["1", "2", "3", "4"]


def test_prompts(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(DEEP)
    with pytest.raises(DataError, match="BC001"):
        read_prompts(tmp_path / "prompts.jsonl")
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for texts, system in ((["caf\udce9"], None), (["a"], "\ud800")):
        with pytest.raises(DataError, match="BC020 --prompt: a prompt that is not UTF-8"):
            encode_prompts(tokenizer, texts, chat=system is not None, system=system)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("tokenizer", "train", "x" * 400 + ".txt", "-o", "out", "--vocab-size", "300"), "BC061"),
        (("tokenizer", "train", "a.txt", "-o", "x" * 400, "--vocab-size", "300"), "BC042"),
        (("tokenizer", "train", "a.txt", "-o", "caf\udce9", "--vocab-size", "300"), "BC042"),
        (("tokenizer", "train", "a.txt", "-o", "out", "--vocab-size", "300", "--special-token", "\udce9"), "BC020"),
        (("merge", "~nobody_of_this_name", "out"), "BC061"),
        (("generate", "~nobody_of_this_name/x", "--prompt", "a"), "BC061"),
        (("generate", "x" * 400 + "/y", "--prompt", "a"), "BC061"),
        (("compare", "x" * 400), "BC061"),
        (("compare", "caf\udce9"), "BC061"),
        (("report", "~nobody_of_this_name"), "BC061"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, tuple) else value,
)
def test_arguments(tmp_path, monkeypatch, capsys, arguments, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("some text\n")
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{code} ")
    assert line.isprintable()


@pytest.mark.parametrize(
    "values",
    [
        {"model_max_length": "long"},
        {"model_max_length": None},
        {"padding_side": 3},
        {"chat_template": 5},
        {"chat_template": ["a"]},
        {"eos_token": 7},
        {"added_tokens_decoder": []},
        {"extra_special_tokens": 3},
        {"tokenizer_class": "os.system"},
        {"tokenizer_class": None},
    ],
    ids=str,
)
def test_values_of_a_tokenizers_config_are_usable_or_refused(tmp_path, values):
    make_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **values}))
    try:
        tokenizer = load_tokenizer(tmp_path)
    except ModelError:
        return
    encode_prompts(tokenizer, ["a"], chat=False, system=None)
