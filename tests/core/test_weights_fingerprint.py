"""Whether the weights that a run starts from are the same files."""

import json
import os
import random
import shutil
import time

import pytest

from bumblecore_core.errors import ModelError
from bumblecore_core.run import hashing
from bumblecore_core.run.model_fingerprint import code_and_config, named_weights, weights_fingerprint

LARGE = random.Random(0).randbytes(5 << 20)


@pytest.fixture
def model(tmp_path):
    """Makes the files of a model directory, or changes them, and gives their fingerprint."""

    def make(name="model", **files):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        for file, data in files.items():
            (directory / file.replace("__", ".")).write_bytes(data)
        return weights_fingerprint(directory, tmp_path / "cache")

    return make


def test_names_and_bytes_of_the_files_that_are_loaded_count_and_nothing_else(model):
    small = b"small"
    first = model(model__safetensors=small, config__json=b"{}")
    assert first == model("copy", model__safetensors=small, config__json=b'{"a": 1}', notes__txt=b"x", x__bin=b"x")
    assert first == model("both", model__safetensors=small, pytorch_model__bin=small)  # which is not read
    others = {
        first,
        model("longer", model__safetensors=small + b"\0"),
        model("changed", model__safetensors=b"smalk"),
        model("empty", model__safetensors=b""),
        model("bin", pytorch_model__bin=small),
    }
    assert len(others) == 5


def test_a_single_bit_anywhere_counts(model):
    whole = model(model__safetensors=LARGE)
    generator = random.Random(1)
    for at in (0, 70_000, len(LARGE) - 1, *(generator.randrange(len(LARGE)) for _ in range(5))):
        flipped = bytearray(LARGE)
        flipped[at] ^= 1
        assert model(model__safetensors=bytes(flipped)) != whole
    assert model(model__safetensors=LARGE) == whole


def test_other_weights_of_the_same_size_and_time_count(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED_SECONDS", -1e9)
    first, file = model(model__safetensors=LARGE), tmp_path / "model" / "model.safetensors"
    times = file.stat()
    time.sleep(0.05)  # longer than a tick of the clock that change times are taken from
    file.write_bytes(LARGE[:-1] + b"\0")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model() != first


def test_every_shard_counts(model, tmp_path):
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    files = {"model__safetensors__index__json": index, "one__safetensors": b"1", "two__safetensors": b"2"}
    whole = model(**files)
    assert model(two__safetensors=b"3") != whole
    assert model(two__safetensors=b"2") == whole
    (tmp_path / "model" / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"BC029 .*two\.safetensors"):
        model()


def test_without_weights(model):
    with pytest.raises(ModelError, match="BC029"):
        model("none")


@pytest.fixture
def adapter(model, tmp_path):
    """A base model and an adapter on it; gives the adapter's fingerprint after a change."""
    model("base", model__safetensors=b"base", config__json=b"{}")
    config = {"base_model_name_or_path": str(tmp_path / "base"), "lora_alpha": 8}

    def make(**changes):
        settings = json.dumps({**config, **changes.pop("settings", {})}).encode()
        return model("adapter", adapter_config__json=settings, adapter_model__safetensors=b"tensors", **changes)

    return make


def test_of_an_adapter_base_weights_and_scale_count_and_the_bases_place_does_not(adapter, model, tmp_path):
    first = adapter()
    assert adapter(settings={"lora_alpha": 9}) != first
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    assert weights_fingerprint(tmp_path / "adapter", tmp_path / "cache") != first
    assert adapter() == first
    model("base", model__safetensors=b"ease")
    assert adapter() != first
    model("base", model__safetensors=b"base")
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    assert adapter(settings={"base_model_name_or_path": str(tmp_path / "moved")}) == first


def test_an_adapter_without_weights(adapter, tmp_path):
    adapter()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"BC029 .*adapter_model\.safetensors"):
        weights_fingerprint(tmp_path / "adapter", tmp_path / "cache")


def test_options_that_name_directories_of_weights(adapter, tmp_path):
    first = adapter()
    options = {"path": str(tmp_path / "adapter"), "rank": 8, "init": "default", "other": str(tmp_path), "none": None}
    assert named_weights(options, tmp_path / "cache") == {"path": first}


def test_config_and_trusted_code_are_told_apart_from_weights(model, tmp_path):
    directory = tmp_path / "model"
    model(model__safetensors=b"x", config__json=b"{}", modeling__py=b"1")
    plain, trusted = (code_and_config(directory, trust_remote_code=trust) for trust in (False, True))
    assert set(plain) == {"config.json"}
    assert set(trusted) == {"config.json", "modeling.py"}
    (directory / "modeling.py").write_bytes(b"2")
    assert code_and_config(directory, trust_remote_code=False) == plain
    assert code_and_config(directory, trust_remote_code=True) != trusted
