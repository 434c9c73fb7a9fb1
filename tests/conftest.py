"""Every test has a cache of its own and no network."""

import itertools
import os

import pytest
from hypothesis import HealthCheck, settings

from bumblecore_core.cli.threads import let_idle_threads_sleep

# A loaded machine must not fail a test: no time limits for examples.
settings.register_profile("bumblecore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bumblecore")

let_idle_threads_sleep()
# One thread: tests' models are tiny, and two workers with two threads each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


def pytest_xdist_auto_num_workers(config):
    """One worker more than there are cores for the fast tests, which often wait: for processes, files and deadlines."""
    return (os.cpu_count() or 1) + ("not slow" in config.option.markexpr)


@pytest.fixture(autouse=True, scope="session")
def _no_fsync():
    """Tests kill processes, never the machine: what was written is there without fsync, which costs as much time as the
    rest of a save."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    """Directories for one test each. `mktemp` would list the thousands of others to number each."""
    root, numbers = tmp_path_factory.mktemp("caches"), itertools.count()
    return (root / str(number) for number in numbers)


@pytest.fixture(autouse=True)
def _own_cache(_caches, monkeypatch):
    monkeypatch.setenv("BUMBLE_CACHE", str(next(_caches)))
