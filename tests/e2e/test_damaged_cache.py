"""Token shards that are damaged between two runs, or between a crash and its resume, never train."""

import pytest

from bumblecore_core.cli import main
from resume_runs import differences, run
from workbench import make_text, pretrain_settings, workbench, write_config


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = workbench(tmp_path_factory.mktemp("damage"))
    make_text(bench / "held.jsonl", rows=7)
    return bench


def settings_of(bench, name):
    settings = pretrain_settings(bench, max_steps=4, eval_steps=2)
    settings["data"]["eval_path"] = str(bench / "held.jsonl")
    settings["checkpoint"] = {"save_steps": 2}
    return {**settings, "output_dir": str(bench / name), "loggers": ["metrics_json"]}


def damage(bench, rows):
    """Flips a bit of a token in the shards of so many rows."""
    (directory,) = [
        path for path in (bench / "cache" / "tokens").iterdir() if (path / "lengths.bin").exists() and has(path, rows)
    ]
    shard = directory / "input_ids.00000.bin"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 // 4 * 4] ^= 1
    shard.write_bytes(data)
    return directory


def has(directory, rows):
    return (directory / "lengths.bin").stat().st_size == 4 * rows


def test_a_run_that_is_resumed_on_damaged_shards_is_the_same_bit_for_bit(bench, capsys):
    assert run(bench, settings_of(bench, "whole")) == 0
    assert "BC075" not in capsys.readouterr().out
    damaged = [damage(bench, 40), damage(bench, 7)]
    assert run(bench, settings_of(bench, "resumed"), "--resume", str(bench / "whole" / "checkpoint-2")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning BC075 damaged cache files were rebuilt: 1") == 2
    assert str(damaged[1]) in said
    assert differences(bench / "whole", bench / "resumed", steps=4) == []
    assert run(bench, settings_of(bench, "again")) == 0
    assert "BC075" not in capsys.readouterr().out
    assert differences(bench / "whole", bench / "again", steps=4) == []


def test_a_plan_verifies_them_too(bench, capsys):
    damage(bench, 40)
    config = write_config(bench / "plan.yaml", **settings_of(bench, "planned"))
    for expected in (1, 0):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(config)])
        assert not ended.value.code
        assert capsys.readouterr().out.count("BC075") == expected
