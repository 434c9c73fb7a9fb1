"""Weight files that are damaged, hostile or elsewhere: refused before a library loads them, without torch's advice."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from bumblecore_core.errors import ModelError
from bumblecore_core.run.weights import stored_dtype
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.weight_files import check_weight_files, weight_files
from workbench import make_model_config

TENSORS = {"a": torch.zeros(2, 3)}


class Hostile:
    def __reduce__(self):
        return (print, ("the pickle ran",))


def refused(call):
    with pytest.raises(ModelError) as raised:
        call()
    (problem,) = raised.value.problems
    return problem


def header_of(value):
    header = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        header_of(b"[" * 100_000),
        header_of(b'{"a":' * 50_000),
        header_of([]),
        header_of({"a": None}),
        header_of({"a": {"dtype": 3, "data_offsets": [0, 0]}}),
        header_of({"a": {"dtype": "F32", "data_offsets": ["x", "y"]}}),
        header_of({"a": {"dtype": "F32", "data_offsets": [0, 10**40]}}),
        header_of({"a": {"dtype": "F32", "data_offsets": {}}}),
    ],
    ids=str,
)
def test_damaged_headers(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    problem = refused(lambda: check_weight_files(tmp_path))
    assert (problem.code, problem.place) == ("BC064", str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save({"a": Hostile()}, file),
        lambda file: file.write_bytes(pickle.dumps(Hostile())),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({"a": 1}, file),
        lambda file: torch.save({3: torch.zeros(1)}, file),
        lambda file: file.write_bytes(b"PK\x03\x04 not a zip"),
        lambda file: file.write_bytes(b"junk" * 100),
        lambda file: file.write_bytes(b""),
    ],
)
def test_pickles_of_other_things_than_tensors_do_not_run_and_give_no_advice(tmp_path, write, capfd):
    make_model_config(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    write(file)
    for load in (stored_dtype, load_model):
        problem = refused(lambda load=load: load(tmp_path))
        assert (problem.code, problem.place) == ("BC064", str(file))
        assert "damaged, or holds other Python objects than tensors" in problem.problem
        assert "weights_only" not in str(problem)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_tensors_are_accepted(tmp_path, zipped):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert check_weight_files(tmp_path) == {"unknown"}
    assert stored_dtype(tmp_path) == torch.float32


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/outside.safetensors", "a/../../outside.safetensors"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_cannot_lead_outside(tmp_path, name, index):
    model = tmp_path / "model"
    make_model_config(model)
    save_file(TENSORS, tmp_path / "outside.safetensors")
    (model / index).write_text(json.dumps({"weight_map": {"a": name}}))
    for load in (weight_files, load_model):
        problem = refused(lambda load=load: load(model))
        assert (problem.code, problem.place) == ("BC064", str(model / index))
        assert f"outside of its directory: '{name}'" in problem.problem


def test_links_as_the_hubs_cache_has_them_are_followed(tmp_path):
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blob")
    (tmp_path / "snapshot" / "part.safetensors").symlink_to("../blob")
    (tmp_path / "snapshot" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part.safetensors"}})
    )
    assert check_weight_files(tmp_path / "snapshot") == {"F32"}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ""}}',
        "[" * 100_000,
        "{",
        "\udc80",
    ],
)
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert refused(lambda: weight_files(tmp_path)).code == "BC064"


def test_shards_that_are_missing_are_all_named(tmp_path):
    names = {"a": "one.safetensors", "b": "x" * 300, "c": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ModelError) as raised:
        weight_files(tmp_path)
    assert [problem.code for problem in raised.value.problems] == ["BC029"] * 3
