"""The registry: records by kind and name, with where each came from."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bumblecore_core.errors import PluginError, Problem, did_you_mean
from bumblecore_core.records import RECORDS, Record
from bumblecore_core.registry.discover import PluginInfo, normalized

KINDS = tuple(record.kind for record in RECORDS)
_IRREGULAR = {"losses": "loss"}


def singular(kind: str) -> str:
    """A kind as messages name one of it: `losses` → `loss`, `data_formats` → `data format`."""
    return _IRREGULAR.get(kind, kind.removesuffix("s")).replace("_", " ")


@dataclass(frozen=True)
class Provided:
    """A record and the plugin that provides it."""

    record: Record
    plugin: PluginInfo


class Registry:
    """All records of all loaded plugins; made once at start, never changed."""

    def __init__(self, provided: Iterable[Provided], plugins: Sequence[PluginInfo]) -> None:
        self._provided = {(item.record.kind, item.record.name): item for item in provided}
        self.plugins = tuple(plugins)

    def get(self, kind: str, name: str, *, place: str = "", field: str = "") -> Any:
        """The record of `kind` (a record class's `kind`) called `name`. Raises as `provided` does."""
        return self.provided(kind, name, place=place, field=field).record

    def provided(self, kind: str, name: str, *, place: str = "", field: str = "") -> Provided:
        """The record with its plugin. Raises `PluginError`: BC054 where a plugin that failed declares that name, BC056
        otherwise; `place` (`file:line`) and `field` (a config key) say where the name was asked for."""
        _check_kind(kind)
        found = self._provided.get((kind, name))
        if found is None:
            raise self.missing(kind, name, place=place, field=field)
        return found

    def all(self, kind: str) -> Sequence[Provided]:
        """Everything of `kind`, sorted by name."""
        _check_kind(kind)
        return [self._provided[key] for key in sorted(self._provided) if key[0] == kind]

    def names(self, kind: str) -> list[str]:
        """The names of `kind`, sorted."""
        return [item.record.name for item in self.all(kind)]

    def missing(
        self, kind: str, name: str, *, place: str = "", field: str = "", also: Iterable[str] = ()
    ) -> PluginError:
        """The error for a name that no plugin provides; `also`: further names that the caller knows."""
        guilty = [info for info in self._failed() if may_provide(info, name)]
        if guilty:
            return PluginError([_from_failed(info, kind, name, place, field) for info in guilty])
        hint = did_you_mean(name, [*self.names(kind), *also])
        problem = f"no {singular(kind)} called '{name}' is installed; {hint}"
        fix = "`pip install` the distribution that provides it; `bumble plugins list` shows what is installed"
        off = [info.name for info in self.plugins if info.status == "off"]
        if off:
            fix += f" (switched off: {', '.join(off)})"
        if not any(info.builtin for info in self.plugins):
            fix = "BumbleCore itself is not installed here: `pip install` it (from a checkout: `pip install -e .`)"
        fix += self.failures
        return PluginError([Problem(code="BC056", place=place, field=field, problem=problem, fix=fix)])

    @property
    def failures(self) -> str:
        """What a message about something missing adds: the plugins that could not be loaded, and why; often empty."""
        named = ", ".join(f"'{info.name}' of {info.origin}: {info.error}" for info in self._failed())
        return f"; these plugins failed: {named}" if named else ""

    def _failed(self) -> list[PluginInfo]:
        return [info for info in self.plugins if info.status in ("failed", "refused")]


def _from_failed(info: PluginInfo, kind: str, name: str, place: str, field: str) -> Problem:
    return Problem(
        code=info.code or "BC054",
        place=place,
        field=field,
        problem=f"{singular(kind)} '{name}' is of plugin '{info.name}' of {info.origin}, which failed: {info.error}",
        fix="Repair or uninstall that distribution",
    )


def may_provide(info: PluginInfo, name: str) -> bool:
    """Whether a plugin that could not be loaded would have provided `name`: its source says `SomeRecord(name="…")`, or
    its entry point is called so. The source is parsed, never run."""
    return normalized(name) == normalized(info.name) or name in declared_names(info.module)


def declared_names(module: str) -> set[str]:
    """The literal `name=` of every `…Record(…)` call in a module's source; empty where there is no source."""
    try:
        spec = importlib.util.find_spec(module.partition(":")[0].strip())
        source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
        tree = ast.parse(source)
    except (Exception, SystemExit):  # a package that raises at import, a compiled module, a syntax error
        return set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node).endswith("Record")]
    values = [word.value for call in calls for word in call.keywords if word.arg == "name"]
    return {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", "") or getattr(call.func, "attr", "")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"no record class has the kind {kind!r}: {', '.join(KINDS)}")
