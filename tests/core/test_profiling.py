"""`bumble run --profile-plugins`: who took how long."""

import pickle
import re
import textwrap
import time

import pytest
import torch

from bumblecore_core.cli import main
from bumblecore_core.run.profiling import PluginTimes, timed
from workbench import pretrain_settings, workbench, write_config


class Sleeper:
    width = 7

    def rest(self, *, seconds):
        time.sleep(seconds)
        return seconds

    def fail(self):
        raise KeyError("x")

    def __call__(self, number):
        return number + 1


def test_methods_are_counted_and_timed_and_the_rest_passes_through():
    times = PluginTimes()
    plugin = timed(times, "losses", "sleeper", Sleeper())
    assert plugin.width == 7
    assert plugin.rest(seconds=0.02) == 0.02
    assert plugin(1) == 2
    with pytest.raises(KeyError):
        plugin.fail()
    table = times.lines(1.0)
    assert table[1].split()[:3] == ["loss", "sleeper", "rest"]
    rest = next(line for line in table if " rest " in line).split()
    assert rest[3] == "1"
    assert float(rest[4]) >= 0.02
    assert {line.split()[2] for line in table[1:]} == {"rest", "call", "fail"}


def test_without_times_a_plugin_is_itself():
    plugin = Sleeper()
    assert timed(None, "losses", "sleeper", plugin) is plugin


def test_a_stand_in_pickles_for_data_workers():
    copy = pickle.loads(pickle.dumps(timed(PluginTimes(), "losses", "sleeper", 5)))
    assert copy.bit_length() == 3


def test_an_optimizer_stays_what_it_is():
    weight = torch.nn.Parameter(torch.ones(2))
    times = PluginTimes()
    optimizer = times.watch("sgd", torch.optim.SGD([weight], lr=0.5))
    assert isinstance(optimizer, torch.optim.SGD)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((2,), 0.5))
    assert any(re.match(r"optimizer sgd +step +1 ", line) for line in times.lines(1.0))


def test_a_slow_logger_is_seen_in_the_table_and_numbers_do_not_change(tmp_path, monkeypatch, capsys):
    bench = workbench(tmp_path)
    (tmp_path / "slow_logger.py").write_text(
        textwrap.dedent(
            """
            import time
            from bumblecore_core import LoggerRecord, hookimpl

            class Slow:
                def start(self, *, info): pass
                def step(self, *, event): time.sleep(0.03)
                def saved(self, *, directory): pass
                def finish(self, *, result): pass

            @hookimpl
            def bumble_loggers():
                return [LoggerRecord(name="slow", summary="Sleeps.", build=lambda *, options: Slow())]
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    finals = []
    for name, flags in (("plain", []), ("profiled", ["--profile-plugins"])):
        settings = {**pretrain_settings(bench, max_steps=3), "loggers": ["slow"], "output_dir": str(bench / name)}
        config = str(write_config(bench / f"{name}.yaml", **settings))
        with pytest.raises(SystemExit) as ended:
            main(["-p", "slow_logger", "run", config, *flags])
        assert ended.value.code == 0
        finals.append((bench / name / "final" / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]
    shown = capsys.readouterr().out.split("time per plugin and phase")[1]
    steps = next(line.split() for line in shown.splitlines() if re.match(r"logger slow +step", line))
    assert steps[3] == "3"
    assert float(steps[4]) >= 0.09
    for part in ("stage pretrain", "loss causal_lm", "optimizer adamw", "engine torch"):
        assert part in shown
