"""`--overwrite` replaces neither what the new run reads nor what no run is known to have written."""

from __future__ import annotations

import pytest
from config_records import make_registry

from bumblecore_core.config.resolve import load_run
from bumblecore_core.errors import BumbleError
from bumblecore_core.run.output_dir import HEADER
from bumblecore_core.run.overwrite import check_overwrite

REGISTRY = make_registry()
CONFIG = "stage: sft\nmodel: {path: base}\ndata: {path: rows.jsonl}\noutput_dir: out\n"


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """(code, field) of what a run with these overrides is refused for. `out` holds an earlier run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    for name in ("final", "checkpoint-4", "logs"):
        (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / "run.yaml").write_text(HEADER)
    (tmp_path / "link").symlink_to("out")

    def check(*overrides):
        try:
            check_overwrite(load_run("config.yaml", overrides, REGISTRY))
        except BumbleError as error:
            return [(problem.code, problem.field) for problem in error.problems]
        return []

    return check


@pytest.mark.parametrize(
    "place", ["out", "out/", "out/final", "out/checkpoint-4/state", "link/final", "out/../out/logs"]
)
@pytest.mark.parametrize("key", ["model.path", "model.tokenizer", "data.path", "data.eval_path", "checkpoint.resume"])
def test_bc039_an_input_among_what_is_replaced(problems, key, place):
    (found,) = problems(f"{key}={place}")
    code, field = found
    assert code == "BC039"
    assert field.startswith(key)
    assert field.endswith(", output_dir")


@pytest.mark.parametrize("place", ["base", "out/mine", "out/final2", "out/checkpoint-44", "outer/final", "final", ""])
def test_an_input_beside_what_is_replaced_is_none_of_it(problems, place):
    overrides = [f"model.path={place}"] if place else []
    assert problems(*overrides, "data.path=out/rows.jsonl", "data.cache_dir=out/final", "loggers=[log_file]") == []


@pytest.mark.parametrize("saved", ["final", "checkpoint-4"])
def test_bc069_what_no_run_is_known_to_have_written(problems, tmp_path, saved):
    (tmp_path / "out" / "run.yaml").unlink()
    for name in {"final", "checkpoint-4"} - {saved}:
        (tmp_path / "out" / name).rmdir()
    assert problems() == [("BC069", "output_dir")]
    (tmp_path / "out" / saved).rmdir()
    assert problems() == []
    (tmp_path / "out" / "run.yaml").write_text("mine")
    assert problems() == [("BC069", "output_dir")]
