"""A Weights & Biases run."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import wandb

from bumblecore_core import RunInfo, RunResult, StepEvent
from bumblecore_plugins.loggers.run_id import keep_id, kept_id

if TYPE_CHECKING:
    from bumblecore_plugins.loggers import WandbOptions

EXIT_CODES = {"complete": 0, "interrupted": 255, "failed": 1}
"""As wandb shows them: finished, killed, failed."""


class WandbRun:
    """Figures `train/NAME` and `eval/NAME` at the optimizer step as wandb's own step: what training and an evaluation
    report of a step is one row, which wandb sends when the next step comes. The config is the resolved one. wandb's
    files are in `output_dir/wandb`.

    Online, `output_dir/wandb_run_id.txt` keeps the run's id, and a run that is resumed goes on in the same wandb run.
    wandb's rows cannot be changed: steps that it has already are left out (they are done again with equal losses; the
    timings that wandb shows are those of the first time), and steps that the interrupted process could not send any
    more are sent from the history. So wandb shows each step once. A run that begins anew gets an id of its own.

    Offline, nobody can know what wandb has. Each start records a wandb run of its own that holds the whole history: the
    newest `offline-run-…` directory is the one to `wandb sync`; the others are what it was at each interruption.

    WANDB_MODE in the environment wins over the option `mode`, since a config travels while the network is the
    machine's. Without a login wandb asks for one where there is a terminal; where there is none, it raises.
    """

    def __init__(self, *, options: WandbOptions) -> None:
        self._options = options

    def start(self, *, info: RunInfo) -> None:
        options = self._options
        mode = os.environ.get("WANDB_MODE") or options.mode
        online = mode not in ("offline", "dryrun", "disabled")
        info.output_dir.mkdir(parents=True, exist_ok=True)
        path = info.output_dir / "wandb_run_id.txt"
        kept = kept_id(path, info)
        run_id = kept if online and kept else secrets.token_hex(4)
        if online:
            keep_id(path, run_id)
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.run_name or info.output_dir.resolve().name,
            tags=list(options.tags),
            dir=str(info.output_dir),
            id=run_id,
            resume="allow" if online else None,
            mode=mode,
            reinit="create_new",  # whatever other wandb run this process has open
            config=dict(info.config),
            settings=wandb.Settings(console="off"),  # logs/train.log has what the run says
        )
        for event in info.history:
            self.step(event=event)

    def step(self, *, event: StepEvent) -> None:
        if event.step < self._run.starting_step:
            return
        self._run.log({f"{event.split}/{name}": value for name, value in event.metrics.items()}, step=event.step)

    def saved(self, *, directory) -> None:
        pass

    def finish(self, *, result: RunResult) -> None:
        self._run.finish(exit_code=EXIT_CODES[result.status])
