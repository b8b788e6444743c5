"""The JSON schema of a recipe, for editors: its own keys, and those of the methods and tasks there are."""

from __future__ import annotations

from typing import Any

from adapterlab.recipe.schema import Recipe


def json_schema() -> dict[str, Any]:
    """Return the schema, with the options of every registered method and every task and metric."""
    from adapterlab.adapters import METHODS
    from adapterlab.tasks import METRICS, TASKS

    schema = Recipe.model_json_schema()
    adapter, task = schema["$defs"]["AdapterSection"], schema["$defs"]["TaskSection"]
    adapter["properties"]["method"]["enum"] = [
        spelling for name in METHODS.names() for spelling in (name, *METHODS.aliases(name))
    ]
    adapter["allOf"] = [
        _when(adapter, "method", [name, *METHODS.aliases(name)], method.Config) for name, method in METHODS
    ]
    task["properties"]["type"]["enum"] = TASKS.names()
    task["properties"]["metrics"]["anyOf"][0]["items"] = {"enum": METRICS.names()}
    task["allOf"] = [_when(task, "type", [name], entry.Options) for name, entry in TASKS]
    for section in (adapter, task):
        section.pop("additionalProperties", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _when(section: dict[str, Any], key: str, values: list[str], options: Any) -> dict[str, Any]:
    """Say: where `key` is one of `values`, the section has its own keys and those of `options`, no others."""
    described = options.model_json_schema()["properties"]
    for name, known in options.model_fields.items():
        spellings = [str(choice) for choice in getattr(known.validation_alias, "choices", [])]
        kept: Any = next((described[spelling] for spelling in (name, *spellings) if spelling in described), {})
        described |= dict.fromkeys((name, *spellings), kept)
    properties = {**dict.fromkeys(section["properties"], True), **described}
    return {
        "if": {"properties": {key: {"enum": values}}, "required": [key]},
        "then": {"properties": properties, "additionalProperties": False},
    }
