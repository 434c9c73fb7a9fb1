"""What can be known of a run before the runs ahead of it have trained: hours of work must not end at a wrong path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bumblecore_core.config.resolved import ResolvedRun
from bumblecore_core.errors import ConfigError, one
from bumblecore_core.run.data.files import resolve_files
from bumblecore_core.run.output_dir import finished_run
from bumblecore_core.run.overwrite import check_overwrite, pending
from bumblecore_core.run.reference import BASE, NONE, START, compares_with_reference
from bumblecore_core.toolkit.tokenizers import resolve_model_dir


def check_later_run(run: ResolvedRun, earlier: Sequence[ResolvedRun], *, overwrite: bool) -> None:
    """Checks that model, data, an adapter to go on from (`adapter.path`), a reference model (`stage.reference`) and
    output directory are there, as far as no `earlier` run makes them.

    Raises `ModelError` BC061 or BC064, `DataError` as `resolve_files` does, `RunError` as `finished_run` and
    `check_overwrite` do, and `ConfigError` BC039 for two different runs with one output directory.
    """
    config = run.config
    coming = [os.path.realpath(other.config.output_dir) for other in earlier]
    here = os.path.realpath(config.output_dir)
    if any(here == path and other.to_dict() != run.to_dict() for path, other in zip(coming, earlier, strict=True)):
        problem = f"an earlier config of this command has the same output_dir, {config.output_dir}"
        raise one(ConfigError, "BC039", problem, "Give each run a directory of its own", field="output_dir")
    if not _made_by(coming, config.model.path):
        resolve_model_dir(config.model.path)
    adapter = getattr(run.adapter.options, "path", None) if run.adapter is not None else None
    if adapter is not None and not _made_by(coming, adapter):
        resolve_model_dir(adapter, field="adapter.path")
    reference = getattr(run.stage.options, "reference", None)
    named = isinstance(reference, str) and reference not in (START, BASE, NONE) and compares_with_reference(run)
    if named and not _made_by(coming, str(reference)):
        resolve_model_dir(str(reference), field="stage.reference")
    for entries, formats, field in (
        (config.data.path, run.formats, "data.path"),
        (config.data.eval_path or (), run.eval_formats, "data.eval_path"),
    ):
        present = [pair for pair in zip(entries, formats, strict=True) if not _made_by(coming, pair[0].path)]
        resolve_files([entry for entry, _ in present], [chosen for _, chosen in present], field=field)
    if here in coming or pending(Path(config.output_dir)):  # not as it will be then
        return
    if overwrite:
        check_overwrite(run)
    else:
        finished_run(run)


def _made_by(coming: Sequence[str], path: str) -> bool:
    """Whether `path` lies in a directory that an earlier run writes."""
    real = os.path.realpath(os.path.expanduser(path))
    return any(real == directory or real.startswith(directory + os.sep) for directory in coming)
