"""What is not finite is never committed, and a run that learned nothing is not complete."""

import json

import pytest
import torch

from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.writing import require_finite
from bumblecore_plugins.engines.torch_engine import TorchEngine
from resume_runs import run
from workbench import pretrain_settings, workbench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench(tmp_path_factory.mktemp("not-finite"))


@pytest.fixture
def poison(monkeypatch):
    """Puts a value into one weight after the n-th optimizer step."""

    def spoil(at, value):
        step, steps = TorchEngine.step, []

        def spoiled(self, **inputs):
            result = step(self, **inputs)
            steps.append(None)
            if len(steps) == at:
                next(self._module.model.parameters()).data.view(-1)[3] = value
            return result

        monkeypatch.setattr(TorchEngine, "step", spoiled)

    return spoil


def settings_of(bench, name, **checkpoint):
    settings = {**pretrain_settings(bench, max_steps=4), "output_dir": str(bench / name), "loggers": []}
    settings["checkpoint"] = checkpoint
    return settings


def saved(directory):
    return sorted(path.name for path in directory.iterdir() if "checkpoint" in path.name or "final" in path.name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_not_finite_is_found_by_name(tmp_path, value, dtype):
    largest = torch.full((3, 2), torch.finfo(dtype).max, dtype=dtype)
    good = {"big": largest, "empty": largest[:0], "ids": torch.tensor([1]), "transposed": largest.T}
    require_finite(good, tmp_path)
    largest[1, 1] = value
    with pytest.raises(RunError, match=r"BC072 .*: 2 of 4 weights are not finite \(big, transposed\)"):
        require_finite(good, tmp_path)


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_that_is_not_finite_does_not_replace_a_good_one(bench, poison, monkeypatch, capsys, background):
    name = f"checkpoint-{background}"
    settings = settings_of(bench, name, save_steps=2, save_total_limit=1, background=background)
    settings["train"]["max_steps"] = 5
    poison(4, float("nan"))
    assert run(bench, settings) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"BC072 {bench / name / 'checkpoint-4'}: 2 of ")  # a tied weight has two names
    assert "embed_tokens.weight" in told
    assert saved(bench / name) == ["checkpoint-2"]
    assert json.loads((bench / name / "run.info.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    assert run(bench, settings) == 0
    assert saved(bench / name) == ["checkpoint-2", "checkpoint-5", "final"]  # the one resumed from stays


def test_a_final_model_that_is_not_finite_is_not_committed(bench, poison, capsys):
    poison(4, float("inf"))
    assert run(bench, settings_of(bench, "final", save_every=None)) == 2
    assert f"BC072 {bench / 'final' / 'final'}: " in capsys.readouterr().err
    assert saved(bench / "final") == []


def test_a_run_without_one_good_step_is_not_complete(bench, capsys):
    settings = settings_of(bench, "skipped", save_steps=4)
    settings["train"]["max_skipped_steps"] = 10
    forward_backward = TorchEngine.forward_backward

    def not_finite(self, **inputs):
        output = forward_backward(self, **inputs)
        output.loss_sum = output.loss_sum * float("nan")
        return output

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TorchEngine, "forward_backward", not_finite)
        assert run(bench, settings) == 2
    assert "BC057: no optimizer step succeeded: in all 4 " in capsys.readouterr().err
    assert saved(bench / "skipped") == []
    assert json.loads((bench / "skipped" / "run.info.json").read_text())["status"] == "failed"


def test_skipped_steps_are_reported_at_the_end(bench, monkeypatch, capsys):
    forward_backward, calls = TorchEngine.forward_backward, []

    def once_not_finite(self, **inputs):
        output = forward_backward(self, **inputs)
        calls.append(None)
        if len(calls) == 2:
            output.loss_sum = output.loss_sum * float("nan")
        return output

    monkeypatch.setattr(TorchEngine, "forward_backward", once_not_finite)
    assert run(bench, settings_of(bench, "once", save_every=None)) == 0
    assert "1 skipped because a loss or gradient was not finite" in capsys.readouterr().out
