"""`bumble report`: what the page says, that everything on it stays text, and that it needs nothing else."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import yaml

from report_pages import CONFIG, INFO, LOCK, history, page_of, save, write_run

EVIL = "</style></pre><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A finished run with checkpoints, one of them torn."""
    run = write_run(tmp_path_factory.mktemp("report") / "amber")
    save(run / "checkpoint-20", 20, epoch=0.6667, evaluation_loss=2.4)
    save(run / "checkpoint-40", 40, epoch=1.3333, evaluation_loss=2.0)
    save(run / "checkpoint-60", 60, epoch=2.0, evaluation_loss=2.4, written=7)
    (run / "checkpoint-100").mkdir()
    save(run / "final", 60)
    (run / "checkpoint-new").mkdir()
    return run


@pytest.fixture(scope="module")
def page(complete):
    return page_of(complete)


# what it says


def test_the_header_names_run_stage_status_and_times(page):
    assert page.texts("h1") == ["amber"]
    (line,) = [text for text in page.texts("p") if text.startswith("stage")]
    assert line == "stage sft complete"
    assert "2023-11-14 22:13:21 UTC to 2023-11-14 22:14:20 UTC" in page.texts("p")
    assert page.texts("p", **{"class": "problem"}) == []


def test_the_tiles_hold_the_key_figures(page):
    assert page.tiles() == {
        "final training loss": "1.1500at step 60",
        "best evaluation loss": "2.0000@ step 40",
        "steps": "60of 60",
        "tokens": "3.00 M3,000,000",
        "tokens/s": "1,030median",
        "MFU": "40.0%median",
        "peak memory": "5.60 GBof the fullest process",
        "training time": "1 h 02 minpreparing and saving included",
    }


def test_setup_versions_and_fingerprints(page):
    assert page.table("Features") == [["feature", "what was decided"], ["packing", "on"]]
    assert page.table("Facts")[1:] == INFO["facts"]
    assert page.table("Plugins")[1:] == [["stages", "sft", "bumblecore", "0.1.0"]]
    assert page.table("Libraries")[1:] == [["python", "3.11.7"], ["torch", "2.13.0"]]
    assert page.table("Fingerprints")[1:] == [
        ["data, 1,234 examples", "d" * 64], ["tokenizer", "e" * 64], ["start weights", "f" * 64], ["processes", "2"],
    ]  # fmt: skip
    (config,) = page.texts("pre", **{"aria-label": "Configuration"})
    assert yaml.safe_load(config) == CONFIG


def test_checkpoints_are_listed_in_order_and_torn_ones_named(page):
    assert page.table("Checkpoints")[1:] == [
        ["checkpoint-20", "20", "0.67", "2.0 MB", "2.4000", "whole"],
        ["checkpoint-40", "40", "1.33", "2.0 MB", "2.0000", "whole, best"],
        ["checkpoint-60", "60", "2.00", "2.0 MB", "2.4000", "torn: the size of model.safetensors differs"],
        ["checkpoint-100", "–", "–", "–", "–", "torn: manifest.json is missing"],
        ["final", "60", "–", "2.0 MB", "–", "whole"],
    ]


def test_damaged_manifests_and_missing_files_are_torn(tmp_path):
    run = write_run(tmp_path / "run")
    for step, manifest in enumerate(("{", "[]", '{"facts": {"step": "x"}, "files": {}}', '{"files": {}}'), 1):
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "manifest.json").write_text(manifest)
    save(run / "checkpoint-5", 5, evaluation_loss=math.nan)
    save(run / "checkpoint-6", 6, evaluation_loss=1.0)
    (run / "checkpoint-6" / "model.safetensors").unlink()
    rows = page_of(run).table("Checkpoints")[1:]
    assert [row[-1] for row in rows[:4]] == ["torn: manifest.json is damaged"] * 4
    assert rows[4][-2:] == ["NaN", "whole"]
    assert rows[5][-1] == "torn: model.safetensors is missing"


def test_the_last_twenty_events(page):
    head, *rows = page.table("Last events")
    names = "loss learning_rate grad_norm tokens tokens_per_second mfu peak_memory_gb".split()
    assert head == ["step", "event", "epoch", *names]
    assert len(rows) == 20
    assert rows[-1] == ["60", "evaluation", "2.00", "2.4000", *["–"] * 6]
    assert rows[-2] == [
        "60",
        "training",
        "2.00",
        "1.1500",
        "1.67e-06",
        "2.0000",
        "3,000,000",
        "1,060",
        "40.0%",
        "5.6000",
    ]


def test_the_trained_part_of_the_sample_is_marked(page):
    assert page.texts("pre", **{"aria-label": "First training example"}) == ["\n<|user|>\nHow many?\nTwo, or three."]
    assert page.texts("mark") == ["marked and underlined", "Two, or three."]


def test_a_very_long_sample_is_cut_and_says_so(tmp_path):
    sample = [["a" * 15_000, False], ["b" * 15_000, True], ["c", False]]
    page = page_of(write_run(tmp_path / "run", info={**INFO, "sample": sample}))
    assert page.texts("mark")[1:] == ["b" * 5_000]
    assert page.texts("pre")[0] == "\n" + "a" * 15_000 + "b" * 5_000 + "… (10,001 characters more)"


def test_the_curves_hold_their_words_as_text(page):
    first, second = page.texts("svg")
    assert {"loss", "training", "evaluation", "learning rate"} <= {line.strip() for line in first.splitlines()}
    assert {"gradient norm", "MFU (%)", "peak memory (GB)"} <= {line.strip() for line in second.splitlines()}


# how it stands


def test_it_needs_nothing_else(page, complete):
    text = (complete / "report.html").read_text()
    assert text.startswith("<!doctype html>")
    tags = {tag for tag, *_ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "image"}
    assert not [name for _, found, _ in page.elements for name in found if name.startswith("on") or name == "src"]
    assert {link[:1] for link in page.attributes("href")} - {"#"} == {"d"}
    assert [link for link in page.attributes("href") if not link.startswith("#")] == ["data:,"]
    assert re.findall(r"https?:|@import|url\((?!#)", text) == []
    (policy,) = [found["content"] for _, found, _ in page.elements if "http-equiv" in found]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_ids_are_unique_and_every_reference_has_its_target(page, complete):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) > 100
    text = (complete / "report.html").read_text()
    wanted = {link[1:] for link in page.attributes("href") if link.startswith("#")}
    clipped = set(re.findall(r"url\(#([^)]*)\)", text))
    assert clipped
    assert wanted | clipped | set(page.attributes("aria-labelledby")) <= set(ids)


def test_language_headings_scopes_and_names(page):
    assert page.elements[0][:2] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert {found.get("scope") for tag, found, _ in page.elements if tag == "th"} == {"col", "row"}
    assert all(found.get("aria-label") for _, found, _ in page.elements if found.get("role") in ("region", "img"))
    assert len(page.texts("style")) == 1  # none inside an SVG, where it would hold for the whole page


def test_the_same_run_gives_the_same_bytes(complete, page):
    before = (complete / "report.html").read_bytes()
    page_of(complete)
    assert (complete / "report.html").read_bytes() == before


def test_everything_stays_text(tmp_path):
    events = [{**event, EVIL: 1.0} for event in history()]
    info = {
        **INFO, "stage": EVIL, "status": "failed", "problem": EVIL, "facts": [[EVIL, EVIL]], "features": [[EVIL, EVIL]],
        "sample": [[EVIL, False], [EVIL, True], ["\x00\r\x1b\ud800", False]],
    }  # fmt: skip
    lock = {
        **LOCK,
        "plugins": [dict.fromkeys(("kind", "name", "distribution", "version"), EVIL)],
        "libraries": {EVIL: EVIL},
    }
    config = {"stage": {"name": "sft"}, EVIL: {"x": EVIL}}
    run = write_run(tmp_path / "a<b>&'\"$x^", events=events, info=info, lock=lock, config=config)
    page = page_of(run)
    assert not {tag for tag, *_ in page.elements} & {"script", "img"}
    assert page.texts("h1") == ["a<b>&'\"$x^"]
    assert page.texts("strong") == [EVIL]
    assert page.texts("p", **{"class": "problem"}) == [EVIL]
    assert page.texts("mark")[1:] == [EVIL]
    assert page.texts("pre")[0] == f"\n{EVIL}{EVIL}␀␍␛?"
    assert page.table("Facts")[1] == page.table("Features")[1] == page.table("Libraries")[1] == [EVIL, EVIL]
    assert page.table("Plugins")[1] == [EVIL] * 4
    assert page.table("Last events")[0][-1] == EVIL
    assert yaml.safe_load(page.texts("pre")[1]) == config
