"""`training_loss.png`: the curves of a run, drawn when it ends, however it ends."""

from __future__ import annotations

from bumblecore_core import RunInfo, RunResult, StepEvent


class LossPlot:
    """Writes `output_dir/training_loss.png` at the end, from the history that a resumed run begins with and what
    followed. A run that begins anew first deletes the picture of an earlier one."""

    def start(self, *, info: RunInfo) -> None:
        self._path = info.output_dir / "training_loss.png"
        self._title = f"{info.stage}: {info.output_dir.resolve().name}"
        self._smooth = info.smooth
        self._events = list(info.history)
        if not self._events:
            self._path.unlink(missing_ok=True)

    def step(self, *, event: StepEvent) -> None:
        self._events.append(event)

    def saved(self, *, directory) -> None:
        pass

    def finish(self, *, result: RunResult) -> None:
        if not any(event.split == "train" for event in self._events):
            return
        from bumblecore_core.toolkit.plots import training_figure, write_figure

        how = "" if result.status == "complete" else f" ({result.status} after {result.steps:,} steps)"
        write_figure(training_figure(self._events, smooth=self._smooth, title=self._title + how), self._path)
