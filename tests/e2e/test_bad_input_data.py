"""Bad data files and rows: each gets its code, its place and what was found, and the row's text stays unsaid."""

import gzip
import json

import pytest

from bad_input import SECRET, chat, good, reply, user


def bad_line(scene, row, code, *parts, before=2, **settings):
    """Two good rows, then `row`: the one problem must name line 3."""
    path = scene.rows([*good(before), row, *good(1)])
    return scene.plan(**settings).only(code, f" {path}:{before + 1}", *parts)


# -- files ------------------------------------------------------------------------------------------------------------


def test_row_1_malformed_json_names_line_and_column(scene):
    bad_line(scene, f'{{"messages": {SECRET}}}', "BC001", "line 3, column 14")


def test_row_2_a_byte_order_mark_is_accepted(scene):
    scene.file("rows.jsonl", b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in good(3)).encode())
    assert "3 read" in scene.plan(code=0).out


def test_row_3_not_utf8_names_the_byte(scene):
    text = json.dumps(chat()).encode() + b"\n"
    path = scene.file("rows.jsonl", text + text.replace(b"question", b"que\xe9tion"))
    scene.plan().only("BC003", f" {path}:2", f"byte offset {len(text) + text.index(b'question') + 3}")


def test_row_4_an_array_in_jsonl_and_lines_in_json_are_accepted(scene):
    scene.file("rows.jsonl", json.dumps(good(3)))
    assert "3 read" in scene.plan(code=0).out
    path = scene.rows(good(4), "rows.json")
    assert "4 read" in scene.plan(code=0, data__path=path).out


def test_a_compressed_file_is_read_and_one_cut_short_is_named(scene):
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in good(3)).encode())
    assert "3 read" in scene.plan(code=0, data__path=scene.file("rows.jsonl.gz", data)).out
    path = scene.file("rows.jsonl.gz", data[:-4])
    scene.plan(data__path=path).only("BC095", f" {path}:3", "cut short behind this row")


def test_row_4_other_forms_are_named(scene):
    path = scene.file("rows.jsonl", b"\x1f\x8b\x08\x00" + bytes(20))
    scene.plan().only("BC004", f" {path}", "gzip")
    path = scene.file("rows.xlsx", b"PK\x03\x04")
    scene.plan(data__path=path).only("BC004", f" {path} data.path", ".xlsx", ".jsonl")


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (json.dumps(chat(score=0)).replace("0}", "NaN}"), "score"),
        (json.dumps(chat(extra={"a": 0})).replace(": 0}", ": -Infinity}"), "extra.a"),
        (json.dumps(chat())[:-1] + f', "messages": "{SECRET}"}}', "messages"),
    ],
    ids=["nan", "infinity", "twice"],
)
def test_row_5_nan_and_duplicate_keys_name_key_and_line(scene, row, key):
    bad_line(scene, row, "BC005", f" {key}: ")


def test_row_6_mixed_schemas_name_both_and_their_first_lines(scene):
    other = {"instruction": SECRET, "output": SECRET}
    line = bad_line(scene, other, "BC006", "openai", "line 1", "alpaca", "line 3")
    assert "messages" in line
    assert "instruction, output" in line


def test_row_7_a_missing_field_is_named_with_the_keys_found(scene):
    bad_line(scene, chat(user(), {"role": "assistant", "text": SECRET}), "BC007", "messages[1].content", "role, text")
    path = scene.rows([{"body": SECRET, "title": SECRET}])
    scene.plan("pretrain").only("BC062", f" {path}:1", "body, title")
    scene.plan("pretrain", data__format="text").only("BC007", f" {path}:1 text", "body, title")


def test_row_8_an_empty_file(scene):
    path = scene.file("rows.jsonl", "")
    scene.plan().only("BC008", f" {path}", "no row")


def test_row_8_every_row_dropped_counts_by_reason(scene):
    path = scene.rows([chat(user(), reply("")), chat(user(), reply("  ")), chat(user(), reply(""))])
    scene.plan().only("BC008", "data.path", "3 rows", "3 × BC015", f"{path}:1")


def test_row_9_blank_lines_are_skipped_and_counted(scene):
    scene.rows([*good(2), "", "   ", *good(1)])
    out = scene.plan(code=0).out
    assert "3 read" in out
    assert "BC009 blank lines were skipped: 2" in out


def test_row_10_a_torn_last_line(scene):
    path = scene.rows(good(2))
    path.write_text(path.read_text() + json.dumps(chat())[:-9])
    scene.plan().only("BC010", f" {path}:3", "interrupted write")


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"), [(None, "null"), (7, "integer"), ([SECRET], "text"), ({"a": SECRET}, "object")]
)
def test_row_11_content_of_another_type_names_path_and_type(scene, content, found):
    bad_line(scene, chat(user(), reply(), user(content), reply()), "BC011", "messages[2].content", found)


def test_row_12_an_unknown_role_names_those_allowed(scene):
    row = chat({"role": "narrator", "content": SECRET}, reply())
    bad_line(scene, row, "BC012", "messages[0].role", "system, user, assistant, tool")


def test_row_13_roles_out_of_order_name_the_turn(scene):
    bad_line(scene, chat(user(), user(), reply()), "BC013", "messages[1]", "turn 1")


def test_row_14_a_conversation_that_ends_with_the_user(scene):
    bad_line(scene, chat(user(), reply(), user()), "BC014", "messages: ")


def test_row_15_an_empty_reply_is_dropped_and_counted(scene):
    path = scene.rows([*good(3), chat(user(), reply(" ")), chat(user(), reply("")), *good(1)])
    out = scene.plan(code=0).out
    assert "2 rows: BC015" in out
    assert f"{path}:4, {path}:5" in out


def test_row_15_an_empty_reply_is_an_error_when_strict(scene):
    bad_line(scene, chat(user(), reply("")), "BC015", "messages[1].content", data__strict=True)


def test_row_16_a_system_message_that_is_not_first(scene):
    row = chat(user(), reply(), {"role": "system", "content": SECRET}, user(), reply())
    bad_line(scene, row, "BC016", "messages[2]", "turn 2")


def test_row_19_a_malformed_tool_call_names_its_index(scene):
    call = {"function": {"name": "f", "arguments": {}}}
    calls = {"role": "assistant", "content": SECRET, "tool_calls": [call, {"function": {"arguments": SECRET}}]}
    tool = {"role": "tool", "content": SECRET}
    bad_line(scene, chat(user(), calls, tool, reply()), "BC019", "messages[1].tool_calls[1]", "no function")


@pytest.mark.parametrize(("bad", "found"), [("\\ud800", "surrogate"), ("\\u0000", "NUL")])
def test_row_20_a_lone_surrogate_or_nul_names_the_offset(scene, bad, found):
    row = json.dumps(chat(user("ab@"), reply())).replace("@", bad)
    bad_line(scene, row, "BC020", "messages[0].content", "offset 2", found)


def test_row_21_a_wrong_path_or_glob_names_the_nearest(scene):
    path = scene.rows(good(1), "corpus/train.jsonl")
    config = scene.config(data__path="corpus/trian.jsonl")
    answer = scene.call("plan", config)
    answer.only("BC021", " corpus/trian.jsonl data.path", "did you mean 'corpus/train.jsonl'?")
    scene.plan(data__path=str(path.parent / "trian*.jsonl")).only("BC021", "data.path", f"did you mean '{path}'?")


def test_row_21_a_directory_is_not_a_file(scene):
    scene.rows(good(1), "corpus/train.jsonl")
    scene.plan(data__path="corpus").only("BC021", " corpus data.path", "directory", "corpus/*.jsonl")


def test_equal_problems_of_many_rows_are_one_line(scene):
    path = scene.rows([*good(1), *[chat(user(), user(), reply())] * 30])
    scene.plan().only("BC013", f" {path}:2", "messages[1]", f"30 of 31 rows read: {path}:2, {path}:3, {path}:4, …")


def test_different_problems_are_twenty_lines_and_a_count(scene):
    scene.rows([*good(1), *["oops"] * 30])
    answer = scene.plan()
    assert len(answer.lines) == 20
    assert answer.err.splitlines()[-1] == "… and 10 more."


# -- policies ---------------------------------------------------------------------------------------------------------


def test_row_62_bad_rows_are_skipped_counted_and_listed(scene):
    path = scene.rows([*good(38), chat(user(), user(), reply()), "oops"])
    out = scene.plan(code=0, data__on_bad_row="skip").out
    assert "40 read, 38 training examples" in out
    for part in (f"1 rows: BC013 roles out of order ({path}:39)", f"({path}:40)", "skipped-rows.log"):
        assert part in out
    config = scene.config(data__on_bad_row="skip", data__max_bad_share=0.04)
    lines = scene.call("plan", config).lines
    assert [line.split()[0] for line in lines] == ["BC097"]
    assert f" {scene.line_of(config, 'max_bad_share')} data.max_bad_share" in lines[0]


def test_row_62_skipped_evaluation_rows_are_shown_too(scene):
    path = scene.rows([*good(38), "oops"], "eval.jsonl")
    scene.rows(good(4))
    out = scene.plan(code=0, data__on_bad_row="skip", data__eval_path=str(path)).out
    assert f"1 evaluation rows skipped: BC001 a line or file is not valid JSON ({path}:39)" in out


def test_row_64_a_column_that_all_rows_lack_is_one_line_with_the_yaml(scene):
    path = scene.rows([{"question": SECRET, "output": SECRET}] * 40)
    fix = "data.format: {name: alpaca, instruction: question}"
    scene.plan(data__format="alpaca").only("BC007", f" {path}:1", "all 40 rows", "question, output", fix)
    path = scene.rows([{"question": SECRET, "answer": SECRET}] * 40)
    fix = "data.format: {name: alpaca, instruction: question, output: answer}"
    scene.plan().only("BC062", f" {path}:1", "question, answer", fix)


# -- length -----------------------------------------------------------------------------------------------------------


def long_prompts(scene, count):
    return scene.rows([*good(40), *[chat(user("a cat sat " * 200), reply())] * count])


def test_row_28_a_prompt_that_does_not_fit_is_dropped_and_counted(scene):
    path = long_prompts(scene, 2)
    out = scene.plan(code=0).out
    assert "2 rows: BC028" in out
    assert f"{path}:41" in out


def test_row_28_is_an_error_above_five_percent(scene):
    path = long_prompts(scene, 4)
    config = scene.config()
    answer = scene.call("plan", config)
    answer.only("BC028", f" {scene.line_of(config, 'max_length')} data.max_length", "4 of 44 rows (9%)", f"{path}:41")
    assert "4 rows: BC028" in scene.plan(code=0, data__too_long="drop").out


def test_row_63_many_cut_replies_are_a_warning(scene):
    scene.rows([*good(18), *[chat(user(), reply("a cat sat " * 200))] * 2])
    assert "BC066 2 of 20 examples (10%) are cut at data.max_length, 2 of them lose" in scene.plan(code=0).out
