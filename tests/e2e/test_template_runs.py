"""Runs whose chat template prints the day, takes arguments or rewrites history."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from bumblecore_core.run import template_date
from resume_runs import bench_of, run, settings_of
from workbench import TEMPLATE, sentence

TRAIN = {"max_steps": 2, "micro_batch_size": 2, "gradient_accumulation_steps": 1, "eval_steps": None}
DATED = "{{ strftime_now('%Y-%m-%d') + '\n' }}" + TEMPLATE
FORGETFUL = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content and "
    "loop.index0 > ns.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(tmp_path_factory.mktemp("templates"))


def settings(bench: Path, name: str, template: str, **model):
    (bench / f"{name}.jinja").write_text(template)
    made = settings_of(bench, "sft", name, train=TRAIN, checkpoint={"save_steps": 1})
    made["model"] |= {"chat_template": str(bench / f"{name}.jinja"), **model}
    return made


def lock_of(directory: Path):
    return json.loads((directory / "run.lock.json").read_text())


def on(monkeypatch, day: str) -> None:
    class Today(date):
        @classmethod
        def today(cls):
            return date.fromisoformat(day)

    monkeypatch.setattr(template_date, "date", Today)


def test_a_run_that_resumes_on_another_day_keeps_its_tokens(bench, monkeypatch, capsys):
    on(monkeypatch, "2026-01-31")
    assert run(bench, settings(bench, "dated", DATED)) == 0
    first = lock_of(bench / "dated")
    assert first["template_date"] == "2026-01-31"
    assert "2026-01-31" in capsys.readouterr().out
    on(monkeypatch, "2026-02-01")
    shutil.rmtree(bench / "dated" / "final")
    shutil.rmtree(bench / "dated" / "checkpoint-2")
    assert run(bench, settings(bench, "dated", DATED)) == 0
    assert "BC050" not in capsys.readouterr().err
    assert lock_of(bench / "dated")["data"] == first["data"]
    assert run(bench, {**settings(bench, "dated", DATED), "output_dir": str(bench / "new")}) == 0
    later = lock_of(bench / "new")
    assert later["template_date"] == "2026-02-01"
    assert later["data"]["content"] != first["data"]["content"]
    fixed = settings(bench, "dated", DATED, chat_template_date="2026-01-31")
    assert run(bench, {**fixed, "output_dir": str(bench / "fixed")}) == 0
    assert lock_of(bench / "fixed")["data"]["content"] == first["data"]["content"]


def test_a_template_without_a_date_has_none(bench):
    assert run(bench, settings(bench, "plain", TEMPLATE)) == 0
    assert lock_of(bench / "plain")["template_date"] is None


def test_a_history_rewriting_template_trains_every_turn_and_reports_it(bench, capsys):
    turns = []
    for at in (0, 2, 4):
        turns.append({"role": "user", "content": sentence(at, 3)})
        thought = {"reasoning_content": sentence(at + 9, 4)}
        turns.append({"role": "assistant", "content": sentence(at + 1, 3), **thought})
    (bench / "turns.jsonl").write_text(
        "".join(json.dumps({"messages": turns[: 2 * count]}) + "\n" for count in (1, 2, 3) for _ in range(2))
    )
    made = settings(bench, "forgetful", FORGETFUL)
    made["data"] |= {"path": str(bench / "turns.jsonl"), "eval_path": str(bench / "turns.jsonl"), "max_length": 256}
    assert run(bench, made) == 0
    out = capsys.readouterr().out
    assert "each turn is a text of its own (the chat template rewrites earlier turns): 4" in out
    assert "shared prefixes" in out
    assert "computed once" in out
