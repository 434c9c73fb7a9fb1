"""`bumble report` on runs that failed, go on, were resumed or are damaged; where the page goes; what a model says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from markupsafe import Markup

from bumblecore_plugins.commands import report_charts
from bumblecore_plugins.commands.generate import generate
from bumblecore_plugins.commands.report import CONTROLS
from bumblecore_plugins.commands.report_parts import bytes_shown, count_shown, duration, shown
from report_pages import INFO, history, invoke, page_of, problem_of, write_run
from workbench import make_model_config, make_tokenizer


@pytest.fixture
def _no_drawing(monkeypatch):
    """For tests that look at other parts of a page than its charts, which take half a second to draw."""
    monkeypatch.setattr(report_charts, "inline_svg", lambda figure, name, label: Markup("<svg></svg>"))


# runs of every sort


@pytest.mark.usefixtures("_no_drawing")
def test_a_failed_run_says_why(tmp_path):
    info = {**INFO, "status": "failed", "steps": 41, "problem": "BC057 rows.jsonl:3: the loss was not finite."}
    page = page_of(write_run(tmp_path / "run", info=info))
    assert page.texts("span", **{"class": "status failed"}) == ["failed"]
    assert page.texts("p", **{"class": "problem"}) == [info["problem"]]
    assert page.tiles()["steps"] == "41of 60"
    assert page.tiles()["latest training loss"] == "1.1500at step 60"


@pytest.mark.usefixtures("_no_drawing")
def test_a_run_that_goes_on(tmp_path):
    info = {key: INFO[key] for key in list(INFO)[:7]} | {"status": "running"}
    page = page_of(write_run(tmp_path / "run", info=info, events=history(35)))
    assert page.texts("span", **{"class": "status running"}) == ["running"]
    assert [text for text in page.texts("p") if "goes on, or it was killed" in text]
    assert page.tiles()["steps"] == "35of 60"
    assert "training time" not in page.tiles()
    assert "The run has saved nothing yet." in page.texts("p")


def test_a_run_that_has_reported_nothing(tmp_path):
    page = page_of(write_run(tmp_path / "run", info={**INFO, "status": "running"}, events=[]))
    assert page.texts("svg") == []
    assert {"Nothing has been reported yet that a curve could show.", "No step has been reported yet."} <= set(
        page.texts("p")
    )


def test_a_run_without_an_info_file_leaves_its_parts_out(tmp_path):
    page = page_of(write_run(tmp_path / "run", info=None))
    assert page.texts("h2") == [
        "Key figures", "Curves", "Checkpoints", "Last events", "Configuration", "Versions and fingerprints",
    ]  # fmt: skip
    assert page.texts("strong") == ["sft"]
    assert not [found for _, found, _ in page.elements if (found.get("class") or "").startswith("status")]
    assert page.tiles()["steps"] == "60"


@pytest.mark.usefixtures("_no_drawing")
def test_a_run_without_a_lock(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "run.lock.json").unlink()
    assert page_of(run).texts("h2")[-1] == "Configuration"


def test_values_that_are_not_finite(tmp_path):
    events = history()
    events[-2]["loss"] = events[10]["loss"] = None
    events[-1]["loss"] = 1e400
    page = page_of(write_run(tmp_path / "run", events=events))
    assert page.tiles()["final training loss"] == "NaNat step 60"
    assert page.tiles()["best evaluation loss"] == "2.0000@ step 40"
    assert [row[3] for row in page.table("Last events")[-2:]] == ["NaN", "∞"]
    assert "3 of the reported losses are not finite." in page.texts("p")
    nothing = [{**event, "loss": None} for event in history() if event["split"] == "train"]
    assert "best evaluation loss" not in page_of(write_run(tmp_path / "none", events=nothing)).tiles()


@pytest.mark.usefixtures("_no_drawing")
def test_a_resumed_run_says_from_where_it_was_timed(tmp_path):
    page = page_of(write_run(tmp_path / "run", info={**INFO, "first_step": 40}))
    assert page.tiles()["steps"] == "60of 60, resumed at 40"
    assert page.tiles()["training time"] == "1 h 02 minsince it was resumed at step 40, preparing and saving included"


def test_how_values_are_written():
    assert [shown("loss", value) for value in (0.0, 1.23456, 1e-4, 123456.0)] == [
        "0.0000",
        "1.2346",
        "1.000e-04",
        "1.235e+05",
    ]
    assert [shown("x", value) for value in (math.nan, math.inf, -math.inf)] == ["NaN", "∞", "−∞"]
    assert [shown("steps_per_second", value) for value in (1.234, 123.4)] == ["1.23", "123"]
    assert [duration(seconds) for seconds in (12.34, 59.97, 60, 3599.7, 90061)] == [
        "12.3 s", "60.0 s", "1 min 00 s", "1 h 00 min", "25 h 01 min",
    ]  # fmt: skip
    assert [count_shown(count) for count in (12, 999_999, 1e6, 29_491_200, 2e12)] == [
        "12", "999,999", "1.00 M", "29.49 M", "2,000.00 B",
    ]  # fmt: skip
    assert [bytes_shown(size) for size in (400, 67_400, 4.5e6, 1.234e9)] == ["400 bytes", "67 kB", "4.5 MB", "1.23 GB"]


# where it goes, and errors


@pytest.mark.usefixtures("_no_drawing")
def test_it_says_where_the_page_is_and_how_large(tmp_path):
    run = write_run(tmp_path / "run")
    result = invoke(run, "-o", tmp_path / "page.html")
    size = (tmp_path / "page.html").stat().st_size
    assert result.output == f"wrote {tmp_path / 'page.html'} ({round(size / 1000)} kB)\n"
    assert not (run / "report.html").exists()
    assert invoke(run).output.startswith(f"wrote {run / 'report.html'} (")
    assert problem_of(run).code == "BC069"
    assert invoke(run, "--force").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "page.html"}  # nothing half written is left


def test_directories_that_are_no_run(tmp_path):
    run = write_run(tmp_path / "run")
    assert problem_of(tmp_path / "none").code == "BC061"
    (run / "metrics.json").unlink()
    assert problem_of(run).code == "BC061"
    (run / "metrics.json").write_text("[1]")
    assert problem_of(run).code == "BC064"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.info.json", {"features": [["only a name"]]}),
        ("run.info.json", {"sample": 3}),
        ("run.info.json", {"seconds": "long"}),
        ("run.lock.json", {"plugins": [{"kind": "stages"}]}),
        ("run.lock.json", {"data": {"content": "x"}}),
        ("metrics.json", [{"step": 1, "epoch": 1.0, "split": "train", "time": 1e300, "loss": 1.0}]),
        ("metrics.json", [{"step": 1, "epoch": 1.0, "split": "train"}]),
    ],
)
def test_files_that_hold_something_else(tmp_path, name, content):
    run = write_run(tmp_path / "run")
    (run / name).write_text(json.dumps(content))
    assert problem_of(run).code == "BC064"


@pytest.mark.usefixtures("_no_drawing")
def test_targets_that_cannot_be_written(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("something of mine")
    (run / "link").symlink_to(tmp_path / "file")
    for target in (".", "run/link", "none/page.html", "file/page.html", "x" * 300):
        assert problem_of(run, "-o", tmp_path / target).code == "BC042"
    (run / ".page.html.writing").mkdir()  # so that what is written beside the target cannot be
    assert problem_of(run, "-o", run / "page.html").code == "BC042"
    before = (run / "metrics.json").read_bytes()
    assert problem_of(run, "-o", run / "metrics.json").code == "BC069"
    assert (run / "metrics.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}
    assert not (run / "report.html").exists()


# --prompt


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run whose final model is real, tiny and random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    run = write_run(tmp_path_factory.mktemp("asked") / "run")
    make_model_config(run / "final", tie_word_embeddings=False, initializer_range=0.5)
    make_tokenizer(run / "final")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run / "final")).save_pretrained(run / "final")
    return run


@pytest.mark.usefixtures("_no_drawing")
@pytest.mark.parametrize("reads", ["chat", "text"])
def test_answers_are_those_of_generate(asked, reads):
    (asked / "run.info.json").write_text(json.dumps({**INFO, "reads": reads}))
    prompts = ["the cat", "<b>two red birds</b> fly over the old house"]
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    plain, chat = (said_by_generate(asked, *options, *more) for more in ([], ["--chat"]))
    said = chat if reads == "chat" else plain
    page = page_of(asked, *options)
    assert page.texts("pre", **{"class": "text prompt"}) == ["\n" + prompt for prompt in prompts]
    assert page.texts("pre", **{"class": "text reply"}) == ["\n" + line["text"].translate(CONTROLS) for line in said]
    cut = ["cut off" in text for text in page.texts("p") if text.startswith("Answer")]
    assert cut == [line["finish"] == "length" for line in said]
    assert len({line["text"] for line in plain + chat}) == 4


def said_by_generate(run, *options):
    lines = CliRunner().invoke(generate, [str(run), *options, "--json", "--batch-size", "1"]).stdout
    return [json.loads(line) for line in lines.splitlines()]


def test_prompts_need_a_final_model_and_some_text(asked, tmp_path):
    found = problem_of(write_run(tmp_path / "run"), "--prompt", "a")
    assert (found.code, "no final model" in found.problem) == ("BC064", True)
    assert problem_of(asked, "--force", "--prompt", "").code == "BC007"
