"""Two ranks that differ, share no output directory, work unequally long, or of which one is frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launches import wait_for
from workbench import make_text, pretrain_settings, workbench, write_config

DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from bumblecore_core.cli import main
from bumblecore_core.run import assemble, rank_comparison
from bumblecore_core.toolkit import rank_errors
from bumblecore_plugins.engines import heartbeat
from bumblecore_plugins.engines.deepspeed_engine import DeepSpeedEngine

rank = int(os.environ["RANK"])
rank_errors.LINGER, rank_comparison.SHARED_WAIT = 0.0, 1.0
codes = []
plan_of, forward_backward = assemble.plan_of, DeepSpeedEngine.forward_backward

def slow_plan(*given, **named):
    time.sleep(rank * 7.0)
    return plan_of(*given, **named)

def freezing(self, **given):
    if rank == 1:
        Path(sys.argv[2]).with_suffix(".frozen").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return forward_backward(self, **given)

for arguments in json.loads(sys.argv[1]):
    assemble.plan_of = slow_plan if "slow" in arguments[1] else plan_of
    DeepSpeedEngine.forward_backward = freezing if "frozen" in arguments[1] else forward_backward
    print("RUN", arguments[1], file=sys.stderr, flush=True)
    try:
        main(arguments)
    except SystemExit as ended:
        codes.append(ended.code or 0)
    Path(sys.argv[2]).write_text(json.dumps(codes))
"""


def settings_of(bench: Path, name: str, **engine) -> dict:
    settings = pretrain_settings(bench, max_steps=2, gradient_accumulation_steps=2)
    settings["engine"] = {"name": "deepspeed", "timeout_seconds": 4, **engine}
    settings |= {"output_dir": str(bench / name), "loggers": ["metrics_json"]}
    return settings


def runs(bench: Path) -> list[list[str]]:
    """By rank, the configs of one process: each a pair of which one differs, or none."""
    short = bench / "short.jsonl"
    make_text(short, rows=39)
    pairs = {
        "rate": {"optimizer": {"name": "adamw", "lr": 2e-3}},
        "rows": {"data": {"path": str(short), "max_length": 64}},
        "unshared": {"output_dir": str(bench / "elsewhere")},
        "missing": {"data": {"path": str(bench / "nothing.jsonl"), "max_length": 64}},
        "slow": {},
        "frozen": {},
    }
    found = [[], []]
    for name, changes in pairs.items():
        for rank in range(2):
            settings = settings_of(bench, name) | (changes if rank else {})
            found[rank].append(str(write_config(bench / f"{name}-{rank}.yaml", **settings)))
    return found


def said(text: str, name: str) -> str:
    return text.split(f"{name}-", 1)[1].partition("\n")[2].partition("RUN ")[0]


@pytest.mark.slow
def test_each_fault_ends_both_ranks_with_its_reason(tmp_path):
    bench = workbench(tmp_path)
    (bench / "driver.py").write_text(DRIVER)
    (bench / "elsewhere").mkdir()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29700 + os.getpid() % 1000)}
    ranks = []
    for rank, configs in enumerate(runs(bench)):
        arguments = json.dumps([["run", config] for config in configs])
        command = [sys.executable, str(bench / "driver.py"), arguments, str(bench / f"codes-{rank}")]
        environment = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (bench / f"said-{rank}").open("w") as out:
            ranks.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    try:
        wait_for((bench / "codes-1.frozen").exists, ranks[0], 180)
        ranks[0].wait(timeout=60)  # and not the half hour that DeepSpeed's own groups have
    finally:
        for process in ranks:
            process.send_signal(signal.SIGKILL)
            process.wait()
    texts = [(bench / f"said-{rank}").read_text() for rank in range(2)]
    codes = [json.loads((bench / f"codes-{rank}").read_text()) for rank in range(2)]
    assert codes == [[2, 2, 2, 2, 0, 2], [2, 2, 2, 2, 0]], texts
    host = os.uname().nodename
    difference = f"is 0.002 on rank 1 ({host}) and 0.003 on rank 0 ({host})"
    assert sum(f"optimizer.lr: {difference}" in said(text, "rate") for text in texts) in (1, 2)
    assert f"data.examples: is 39 on rank 1 ({host}) and 40 on rank 0" in "".join(said(text, "rows") for text in texts)
    assert f"BC089 {bench}/elsewhere" in said(texts[1], "unshared")
    assert f"rank 1 ({host}): BC021 {bench}/nothing.jsonl data.path: there is no such file" in said(texts[1], "missing")
    assert "BC067: preparing data, tokenizer and model configuration failed on rank 1" in said(texts[0], "missing")
    assert "gradients sent" in said(texts[0], "slow")  # of ZeRO-2, where steps accumulate
    assert "BC067: a forward and backward pass failed" in said(texts[0], "frozen")
