"""Launchers of others start runs too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import pretrain_settings, workbench, write_config


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_start_it_too(tmp_path, launcher):
    bench = workbench(tmp_path)
    settings = pretrain_settings(bench, max_steps=12)
    settings |= {"output_dir": str(bench / launcher), "loggers": ["metrics_json"]}
    config = write_config(bench / f"{launcher}.yaml", **settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    if launcher == "deepspeed":
        script = Path(sys.executable).parent / "deepspeed"
        command = [sys.executable, str(script), "--num_gpus", "2", "--module"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command += ["bumblecore_core", "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes over gloo" in done.stdout
    assert done.stdout.count("complete: 12 steps") == 1
