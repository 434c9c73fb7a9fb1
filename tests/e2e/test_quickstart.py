"""The quickstart: its files come from its script; what it trains answers what it was never asked, as pairs prefer."""

import json
import math
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


def test_held_out_questions_and_their_answers_are_not_in_the_training_rows():
    held_out = rows("heldout.jsonl")
    trained = {message["content"] for row in rows("sft.jsonl") for message in row["messages"]}
    trained |= {row[field] for row in rows("pairs.jsonl") for field in ("prompt", "chosen", "rejected")}
    assert len(held_out) > 200
    assert not [row[field] for row in held_out for field in ("prompt", "chosen", "rejected") if row[field] in trained]


def test_a_pair_differs_in_the_filler_alone():
    fillers = {row["rejected"].removeprefix(row["chosen"]) for row in rows("pairs.jsonl") + rows("heldout.jsonl")}
    assert fillers == {" I hope this helps!"}


def scored(model: Path) -> dict:
    command = [sys.executable, str(QUICKSTART / "score.py"), str(model), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_it_answers_most_held_out_questions_and_dpo_takes_the_filler_away(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for stage, changes in (
        ("pretrain", {}),
        ("sft", {"model.path": tmp_path / "pretrain"}),
        ("dpo", {"model.path": tmp_path / "sft"}),
    ):
        changes = {**changes, "output_dir": tmp_path / stage}
        sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        with pytest.raises(SystemExit) as ended:
            main(["run", str(QUICKSTART / f"{stage}.yaml"), *sets])
        assert not ended.value.code
    before, after = scored(tmp_path / "sft"), scored(tmp_path / "dpo")
    assert before["right"] > 0.75
    assert after["right"] > before["right"] - 0.04
    assert before["filler"] > 0.8
    assert after["filler"] < 0.1
    events = json.loads((tmp_path / "dpo" / "metrics.json").read_text(encoding="utf-8"))
    assert events[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert next(event for event in events if event["split"] == "eval")["rewards/accuracies"] > 0.9
