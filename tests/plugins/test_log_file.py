"""`logs/train.log` holds what the console said, and more."""

import logging
import textwrap
import warnings

import pytest

from bumblecore_core.cli import main
from bumblecore_core.run.console import say
from bumblecore_core.values import RunInfo, RunResult, StepEvent
from bumblecore_plugins.loggers.log_file import LogFile
from workbench import pretrain_settings, workbench, write_config


@pytest.fixture
def log(tmp_path):
    """A started logger."""
    log = LogFile()
    log.start(
        info=RunInfo(
            output_dir=tmp_path,
            stage="sft",
            total_steps=2,
            first_step=0,
            config={"train": {"seed": 1}},
            facts=[("rows", "2")],
            features=[("loss", "causal_lm")],
            sample=[("question ", False), ("answer", True)],
        )
    )
    return log


def end(log, status="complete", problem=""):
    summary = {"loss": 0.5}
    log.finish(result=RunResult(status=status, steps=2, final_dir=None, seconds=1.0, summary=summary, problem=problem))


def text(tmp_path):
    return (tmp_path / "logs" / "train.log").read_text(encoding="utf-8")


def test_summary_steps_and_end_are_there(log, tmp_path):
    log.step(event=StepEvent(step=1, epoch=0.5, metrics={"loss": 2.0, "rewards/margins": 0.25}))
    log.saved(directory=tmp_path / "checkpoint-1")
    end(log, "failed", "BC057 x: the loss was not finite. Lower it.\nand a second line")
    found = text(tmp_path)
    for part in (
        "train.seed: 1",
        "rows  2",
        "loss  causal_lm",
        "question ⟦answer⟧",
        "train step=1 epoch=0.5000 loss=2 rewards/margins=0.25",
        "checkpoint-1",
        "failed after 2 steps",
        "problem: BC057 x: the loss was not finite",
        "problem: and a second line",
        "loss  0.5",
    ):
        assert part in found, part


def test_libraries_warnings_are_there_once_and_are_still_shown(log, tmp_path, capsys):
    shown = []
    log._show_warning = lambda *args: shown.append(args)
    logging.getLogger("some.library").warning("from a library")
    logging.getLogger("some.library").info("too quiet")
    logging.getLogger("transformers.modeling").warning("from transformers")
    warnings.showwarning("old thing", FutureWarning, "file.py", 3)
    say("from the core")
    end(log)
    found = text(tmp_path)
    for part in ("from a library", "from transformers", "file.py:3: FutureWarning: old thing", "from the core"):
        assert found.count(part) == 1, part
    assert "too quiet" not in found
    assert len(shown) == 1
    assert "from the core" in capsys.readouterr().err


def test_everything_is_put_back_at_the_end(tmp_path, request):
    before = (warnings.showwarning, [list(logging.getLogger(name).handlers) for name in ("", "bumblecore")])
    log = request.getfixturevalue("log")
    assert warnings.showwarning is not before[0]
    end(log)
    assert (warnings.showwarning, [list(logging.getLogger(name).handlers) for name in ("", "bumblecore")]) == before
    size = len(text(tmp_path))
    logging.getLogger("late").warning("too late")
    assert len(text(tmp_path)) == size


def test_a_dropped_logger_and_a_failure_are_in_the_log(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad_logger.py").write_text(
        textwrap.dedent(
            """
            import logging
            from bumblecore_core import LoggerRecord, hookimpl

            class Bad:
                def start(self, *, info): logging.getLogger("elsewhere").warning("a plugin's warning")
                def step(self, *, event): raise OSError("no pen")
                def saved(self, *, directory): pass
                def finish(self, *, result): pass

            @hookimpl
            def bumble_loggers():
                return [LoggerRecord(name="bad", summary="Raises.", build=lambda *, options: Bad())]
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = pretrain_settings(workbench(tmp_path), max_steps=6, max_grad_norm=None, max_skipped_steps=0)
    settings["loggers"] = ["log_file", "bad"]
    settings["optimizer"]["lr"] = 1e38
    with pytest.raises(SystemExit) as ended:
        main(["-p", "bad_logger", "run", str(write_config(tmp_path / "run.yaml", **settings))])
    assert ended.value.code == 2
    found, said = (tmp_path / "pretrain" / "logs" / "train.log").read_text(), capsys.readouterr().err
    assert "BC060 logger 'bad' raised OSError: no pen" in found
    assert "a plugin's warning" in found
    assert "failed after" in found
    line = next(line for line in said.splitlines() if "BC057" in line)
    assert f"problem: {line[:40]}" in found
