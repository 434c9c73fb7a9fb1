"""The benchmark of ZeRO's memory: its arithmetic, what it reads, and what it refuses. Nothing is trained here."""

from __future__ import annotations

import gc
import sys

import pytest

from architecture.test_benchmarks_parse import BENCHMARKS, OPTION, PAGE, help_of, load


@pytest.fixture(scope="module")
def memory():
    return load(BENCHMARKS / "zero_memory.py")


@pytest.mark.parametrize(
    ("gradients", "nproc", "expected"),
    [("bf16", 2, [16, 10, 9, 8]), ("fp32", 2, [18, 12, 10, 9]), ("bf16", 4, [16, 7, 5.5, 4]), ("bf16", 1, [16] * 4)],
)
def test_zeros_arithmetic(memory, gradients, nproc, expected):
    assert [memory.predicted(stage=stage, nproc=nproc, gradients=gradients) for stage in range(4)] == expected


def test_memory_is_told_of_the_fullest_rank(memory):
    mib = memory.MIB

    def rank(more, saved):
        sizes = {"tensors": 4, "backward": 5, "backward_peak": 6, "step_peak": 7, "after": 3}
        tensors = sizes.pop("tensors")
        figures = {name: (100 + size + more) * mib for name, size in sizes.items()} | {"tensors": tensors * mib}
        figures |= {"baseline": 100 * mib, "loading_peak": 109 * mib, "trimmed": 104 * mib, "after_tensors": mib}
        return {**figures, "parameters": mib, "saves": [{"before": 50 * mib, "peak": (50 + saved) * mib}]}

    run = {"gradients": "bf16", "nproc": 2, "stage": 2, "ranks": [rank(0, 3), rank(2, 0)]}
    lines = "\n".join(memory.table([run])).splitlines()
    assert "| bf16 | 2 | 2 | 9.0 | 4.0 | 7.0 | 8.0 | 9.0 | 5.0 |" in lines
    assert "| bf16 | 2 | 2 | 9.0 | 100 | 3 | 1.50 |" in lines


def test_live_tensors_count_each_memory_once_and_gradients_too(memory):
    torch = pytest.importorskip("torch")
    gc.collect()
    before = memory.live_tensors()
    weight = torch.zeros(1000, requires_grad=True)
    views = [weight.detach()[:10], weight.detach()]
    weight.sum().backward()
    assert memory.live_tensors() - before == 2 * weight.nbytes == 8000
    assert len(views) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's peak is read from /proc")
def test_the_peak_begins_anew(memory):
    size = 64 * memory.MIB
    held = bytearray(size)
    del held
    peak = memory.resident("VmHWM")
    assert peak >= memory.resident("VmRSS") + size // 2
    memory.reset_peak()
    assert memory.resident("VmHWM") < peak - size // 4


@pytest.mark.parametrize(
    "given", [["--stages", "0,4"], ["--gradients", "fp8"], ["--nproc", "1"], ["--steps", "1"], ["--stages", ""]]
)
def test_runs_whose_memory_says_nothing_are_refused(memory, capsys, given):
    with pytest.raises(SystemExit):
        memory.parse(given)
    assert given[0] in capsys.readouterr().err


def test_one_process_is_measured_once(memory):
    runs = memory.settings(memory.parse(["--stages", "1,3"]))
    found = [(run["gradients"], run["nproc"], run["stage"]) for run in runs]
    assert found == [("bf16", 1, 0), ("bf16", 2, 1), ("bf16", 2, 3), ("fp32", 2, 1), ("fp32", 2, 3)]


def test_the_page_names_exactly_its_options():
    chapter = PAGE.split("## zero_memory.py")[1].split("\n## ")[0]
    assert set(OPTION.findall(chapter)) == set(OPTION.findall(help_of(BENCHMARKS / "zero_memory.py"))) - {"--help"}
