"""What a plugin and its records must be: every way of breaking the contract becomes a `Problem`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

from pydantic import BaseModel

from bumblecore_core.errors import Problem, did_you_mean
from bumblecore_core.hookspecs import HOOK_API_ATTRIBUTE, HOOK_API_VERSION, HOOK_OF_KIND, PROJECT
from bumblecore_core.records import RECORDS, Options, Record
from bumblecore_core.registry.discover import PluginInfo
from bumblecore_core.registry.options import is_subclass, nested_models
from bumblecore_core.values import LossKind, ModelHead, SampleKind

NAME = re.compile(r"[a-z][a-z0-9_]*")
HOOKS: Mapping[str, type[Record]] = {HOOK_OF_KIND[record.kind]: record for record in RECORDS}
_MARK = f"{PROJECT}_impl"
_ORDERING = ("tryfirst", "trylast", "wrapper", "hookwrapper")

BUILD_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "stages": ("options", "context"),
    "losses": ("options",),
    "optimizers": ("options", "groups"),
    "schedulers": ("options", "optimizer", "total_steps"),
    "data_formats": ("options",),
    "adapters": ("options",),
    "engines": ("options", "context"),
    "loggers": ("options",),
}
"""The keywords that the core calls a record's `build` with, by kind."""


def plugin_problems(plugin: Any, info: PluginInfo) -> list[Problem]:
    """What is wrong with a plugin before any of its hooks runs: BC059 for another hook API, BC058 for a misspelt or
    unmarked hook, BC055 for a hook that takes arguments or asks for a place in the call order."""
    supported = getattr(plugin, HOOK_API_ATTRIBUTE, HOOK_API_VERSION)
    versions = set(supported) if isinstance(supported, (tuple, list, set, frozenset)) else {supported}
    if HOOK_API_VERSION not in versions:
        stated = ", ".join(sorted(str(version) for version in versions)) or "no version"
        return [
            Problem(
                code="BC059",
                field=HOOK_API_ATTRIBUTE,
                problem=f"plugin '{info.name}' of {info.origin} supports hook API {stated}, this is {HOOK_API_VERSION}",
                fix="Install a release of that distribution made for this version of BumbleCore, or uninstall it",
            )
        ]
    return [problem for name in dir(plugin) for problem in _hook_problems(plugin, name, info)]


def hook_options(plugin: Any, name: str) -> dict[str, Any] | None:
    """The options that `@hookimpl` left on the attribute `name`, or None where it is no hook."""
    value = inspect.getattr_static(plugin, name, None)
    value = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    options = getattr(value, _MARK, None) if inspect.isroutine(value) else None
    return options if isinstance(options, dict) else None


def _hook_problems(plugin: Any, name: str, info: PluginInfo) -> Iterator[Problem]:
    options = hook_options(plugin, name)
    where = f"plugin '{info.name}' of {info.origin}"
    if options is None:
        value = inspect.getattr_static(plugin, name, None)
        own = inspect.isroutine(value) and getattr(value, "__module__", None) == getattr(plugin, "__name__", None)
        if own and name in HOOKS:
            yield Problem(
                code="BC058", field=name, problem=f"{where} defines {name} without @hookimpl", fix="Add @hookimpl"
            )
        elif own and name.startswith("bumble_"):
            yield _misspelt(name, name, where)
        return
    hook = options.get("specname") or name
    if hook not in HOOKS:
        if not options.get("optionalhook"):
            yield _misspelt(hook, name, where)
        return
    for option in _ORDERING:
        if options.get(option):
            yield _wrong(where, hook, option, "asks for a place in the call order", "Remove it: hooks have no order")
    if not _accepts(getattr(plugin, name), ()):
        yield _wrong(where, hook, "arguments", "takes arguments", "Hooks take none: options reach `build`")


def _misspelt(hook: str, attribute: str, where: str) -> Problem:
    return Problem(
        code="BC058",
        field=attribute,
        problem=f"{where} implements the hook {hook}, which does not exist",
        fix=f"Rename it (names that begin with bumble_ are hooks); {did_you_mean(hook, HOOKS)}",
    )


def _wrong(where: str, hook: str, field: str, problem: str, fix: str) -> Problem:
    return Problem(
        code="BC055", field=f"{hook}.{field}".rstrip(".").replace(".[", "["), problem=f"{where}: {problem}", fix=fix
    )


def result_problems(result: Any, hook: str, info: PluginInfo) -> list[Problem]:
    """What is wrong with what a hook returned: BC055 for each thing, naming plugin, hook and field."""
    where = f"plugin '{info.name}' of {info.origin}"
    if not isinstance(result, (list, tuple)):
        fix = f"Return a list of {HOOKS[hook].__name__}"
        return [_wrong(where, hook, "", f"the hook returned {typename(result)}, not a list", fix)]
    return [
        problem
        for index, record in enumerate(result)
        for problem in record_problems(record, hook, where=where, index=index)
    ]


def record_problems(record: Any, hook: str = "", *, where: str = "record", index: int = 0) -> list[Problem]:
    """What is wrong with one record; `hook` is told from its class where it is not given."""
    expected = HOOKS[hook] if hook else next((cls for cls in RECORDS if isinstance(record, cls)), Record)
    hook = hook or HOOK_OF_KIND.get(getattr(expected, "kind", ""), "")
    if not isinstance(record, expected) or expected is Record:
        problem = f"item {index} is {typename(record)}, not {expected.__name__}"
        return [_wrong(where, hook, f"[{index}]", problem, f"Return {expected.__name__} objects")]
    name = record.name if isinstance(record.name, str) else ""
    label = f"[{name or index}]"
    found = []
    for field in fields(record):
        value = getattr(record, field.name)
        for path, problem, fix in FIELD_CHECKS[field.name](record, value):
            found.append(_wrong(where, f"{hook}{label}", field.name + path, problem, fix))
    return found


Complaints = Iterator[tuple[str, str, str]]
"""(path below the field, what is wrong, what to do)."""


def _check_name(record: Record, value: Any) -> Complaints:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        yield "", "the name is not lower-case letters, digits and underscores", "Rename it, such as `my_name`"


def _check_summary(record: Record, value: Any) -> Complaints:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        yield "", "the summary is not one non-empty line", "Say in one line what it does"


def _check_options(record: Record, value: Any) -> Complaints:
    if not is_subclass(value, Options):
        yield "", "it is not a subclass of bumblecore_core.Options", "Derive the options model from Options"
        return
    if "name" in value.model_fields:
        yield ".name", "an option cannot be called name, which picks the plugin", "Rename the option"
    yield from _model_complaints(value, "", seen=set())


def _check_reshaping(record: Record, value: Any) -> Complaints:
    known = getattr(getattr(record, "options", None), "model_fields", {})
    unknown = [name for name in value if name not in known] if isinstance(value, tuple) else [value]
    if unknown:
        yield "", f"{unknown[0]!r} is no option of it", "Give a tuple of names of its options"


def _model_complaints(model: type[BaseModel], path: str, seen: set[type[BaseModel]]) -> Complaints:
    seen.add(model)
    if model.model_config.get("extra") != "forbid":
        yield path, "the model does not forbid unknown keys", 'Set model_config = ConfigDict(extra="forbid")'
    for name, field in model.model_fields.items():
        if not (field.description or "").strip():
            yield f"{path}.{name}", "the option has no description", 'Give it Field(…, description="…")'
        for inner in nested_models(field.annotation):
            if inner not in seen:
                yield from _model_complaints(inner, f"{path}.{name}", seen)


def _check_build(record: Record, value: Any) -> Complaints:
    yield from _called_with(value, BUILD_PARAMETERS[record.kind])


def _check_load(record: Record, value: Any) -> Complaints:
    yield from _called_with(value, ())


def _check_unsupported(record: Record, value: Any) -> Complaints:
    yield from _called_with(value, ("device", "dtype"))


def _check_detect(record: Record, value: Any) -> Complaints:
    if not callable(value) or not _accepts(value, (), positional=1):
        yield "", "it cannot be called with one row", "Write it as detect(row)"


def _called_with(value: Any, keywords: tuple[str, ...]) -> Complaints:
    call = f"({', '.join(f'{word}=…' for word in keywords)})"
    if not callable(value):
        yield "", f"it is {typename(value)}, not a callable", f"Give a function that is called as {call}"
    elif not _accepts(value, keywords):
        yield "", f"it cannot be called as {call}", "Take exactly these keyword parameters"


def _accepts(function: Callable[..., Any], keywords: tuple[str, ...], positional: int = 0) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature: nothing to hold it to
        return True
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _one_of(*allowed: str) -> Callable[[Record, Any], Complaints]:
    def check(record: Record, value: Any) -> Complaints:
        if value not in allowed:
            yield "", f"it is none of {', '.join(allowed)}", "Use one of these"

    return check


def _typed(expected: type) -> Callable[[Record, Any], Complaints]:
    def check(record: Record, value: Any) -> Complaints:
        if type(value) is not expected:
            yield "", f"it is {typename(value)}, not {expected.__name__}", f"Use a {expected.__name__}"

    return check


def typename(value: Any) -> str:
    """A value's type as messages name it."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


FIELD_CHECKS: Mapping[str, Callable[[Any, Any], Complaints]] = {
    "name": _check_name,
    "summary": _check_summary,
    "options": _check_options,
    "build": _check_build,
    "load": _check_load,
    "unsupported": _check_unsupported,
    "detect": _check_detect,
    "reads": _one_of(*get_args(SampleKind)),
    "loss_kind": _one_of(*get_args(LossKind)),
    "model_from": _one_of("config", "weights"),
    "head": _one_of(*get_args(ModelHead)),
    "default_loss": _check_name,
    "smooth": _typed(bool),
    "needs_metric": _typed(bool),
    "needs_reference": _typed(bool),
    "priority": _typed(int),
    "reshaping": _check_reshaping,
}
"""One check for every field of every record class; a field that is added to a record needs its line here."""
