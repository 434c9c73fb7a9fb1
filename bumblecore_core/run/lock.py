"""What a run was made from (`run.lock.json`), and what of it has changed when it is resumed or run again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.config.resolved import ResolvedRun, Selected
from bumblecore_core.config.shape import is_written
from bumblecore_core.errors import Problem
from bumblecore_core.registry import Registry, singular
from bumblecore_core.run.data.fingerprint import cache_dir_of, installed_version
from bumblecore_core.run.model_fingerprint import weights_fingerprint
from bumblecore_core.run.named_files import chosen_plugins, content_hashes

if TYPE_CHECKING:
    from bumblecore_core.run.data.store import TokenStore

FORMAT = 2  # 1: weights were fingerprinted by samples of their files
LIBRARIES = ("bumblecore", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft")
HARMLESS = (
    "output_dir",
    "loggers",
    "checkpoint",
    "data.cache_dir",
    "data.max_row_bytes",
    "data.max_bad_share",
    "data.num_proc",
    "data.num_workers",
    "train.logging_steps",
    "train.peak_tflops",
    "train.max_skipped_steps",
)
"""Config keys that change no number of a run."""
BY_CONTENT = (
    "data.path",
    "data.eval_path",
    "data.format",
    "data.txt_split",
    "data.strict",
    "data.on_bad_row",
    "data.too_long",
    "model.path",
    "model.tokenizer",
    "model.chat_template",
    "model.chat_template_kwargs",
    "model.chat_template_date",
    "data.special_tokens",
    "model.trust_remote_code",
)
"""Config keys whose effect is compared by the fingerprints of data, tokenizer and model."""
RESHAPING = ("train.micro_batch_size", "train.gradient_accumulation_steps")
"""Config keys that with the number of processes make up the batch; their product is what counts."""
LONGEST_SHOWN = 200  # characters of a value: a path fits
ALLOW = "Put it back, or accept that the numbers change with --allow {name}"
ALLOW_OR_REPLACE = (
    "Put it back, accept that the numbers change with --allow {name}, choose another output_dir, or start over with "
    "--overwrite"
)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One thing that differs: `name` is what `checkpoint.allow` accepts it by."""

    name: str
    saved: Any
    now: Any
    code: str

    def problem(self, place: Path, fix: str = ALLOW) -> Problem:
        """As an error about what was saved at `place`; `{name}` in `fix` stands for the name."""
        return Problem(
            code=self.code,
            place=str(place),
            field=self.name,
            problem=f"was {_shown(self.saved)} when this was saved and is {_shown(self.now)} now",
            fix=fix.replace("{name}", self.name),
        )


def make_lock(
    *,
    resolved: ResolvedRun,
    registry: Registry,
    model_dir: Path,
    model_config: Any,
    tokenizer_fingerprint: str,
    store: TokenStore,
    eval_store: TokenStore | None,
    world_size: int,
    reference: str | None = None,
    template_date: str | None = None,
) -> dict[str, Any]:
    """Plugins in use with distribution, version and hashes of their options and of files that these name; library
    versions; fingerprints of data, tokenizer, model and `reference` model; the day that the chat template prints; the
    resolved config, and which of its keys have their default."""
    from_config = resolved.stage.record.model_from == "config"
    cache_dir = cache_dir_of(resolved.config.data)
    return {
        "format": FORMAT,
        "config": resolved.to_dict(),
        "defaults": defaults_of(resolved),
        "world_size": world_size,
        "plugins": [_plugin(one, registry) for one in chosen_plugins(resolved)],
        "libraries": {"python": platform.python_version(), **{name: installed_version(name) for name in LIBRARIES}},
        "data": _data(store),
        "evaluation_data": _data(eval_store) if eval_store is not None else None,
        "tokenizer": tokenizer_fingerprint,
        "model": {
            "config": _model_config(model_config),
            "weights": None if from_config else weights_fingerprint(model_dir, cache_dir),
        },
        "reference": reference,
        "template_date": template_date,
    }


def read_lock(path: Path) -> dict[str, Any] | None:
    """A lock that was written to `path`; None where there is none that can be read."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None  # a FIFO would never end
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(lock, dict) and isinstance(lock.get("format"), int) and 1 <= lock["format"] <= FORMAT
    return lock if known else None


def lock_digest(lock: Mapping[str, Any]) -> str:
    """SHA-256 in hex of a lock as it is written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(lock)), sort_keys=True).encode()).hexdigest()


def config_drift(saved: Mapping[str, Any], resolved: ResolvedRun) -> list[Drift]:
    """The part of `drift` that is known before data, tokenizer and model are read, of a run and the lock of another."""
    files_now = _files([{"kind": one.record.kind, "files": content_hashes(one)} for one in chosen_plugins(resolved)])
    drifts = _config_drift(saved["config"], resolved.to_dict(), _files(saved["plugins"]), files_now)
    return _without_new_options(drifts, saved["config"], defaults_of(resolved))


def defaults_of(resolved: ResolvedRun) -> list[str]:
    """The config keys that have their default."""
    return sorted(name for name, origin in resolved.origins.items() if origin == "default")


def reshaping_options(resolved: ResolvedRun) -> list[str]:
    """Config keys of the engine that divide the same work in another way: numbers then agree up to rounding."""
    return [f"engine.{name}" for name in resolved.engine.record.reshaping]


def config_differences(saved: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Sequence[str]) -> list[Drift]:
    """The keys in which two resolved configs differ, leaving out `ignored` sections and keys."""
    found = {path: (left, right) for path, left, right in _differing(dict(saved), dict(now))}
    return [
        Drift(name=path, saved=left, now=right, code="BC043")
        for path, (left, right) in sorted(found.items())
        if not covered(path, ignored)
    ]


def drift(saved: Mapping[str, Any], now: Mapping[str, Any], *, allowed: Sequence[str]) -> list[Drift]:
    """What changed between two locks and changes the numbers, without what is `allowed` (a name, or its section)."""
    found = _config_drift(saved["config"], now["config"], _files(saved["plugins"]), _files(now["plugins"]))
    found = _without_new_options(found, saved["config"], now.get("defaults", ()))
    for name, code in (("data", "BC050"), ("evaluation_data", "BC050"), ("tokenizer", "BC050")):
        if saved[name] != now[name]:
            found.append(Drift(name=name, saved=_brief(saved[name]), now=_brief(now[name]), code=code))
    for path, left, right in _differing(saved["model"]["config"], now["model"]["config"], "model.config"):
        found.append(Drift(name=path, saved=left, now=right, code="BC047"))
    if weights_comparable(saved, now):
        if saved["model"]["weights"] != now["model"]["weights"]:
            left, right = (
                f"{_brief(lock['model']['weights'])} ({lock['config']['model']['path']})" for lock in (saved, now)
            )
            found.append(Drift(name="model.weights", saved=left, now=right, code="BC047"))
        references = saved.get("reference"), now.get("reference")
        if None not in references and references[0] != references[1]:
            left, right = map(_brief, references)
            found.append(Drift(name="reference.weights", saved=left, now=right, code="BC047"))
    found += _plugin_drift(saved["plugins"], now["plugins"])
    for name in sorted(saved["libraries"].keys() & now["libraries"].keys()):
        left, right = saved["libraries"][name], now["libraries"][name]
        if left != right:
            found.append(Drift(name=f"library.{name}", saved=left, now=right, code="BC070"))
    return [one for one in found if not covered(one.name, allowed)]


def weights_comparable(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both locks hold the same kind of fingerprints of weights."""
    return bool(saved.get("format") == now.get("format"))


def batch_size(lock: Mapping[str, Any]) -> int:
    """Rows (or packed rows) of an optimizer step."""
    train = lock["config"]["train"]
    return int(train["micro_batch_size"]) * int(train["gradient_accumulation_steps"]) * int(lock["world_size"])


def _config_drift(
    saved: Mapping[str, Any], now: Mapping[str, Any], files: Mapping[str, str], files_now: Mapping[str, str]
) -> list[Drift]:
    named = files.keys() & files_now.keys()
    found = config_differences(saved, now, ignored=(*HARMLESS, *BY_CONTENT, *RESHAPING, *named))
    for name in sorted(named):
        if (left := files[name]) != (right := files_now[name]):
            found.append(Drift(name=name, saved=f"a file {_brief(left)}", now=f"a file {_brief(right)}", code="BC043"))
    return found


def _without_new_options(drifts: Sequence[Drift], saved: Mapping[str, Any], defaults: Sequence[str]) -> list[Drift]:
    """Without options that the version which saved `saved` did not have, and that have their default now."""
    return [one for one in drifts if one.name not in defaults or is_written(saved, tuple(one.name.split(".")))]


def _plugin(chosen: Selected[Any], registry: Registry) -> dict[str, Any]:
    plugin = registry.provided(chosen.record.kind, chosen.name).plugin
    options = json.dumps(chosen.options.model_dump(mode="json"), sort_keys=True)
    return {
        "kind": chosen.record.kind,
        "name": chosen.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "options_sha256": hashlib.sha256(options.encode()).hexdigest(),
        "files": content_hashes(chosen),
    }


def _files(plugins: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SHA-256 of the files that options name, by the options' config keys."""
    return {
        f"{singular(one['kind'])}.{name}": digest
        for one in plugins
        if one["kind"] != "loggers"
        for name, digest in one.get("files", {}).items()
    }


def _plugin_drift(saved: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[Drift]:
    """Plugins of another distribution or version. Which plugins are chosen is compared with the config; loggers are
    harmless, and BumbleCore's own version is a library's."""
    current = {(one["kind"], one["name"]): one for one in now}
    for one in saved:
        other = current.get((one["kind"], one["name"]))
        if other is None or one["kind"] == "loggers" or one["distribution"] == other["distribution"] == "bumblecore":
            continue
        left, right = ([plugin["distribution"], plugin["version"]] for plugin in (one, other))
        if left != right:
            name = f"plugin.{singular(one['kind'])}.{one['name']}"
            yield Drift(name=name, saved=" ".join(left), now=" ".join(right), code="BC070")


def _data(store: TokenStore) -> dict[str, Any]:
    return {"content": store.content, "weights": list(store.weights), "examples": len(store)}


def _model_config(config: Any) -> dict[str, Any]:
    plain = json.loads(config.to_json_string(use_diff=False))
    skipped = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
    return {key: value for key, value in plain.items() if key not in skipped and not key.startswith("_")}


def covered(path: str, names: Sequence[str]) -> bool:
    """Whether a config key, or a section that it is in, is one of `names`."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _differing(saved: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted(saved.keys() | now.keys()):
            yield from _differing(saved.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        for index, (left, right) in enumerate(zip(saved, now, strict=True)):
            yield from _differing(left, right, f"{path}.{index}")
    elif saved != now:
        yield path, saved, now


def _brief(value: Any) -> Any:
    if isinstance(value, dict) and "content" in value:
        return f"{value['examples']:,} examples, fingerprint {value['content'][:12]}, weights {value['weights']}"
    return value[:12] if isinstance(value, str) else value


def _shown(value: Any) -> str:
    text = (
        "not set" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    )
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
