"""A DeepSpeed file that contradicts the run is refused in words, before a model is loaded."""

import json

import pytest

from bumblecore_core.cli import main
from workbench import pretrain_settings, workbench, write_config


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ({"gradient_clipping": 0.25}, "BC039", ("gradient_clipping: 0.25", "train.max_grad_norm: 1.0")),
        ({"train_batch_size": 1000}, "BC040", ("train_batch_size is 1000", "× 1 processes = 4")),
    ],
)
def test_a_conflict_ends_a_run_with_exit_code_2_before_anything_is_read(tmp_path, file, capsys, content, code, said):
    settings = pretrain_settings(workbench(tmp_path))
    settings["engine"] = {"name": "deepspeed", "device": "cpu", "config_file": file(content)}
    (tmp_path / "model" / "config.json").write_text("not a model")
    (tmp_path / "text.jsonl").write_text("not data")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(write_config(tmp_path / "run.yaml", **settings))])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("BC")]
    assert line.startswith(code)
    assert all(words in line for words in said)
    assert "Traceback" not in error
    assert not (tmp_path / "pretrain").exists()
