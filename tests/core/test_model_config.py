"""A config.json that asks for more layers or experts than can be built is refused before transformers reads it."""

import json

import pytest

from bumblecore_core.errors import ModelError
from bumblecore_core.run.model import load_config
from bumblecore_core.toolkit.adapters import load_model
from bumblecore_core.toolkit.model_config import read_model_config
from workbench import make_model_config


@pytest.mark.parametrize("count", [10**9, 10**40, 10_001])
@pytest.mark.parametrize(
    "path", [("num_hidden_layers",), ("n_layer",), ("num_experts",), ("text_config", "num_hidden_layers")]
)
def test_counts_of_modules_have_a_limit(tmp_path, path, count):
    make_model_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = count
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (load_config, load_model):
        with pytest.raises(ModelError, match=f"BC064 .*config.json model.path: {path[-1]} is .*10000 is the most"):
            load(tmp_path)


def test_other_numbers_have_none(tmp_path):
    values = {"num_hidden_layers": 126, "num_experts": 512, "max_window_layers": 10**6, "vocab_size": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path, "model.path") == values
