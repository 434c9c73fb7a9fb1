"""The quickstart: its files come from its script, and what it trains answers what it was never asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bumblecore_core.cli import main

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
LIMIT = 2_000_000


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (QUICKSTART / "data" / name).read_text(encoding="utf-8").splitlines()]


def test_the_committed_files_are_what_the_script_makes():
    command = [sys.executable, str(QUICKSTART / "make_data.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_is_small():
    made = [path for folder in ("data", "tokenizer", "model") for path in (QUICKSTART / folder).iterdir()]
    assert sum(path.stat().st_size for path in made) < LIMIT


def test_held_out_questions_and_their_subjects_are_not_in_the_training_rows():
    held_out = rows("heldout.jsonl")
    asked = {message["content"] for row in rows("sft.jsonl") for message in row["messages"]}
    assert len(held_out) > 200
    assert not [row["prompt"] for row in held_out if row["prompt"] in asked]
    assert not [row["answer"] for row in held_out if row["answer"] in asked]


@pytest.mark.slow
def test_it_answers_most_held_out_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for stage, changes in (
        ("pretrain", {}),
        ("sft", {"model.path": tmp_path / "pretrain"}),
    ):
        changes = {**changes, "output_dir": tmp_path / stage}
        sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as ended:
            main(["run", str(QUICKSTART / f"{stage}.yaml"), *sets])
        assert not ended.value.code
    command = [sys.executable, str(QUICKSTART / "score.py"), str(tmp_path / "sft")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    share = float(next(line for line in done.stdout.splitlines() if "held-out questions" in line).split("%")[0])
    assert share > 75
