"""Every test has a cache of its own and no network."""

import os

import pytest

from bumblecore_core.cli.threads import let_idle_threads_sleep

let_idle_threads_sleep()
# One thread: tests' models are tiny, and two workers with two threads each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BUMBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
