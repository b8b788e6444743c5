"""From a file, a shipped name or a dict, with overrides, to a checked Recipe; every problem at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from adapterlab.errors import ConfigError
from adapterlab.recipe import catalog, strict_yaml
from adapterlab.recipe.checks import check_method, check_task
from adapterlab.recipe.draft import Draft, Problems, override
from adapterlab.recipe.problems import explain, show
from adapterlab.recipe.schema import Recipe

RecipeSource = str | Path | Mapping[str, Any] | Recipe


def load_recipe(source: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: the path of a YAML file, the name of a shipped recipe, or a recipe as a dict or a Recipe.
        overrides: `key=value` pairs that win over the source, e.g. `"optim.lr=1e-4"`. Values follow the rules
            of the YAML; an empty one means null. A new `adapter.method` starts from that method's defaults:
            the options that the source gives are another method's, and are left out with a RecipeNote.

    Raises:
        ConfigError: the recipe can't be found or read, or something in it is wrong. `problems` holds every
            problem, each with its file and line (or "override") and its dotted key.
    """
    draft = _read(source)
    unreadable = override(draft, overrides)
    recipe, problems = _validate(draft)
    problems += draft.duplicates + check_method(draft) + check_task(draft)
    if problems or unreadable or recipe is None:
        raise ConfigError(draft.word(problems) + unreadable, f"recipe {draft.name}" if draft.name else "recipe")
    if recipe.run.dir is None:
        stem = draft.stem or f"{recipe.task.type}-{recipe.adapter.method}"
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": f"runs/{stem}"})})
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that loads again to an equal Recipe, defaults included."""
    return strict_yaml.dump(_plain(recipe))


def _read(source: RecipeSource) -> Draft:
    if isinstance(source, Recipe):
        return Draft(_plain(source))
    if isinstance(source, Mapping):
        return Draft(_texts(dict(source)))
    if not isinstance(source, str | Path):
        raise ConfigError(f"a recipe is a path, a shipped name or a dict, not {type(source).__name__}.")
    file = catalog.find(source)
    here = Path.cwd()
    name = str(file.relative_to(here) if file.is_relative_to(here) else file)
    try:
        text = file.read_bytes()[: strict_yaml.MAX_BYTES + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{name} can't be read: {error.strerror or error}.") from None
    document = strict_yaml.parse(text, name)
    if document.value is None:
        raise ConfigError(f"{name} is empty; `adapterlab cp quickstart` writes a recipe to start from.")
    if not isinstance(document.value, dict):
        raise ConfigError(f"{name}: a recipe is `key: value` lines, this is {show(document.value)}.")
    return Draft(document.value, name, file.stem, document.lines, document.duplicates)


def _texts(value: Any) -> Any:
    """Copy a dict's values, with paths as text: in a notebook a folder is often a Path."""
    if isinstance(value, dict):
        return {name: _texts(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, without the keys whose null says nothing."""

    def tidy(section: BaseModel) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in section:
            known = type(section).model_fields.get(name)
            if isinstance(value, BaseModel):
                values[name] = tidy(value)
                continue
            unset = known is not None and value == known.get_default(call_default_factory=True)
            if not (unset and value in (None, {}, "")):
                values[name] = value
        return values

    return copy.deepcopy(tidy(recipe))


def _validate(draft: Draft) -> tuple[Recipe | None, Problems]:
    for name, known in Recipe.model_fields.items():
        # `eval:` with all its lines commented out is a section with nothing in it.
        if name in draft.raw and draft.raw[name] is None and hasattr(known.annotation, "model_fields"):
            draft.raw[name] = {}
    try:
        return Recipe.model_validate(draft.raw), []
    except ValidationError as error:
        if _quote_overrides(draft, error):
            return _validate(draft)
        return None, explain(error, Recipe)


def _quote_overrides(draft: Draft, error: ValidationError) -> bool:
    """Take `run.dir=2024` as text where text is wanted: in a shell one can't see that it lacks quotes."""
    changed = False
    for problem in error.errors():
        path = problem["loc"]
        if problem["type"] == "string_type" and path in draft.overridden and problem["input"] is not None:
            parent: Any = draft.raw
            for part in path[:-1]:
                parent = parent[part]
            if not isinstance(parent[path[-1]], list | dict):
                parent[path[-1]] = draft.overridden[path]
                changed = True
    return changed
