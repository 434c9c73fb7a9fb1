"""The benchmark scripts: they start, their page names every option, and their arithmetic is right. No timings here."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from architecture.repository import ROOT, name

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
PARTS = sorted((BENCHMARKS / "peers").glob("*.py"))
PAGE = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
COMPARISONS = ("sft_vs_peers.py", "dpo_vs_peers.py")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def load(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setting():
    return load(BENCHMARKS / "peers" / "setting.py")


@pytest.fixture
def pairs(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")  # it imports setting.py
    return load(BENCHMARKS / "peers" / "pairs.py")


@pytest.fixture(scope="module")
def rows():
    return load(BENCHMARKS / "peers" / "rows.py")


def help_of(path):
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_scripts():
    assert {"head.py", "sft_vs_peers.py", "dpo_vs_peers.py"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS + PARTS, ids=name)
def test_a_benchmark_compiles(path):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_explains_itself_and_the_page_names_it(path):
    assert "usage" in help_of(path)
    assert path.name in PAGE


@pytest.mark.parametrize("script", COMPARISONS)
def test_the_page_names_exactly_the_options_of_a_comparison(script):
    chapter = PAGE.split(f"## {script}")[1].split("\n## ")[0]
    offered = set(OPTION.findall(help_of(BENCHMARKS / script))) - {"--help"}
    assert set(OPTION.findall(chapter)) == offered


@pytest.mark.parametrize("script", COMPARISONS)
def test_the_process_that_starts_the_frameworks_stays_small(script):
    # A child's peak resident size begins at its parent's on Linux: torch in the parent would count as theirs.
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['x']; import {script[:-3]} as it; "
        "it.parse([]); sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_made_rows_are_the_same_each_time_and_ragged(rows):
    first, again, other = (rows.make_chats(40, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    lengths = [len(chat[1]["content"].split()) for chat in first]
    assert min(lengths) >= 10
    assert max(lengths) > 3 * min(lengths)


@pytest.mark.parametrize("wrap", [lambda lines: "[" + ",".join(lines) + "]", "\n".join], ids=["array", "lines"])
def test_alpaca_rows_become_conversations(rows, tmp_path, wrap):
    lines = [
        '{"instruction": "Add.", "input": "1 1", "output": "2"}',
        '{"instruction": "Say hi.", "input": "", "output": "hi"}',
        '{"instruction": "Nothing.", "output": ""}',
    ]
    path = tmp_path / "rows.json"
    path.write_text(wrap(lines))
    assert [[message["content"] for message in chat] for chat in rows.read_chats(path)] == [
        ["Add.\n1 1", "2"],
        ["Say hi.", "hi"],
    ]


def test_made_pairs_are_the_same_each_time_and_differ_in_length(rows):
    first, again, other = (rows.make_pairs(40, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all([message["role"] for message in pair["prompt"]] == ["user"] for pair in first)
    lengths = [[len(pair[side][0]["content"].split()) for side in ("chosen", "rejected")] for pair in first]
    assert max(max(one, other) / min(one, other) for one, other in lengths) > 3


@pytest.mark.parametrize("wrap", [lambda lines: "[" + ",".join(lines) + "]", "\n".join], ids=["array", "lines"])
def test_preference_rows_become_pairs(rows, tmp_path, wrap):
    def line(chosen, rejected):
        turns = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi "}]
        return json.dumps(
            {"conversations": turns, "chosen": {"from": "gpt", "value": chosen}, "rejected": {"value": rejected}}
        )

    path = tmp_path / "rows.json"
    path.write_text(wrap([line("\nHello.\n", "No."), line("Same.", " Same."), line("", "No."), line("Yes.", " ")]))
    assert rows.read_pairs(path) == [
        {
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi "}],
            "chosen": [{"role": "assistant", "content": "Hello."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
    ]


def run(seconds, *, rss=100, cuda=0, losses=(2.0, 1.0)):
    return {
        "variant": "default",
        "seconds": seconds,
        "losses": list(losses),
        "peak_rss_bytes": rss,
        "peak_cuda_bytes": cuda,
    }


def test_the_first_step_is_not_timed(setting):
    assert setting.tokens_per_second([900, 10, 20], [99.0, 1.0, 2.0]) == 10


def test_runs_are_summed_up(setting):
    found = setting.summarize([run([9.0, 2.0], rss=100), run([9.0, 1.0], rss=300), run([9.0, 4.0])], [5, 8])
    assert found["tokens_per_second_of_runs"] == [4, 8, 2]
    assert found["tokens_per_second"] == 4
    assert found["peak_rss_bytes"] == 300


def figures_of(variant, speed, rss, cuda=0):
    return {"variant": variant, "tokens_per_second": speed, "peak_rss_bytes": rss, "peak_cuda_bytes": cuda}


def test_ratios_name_the_faster_and_the_leaner_peer(setting):
    figures = {
        "bumble": figures_of("default", 300, 40),
        "trainer": figures_of("autocast", 100, 160),
        "trl": figures_of("autocast+padding-free", 50, 80),
    }
    found = setting.ratios(figures)
    assert (found["faster_peer"], found["times_the_faster_peer"], found["share_of_its_memory"]) == ("trainer", 3, 0.25)
    assert (found["leaner_peer"], found["share_of_the_leaner_peers_memory"]) == ("trl", 0.5)
    assert setting.ratios({"bumble": figures["bumble"]}) is None


def test_ratios_compare_like_with_like(setting):
    figures = {
        "bumble default": figures_of("default", 300, 80),
        "bumble bf16-weights": figures_of("bf16-weights", 200, 40),
        "trainer": figures_of("autocast", 100, 160),
        "trl": figures_of("bf16-weights+padding-free", 50, 100),
    }
    found = setting.ratios(figures)
    assert (found["times_the_faster_peer"], found["share_of_its_memory"]) == (3, 0.5)
    assert found["share_of_the_leaner_peers_memory"] == 0.4
    del figures["bumble default"]
    assert setting.ratios(figures)["faster_peer"] == "trl"


def test_memory_is_the_gpus_where_there_is_one(setting):
    figures = {"bumble": figures_of("default", 2, 90, cuda=10), "trl": figures_of("autocast", 1, 90, cuda=40)}
    assert setting.ratios(figures)["share_of_its_memory"] == 0.25


def test_losses_are_compared_step_by_step(setting):
    assert setting.loss_distance([2.0, 1.1], [2.0, 1.0]) == pytest.approx(0.1)
    assert setting.loss_distance([2.0], [2.0, 1.0]) == float("inf")


def test_each_peer_is_tried_in_every_setting(setting):
    assert setting.variants("bumble", "bf16") == ["default", "bf16-weights"]
    assert setting.variants("bumble", "fp32") == ["default"]
    assert setting.variants("trainer", "bf16") == ["autocast", "bf16-weights"]
    assert setting.variants("trl", "fp32") == ["fp32", "fp32+padding-free"]
    assert len(setting.variants("trl", "bf16")) == 4


def run_on_pairs(seconds, *, reference, rss=100):
    return {**run(seconds, rss=rss), "margins": [0.0, 0.1], "reference_seconds": reference}


def test_pairs_a_second_leave_out_the_first_step_and_the_reference(pairs):
    assert pairs.pairs_per_second([4, 4, 2], [9.0, 1.0, 2.0]) == 2
    assert pairs.whole_run_pairs_per_second([4, 4, 2], [9.0, 1.0, 2.0], 8.0) == 0.5


def test_runs_on_pairs_are_summed_up(pairs):
    runs = [
        run_on_pairs([9.0, 2.0], reference=1.0, rss=100),
        run_on_pairs([3.0, 1.0], reference=4.0, rss=300),
        run_on_pairs([3.0, 4.0], reference=1.0),
    ]
    found = pairs.summarize(runs, [4, 4])
    assert (found["pairs_per_second"], found["whole_run_pairs_per_second"]) == (2, 1)
    assert (found["step_seconds"], found["reference_seconds"], found["peak_rss_bytes"]) == (2, 1, 300)


def test_margins_are_compared_by_the_largest(pairs):
    assert pairs.margin_distance([0.0, -0.1, 0.2], [0.0, -0.2, 0.1]) == pytest.approx(0.5)
    assert pairs.margin_distance([0.0, 0.1], [0.0, 0.0]) == 0.1
    assert pairs.margin_distance([0.0], [0.0, 0.1]) == float("inf")


def test_trl_is_tried_in_every_setting_beside_one_of_ours_that_is_like_it(pairs):
    assert pairs.trl_variants("fp32") == ["fp32", "fp32+precompute"]
    tried = pairs.trl_variants("bf16")
    assert len(tried) == 4
    for method, expected in (("full", {"default", "bf16-weights"}), ("lora", {"default"})):
        assert {pairs.like_of(method)(name) for name in tried} == expected == set(pairs.own_variants(method, "bf16"))
    assert pairs.like_of("full")("bf16-weights+precompute") == "bf16-weights"


def test_ratios_of_pairs_beside_lora_take_our_default(setting, pairs):
    figures = {
        "bumble": {**figures_of("default", 0, 40), "pairs_per_second": 6},
        "trl": {**figures_of("bf16-weights+precompute", 0, 80), "pairs_per_second": 2},
    }
    found = setting.ratios(figures, speed="pairs_per_second", like=pairs.like_of("lora"))
    assert (found["times_the_faster_peer"], found["share_of_its_memory"]) == (3, 0.5)
    assert setting.ratios(figures, speed="pairs_per_second") is None


@pytest.mark.parametrize("given", [["--pairs", "4"], ["--methods", "half"], ["--variants", "slowest"]])
def test_a_comparison_that_cannot_be_is_refused(monkeypatch, capsys, given):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    with pytest.raises(SystemExit):
        load(BENCHMARKS / "dpo_vs_peers.py").parse(given)
    assert given[0] in capsys.readouterr().err
