"""The resolved run: records and typed options in place of names, defaults filled in, every value's origin known."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bumblecore_core import records
from bumblecore_core.config.keys import KeyPath, dotted
from bumblecore_core.config.load import LoadedConfig
from bumblecore_core.config.overrides import COMMAND_LINE
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.config.shape import choice_paths, is_written, lookup
from bumblecore_core.errors import PluginError, one

R = TypeVar("R", bound=records.Record)


@dataclass(frozen=True)
class Selected(Generic[R]):
    """A chosen plugin: its record, and its options checked and completed with defaults."""

    record: R
    options: Any

    @property
    def name(self) -> str:
        """The record's name."""
        return self.record.name


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run ready to assemble.

    `data_format`: the format of files without their own; None: told from each file. `formats`, `eval_formats`: the
    format of each of `config.data.path` and of `config.data.eval_path`, in the same way. `origins`: for each dotted key
    of `to_dict()` `default`, `file:line` or `command line`. `plain`: see `to_dict`.
    """

    path: Path
    config: RunConfig
    stage: Selected[records.StageRecord]
    loss: Selected[records.LossRecord]
    optimizer: Selected[records.OptimizerRecord]
    scheduler: Selected[records.SchedulerRecord]
    engine: Selected[records.EngineRecord]
    adapter: Selected[records.AdapterRecord] | None
    loggers: tuple[Selected[records.LoggerRecord], ...]
    data_format: Selected[records.DataFormatRecord] | None
    formats: tuple[Selected[records.DataFormatRecord] | None, ...]
    eval_formats: tuple[Selected[records.DataFormatRecord] | None, ...]
    origins: Mapping[str, str]
    plain: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The complete config as plain data, with every default and plugin option.

        Written as YAML, it resolves to the same run. Of `train.epochs` and `train.max_steps` it holds the one that
        counts.
        """
        return copy.deepcopy(dict(self.plain))


def assembled(loaded: LoadedConfig, config: RunConfig, chosen: Mapping[KeyPath, Selected[Any]]) -> ResolvedRun:
    """The run, once nothing is wrong: every choice that must be there is in `chosen`."""
    plain = config.model_dump(mode="json")
    for path in choice_paths(plain):
        if path in chosen:
            _inside(plain, path[:-1])[path[-1]] = _plain(chosen[path])
    if config.train.max_steps is not None:
        del plain["train"]["epochs"]
    return ResolvedRun(
        path=loaded.path,
        config=config,
        stage=chosen["stage",],
        loss=chosen["loss",],
        optimizer=chosen["optimizer",],
        scheduler=chosen["scheduler",],
        engine=chosen["engine",],
        adapter=chosen.get(("adapter",)),
        loggers=tuple(chosen["loggers", index] for index in range(len(config.loggers))),
        data_format=chosen.get(("data", "format")),
        formats=_formats("path", plain, chosen),
        eval_formats=_formats("eval_path", plain, chosen),
        origins=_origins(plain, loaded),
        plain=plain,
    )


def _formats(
    key: str, plain: Mapping[str, Any], chosen: Mapping[KeyPath, Selected[Any]]
) -> tuple[Selected[Any] | None, ...]:
    """Each file's format: its own, which may be auto, else that of all."""
    own: list[KeyPath] = [("data", key, index, "format") for index in range(len(plain["data"][key] or ()))]
    common = chosen.get(("data", "format"))
    return tuple(chosen.get(path, common if lookup(plain, path) is None else None) for path in own)


def _inside(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _plain(selected: Selected[Any]) -> dict[str, Any]:
    try:
        return {"name": selected.name, **selected.options.model_dump(mode="json", by_alias=True)}
    except Exception as error:
        problem = f"the options of '{selected.name}' cannot be written as JSON ({type(error).__name__})"
        raise one(PluginError, "BC055", problem, "Report this to the plugin's author") from error


def leaves(data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of `data` that hold a plain value; a list counts as one unless it holds mappings."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        for index, item in enumerate(data):
            yield from leaves(item, (*path, index))
    else:
        yield path


def _origins(plain: Mapping[str, Any], loaded: LoadedConfig) -> dict[str, str]:
    """The origin of each leaf. A value of which a part comes from the command line counts as coming from there."""
    overridden = {
        noted[:length]
        for noted, origin in loaded.origins.items()
        if origin == COMMAND_LINE
        for length in range(1, len(noted) + 1)
    }

    def origin(path: KeyPath) -> str:
        if not is_written(loaded.data, path) or path not in loaded.origins:
            return "default"
        return "command line" if path in overridden else loaded.origins[path]

    return {dotted(path): origin(path) for path in leaves(plain)}
