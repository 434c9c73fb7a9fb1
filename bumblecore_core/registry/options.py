"""Options models as a user reads them: one line for each field."""

from __future__ import annotations

import types
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

T = TypeVar("T")

_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}


@dataclass(frozen=True)
class OptionLine:
    """One option: `type` with its bounds, and `default` as YAML would show it (`required` where there is none)."""

    name: str
    type: str
    default: str
    description: str


def describe_options(model: type[BaseModel], outer: tuple[type[BaseModel], ...] = ()) -> list[OptionLine]:
    """The fields of an options model in the order written; those of a nested model follow it as `outer.inner`, unless
    it is one of the models around it (`outer`)."""
    around = (*outer, model)
    lines = []
    for name, field in model.model_fields.items():
        lines.append(
            OptionLine(name, field_type(field), default_text(field), " ".join((field.description or "").split()))
        )
        for inner in (nested for nested in nested_models(field.annotation) if nested not in around):
            lines += [
                OptionLine(f"{name}.{line.name}", line.type, line.default, line.description)
                for line in describe_options(inner, around)
            ]
    return lines


def is_subclass(value: Any, of: type[T]) -> TypeGuard[type[T]]:
    """Whether `value` is a class derived from `of`."""
    # on Python 3.10 list[str] is an instance of type, but issubclass raises TypeError for it
    return isinstance(value, type) and get_origin(value) is None and issubclass(value, of)


def nested_models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models anywhere inside an annotation (`list[Inner] | None` → `[Inner]`)."""
    if is_subclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in nested_models(part)]


def field_type(field: FieldInfo) -> str:
    """The type with its bounds, such as `float > 0` or `line | file`."""
    bounds = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in _BOUNDS.items() if hasattr(rule, key)
    ]
    patterns = [f"matching {rule.pattern}" for rule in field.metadata if getattr(rule, "pattern", None)]
    return " ".join([type_text(field.annotation), ", ".join(bounds + patterns)]).strip()


def type_text(annotation: Any) -> str:
    """A type as a config's author thinks of it: `int`, `list[str]`, `a | b` for a literal, `null` for None."""
    if annotation is None or annotation is type(None):
        return "null"
    if annotation is Any:
        return "any"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0])
    if origin is Literal:
        return " | ".join(_plain(value) for value in args)
    if origin in (Union, types.UnionType):
        return " | ".join(type_text(part) for part in args)
    if origin is not None:
        inner = ", ".join("…" if part is Ellipsis else type_text(part) for part in args)
        return f"{getattr(origin, '__name__', str(origin))}[{inner}]"
    if is_subclass(annotation, Enum):
        return " | ".join(_plain(member.value) for member in annotation)
    return getattr(annotation, "__name__", str(annotation))


def default_text(field: FieldInfo) -> str:
    """The default as YAML would show it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=False)
    return _plain(value) if field.default_factory is None else "computed"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return "defaults below"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value.value if isinstance(value, Enum) else value)
