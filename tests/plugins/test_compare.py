"""`bumble compare`, on runs made here: what it prints, what it draws, what it refuses."""

from __future__ import annotations

import csv
import json
import re
from statistics import median

import pytest

from bumblecore_core.cli import main
from bumblecore_core.toolkit.history import read_run, smoothed
from bumblecore_plugins.commands.compare import duration, flat
from resume_runs import run
from workbench import pretrain_settings, workbench, write_config

STEPS = 8
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """`one/base`, `two/base` of another learning rate and without evaluation, and `resumed`, which is `one/base` taken
    up again after half of its steps."""
    bench = workbench(tmp_path_factory.mktemp("compare"))

    def settings(name, lr, evaluate):
        found = pretrain_settings(bench, max_steps=STEPS, **({"eval_steps": 3} if evaluate else {}))
        found["optimizer"]["lr"] = lr
        found["checkpoint"] = {"save_steps": STEPS // 2}
        if evaluate:
            found["data"]["eval_path"] = str(bench / "text.jsonl")
        return {**found, "loggers": ["metrics_json"], "output_dir": str(bench / name)}

    assert run(bench, settings("one/base", 3e-3, True)) == 0
    assert run(bench, settings("two/base", 1e-3, False)) == 0
    half = str(bench / "one" / "base" / f"checkpoint-{STEPS // 2}")
    assert run(bench, settings("resumed", 3e-3, True), "--resume", half) == 0
    return bench


def compare(capsys, *arguments):
    """(exit code, lines on stdout, stderr) of `bumble compare`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out.splitlines(), said.err


def cells(line):
    return re.split(r"\s{2,}", line)


def test_figures_and_differences_and_curves(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, lines, _ = compare(capsys, bench / "one" / "base", bench / "two" / "base", bench / "resumed")
    assert code == 0
    head, *rows = (cells(line) for line in lines[:4])
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(shown) == ["one/base", "two/base", "resumed"]
    for name, found in shown.items():
        entries = json.loads((bench / name / "metrics.json").read_text())
        train = [entry for entry in entries if entry["split"] == "train"]
        assert [entry["step"] for entry in train] == list(range(1, STEPS + 1))
        evaluations = [(entry["loss"], entry["step"]) for entry in entries if entry["split"] == "eval"]
        assert (found["stage"], found["steps"]) == ("pretrain", str(STEPS))
        assert found["epochs"] == f"{train[-1]['epoch']:.2f}"
        assert found["final loss"] == f"{smoothed([entry['loss'] for entry in train])[-1]:.4f}"
        best = f"{min(evaluations)[0]:.4f} @ {min(evaluations)[1]}" if evaluations else "-"
        assert found["best evaluation loss"] == best
        assert found["tokens/s"] == f"{median(entry['tokens_per_second'] for entry in train[1:]):,.0f}"
        assert found["training time"] == duration(sum(1 / entry["steps_per_second"] for entry in train))
    assert shown["resumed"]["final loss"] == shown["one/base"]["final loss"]
    table = lines[5 : lines.index("", 5)]
    assert cells(table[0]) == ["config", "one/base", "two/base", "resumed"]
    differences = {row[0]: row[1:] for row in map(cells, table[1:])}
    assert differences["optimizer.lr"] == ["0.003", "0.001", "0.003"]
    assert differences["data.eval_path"] == ["-", "null", "-"]
    assert differences["data.eval_path.0.path"][1] == "-"
    others = {name for name in differences if not name.startswith("data.eval_path")}
    assert others == {"optimizer.lr", "train.eval_steps", "checkpoint.resume"}
    assert lines[-1] == "wrote compare.png"
    assert (tmp_path / "compare.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("axis", ["step", "tokens", "epoch", "time"])
def test_every_axis_can_be_drawn(bench, tmp_path, capsys, axis):
    code, _, error = compare(capsys, bench / "one" / "base", bench / "resumed", "--x", axis, "-o", tmp_path / "a.svg")
    assert (code, error) == (0, "")
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_one_run_alone(bench, tmp_path, capsys):
    code, lines, _ = compare(capsys, bench / "resumed", "-o", tmp_path / "alone.png")
    assert code == 0
    assert [cells(line)[0] for line in lines] == ["run", "resumed", "", f"wrote {tmp_path / 'alone.png'}"]


def test_the_table_as_csv(bench, tmp_path, capsys):
    code, *_ = compare(
        capsys, bench / "two" / "base", bench / "resumed", "-o", tmp_path / "a.png", "--csv", tmp_path / "table.csv"
    )
    assert code == 0
    two, resumed = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert (two["run"], two["best_loss"], two["best_step"]) == ("base", "", "")
    assert float(resumed["loss"]) == smoothed(read_run(bench / "resumed").series("loss")[1])[-1]
    assert int(resumed["steps"]) == STEPS


def test_what_exists_is_replaced_only_with_force(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = bench / "resumed"
    (tmp_path / "compare.png").write_bytes(b"mine")
    (tmp_path / "table.csv").write_bytes(b"mine")
    for options, taken in (((), "compare.png --output"), (("-o", "new.png", "--csv", "table.csv"), "table.csv --csv")):
        code, lines, error = compare(capsys, run, *options)
        assert (code, lines) == (2, [])
        assert error == f"BC069 {taken}: the output exists. Choose another path, or add --force.\n"
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine"}
    assert compare(capsys, run, "--csv", "table.csv", "--force")[0] == 0
    assert (tmp_path / "compare.png").read_bytes().startswith(PNG)
    assert (tmp_path / "table.csv").read_text().startswith("run,stage,")


def test_a_formula_is_text_in_the_csv(tmp_path, capsys):
    event = {"step": 1, "epoch": 0.1, "split": "train", "time": 1.0, "loss": -1.5, "learning_rate": 1e-3}
    hostile = bare_run(tmp_path / "=HYPERLINK(1)", [event], stage="@SUM(A1)")
    plain = bare_run(tmp_path / "-7", [event])
    options = ("-o", tmp_path / "a.png", "--csv", tmp_path / "table.csv")
    assert compare(capsys, hostile, plain, *options)[0] == 0
    first, second = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert (first["run"], first["stage"], first["loss"]) == ("'=HYPERLINK(1)", "'@SUM(A1)", "-1.5")
    assert second["run"] == "-7"


def bare_run(directory, events=(), **config):
    """A directory that holds a config and a history, and nothing else."""
    directory.mkdir(parents=True)
    write_config(directory / "run.yaml", **{"stage": "sft", **config})
    (directory / "metrics.json").write_text(json.dumps(list(events)))
    return directory


def test_what_is_not_known_is_a_dash(tmp_path, capsys):
    bare_run(tmp_path / "empty")
    event = {"step": 1, "epoch": 0.1, "split": "train", "time": 1.0, "loss": None, "learning_rate": 1e-3}
    bare_run(tmp_path / "odd", [event])
    code, lines, _ = compare(capsys, tmp_path / "empty", tmp_path / "odd", "-o", tmp_path / "a.png")
    assert code == 0
    assert cells(lines[1]) == ["empty", "sft", *["-"] * 8]
    assert cells(lines[2]) == ["odd", "sft", "-", "1", "0.10", *["-"] * 5]
    assert "the configs do not differ" in lines
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_runs_without_a_step_have_no_curve(tmp_path, capsys):
    code, lines, _ = compare(capsys, bare_run(tmp_path / "empty"), "-o", tmp_path / "a.png")
    assert (code, lines[-1]) == (0, "no step was reported: there is no curve to draw")
    assert not (tmp_path / "a.png").exists()


def test_all_that_is_wrong_is_said_at_once(tmp_path, capsys):
    mine = bare_run(tmp_path / "mine")
    (bare_run(tmp_path / "unlogged") / "metrics.json").unlink()
    (tmp_path / "link").symlink_to(mine)
    arguments = [mine, tmp_path / "absent", tmp_path / "unlogged", tmp_path / "link"]
    code, lines, error = compare(capsys, *arguments, "-o", tmp_path / "a.png")
    assert (code, lines) == (2, [])
    first, second, third = error.splitlines()
    assert first.startswith(f"BC061 {tmp_path / 'absent'}: ")
    assert second.startswith(f"BC061 {tmp_path / 'unlogged'}: ")
    assert "metrics_json" in second
    assert third.startswith(f"BC039 {tmp_path / 'link'}: the run is named twice.")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [(("-o", "a.bmp"), "BC061"), (("-o", "absent/a.png"), "BC042"), (("--csv", "absent/a.csv"), "BC042")],
)
def test_what_cannot_be_written_is_said(bench, tmp_path, capsys, monkeypatch, options, code):
    monkeypatch.chdir(tmp_path)
    ended, lines, error = compare(capsys, bench / "resumed", *options)
    assert (ended, lines) == (2, [])
    assert error.startswith(code)


def test_an_axis_that_a_history_lacks(tmp_path, capsys):
    mine = bare_run(tmp_path / "mine", [{"step": 1, "epoch": 0.1, "split": "train", "loss": 1.0}])
    code, _, error = compare(capsys, mine, "--x", "tokens", "-o", tmp_path / "a.png")
    assert code == 2
    assert error.startswith(f"BC061 {mine}: ")


def test_configs_are_flattened_as_yaml_says_them():
    config = {
        "stage": {"name": "sft"},
        "data": [{"path": "a"}, {"path": "b"}],
        "betas": [0.9, 0.95],
        "none": None,
        "packing": True,
        "empty": [],
        "text": "two\nlines",
    }
    assert flat(config) == [
        ("stage.name", "sft"),
        ("data.0.path", "a"),
        ("data.1.path", "b"),
        ("betas", "0.9, 0.95"),
        ("none", "null"),
        ("packing", "true"),
        ("empty", "[]"),
        ("text", "two lines"),
    ]


def test_durations():
    assert [duration(seconds) for seconds in (0.1234, 4.2, 59.4, 59.7, 187.4, 43387)] == [
        "0.12 s", "4.2 s", "59 s", "1:00 min", "3:07 min", "12:03:07 h",
    ]  # fmt: skip
