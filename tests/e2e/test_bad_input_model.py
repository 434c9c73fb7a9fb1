"""Bad tokenizers, chat templates and models, which are refused before anything trains."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from bad_input import SECRET, chat, good, reply, user
from workbench import TEMPLATE, make_model_config

PLAIN = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture
def trained(own_model):
    """A model directory with weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(own_model)).save_pretrained(own_model)
    return own_model


def change_json(path, **changes):
    """Changes keys of a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


# -- tokenizers and templates -----------------------------------------------------------------------------------------


def test_row_22_no_chat_template_names_the_key_that_sets_one(scene, own_model):
    scene.rows(good(3))
    (own_model / "chat_template.jinja").unlink()
    config = scene.config(model__path=own_model)
    line = scene.call("plan", config).only("BC022", f" {config} model.chat_template", ".jinja")
    assert line.count("model.chat_template") == 2


def test_row_23_a_template_that_raises_names_row_and_message(scene):
    template = scene.file(
        "t.jinja", "{% if messages[0].content|length > 30 %}{{ raise_exception('Too long') }}{% endif %}" + PLAIN
    )
    path = scene.rows([*good(1), chat(user(f"{SECRET} " * 9), reply())])
    answer = scene.plan(model__chat_template=template)
    answer.only("BC023", f" {path}:2 messages", "the chat template raised: Too long")


def test_row_23_a_template_that_quotes_the_row(scene):
    template = scene.file("t.jinja", "{{ raise_exception('Cannot take ' + messages[0].content) }}")
    path = scene.rows([chat(user(f"words on {SECRET}"), reply())])
    scene.plan(model__chat_template=template).only("BC023", f" {path}:1 messages", "Cannot take …")


def test_row_23_a_template_that_is_not_jinja_names_its_line(scene):
    scene.rows(good(1))
    template = scene.file("t.jinja", "{% for m in messages %}\n{{ m['content' }}\n{% endfor %}")
    scene.plan(model__chat_template=template).only("BC023", f" {template}:2 model.chat_template", "Jinja")


def test_row_24_a_template_that_rewrites_history_is_trained_turn_by_turn(scene):
    said, cut = "{{ m['content'] }}<|im_end|>", "{% if loop.last %}{{ m['content'] }}{% endif %}<|im_end|>"
    forgetful = PLAIN.replace(said, cut, 1)
    template = scene.file("t.jinja", forgetful)
    scene.rows([*good(1), chat(user(), reply("one two"), user(), reply("three"))])
    out = scene.plan(code=0, model__chat_template=template).out
    assert "conversations of which each turn is a text of its own (the chat template rewrites earlier turns): 1" in out
    marked = forgetful.replace(cut, "{% generation %}" + cut + "{% endgeneration %}")
    scene.file("t.jinja", marked)
    assert "each turn is a text of its own" in scene.plan(code=0, model__chat_template=template).out


def test_row_24_a_template_that_rewrites_a_completion_names_the_first_token(scene):
    said, cut = "{{ m['content'] }}<|im_end|>", "{% if loop.last %}{{ m['content'] }}{% endif %}<|im_end|>"
    template = scene.file("t.jinja", PLAIN.replace(said, cut, 1))
    turns = [reply("one two"), user(), reply("three")]
    path = scene.rows([{"prompt": [user()], "chosen": turns, "rejected": [reply("four")]}])
    answer = scene.plan(stage="dpo", model__chat_template=template)
    line = answer.only("BC024", f" {path}:1 chosen[0]", "token ", "(<|im_end|>)")
    assert "{% generation %}" in line


def test_row_25_an_untrained_end_of_turn_is_warned_of(scene):
    scene.rows(good(3))
    template = scene.file(
        "t.jinja",
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )
    out = scene.plan(code=0, model__chat_template=template).out
    assert "BC025 the end of a turn is not trained" in out
    assert ": 3" in next(line for line in out.splitlines() if "BC025" in line)


def test_row_26_no_pad_token_is_needed_to_train(scene, own_model):
    scene.rows(good(3))
    change_json(own_model / "tokenizer_config.json", pad_token=None)
    change_json(own_model / "config.json", pad_token_id=None)
    assert "3 read" in scene.plan(code=0, model__path=own_model).out


def test_row_27_a_tokenizer_larger_than_the_embedding_names_both_sizes(scene, own_model):
    scene.rows(good(3))
    make_model_config(own_model, vocab_size=200)
    answer = scene.plan(model__path=own_model)
    answer.only("BC027", f" {own_model / 'config.json'} model.tokenizer", "ids up to ", "200 rows")


# -- weights ----------------------------------------------------------------------------------------------------------


def test_row_29_no_weights_and_a_missing_shard(scene, own_model):
    scene.rows(good(3))
    config = scene.config(model__path=own_model)
    scene.call("run", config).only("BC029", f" {own_model} model.path", "model.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (own_model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(1)}, own_model / "model-1.safetensors")
    missing = own_model / "model-2.safetensors"
    scene.call("run", config).only("BC029", f" {missing} model.path", "model-2.safetensors")


def test_row_30_missing_and_unexpected_weights_name_the_first_five(scene, trained):
    scene.rows(good(3))
    weights = load_file(trained / "model.safetensors")
    gone = sorted(name for name in weights if "layers.1." in name)
    kept = {name: tensor for name, tensor in weights.items() if name not in gone}
    save_file({**kept, "model.stranger": torch.zeros(2)}, trained / "model.safetensors", metadata={"format": "pt"})
    answer = scene.call("run", scene.config(model__path=trained))
    line = answer.has("BC030", f" {trained} model.path", f"{len(gone)} missing", ", ".join(gone[:5]))
    assert gone[5] not in line
    answer.has("BC030", "1 unexpected", "model.stranger")


def test_row_30_weights_of_another_shape_name_both(scene, trained):
    scene.rows(good(3))
    change_json(trained / "config.json", intermediate_size=48)
    scene.call("run", scene.config(model__path=trained)).has("BC030", "misshapen", "(64, 32)", "(48, 32)")


def test_torn_and_corrupt_weights(scene, trained):
    scene.rows(good(3))
    file = trained / "model.safetensors"
    whole = file.read_bytes()
    config = scene.config(model__path=trained)
    for content, found in [(whole[:-100], "shorter"), (whole[:100], "whole"), (b"", "whole"), (b"PK\3\4" * 9, "whole")]:
        file.write_bytes(content)
        scene.call("run", config).only("BC064", f" {file}", found)


def test_row_41_fp16_is_refused_before_the_model_is_read(scene):
    scene.rows(good(3))
    config = scene.config(
        model__dtype="fp16", model__path=scene.directory / "nowhere", engine={"name": "torch", "device": "cpu"}
    )
    line = scene.call("run", config).only("BC041", f" {scene.line_of(config, 'dtype')} model.dtype", "fp16")
    assert "nowhere" not in line


# -- broken directories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": 3}', "{}", '{"model_type": "qwen99"}'])
def test_a_broken_config_json(scene, own_model, content):
    scene.rows(good(3))
    (own_model / "config.json").write_text(content)
    scene.plan(model__path=own_model).only("BC064", f" {own_model / 'config.json'}", "model.path")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', b"\xff\xfe\x00"])
def test_a_broken_tokenizer(scene, own_model, content):
    scene.rows(good(3))
    file = own_model / "tokenizer.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    scene.plan(model__path=own_model).only("BC064", str(own_model), "model.tokenizer")


def test_a_torn_tokenizer(scene, own_model):
    scene.rows(good(3))
    file = own_model / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-500])
    scene.plan(model__path=own_model).only("BC064", str(own_model), "model.tokenizer")


def test_a_model_path_that_is_wrong_names_the_nearest(scene, own_model):
    scene.rows(good(3))
    scene.plan(model__path="modle").only("BC061", " modle model.path", "did you mean 'model'?")
    scene.plan(model__path=own_model / "tokenizer.json").only("BC061", "tokenizer.json model.path", "directory")
    (scene.directory / "empty").mkdir()
    scene.plan(model__path="empty").only("BC064", " empty model.path", "no config.json")


def test_more_tokens_than_the_model_has_positions(scene, own_model):
    scene.rows(good(3))
    make_model_config(own_model, max_position_embeddings=16)
    out = scene.plan(code=0, model__path=own_model).out
    assert re.search(r"warning +the longest example has \d+ tokens, .* 16 positions", out)


def test_a_vocabulary_smaller_than_the_ids_of_added_tokens(scene, own_model):
    scene.rows(good(3))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(own_model)
    tokenizer.add_tokens([f"<extra_{at}>" for at in range(90)])
    tokenizer.save_pretrained(own_model)
    scene.plan(model__path=own_model).only("BC027", "300 rows")
