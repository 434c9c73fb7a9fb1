"""Loading tokenizers and model directories from local files, and the fingerprint that keys token shards."""

from __future__ import annotations

import json

import pytest
from templates import CHATML, SHAPES, tokenizer_for

from bumblecore_core import ModelError
from bumblecore_core.toolkit.tokenizers import (
    exact_encoder,
    load_tokenizer,
    resolve_model_dir,
    tokenizer_fingerprint,
    wants_bos,
)

CHATML_SHAPE = next(shape for shape in SHAPES if shape.name == "chatml")


@pytest.fixture
def saved(tmp_path):
    tokenizer_for(CHATML_SHAPE).save_pretrained(tmp_path / "tok")
    return tmp_path / "tok"


def problem_of(call, *args, **kwargs):
    with pytest.raises(ModelError) as caught:
        call(*args, **kwargs)
    (problem,) = caught.value.problems
    return problem


def test_loads_what_was_saved(saved):
    tokenizer = load_tokenizer(saved)
    assert tokenizer.chat_template == CHATML
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tokenizer_for(CHATML_SHAPE))


def test_template_file_replaces_the_template(saved, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}", encoding="utf-8-sig")
    assert load_tokenizer(saved, chat_template=str(tmp_path / "mine.jinja")).chat_template == "{{ messages }}"


def test_missing_path_names_the_nearest(saved):
    problem = problem_of(load_tokenizer, saved.parent / "tokk")
    assert (problem.code, problem.place) == ("BC061", str(saved.parent / "tokk"))
    assert "'tok'" in problem.fix


def test_a_hub_name_is_not_looked_up():
    assert problem_of(load_tokenizer, "some-organisation/some-model").code == "BC061"


def test_directory_without_tokenizer(tmp_path):
    assert problem_of(load_tokenizer, tmp_path).code == "BC064"


def test_broken_tokenizer(saved):
    (saved / "tokenizer.json").write_text("{")
    problem = problem_of(load_tokenizer, saved)
    assert (problem.code, problem.place) == ("BC064", f"{saved / 'tokenizer.json'}:1")


def test_missing_and_broken_template_files(saved, tmp_path):
    problem = problem_of(load_tokenizer, saved, chat_template=str(tmp_path / "nope.jinja"))
    assert (problem.code, problem.field) == ("BC061", "model.chat_template")
    (tmp_path / "bad.jinja").write_text("line one\n{% for m in messages %}{{ m }}")
    problem = problem_of(load_tokenizer, saved, chat_template=str(tmp_path / "bad.jinja"))
    assert (problem.code, problem.place) == ("BC023", f"{tmp_path / 'bad.jinja'}:2")
    (tmp_path / "latin.jinja").write_bytes(b"caf\xe9")
    assert problem_of(load_tokenizer, saved, chat_template=str(tmp_path / "latin.jinja")).code == "BC003"


def test_output_directory_stands_for_its_final_model(tmp_path):
    run = tmp_path / "runs" / "sft"
    (run / "final").mkdir(parents=True)
    (run / "run.yaml").write_text("stage: sft")
    assert problem_of(resolve_model_dir, run).code == "BC064"
    (run / "final" / "config.json").write_text("{}")
    tokenizer_for(CHATML_SHAPE).save_pretrained(run / "final")
    assert resolve_model_dir(str(run)) == run / "final"
    assert resolve_model_dir(run / "final") == run / "final"
    assert resolve_model_dir(run / "final" / "config.json") == run / "final"
    assert load_tokenizer(run).chat_template == CHATML
    problem = problem_of(resolve_model_dir, tmp_path / "runs" / "sftt")
    assert problem.code == "BC061"
    assert "'sft'" in problem.fix
    assert problem_of(resolve_model_dir, tmp_path / "runs").code == "BC064"
    assert problem_of(resolve_model_dir, tmp_path / "none" / "here").code == "BC061"


def test_fingerprint_sees_vocabulary_special_tokens_and_template():
    plain = tokenizer_for(CHATML_SHAPE)
    prints = {tokenizer_fingerprint(plain)}
    prints.add(tokenizer_fingerprint(tokenizer_for(CHATML_SHAPE, template=CHATML + " ")))
    prints.add(tokenizer_fingerprint(tokenizer_for(CHATML_SHAPE, kind="gpt4")))
    other_eos = tokenizer_for(CHATML_SHAPE)
    other_eos.eos_token = "<|im_start|>"
    prints.add(tokenizer_fingerprint(other_eos))
    more = tokenizer_for(CHATML_SHAPE)
    more.add_tokens(["extra"])
    prints.add(tokenizer_fingerprint(more))
    assert len(prints) == 5


def test_fingerprint_ignores_padding_and_truncation_that_calls_leave_behind():
    tokenizer = tokenizer_for(CHATML_SHAPE)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with_pad = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b b b"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == with_pad
    assert before != with_pad


def test_exact_encoder_is_the_tokenizer_without_special_tokens_padding_or_truncation():
    tokenizer = tokenizer_for(CHATML_SHAPE)
    text = "  How many apples?\n\n<|im_end|> 😀 "
    expected = tokenizer(text, add_special_tokens=False).input_ids
    tokenizer(["a", "b b b"], truncation=True, max_length=2)
    encoding = exact_encoder(tokenizer).encode(text, add_special_tokens=False)
    assert encoding.ids == expected
    covered = {at for start, end in encoding.offsets for at in range(start, end)}
    assert covered == set(range(len(text)))


def test_wants_bos():
    from tokenizers import processors

    shape = next(shape for shape in SHAPES if shape.bos)
    tokenizer = tokenizer_for(shape)
    assert not wants_bos(tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{shape.bos} $A", special_tokens=[(shape.bos, tokenizer.bos_token_id)]
    )
    assert wants_bos(tokenizer)


def test_tokenizer_with_only_a_slow_implementation(saved, monkeypatch):
    import transformers

    class Slow:
        chat_template = None

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Slow())
    problem = problem_of(load_tokenizer, saved)
    assert problem.code == "BC064"
    assert "fast" in problem.problem
    json.loads((saved / "tokenizer_config.json").read_text())
