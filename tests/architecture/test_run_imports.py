"""What a run imports and how OpenMP waits in it, looked at in one fresh process."""

import json
import os
import subprocess
import sys

import pytest

from architecture.repository import ROOT
from bumblecore_core.cli.threads import WAITING, let_idle_threads_sleep
from workbench import pretrain_settings, workbench, write_config

NOT_NEEDED = (
    "peft", "matplotlib", "tensorboard", "deepspeed", "wandb", "mlflow", "sqlalchemy", "pandas", "scipy", "sklearn",
    "pyarrow", "datasets", "torchvision",
)  # fmt: skip
PROBE = """
import json, sys
from bumblecore_core.cli import main
try:
    main(["run", {config!r}])
except SystemExit as stop:
    code = stop.code or 0
imported = [name for name in {names!r} if name in sys.modules]

import torch
from transformers import trainer_utils  # it asks for PEFT where it is needed, although its import was deferred
helpers_know_peft = [trainer_utils._is_peft_model(torch.nn.Linear(1, 1)), trainer_utils.PeftModel.__name__]
print(json.dumps({{"code": code, "imported": imported, "peft": helpers_know_peft}}))
"""


@pytest.mark.slow
def test_a_run_imports_what_it_needs_and_idle_threads_sleep(tmp_path):
    settings = {**pretrain_settings(workbench(tmp_path), max_steps=2), "loggers": ["progress", "metrics_json", "csv"]}
    config = write_config(tmp_path / "run.yaml", **settings)
    environ = {key: value for key, value in os.environ.items() if key not in WAITING}
    environ |= {"BUMBLE_NO_PLUGINS": "1", "OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-c", PROBE.format(config=str(config), names=NOT_NEEDED)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"code": 0, "imported": [], "peft": [False, "PeftModel"]}
    if "GOMP_SPINCOUNT" in done.stderr:  # other runtimes than GCC's display other names
        assert "GOMP_SPINCOUNT = '1000'" in done.stderr


def test_what_the_user_has_set_stays():
    assert dict(_set({})) == WAITING
    assert _set({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert _set({"KMP_BLOCKTIME": "200"})["KMP_BLOCKTIME"] == "200"
    assert _set({"OMP_WAIT_POLICY": "active"}) == {"OMP_WAIT_POLICY": "active"}


def test_tests_train_with_it_too():
    assert os.environ["GOMP_SPINCOUNT"]


def _set(environ):
    let_idle_threads_sleep(environ)
    return environ
