"""What several end-to-end tests start from: a sound model for those of bad input, a run for those of LoRA."""

import shutil

import pytest

from bad_input import Scene
from lora_runs import run, settings_of
from workbench import make_model_config, make_tokenizer


@pytest.fixture(scope="session")
def sound_model(tmp_path_factory):
    """A config.json and a tokenizer that are in order. No test may change it."""
    directory = tmp_path_factory.mktemp("sound") / "model"
    make_model_config(directory)
    make_tokenizer(directory)
    return directory


@pytest.fixture
def scene(tmp_path, sound_model, capsys, monkeypatch):
    """Files of one test, in its working directory."""
    monkeypatch.chdir(tmp_path)
    return Scene(tmp_path, sound_model, capsys)


@pytest.fixture
def own_model(scene, sound_model):
    """A copy of the sound model that a test may break."""
    return shutil.copytree(sound_model, scene.directory / "model")


@pytest.fixture(scope="module")
def plain(bench):
    """The output directory of a LoRA run in float32 on the module's own bench."""
    assert run(bench, settings_of(bench, "plain", {})) == 0
    return bench / "plain"
