"""What is drawn of runs, seen through matplotlib's axes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bumblecore_core import RunError, StepEvent
from bumblecore_core.toolkit.history import smoothed
from bumblecore_core.toolkit.plots import overlay_figure, panels_figure, training_figure, write_figure
from core.plot_runs import a_run, evaluation, noisy, record, train


def curves(axis):
    """(x, y) of each line on an axes object."""
    return [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in axis.get_lines()]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


# one run


def test_smoothed_and_raw_loss_and_evaluations():
    losses = noisy(100)
    loss, rate = training_figure(a_run(100), smooth=True, title="sft: mine").axes
    steps = list(range(1, 101))
    raw, smooth, evaluated, best = curves(loss)
    assert raw == (steps, losses)
    assert smooth == (steps, smoothed(losses))
    assert evaluated == ([20, 40, 60, 80, 100], [2.4, 2.2, 2.0, 2.2, 2.4])
    assert best == ([60], [2.0])
    assert loss.get_lines()[0].get_alpha() < 0.5 < loss.get_lines()[1].get_linewidth()
    assert texts(loss.get_legend()) == ["training", "training, smoothed", "evaluation", "best: 2.0000 at step 60"]
    assert loss.get_ylabel() == "loss"
    assert curves(rate) == [(steps, [1e-3 / step for step in steps])]


def test_pretraining_shows_the_raw_loss_alone():
    losses = noisy(100)
    events = [event for event in a_run(100) if event.split == "train"]
    figure = training_figure(events, smooth=False, title="pretrain: mine")
    assert curves(figure.axes[0]) == [(list(range(1, 101)), losses)]
    assert figure.axes[0].get_lines()[0].get_alpha() in (None, 1)
    assert figure.get_suptitle() == "pretrain: mine"


def test_losses_that_are_not_finite_leave_gaps_and_crosses():
    losses = noisy(40)
    losses[10], losses[20] = math.nan, math.inf
    loss = training_figure([train(step, value) for step, value in enumerate(losses, 1)], smooth=True, title="").axes[0]
    (_, raw), (known, smooth), (crosses, _) = curves(loss)
    assert [step for step, value in enumerate(raw, 1) if math.isnan(value)] == [11, 21] == crosses
    finite = [(step, value) for step, value in enumerate(losses, 1) if math.isfinite(value)]
    assert known == [step for step, _ in finite]
    assert smooth == smoothed([value for _, value in finite])
    assert texts(loss.get_legend())[-1] == "not finite (2)"


def test_a_spike_does_not_flatten_the_curve_and_is_named():
    losses = noisy(300)
    losses[6] = 812.0
    loss = training_figure([train(step, value) for step, value in enumerate(losses, 1)], smooth=False, title="").axes[0]
    assert 5 < loss.get_ylim()[1] < 8
    assert loss.get_ylim()[0] < min(losses)
    assert [text.get_text() for text in loss.texts] == ["▲ 812"]


def test_every_evaluation_is_in_sight():
    events = [*(train(step, 1.0) for step in range(1, 200)), evaluation(100, 9.0), evaluation(199, 8.0)]
    low, high = training_figure(events, smooth=True, title="").axes[0].get_ylim()
    assert low < 1
    assert high > 9


def test_a_single_step_has_one_tick_and_no_epochs():
    figure = training_figure([train(1, 5.0)], smooth=True, title="one")
    figure.draw_without_rendering()
    loss, rate = figure.axes
    assert curves(loss) == [([1], [5.0])] * 2
    assert loss.get_lines()[0].get_marker() == "o"
    assert loss.child_axes == []
    ticks = [label.get_text() for label in rate.get_xticklabels()]
    assert ticks == ["0", "1", "2"]


def test_steps_are_whole_with_thousands_separators():
    figure = training_figure([train(step, 3.0) for step in range(1000, 4001, 1000)], smooth=True, title="")
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert "2,000" in ticks
    assert all(float(tick.replace(",", "")).is_integer() for tick in ticks)


def test_epochs_stand_above_where_they_fit():
    figure = training_figure(a_run(100), smooth=True, title="")
    figure.draw_without_rendering()
    loss = figure.axes[0]
    (top,) = loss.child_axes
    assert [50 * edge for edge in top.get_xlim()] == pytest.approx(loss.get_xlim())
    uneven = [train(step, 1.0, epoch=step**3 / 1e6) for step in range(1, 101)]
    assert training_figure(uneven, smooth=True, title="").axes[0].child_axes == []


def test_parameter_groups_have_a_line_each():
    groups = [{"learning_rate/decay": 1.0 / step, "learning_rate/embedding": 0.1 / step} for step in (1, 2)]
    rate = training_figure([train(1, 1.0, **groups[0]), train(2, 1.0, **groups[1])], smooth=True, title="").axes[1]
    assert curves(rate) == [([1, 2], [1.0, 0.5]), ([1, 2], [0.1, 0.05])]
    assert texts(rate.get_legend()) == ["decay", "embedding"]


def test_a_stages_figures_have_panels():
    def rewards(step):
        return {
            "rewards/accuracies": 0.5 + step / 100,
            "rewards/margins": step / 10,
            "rewards/chosen": -0.1 * step,
            "rewards/rejected": -0.2 * step,
        }

    events = [train(step, 0.7, **rewards(step)) for step in range(1, 41)]
    events.append(evaluation(40, 0.6, **rewards(20), perplexity=2.0))
    _, _, accuracies, margins, pair = training_figure(events, smooth=True, title="").axes
    titles = [axis.get_title("left") for axis in (accuracies, margins, pair)]
    assert titles == ["rewards/accuracies", "rewards/margins", "rewards: chosen and rejected"]
    steps = list(range(1, 41))
    values = [rewards(step)["rewards/accuracies"] for step in steps]
    assert curves(accuracies)[:3] == [(steps, values), (steps, smoothed(values)), ([40], [0.7])]
    assert accuracies.get_ylim() == (0, 1)
    assert curves(accuracies)[3][1] == [0.5, 0.5]
    assert curves(margins)[2] == ([40], [2.0])
    drawn = curves(pair)
    assert [drawn[at] for at in (0, 3)] == [(steps, [factor * step for step in steps]) for factor in (-0.1, -0.2)]
    assert [drawn[at] for at in (2, 5)] == [([40], [-2.0]), ([40], [-4.0])]
    assert texts(pair.get_legend()) == ["chosen", "rejected"]


def test_nothing_reported_is_drawn_as_nothing(tmp_path):
    for events in ([], [evaluation(1, 2.0)], [train(1, math.nan)]):
        write_figure(training_figure(events, smooth=True, title="x"), tmp_path / "empty.png")
        assert (tmp_path / "empty.png").is_file()


# figures of the machine


def test_panels_show_what_is_there():
    events = [train(step, 1.0, grad_norm=2.0 * step, mfu=0.4, nll=-1.0) for step in range(1, 4)]
    norm, mfu, nll = panels_figure(events, ["grad_norm", "absent", "mfu", "nll"], title="machine").axes
    assert curves(norm) == [([1, 2, 3], [2.0, 4.0, 6.0])]
    assert curves(mfu) == [([1, 2, 3], [40.0] * 3)]
    assert [axis.get_ylabel() for axis in (norm, mfu, nll)] == ["gradient norm", "MFU (%)", "nll"]
    assert norm.get_ylim()[0] == 0
    assert nll.get_ylim()[0] < -1 < nll.get_ylim()[1]
    assert panels_figure(events, ["absent"], title="machine").axes == []


# several runs


def test_runs_are_overlaid():
    one, two = a_run(100), a_run(60, seed=1)
    figure = overlay_figure([record("a/base", one), record("b/base", two), record("b/killed", [])])
    loss, rate = figure.axes
    drawn = curves(loss)
    assert len(drawn) == 6
    for at, (events, count) in enumerate([(one, 100), (two, 60)]):
        raw = [event.metrics["loss"] for event in events if event.split == "train"]
        points = [event.step for event in events if event.split == "eval"]
        steps = list(range(1, count + 1))
        assert drawn[3 * at] == (steps, raw)
        assert drawn[3 * at + 1] == (steps, smoothed(raw))
        assert drawn[3 * at + 2][0] == points
        assert len({line.get_color() for line in loss.get_lines()[3 * at : 3 * at + 3]}) == 1
    assert loss.get_lines()[0].get_color() != loss.get_lines()[3].get_color()
    assert [len(x) for x, _ in curves(rate)] == [100, 60]
    assert texts(figure.legends[0]) == ["a/base", "b/base", "evaluation"]


@pytest.mark.parametrize("name", ["_hidden", "$x_{$", "long-" * 60])
def test_names_of_any_kind_are_drawn_as_they_are(name, tmp_path):
    figure = overlay_figure([record(name, a_run(30)), record("other", a_run(30))])
    write_figure(figure, tmp_path / "names.png")
    shown = texts(figure.legends[0])[0]
    assert shown == name or (len(shown) == 100 and shown.startswith("long-") and "…" in shown)


def test_more_runs_than_colours_differ_in_their_dashes():
    figure = overlay_figure([record(str(at), [train(1, 1.0), train(2, 1.0)]) for at in range(15)])
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[1].get_lines()}
    assert len(styles) == 15


@pytest.mark.parametrize("axis", ["tokens", "epoch", "time"])
def test_other_axes_place_training_and_evaluation(axis):
    places = {"tokens": lambda step: 100.0 * step, "epoch": lambda step: step / 50, "time": lambda step: step / 4}[axis]
    (raw, _), _, (evaluated, _) = curves(overlay_figure([record("a", a_run(40))], x=axis).axes[0])
    assert raw == pytest.approx([places(step) for step in range(1, 41)])
    assert evaluated == pytest.approx([places(20), places(40)])


def test_hours_are_shown_as_hours():
    events = [train(step, 1.0, steps_per_second=1 / 3600) for step in (1, 2, 3)]
    loss, below = overlay_figure([record("a", events)], x="time").axes
    assert curves(loss)[0][0] == pytest.approx([1, 2, 3])
    assert "(h)" in below.get_xlabel()


def test_an_axis_that_a_history_lacks_is_refused():
    bare = [StepEvent(step=1, epoch=0.1, metrics={"loss": 1.0, "learning_rate": 1.0})]
    for axis, needed in (("tokens", "'tokens'"), ("time", "'steps_per_second'")):
        with pytest.raises(RunError) as raised:
            overlay_figure([record("a", a_run(3)), record("bare", bare)], x=axis)
        problem = raised.value.problems[0]
        assert (problem.code, problem.place) == ("BC061", "/runs/bare")
        assert needed in problem.problem
