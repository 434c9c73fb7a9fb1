"""Files of rows, read as a run reads them: the stage decides, warnings are counted by row, forms make no difference."""

from __future__ import annotations

import json

import pytest
from format_rows import RECORDS, calls, reply, user

from bumblecore_core.run.data.files import Source
from bumblecore_core.run.data.rows import read_chunks

PAIR = {"chosen": [user("a"), reply("b")], "rejected": [user("a"), reply("c")]}


def read(path, reads, text=None):
    """The one chunk of a file that a stage reads."""
    if text is not None:
        path.write_text(text)
    source = Source(path=path, weight=1.0, format=None)
    (chunk,) = read_chunks([source], records=list(RECORDS.values()), reads=reads, stage="some")
    return chunk


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(("reads", "kind"), [("chat", "ChatSample"), ("preference", "PreferenceSample")])
def test_a_file_for_several_stages(tmp_path, reads, kind):
    row = {"prompt": "a", "messages": [user("a"), reply("b")], "score": 1, **PAIR}
    chunk = read(tmp_path / "rows.jsonl", reads, lines(row, row))
    assert (chunk.format, chunk.problems) == ("openai", [])
    assert [type(sample).__name__ for sample in chunk.samples] == [kind] * 2


def test_plain_text_next_to_messages(tmp_path):
    row = {"text": "a b", "messages": [user("a"), reply("b")]}
    assert read(tmp_path / "rows.jsonl", "text", lines(row)).format == "text"
    assert read(tmp_path / "rows.jsonl", "chat").format == "openai"


def test_a_stage_that_no_kind_of_the_rows_fits(tmp_path):
    chunk = read(tmp_path / "rows.jsonl", "feedback", lines({"messages": [user("a"), reply("b")], **PAIR}))
    assert [found.problem.code for found in chunk.problems] == ["BC063"]


def test_a_row_without_the_label_that_others_have(tmp_path):
    row = {"messages": [user("a"), reply("b")]}
    chunk = read(tmp_path / "rows.jsonl", "feedback", lines({**row, "label": True}, row))
    (found,) = chunk.problems
    assert (found.line, found.problem.code, found.problem.field) == (2, "BC007", "label")


def test_warnings_are_counted_by_row(tmp_path):
    odd = {"messages": [user("a"), reply("b", refusal="x"), user("c"), reply("d", refusal="y")], "mood": 1}
    plain = {"messages": [user("a"), reply("b")]}
    chunk = read(tmp_path / "rows.jsonl", "chat", lines(odd, plain, {**plain, "mood": 2}))
    assert chunk.warnings == {
        "BC083 the message key 'refusal' is not read": 1,
        "BC083 the row key 'mood' is not read": 2,
    }


def test_empty_cells_of_a_csv_file_are_absent(tmp_path):
    header = "instruction,input,output,system,history,tools,kto_tag,chosen,rejected,chat_template_kwargs,note"
    chunk = read(tmp_path / "rows.csv", "chat", f"{header}\nSay hi,,Hello,,,,,,,,\n")
    (sample,) = chunk.samples
    assert sample.messages == (user("Say hi"), reply("Hello"))
    assert (sample.tools, sample.template_kwargs, sample.warnings) == (None, None, ())


def test_a_parquet_file_and_its_twin(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def row(name, **arguments):
        schema = {key: {"type": type(value).__name__} for key, value in arguments.items()}
        return {
            "messages": [user("do it"), reply(None, tool_calls=calls((name, arguments)))],
            "tools": [{"name": name, "parameters": {"type": "object", "properties": schema}}],
        }

    rows = [row("move", x=1, y=2), row("find", city="Bern")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    twin = read(tmp_path / "rows.jsonl", "chat", lines(*rows))
    chunk = read(tmp_path / "rows.parquet", "chat")
    assert chunk.samples == twin.samples
    assert [sample.messages[1]["tool_calls"] for sample in chunk.samples] == [
        calls(("move", {"x": 1, "y": 2})),
        calls(("find", {"city": "Bern"})),
    ]
