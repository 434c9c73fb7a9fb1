"""Appends a JSON line to a file for everything that the run says."""

import json


class Trace:
    def __init__(self, filename):
        self.filename = filename

    def start(self, *, info):
        self.path = info.output_dir / self.filename
        self._write(event="start", stage=info.stage, total_steps=info.total_steps)

    def step(self, *, event):
        self._write(event=event.split, step=event.step, **event.metrics)

    def saved(self, *, directory):
        self._write(event="saved", directory=directory.name)

    def finish(self, *, result):
        self._write(event="finish", status=result.status)

    def _write(self, **line):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
