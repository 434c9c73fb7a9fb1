"""YAML reading: places, duplicate keys, scalars, and every file that is no safe YAML."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.config.yaml import Mark, dump, parse, read_text
from bumblecore_core.errors import ConfigError


def at(mark: Mark) -> str:
    return f"run.yaml:{mark.line}"


def read(text: str):
    return parse(text, place=at)


def problems(text: str) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [(problem.code, problem.place, problem.field) for problem in caught.value.problems]


def test_marks_are_where_keys_and_items_are_written():
    document = read("a: 1\nb:\n  c: x\n  d:\n    - y\n    - e: z\n")
    assert document.data == {"a": 1, "b": {"c": "x", "d": ["y", {"e": "z"}]}}
    assert document.marks["b", "c"] == Mark(3, 3)
    assert document.marks["b", "d", 1, "e"] == Mark(6, 7)
    assert document.marks["b", "d", 0] == Mark(5, 7)


def test_all_duplicate_keys_are_reported_with_both_lines():
    text = "a: 1\nb: {c: 1, c: 2}\nd: 3\na: 4\n"
    assert problems(text) == [("BC035", "run.yaml:4", "a"), ("BC035", "run.yaml:2", "b.c")]
    with pytest.raises(ConfigError, match="on lines 1 and 4"):
        read(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E-5", 1e-5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1.", 1.0), ("1_000", 1000), ("0x10", 16),
        ("0o17", 15), ("0b11", 3), ("010", 8), ("08", "08"), ("-7", -7), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("~", None), ("", None), ("null", None), ("off", False), ("Yes", True), ("yEs", "yEs"), ("'1'", "1"),
        ('"on"', "on"),
        ("e5", "e5"), ("1e5x", "1e5x"), ("!!str 010", "010"), ("!!float 3", 3.0), ("=", "="), ("1e-400", 0), ("y", "y"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object):
    read_value = read(f"key: {text}").data["key"]
    assert read_value == value
    assert isinstance(read_value, bool) == isinstance(value, bool)


def test_a_whole_number_in_exponent_form_also_fits_a_count():
    data = read("a: 1e4\nb: 1.0e4\nc: 1e40").data
    assert [type(data[key]) for key in "abc"] == [int, float, float]
    assert data["a"] == data["b"] == 10_000


def test_what_was_written_is_kept_for_values_that_are_no_text():
    document = read("a: off\nb: ['x', 010]\nc: 'off'\nd: null\n")
    assert document.spelled == {("a",): "off", ("b", 1): "010"}


def test_keys_are_always_text():
    assert read("on: 1\n2: x\nnull: y").data == {"on": 1, "2": "x", "null": "y"}


def test_anchors_and_merge_keys():
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 5, z: 6}\nuse:\n  <<: [*b, *m]\n  x: 9\ncopy: *b\n"
    data = read(text).data
    assert data["use"] == {"x": 9, "y": 2, "z": 6}
    assert data == pyyaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("a: [1, 2\nb: 3\n", "BC068", "run.yaml:2:2"),
        ("a:\n\t- x\n", "BC068", "run.yaml:2:1"),
        ("a: b: c\n", "BC068", "run.yaml:1:5"),
        ("a: 1\n--- \nb: 2\n", "BC068", "run.yaml:2:1"),
        ("a: *nowhere\n", "BC068", "run.yaml:1:4"),
        ("a: 1\nb: x\x00y\n", "BC068", "run.yaml:2:5"),
        ("a: !!python/object:os.system {}\n", "BC068", "run.yaml:1"),
        ("a: 1\nb: !mine x\n", "BC068", "run.yaml:2"),
        ("a: !!int x\n", "BC068", "run.yaml:1"),
        ("a: !!set {x, y}\n", "BC068", "run.yaml:1"),
        ("? [1]\n: 2\n", "BC068", "run.yaml:1"),
        ("a: &x [*x]\n", "BC068", "run.yaml:1"),
        ("a: &x {<<: *x}\n", "BC068", "run.yaml:1"),
        ("<<: 3\n", "BC068", "run.yaml:1"),
        ("a: " + "9" * 5000, "BC068", "run.yaml:1"),
        ("a: 0x" + "f" * 5000, "BC068", "run.yaml:1"),
        ("a: " + "[" * 1200, "BC068", "run.yaml:1:1"),
        ("a: " + "[" * 100 + "]" * 100, "BC068", "run.yaml:1"),
        ('a: "\\UFFFFFFFF"\n', "BC068", "run.yaml:1:1"),
        ('x: 1\na: "\\ud800"\n', "BC020", "run.yaml:2"),
        ('a: "\\0"\n', "BC020", "run.yaml:1"),
        ("a: .nan\n", "BC038", "run.yaml:1"),
        ("a: -.inf\n", "BC038", "run.yaml:1"),
        ("a: 1e999\n", "BC038", "run.yaml:1"),
    ],
)
def test_what_is_no_safe_yaml(text: str, code: str, place: str):
    found = problems(text)
    assert found[0][:2] == (code, place)
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == len(found)
    assert len(str(caught.value)) < 600


def test_repeated_aliases_do_not_exhaust_memory():
    text = "a: &a [x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        text += f"{name}: &{name} [{', '.join(['*' + before] * 8)}]\n"
    assert problems(text)[0][0] == "BC068"


def test_json_surrogate_pairs_are_one_character():
    assert read('a: "\\ud83d\\ude00"').data == {"a": "😀"}


def test_a_byte_order_mark_is_accepted(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xef\xbb\xbfstage: sft\n")
    document = read(read_text(file))
    assert document.data == {"stage": "sft"}


def test_files_that_cannot_be_read(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"stage: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"BC003 .*run.yaml: .*byte 10 is 0xe9"):
        read_text(file)
    with pytest.raises(ConfigError, match=r"BC061 .*Did you mean 'run.yaml'"):
        read_text(tmp_path / "rum.yaml")
    with pytest.raises(ConfigError, match=r"BC061 .*directory"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="BC061"):
        read_text(tmp_path / "missing" / "a\0b.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, kind in (("pipe.yaml", "a FIFO"), ("/dev/zero", "a character device")):
        with pytest.raises(ConfigError, match=rf"BC061 .*expected a regular file, got {kind}"):
            read_text(tmp_path / path)
    file.write_bytes(b"#" * (1 << 20))
    with pytest.raises(ConfigError, match=r"BC068 .*run.yaml: the config file has more than 524,288 bytes"):
        read_text(file)


def test_the_parser_stops_at_too_many_values():
    """A quarter of a megabyte of list items took the parser 20 seconds."""
    assert [problem[:2] for problem in problems("x: 1\na:\n" + "- 1\n" * 30_000)] == [("BC068", "run.yaml:19999:1")]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}#&*!|>'\"%@`,?\n\t \\0x1e.<~\x00\ud800é")), max_size=60))
def test_no_text_gives_anything_but_data_or_an_error(text: str):
    with contextlib.suppress(ConfigError):
        read(text)


LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])  # NULs and surrogates are refused
WORDS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["1e5", "0o17", "010", "off", "<<", "~", "2024-01-01", "1:30", "=", "1_0", ""]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(WORDS, PLAIN, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, object]):
    text = dump(data)
    assert read(text).data == data
    assert pyyaml.safe_load(text) == data  # other readers see the same
