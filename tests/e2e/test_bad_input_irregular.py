"""FIFOs, sockets and devices in the place of files: an error at once, where opening them would wait forever."""

import os
import socket

import pytest

from bad_input import good
from bumblecore_core.errors import ConfigError, ModelError
from bumblecore_core.run.checkpoint.manifest import Torn, read_manifest
from bumblecore_core.run.overwrite import clear
from bumblecore_core.toolkit import regular_files
from bumblecore_core.toolkit.adapters import adapter_chain
from bumblecore_plugins.commands.tokenizer import read_template
from bumblecore_plugins.engines.deepspeed_file import read_config_file

EXPECTED = "expected a regular file, got a FIFO"


@pytest.fixture
def pipe(scene):
    """A FIFO, and rows that are in order."""
    scene.rows(good(3))
    path = scene.directory / "pipe.jsonl"
    os.mkfifo(path)
    return path


def test_a_config(scene, pipe):
    for command in (["plan"], ["run"], ["config", "show"]):
        scene.call(*command, pipe).only("BC061", pipe, EXPECTED)
    scene.call("plan", "/dev/zero").only("BC061", "/dev/zero", "a character device")


def test_data_and_template(scene, pipe):
    scene.plan(data__path=pipe).only("BC061", pipe, "data.path", EXPECTED)
    scene.plan(data__eval_path=pipe).only("BC061", pipe, "data.eval_path", EXPECTED)
    scene.plan(model__chat_template=pipe).only("BC061", pipe, "model.chat_template", "not a file")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "additional_chat_templates/a.jinja"])
def test_a_file_of_a_model_or_tokenizer(scene, own_model, pipe, name):
    file = own_model / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    scene.plan(model__path=own_model).only("BC061", file, "model.path", EXPECTED)
    scene.plan(model__tokenizer=own_model).only("BC061", file, "model.tokenizer", EXPECTED)


def test_a_socket_among_a_models_files(scene, own_model, pipe):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str((own_model / "s.json").relative_to(scene.directory)))
        scene.plan(model__path=own_model).only("BC061", "s.json", "a socket")


def test_a_json_file_that_is_too_large(scene, own_model, pipe):
    with (own_model / "tokenizer.json").open("r+b") as file:
        file.truncate(regular_files.LARGEST_JSON + 1)  # sparse
    scene.plan(model__path=own_model).only("BC064", "tokenizer.json", "more than the limit of 268,435,456")


def test_the_base_of_an_adapter(tmp_path):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "base" / "model.safetensors")
    named = f'{{"base_model_name_or_path": "{tmp_path / "base"}"}}'
    (tmp_path / "adapter" / "adapter_config.json").write_text(named)
    with pytest.raises(ModelError, match=rf"BC061 .*model.safetensors.*{EXPECTED}"):
        adapter_chain(tmp_path / "adapter")


def test_what_a_run_left(scene, pipe):
    out = scene.directory / "out"
    out.mkdir()
    os.mkfifo(out / "run.yaml")
    os.mkfifo(out / "manifest.json")
    scene.call("run", scene.config()).only("BC061", out / "run.yaml", "output_dir", EXPECTED)
    clear(out)
    with pytest.raises(Torn, match="is a FIFO"):
        read_manifest(out)


def test_files_that_options_name(pipe):
    with pytest.raises(ConfigError, match=rf"BC061 .*engine.config_file: {EXPECTED}"):
        read_config_file(str(pipe))
    with pytest.raises(ModelError, match=rf"BC061 .*--chat-template: {EXPECTED}"):
        read_template(str(pipe))
