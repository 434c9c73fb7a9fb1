"""The JSON Schema of a whole config, with the options of every installed plugin: editors complete and check with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bumblecore_core.config.resolve import Plugins
from bumblecore_core.config.schema import RunConfig
from bumblecore_core.config.shape import AUTO, CHOICES, default_name, sections
from bumblecore_core.errors import PluginError, one

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def config_schema(registry: Plugins) -> Schema:
    """The schema (draft 2020-12). Each choice is a plugin's name or an object of `name` and that plugin's options.

    Raises `PluginError` BC055 for options that have no JSON form.
    """
    schema = RunConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions: Schema = schema["$defs"]
    optional_names = _optional_names(registry)
    for kind in dict.fromkeys(CHOICES.values()):
        definitions[kind] = _choice(kind, registry, definitions, optional_names.get(kind, set()))
    for place, kind in CHOICES.items():
        _put_choice(schema, place.split("."), kind)
    for key in ("path", "eval_path"):
        _put_files(definitions["DataSection"]["properties"], key)
    for name, field in RunConfig.model_fields.items():
        schema["properties"][name]["description"] = field.description
    for name in set(sections()) - set(schema["required"]):  # a section whose keys are all comments is null in YAML
        section = schema["properties"][name]
        section["anyOf"] = [{"$ref": section.pop("$ref")}, {"type": "null"}]
    names = [provided.record.name for provided in registry.all("attentions")]
    definitions["ModelSection"]["properties"]["attention"]["enum"] = [AUTO, *names]
    definitions.pop("PluginChoice", None)
    return {"$schema": DIALECT, **schema, "title": "BumbleCore run"}


def _optional_names(registry: Plugins) -> dict[str, set[str]]:
    """By kind, the plugins whose options may be written without a name: the defaults of optional choices."""
    names = {kind: {name} for place, kind in CHOICES.items() if (name := default_name(tuple(place.split("."))))}
    names["losses"] = {provided.record.default_loss for provided in registry.all("stages")}
    return names


def _choice(kind: str, registry: Plugins, definitions: Schema, optional_names: set[str]) -> Schema:
    """`anyOf`: the name alone of one whose options all have defaults, or an object for each plugin."""
    records = [provided.record for provided in registry.all(kind)]
    names = [record.name for record in records if not _needs_options(record)]
    branches = [_with_options(record, definitions, record.name not in optional_names) for record in records]
    if kind == "data_formats":
        names.append(AUTO)
        branches.append(_object({"name": {"const": AUTO}}, ["name"], "Told from each file's first row."))
    if not branches:
        return {"not": {}, "description": f"No {kind} are installed."}
    return {"anyOf": [{"type": "string", "enum": names}, *branches]}


def _needs_options(record: Any) -> bool:
    return any(field.is_required() for field in record.options.model_fields.values())


def _with_options(record: Any, definitions: Schema, named: bool) -> Schema:
    try:
        options: Schema = record.options.model_json_schema(ref_template=_ref(record) + "{model}", by_alias=True)
    except Exception as error:  # pydantic raises several kinds, for types and defaults without a JSON form
        problem = f"the options of '{record.name}' have no JSON schema ({type(error).__name__})"
        raise one(PluginError, "BC055", problem, "Report this to the plugin's author", field=record.name) from error
    for name, definition in options.pop("$defs", {}).items():
        definitions[(_ref(record) + name).removeprefix("#/$defs/")] = definition
    name = {"const": record.name, "description": record.summary}
    required = (["name"] if named else []) + options.get("required", [])
    return _object({"name": name, **options.get("properties", {})}, required, record.summary)


def _ref(record: Any) -> str:
    return f"#/$defs/{record.kind}.{record.name}."


def _object(properties: Mapping[str, Any], required: list[str], description: str) -> Schema:
    built: Schema = {"type": "object", "description": description, "properties": dict(properties)}
    return {**built, **({"required": required} if required else {}), "additionalProperties": False}


def _put_choice(schema: Schema, place: list[str], kind: str) -> None:
    """Let the property at `place` refer to the definition of its kind, null where it is optional without a default."""
    if place == ["loggers", "*"]:
        schema["properties"]["loggers"]["items"] = {"$ref": f"#/$defs/{kind}"}
        return
    section = {1: None, 2: "DataSection"}.get(len(place), "DataFile")
    owner: Schema = schema["$defs"][section]["properties"] if section else schema["properties"]
    old = owner[place[-1]]
    reference: Schema = {"$ref": f"#/$defs/{kind}"}
    nullable = "default" in old and old["default"] is None
    kept = {key: old[key] for key in ("description", "default") if key in old}
    owner[place[-1]] = {**({"anyOf": [reference, {"type": "null"}]} if nullable else reference), **kept}


def _put_files(properties: Schema, key: str) -> None:
    old = properties[key]
    one_file: list[Schema] = [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/DataFile"}]
    forms: list[Schema] = [*one_file, {"type": "array", "minItems": 1, "items": {"anyOf": one_file}}]
    if "default" in old:
        forms.append({"type": "null"})
    kept = {name: old[name] for name in ("description", "default") if name in old}
    properties[key] = {"anyOf": forms, **kept}
