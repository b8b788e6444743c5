"""What `register_method` asks of a method: a mistake shall show when it registers, not when it trains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from adapterlab.adapters.base import METHODS, Method, MethodConfig
from adapterlab.errors import ConfigError

# `attach` has parameters of these names, and a recipe's adapter section a key `method`.
_TAKEN_OPTIONS = ("model", "method", "name", "labels")
# Parts of backbones' own paths. A marker that one of them starts with would make the backbone the adapter's.
_BACKBONES_PARTS = (
    *("attention", "attn", "base_layer", "bias", "classifier", "decoder", "dense", "embeddings", "encoder", "fc"),
    *("head", "intermediate", "key", "layer", "linear", "lm_head", "mlp", "model", "norm", "output", "pooler", "proj"),
    *("query", "score", "self", "transformer", "value", "weight"),
)


def check_method(cls: Any, name: str, aliases: Any) -> bool:
    """Check a class that is to be registered.

    Returns:
        Whether it is one that is registered already and was defined anew: a notebook's cell that ran twice.

    Raises:
        ConfigError: it can't be a method; everything that is missing or wrong is named.
    """
    who = f"method '{name}'"
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        given = f"the class {cls.__name__}" if isinstance(cls, type) else f"a {type(cls).__name__}"
        raise ConfigError(f"{who}: a subclass of adapterlab.adapters.Method is needed, and {given} was given.")
    problems = [*_names(name, aliases), *_parts(cls), *_config(cls), *_marker(cls, name)]
    if problems:
        raise ConfigError([f"{who} ({cls.__qualname__}): {problem}" for problem in problems])
    old = METHODS.so_far().get(name)
    return old is not None and (cls.__module__, cls.__qualname__) == (type(old).__module__, type(old).__qualname__)


def _names(name: str, aliases: Any) -> Iterator[str]:
    if not isinstance(aliases, tuple):
        yield f"aliases must be a tuple of names, ('{aliases}',), not {aliases!r}."
        return
    for given in (name, *aliases):
        if not (isinstance(given, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", given)):
            yield f"the name {given!r} must be a letter, then letters, digits, '_' and '-': it is typed in recipes."


def _parts(cls: type[Method]) -> Iterator[str]:
    if missing := sorted(cls.__abstractmethods__):
        yield f"it lacks {', '.join(missing)}. Say what they do, as adapterlab.adapters.Method describes."
    if not _is_line(getattr(cls, "summary", None)):
        yield "summary is missing: one line for `adapterlab methods`, e.g. summary = 'a learned scale of each linear'."
    if not isinstance(cls.paper, str):
        yield f"paper must be text, or left out, not {cls.paper!r}."
    if not _is_line(getattr(cls, "peft_type", None)):
        yield "peft_type is missing: the type in adapter_config.json, in capitals, e.g. peft_type = 'OUTPUT_SCALE'."
    if cls.merges and cls.merge is Method.merge:
        yield "merges is true and there is no merge. Define it, or leave merges out."
    if cls.__init__ is not object.__init__ and not missing:
        try:
            cls()
        except Exception as error:
            yield f"it can't be made without arguments ({error}). One instance serves every model: it needs none."


def _config(cls: type[Method]) -> Iterator[str]:
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        yield f"Config must be a subclass of adapterlab.adapters.MethodConfig with the options, and is {config!r}."
        return
    for option, field in config.model_fields.items():
        alias = field.validation_alias
        spellings = [option, *([alias] if isinstance(alias, str) else map(str, getattr(alias, "choices", ())))]
        for taken in (spelling for spelling in spellings if spelling in _TAKEN_OPTIONS):
            yield f"an option can't be called '{taken}': attach has a parameter of that name. Choose another."
    why = ""
    try:
        if classes := config.model_json_schema().get("$defs"):
            why = f"{', '.join(classes)} is a class of its own"
    except Exception as error:
        why = str(error)
    if why:
        yield f"Config has an option that a recipe can't hold: {why}. Use numbers, text, Literal, lists and dicts."


def _marker(cls: type[Method], name: str) -> Iterator[str]:
    marker = getattr(cls, "marker", None)
    if not _is_line(marker) or "." in str(marker):
        yield (
            "marker is missing: the part of a parameter's path that stands before the adapter's name, without dots, "
            "e.g. marker = 'output_scale' for '...query.output_scale.default'."
        )
        return
    if clash := next((part for part in _BACKBONES_PARTS if part.startswith(str(marker))), None):
        yield f"the marker '{marker}' is how '{clash}' begins, which backbones have; make it longer, e.g. '{name}_'."
    for other_name, other in METHODS.so_far().items():
        related = set(cls.__mro__) & set(type(other).__mro__) - set(Method.__mro__)
        meets = other.marker.startswith(str(marker)) or str(marker).startswith(other.marker)
        if meets and not related and other_name != name:
            yield f"the marker '{marker}' collides with '{other.marker}' of method '{other_name}'; choose another."


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\n" not in value
