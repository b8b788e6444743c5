"""Turn pydantic's validation errors into sentences that say what is wrong and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from adapterlab.errors import did_you_mean
from adapterlab.recipe.schema import Recipe
from adapterlab.recipe.strict_yaml import Path

# What other trainers call our keys.
_ELSEWHERE = {
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "scheduler": "optim.schedule",
    "num_train_epochs": "optim.epochs",
    "num_epochs": "optim.epochs",
    "per_device_train_batch_size": "optim.batch_size",
    "train_batch_size": "optim.batch_size",
    "per_device_eval_batch_size": "optim.eval_batch_size",
    "gradient_accumulation_steps": "optim.accumulate",
    "warmup": "optim.warmup_ratio",
    "fp16": "optim.precision",
    "bf16": "optim.precision",
    "dtype": "optim.precision",
    "output_dir": "run.dir",
    "out_dir": "run.dir",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "validation": "data.eval",
    "dev": "data.eval",
    "val": "data.eval",
    "doc_stride": "data.stride",
    "num_proc": "data.workers",
    "preprocessing_num_workers": "data.workers",
    "eval_steps": "eval.every",
    "early_stopping_patience": "eval.patience",
    "metric_for_best_model": "eval.best",
    "metrics": "task.metrics",
    "peft_type": "adapter.method",
    "base_model": "model.name",
    "model_name_or_path": "model.name",
}

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list like [a, b]",
    "tuple_type": "a list like [a, b]",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
}


def dotted(path: Iterable[str | int]) -> str:
    """Write a path as one does in an override: `data.labels[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def show(value: Any) -> str:
    """Write a value as the reader of an error knows it, shortened if long."""
    words = {None: "nothing", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def explain(error: ValidationError, model: type[BaseModel], prefix: Path = ()) -> list[tuple[Path, str]]:
    """Return each problem as its path and a sentence.

    Args:
        error: what validating against `model` raised.
        model: the model; its fields' descriptions and examples go into the sentences.
        prefix: where the model sits within the recipe.
    """
    found: list[tuple[Path, str]] = []
    for problem in error.errors():
        path = problem["loc"]
        found.append(((*prefix, *path), _sentence(problem, model, path, prefix)))
    return found


def _sentence(problem: Any, model: type[BaseModel], path: Path, prefix: Path) -> str:
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    field = _field(model, path)
    if kind == "missing":
        return _missing(field, path)
    if kind == "extra_forbidden":
        owner = _model(model, path[:-1])
        return unknown_key(str(path[-1]), (*prefix, *path[:-1]), list(owner.model_fields) if owner else [])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]:g}, got {show(given)}."
    if kind in ("literal_error", "enum"):
        allowed = _choices(field, context)
        near = did_you_mean(given, allowed) if isinstance(given, str) else ""
        return f"must be {' or '.join(allowed)}, got {show(given)}.{near}"
    if kind == "string_type":
        fix = f"; put it in quotes: '{given}'" if isinstance(given, int | float) else ""
        return f"must be text, got {show(given)}{fix}."
    if kind == "string_too_short":
        return "must not be empty."
    if kind == "too_short":
        return f"must hold at least {context['min_length']} item(s), got {context['actual_length']}."
    if kind == "list_type" and isinstance(given, str | int | float) and not isinstance(given, bool):
        return f"must be a list, got {show(given)}; write [{given}]."
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {show(given)}."
    if kind in ("value_error", "assertion_error"):
        text = str(context.get("error", problem["msg"])).rstrip(".")
        return f"{text}." if isinstance(given, dict | BaseModel) else f"{text}; got {show(given)}."
    return f"{problem['msg']}; got {show(given)}."


def _missing(field: FieldInfo | None, path: Path) -> str:
    if field is None:
        return "is missing."
    inner = field.annotation
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        needs = [name for name, sub in inner.model_fields.items() if sub.is_required()]
        return f"the section is missing; it needs at least {', '.join(needs)}."
    example = f" For example `{path[-1]}: {field.examples[0]}`." if field.examples else ""
    return f"is missing. {field.description or ''}".rstrip() + example


def unknown_key(key: str, section: Path, known: list[str]) -> str:
    """Word the problem of a key that its section doesn't have: the nearest one, or where it belongs."""
    home = dotted(section)
    told = f"unknown key.{did_you_mean(key, known)}"
    if key == "<<":
        return "merge keys (<<) are not supported; write the keys out."
    if not told.endswith("?"):
        elsewhere = _ELSEWHERE.get(key) or next(
            (
                f"{name}.{key}"
                for name, field in Recipe.model_fields.items()
                if key in getattr(field.annotation, "model_fields", {}) and name != home
            ),
            None,
        )
        if elsewhere and elsewhere.rpartition(".")[0] == home:
            return f"{told} Here it is called '{elsewhere.rpartition('.')[2]}'."
        if elsewhere:
            return f"{told} {'It is called' if key in _ELSEWHERE else 'Its place is'} {elsewhere}."
    return f"{told} Known: {', '.join(known)}." if known else told


def _field(model: type[BaseModel], path: Path) -> FieldInfo | None:
    owner = _model(model, path[:-1])
    return owner.model_fields.get(str(path[-1])) if owner and path else None


def _model(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the model that sits at a path, if one does."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(part)
        current = field.annotation if field else None
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return None
    return current


def _choices(field: FieldInfo | None, context: dict[str, Any]) -> list[str]:
    if field is not None:
        for annotation in (field.annotation, *get_args(field.annotation)):
            values = get_args(annotation)
            if values and all(isinstance(value, str | int) for value in values):
                return [str(value) for value in values]
    return [part.strip("' ") for part in str(context.get("expected", "")).replace(" or ", ", ").split(",")]
