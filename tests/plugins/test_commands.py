"""`bumble generate` and `bumble tokenizer train`, called through click on models made here."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from bumblecore_core import BumbleError, ChatSample, DataError, ModelError
from bumblecore_core.toolkit.chat import encode_chats
from bumblecore_core.toolkit.tokenizers import load_tokenizer
from bumblecore_plugins.commands import bumble_commands
from bumblecore_plugins.commands.generate import encode_prompts, load_model, read_prompts, stop_ids

COMMANDS = {record.name: record for record in bumble_commands()}
ROWS = [{"instruction": f"How many apples are in basket {i}?", "output": f"There are {i} apples."} for i in range(30)]


def invoke(name: str, *arguments):
    return CliRunner().invoke(COMMANDS[name].load(), [str(argument) for argument in arguments])


def problem_of(result):
    assert isinstance(result.exception, BumbleError), result.output
    return result.exception.problems[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "rows.json").write_text(json.dumps(ROWS))
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "rows.csv").write_text("a,b\n" + "".join(f'"{row["instruction"]}",{row["output"]}\n' for row in ROWS))
    (directory / "rows.txt").write_text("".join(f"{row['instruction']}\n{row['output']}\n" for row in ROWS))
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory, data):
    """A run's output directory: `final/` with a tokenizer of ours and a tiny model of random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    run = tmp_path_factory.mktemp("run")
    result = invoke("tokenizer", "train", data / "rows.json", "-o", run / "final", "--vocab-size", 300)
    assert result.exit_code == 0, result.output
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(run / "final")
    return run


# generate


def test_greedy_equals_a_loop_of_our_own(model):
    tokenizer, lm = load_tokenizer(model), load_model(model / "final", False)
    ids = tokenizer("There are").input_ids
    for _ in range(6):
        ids.append(int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    result = invoke("generate", model, "--prompt", "There are", "--max-new-tokens", 6)
    assert result.exit_code == 0
    assert (
        result.output == tokenizer.decode(ids[len(tokenizer("There are").input_ids) :], skip_special_tokens=True) + "\n"
    )


def test_json_of_several_prompts_is_that_of_each_alone(model, tmp_path):
    prompts = ["There", "There are many apples in", "How"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts[1:]) + "\n")
    common = ["--max-new-tokens", 5, "--json"]
    together = invoke("generate", model, "--prompt", prompts[0], "--prompts-file", tmp_path / "prompts.txt", *common)
    lines = [json.loads(line) for line in together.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line, prompt in zip(lines, prompts, strict=True):
        assert json.loads(invoke("generate", model, "--prompt", prompt, *common).stdout) == line
        assert (line["tokens"], line["finish"]) == (5, "length")


def test_sampling_follows_the_seed(model):
    def sample(seed):
        return invoke("generate", model, "--prompt", "a", "--temperature", 1.5, "--seed", seed, "--top-p", 0.9).output

    assert sample(1) == sample(1) != sample(2)


def test_chat_prompt_is_what_training_puts_before_a_reply(model):
    tokenizer = load_tokenizer(model)
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}
    (trained,) = encode_chats(
        tokenizer, [ChatSample(messages=(system, user, {"role": "assistant", "content": "Two."}))]
    )
    (asked,) = encode_prompts(tokenizer, ["How many?"], chat=True, system="Be brief.")
    assert asked == trained.input_ids[: trained.spans[0][0]].tolist()
    assert trained.input_ids[trained.spans[0][1] - 1] in stop_ids(
        tokenizer, load_model(model / "final", False), chat=True
    )


def test_generation_ends_at_the_end_of_turn(model, monkeypatch):
    from bumblecore_plugins.commands import generate as module

    tokenizer = load_tokenizer(model)
    lm = load_model(model / "final", False)
    (asked,) = encode_prompts(tokenizer, ["a"], chat=True, system=None)
    first = int(lm(input_ids=torch.tensor([asked])).logits[0, -1].argmax())
    monkeypatch.setattr(module, "stop_ids", lambda *args, **kwargs: [first])
    (line,) = invoke("generate", model, "--chat", "--prompt", "a", "--json").stdout.splitlines()
    assert json.loads(line) == {"prompt": "a", "text": "", "tokens": 1, "finish": "stop"}


def test_no_pad_token_states_the_choice(model, tmp_path):  # row 26
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(model / "final").save_pretrained(tmp_path)
    common = ["--prompt", "There", "--prompt", "There are many", "--max-new-tokens", 4, "--json"]
    result = invoke("generate", tmp_path, *common)
    assert result.stderr.startswith("BC026 ")
    assert "<|im_end|>" in result.stderr
    assert invoke("generate", model, *common).stderr == ""
    assert result.stdout == invoke("generate", model, *common).stdout


def test_generate_errors(model, tmp_path):
    problem = problem_of(invoke("generate", f"{model}x", "--prompt", "a"))
    assert problem.code == "BC061"
    assert f"'{model.name}'" in problem.fix
    assert invoke("generate", model).exit_code == 2
    assert invoke("generate", model, "--prompt", "a", "--system", "b").exit_code == 2
    assert problem_of(invoke("generate", model, "--prompt", "")).code == "BC007"
    load_tokenizer(model).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert problem_of(invoke("generate", tmp_path, "--prompt", "a")).code == "BC029"


def test_chat_without_a_template_or_with_one_that_raises(model):  # rows 22 and 23
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{{ raise_exception('no such conversation') }}"
    with pytest.raises(DataError) as raised:
        encode_prompts(tokenizer, ["a"], chat=True, system=None)
    assert raised.value.problems[0].code == "BC023"
    tokenizer.chat_template = None
    with pytest.raises(ModelError) as missing:
        encode_prompts(tokenizer, ["a"], chat=True, system=None)
    assert missing.value.problems[0].code == "BC022"


def test_prompts_files(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n\n"two"\n', encoding="utf-8-sig")
    assert read_prompts(path) == ["one", "two"]
    for content, code, place in ((b'"a"\n{', "BC001", ":2"), (b'{"text": "a"}', "BC007", ":1"), (b"\xff", "BC003", "")):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_prompts(path)
        assert (caught.value.problems[0].code, caught.value.problems[0].place) == (code, f"{path}{place}")
    with pytest.raises(DataError) as missing:
        read_prompts(tmp_path / "none")
    assert missing.value.problems[0].code == "BC061"


# tokenizer train


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_train_reads_every_kind_and_loads_without_us(data, tmp_path, name):
    from transformers import AutoTokenizer

    result = invoke("tokenizer", "train", data / name, "-o", tmp_path, "--vocab-size", 280, "--special-token", "<|x|>")
    assert result.exit_code == 0, result.output
    assert "280 entries" in result.output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 280
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer("<|x|>").input_ids) == 1
    assert len(tokenizer("apples").input_ids) <= 3
    for text in ("There are 12 apples.", "  Grüße 😀\n\n\tx"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_trained_chat_template_marks_replies_and_calls(model):
    call = {"type": "function", "function": {"name": "count", "arguments": {"what": "apples"}}}
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"n": 2}'},
        {"role": "assistant", "content": " Two. "},
    )
    tools = ({"type": "function", "function": {"name": "count", "parameters": {}}},)
    tokenizer = load_tokenizer(model)
    (encoded,) = encode_chats(tokenizer, [ChatSample(messages=messages, tools=tools)])
    assert [tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.spans] == [
        '<tool_call>{"name": "count", "arguments": {"what": "apples"}}</tool_call><|im_end|>',
        "Two.<|im_end|>",
    ]
    before = tokenizer.decode(encoded.input_ids[: encoded.spans[0][0]])
    assert before.startswith("<|im_start|>system\nBe brief.\n\n")
    assert '{"type": "function", "function": {"name": "count", "parameters": {}}}' in before
    assert before.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert encoded.warnings == ()


def test_train_without_chat_template_and_with_a_file(data, tmp_path):
    for choice, template, eos in (("none", None, "<|endoftext|>"), (tmp_path / "t.jinja", "{{ 1 }}", "<|endoftext|>")):
        (tmp_path / "t.jinja").write_text("{{ 1 }}")
        options = ["-o", tmp_path / "tok", "--vocab-size", 260, "--chat-template", choice, "--force"]
        assert invoke("tokenizer", "train", data / "rows.txt", *options).exit_code == 0
        tokenizer = load_tokenizer(tmp_path / "tok")
        assert (tokenizer.chat_template, tokenizer.eos_token) == (template, eos)


def test_train_replaces_a_tokenizer_only_with_force_and_keeps_other_files(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    options = ["tokenizer", "train", data / "rows.txt", "-o", out, "--vocab-size", 260]
    found = problem_of(invoke(*options))
    assert (found.code, found.field, [path.name for path in out.iterdir()]) == ("BC069", "--output", ["config.json"])
    assert invoke(*options, "--force").exit_code == 0
    assert load_tokenizer(out).chat_template
    assert problem_of(invoke(*options)).code == "BC069"
    assert invoke(*options, "--force", "--chat-template", "none").exit_code == 0
    assert load_tokenizer(out).chat_template is None
    assert (out / "config.json").read_text() == "{}"
    before = (out / "tokenizer_config.json").read_bytes()

    def fail(self, directory, **options):
        (directory / "tokenizer_config.json").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    assert problem_of(invoke(*options, "--force")).code == "BC045"
    assert (out / "tokenizer_config.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_train_errors(data, tmp_path):
    def problem(*files, output=tmp_path / "out", **options):
        given = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)]
        return problem_of(invoke("tokenizer", "train", *files, "-o", output, "--vocab-size", 300, *given))

    assert problem(tmp_path / "none.json").code == "BC061"
    (tmp_path / "a.parquet").write_bytes(b"")
    assert problem(tmp_path / "a.parquet").code == "BC061"
    (tmp_path / "b.jsonl").write_text('{"a": "b"}\n{')
    found = problem(tmp_path / "b.jsonl")
    assert (found.code, found.place) == ("BC001", f"{tmp_path / 'b.jsonl'}:2")
    (tmp_path / "c.jsonl").write_text('"\\ud800"')
    assert problem(tmp_path / "c.jsonl").code == "BC020"
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    assert problem(tmp_path / "d.txt").code == "BC003"
    assert problem(data / "rows.txt", chat_template="nope.jinja").code == "BC061"
    assert problem(data / "rows.txt", output=data / "rows.txt").code == "BC042"
    assert invoke("tokenizer", "train", data / "rows.txt", "-o", tmp_path, "--vocab-size", 100).exit_code == 2
