"""Two gloo ranks that stop and go on equal two that were left alone, bit for bit."""

import json
import signal
from pathlib import Path

import pytest

from bumblecore_core.run.checkpoint.compare import checkpoint_differences
from forked_ranks import run_ranks
from resume_runs import STEPS, bench_of, differences, settings_of
from workbench import write_config

CASES = {
    "pretrain": ("pretrain", {"dropout": True}),
    "sft": ("sft", {"dropout": True}),
    "packing": ("pretrain", {"data": {"packing": True}, "train": {"micro_batch_size": 1}}),
}
SAVE_POINTS = (3, 7, STEPS)
DRIVER = """
import json, os, sys
from bumblecore_core.cli import main
from bumblecore_core.run import loop
from bumblecore_plugins.engines.torch_engine import TorchEngine

codes = []
plain = TorchEngine.forward_backward
for arguments, signal_rank, micro_batch, looks_after_each in json.loads(sys.argv[1]):
    calls = []

    def counted(self, **inputs):
        calls.append(None)
        if signal_rank == self.rank and len(calls) == micro_batch:
            os.kill(os.getpid(), 15)
        return plain(self, **inputs)

    TorchEngine.forward_backward = counted
    loop.LONG_WINDOW = -1.0 if looks_after_each else 1e9
    try:
        main(arguments)
    except SystemExit as ended:
        codes.append(ended.code or 0)
with open(sys.argv[2] + "." + os.environ["RANK"], "w") as file:
    json.dump(codes, file)
"""
"""Of runs in each rank, with a signal in a micro-batch of one of them."""


def on_two_ranks(bench: Path, runs: list) -> list[list[int]]:
    """Runs `bumble` several times in the same two processes; the exit codes of each rank."""
    (bench / "driver.py").write_text(DRIVER)
    done = run_ranks(bench / "driver.py", json.dumps(runs), str(bench / "codes"), ranks=2, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((bench / f"codes.{rank}").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The runs that are made by default, under one launch."""
    bench = bench_of(tmp_path_factory.mktemp("ranks"))
    runs = [*resumed(bench, "pretrain", (3,))]
    runs.append(bumble(bench, "pretrain", *CASES["pretrain"]))  # it is complete
    runs.append(bumble(bench, "pretrain-3", *CASES["pretrain"], "--overwrite"))
    for rank, looks_after_each in ((0, False), (1, False), (1, True)):
        name = f"stopped-{rank}-{looks_after_each}"
        case = {"dropout": True, "checkpoint": {"save_steps": STEPS}}
        # an epoch of two ranks: three windows of three micro-batches, and one short one with a filler
        runs.append(bumble(bench, name, "pretrain", case, stop=(rank, 3 * 3 + 1 + 1, looks_after_each)))
        runs.append(bumble(bench, name, "pretrain", case))
    codes = on_two_ranks(bench, runs)
    assert codes[0] == codes[1]
    (bench / "codes.json").write_text(json.dumps(codes[0]))
    return bench


@pytest.fixture(scope="module")
def others(bench):
    """Further cases and save points, under one launch."""
    runs = [one for name in CASES if name != "pretrain" for one in resumed(bench, name, SAVE_POINTS)]
    runs += resumed(bench, "pretrain", SAVE_POINTS[1:])[1:]
    codes = on_two_ranks(bench, runs)
    assert codes == [[0] * len(runs)] * 2
    return bench


def bumble(bench: Path, name: str, stage: str, case: dict, *options: str, stop: tuple = (None, 0, False)) -> tuple:
    """A run for `exit_codes`."""
    settings = settings_of(bench, stage, name, **case)
    settings["engine"] = {"name": "torch", "timeout_seconds": 60}
    return (["run", str(write_config(bench / f"{name}.yaml", **settings)), *options], *stop)


def resumed(bench: Path, name: str, points: tuple) -> list[tuple]:
    """A case, and the same resumed at each of `points`."""
    runs = [bumble(bench, name, *CASES[name])]
    for point in points:
        runs.append(
            bumble(bench, f"{name}-{point}", *CASES[name], "--resume", str(bench / name / f"checkpoint-{point}"))
        )
    return runs


def check_resumed(bench: Path, name: str, point: int) -> None:
    left, right = bench / name, bench / f"{name}-{point}"
    assert (left / "checkpoint-3" / "state" / "rank-1" / "streams.safetensors").is_file()
    if point == STEPS:
        assert checkpoint_differences(left / "final", right / "final") == []
    else:
        assert differences(left, right) == []


def test_two_ranks_resume_to_the_same_bits(bench):
    check_resumed(bench, "pretrain", 3)


@pytest.mark.slow
@pytest.mark.parametrize("point", SAVE_POINTS)
@pytest.mark.parametrize("name", CASES)
def test_other_cases_resume_to_the_same_bits_on_two_ranks(others, name, point):
    check_resumed(others, name, point)


def test_two_ranks_replace_a_run_and_leave_a_complete_one_alone(bench):
    info = json.loads((bench / "pretrain-3" / "run.info.json").read_text())
    assert (info["first_step"], info["status"]) == (0, "complete")
    assert (bench / "pretrain-3" / "checkpoint-1").is_dir()  # of a run from the beginning
    assert not list((bench / "pretrain-3").glob("*replaced*"))
    assert not list((bench / "pretrain").glob("*replaced*"))
    events = json.loads((bench / "pretrain" / "metrics.json").read_text())
    assert max(event["time"] for event in events) < min(
        event["time"] for event in json.loads((bench / "pretrain-3" / "metrics.json").read_text())
    )


@pytest.mark.parametrize(("rank", "looks_after_each"), [(0, False), (1, False), (1, True)])
def test_ranks_agree_to_stop_wherever_the_signal_came(bench, rank, looks_after_each):
    codes = json.loads((bench / "codes.json").read_text())[-6:]
    assert codes == [128 + signal.SIGTERM, 0] * 3
    stopped = bench / f"stopped-{rank}-{looks_after_each}"
    step = 4 if looks_after_each else 5
    assert (stopped / f"checkpoint-{step}").is_dir()
    assert differences(bench / "pretrain", stopped) == []
