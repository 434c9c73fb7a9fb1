"""What a run saves can be served as it is: plain transformers ends a reply where training ended it."""

import json
import os
import shutil
import stat

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_runs import call, lora_bench
from workbench import sft_settings, write_config

ENDOFTEXT, IM_END = 0, 2
QUESTION = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A base whose config names <|endoftext|> as the end, and one chat row that it learns by heart."""
    bench = lora_bench(tmp_path_factory.mktemp("served"), eos_token_id=ENDOFTEXT)
    row = {"instruction": "the cat", "input": "", "output": "sat on a mat"}
    (bench / "chat.json").write_text(json.dumps([row] * 4))
    return bench


def run(bench, name, adapter=None, **train):
    settings = sft_settings(bench, bench / "base", **train)
    settings |= {"output_dir": str(bench / name), "adapter": adapter}
    settings["loggers"] = []
    assert call("run", write_config(bench / f"{name}.yaml", **settings)) == 0
    return bench / name / "final"


def ends(directory):
    return json.loads((directory / "generation_config.json").read_text())["eos_token_id"]


def test_transformers_ends_the_reply(bench):
    final = run(bench, "full", max_steps=40)
    assert ends(final) == [ENDOFTEXT, IM_END]
    assert json.loads((final / "config.json").read_text())["eos_token_id"] == [ENDOFTEXT, IM_END]
    tokenizer, model = AutoTokenizer.from_pretrained(final), AutoModelForCausalLM.from_pretrained(final)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    assert tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]) == "sat on a mat<|im_end|>"


def test_an_adapter_and_what_is_merged_of_it_end_there_too(bench):
    final = run(bench, "lora", adapter={"name": "lora", "rank": 2}, max_steps=1)
    assert ends(final) == [ENDOFTEXT, IM_END]
    assert call("merge", final, bench / "merged") == 0
    assert ends(bench / "merged") == [ENDOFTEXT, IM_END]


def test_plain_texts_change_nothing(bench):
    settings = sft_settings(bench, bench / "base", max_steps=1)
    settings |= {"stage": "continue_pretrain", "output_dir": str(bench / "text"), "loggers": []}
    settings["data"]["path"] = str(bench / "text.jsonl")
    assert call("run", write_config(bench / "text.yaml", **settings)) == 0
    assert ends(bench / "text" / "final") == ENDOFTEXT


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o002, 0o664)])
def test_files_follow_the_umask(bench, mask, mode):
    before = os.umask(mask)
    try:
        final = run(bench, f"masked-{mode}", adapter={"name": "lora", "rank": 2}, max_steps=1)
        assert call("merge", final, bench / f"masked-merged-{mode}") == 0
        tokenizer = bench / f"masked-tokenizer-{mode}"
        assert call("tokenizer", "train", bench / "chat.json", "-o", tokenizer, "--vocab-size", 300) == 0
    finally:
        os.umask(before)
    for directory in (final, bench / f"masked-merged-{mode}", tokenizer):
        assert stat.S_IMODE(directory.stat().st_mode) == mode | (mode & 0o444) >> 2
        assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {mode}


def test_a_wrong_tied_flag_is_corrected_in_the_saved_model_and_said(bench, capsys):
    shutil.copytree(bench / "base", bench / "mistaken")
    file = bench / "mistaken" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": False}))
    settings = sft_settings(bench, bench / "mistaken", max_steps=1)
    settings |= {"output_dir": str(bench / "corrected"), "loggers": []}
    assert call("run", write_config(bench / "corrected.yaml", **settings)) == 0
    assert f"{file} states tie_word_embeddings: false" in " ".join(capsys.readouterr().out.split())
    assert json.loads((bench / "corrected" / "final" / "config.json").read_text())["tie_word_embeddings"]
