"""The checks that only the methods and tasks themselves can make: their names, options and inputs."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from adapterlab.errors import ConfigError, did_you_mean, unknown_name
from adapterlab.recipe import strict_yaml
from adapterlab.recipe.draft import Draft, Problems
from adapterlab.recipe.problems import explain, unknown_key


def check_method(draft: Draft) -> Problems:
    """Have the method itself check its options."""
    from adapterlab.adapters import METHODS, parse_config

    section = draft.section("adapter")
    method = section.get("method")
    if not isinstance(method, str) or not method:
        return []  # reported already
    if method not in METHODS:
        try:
            METHODS.get(method)
        except ConfigError as error:
            return [(("adapter", "method"), error.problems[0])]
    options = {name: value for name, value in section.items() if name != "method"}
    try:
        parse_config(method, options)
    except ConfigError as error:
        return [_option_problem(problem, method) for problem in error.problems]
    return []


def _option_problem(problem: str, method: str) -> tuple[strict_yaml.Path, str]:
    """Split a method's message, which starts with the option's name, into place and sentence."""
    option, colon, sentence = problem.partition(": ")
    if not colon or not option.isidentifier() or option == method:
        return ("adapter",), sentence if option == method else problem
    return ("adapter", option), sentence


def check_task(draft: Draft) -> Problems:
    """Check the task's type and options, the metrics, and the names of the task's inputs."""
    from adapterlab.tasks import METRICS, TASKS, Task

    section = draft.section("task")
    problems: Problems = []
    metrics = section.get("metrics")
    for index, metric in enumerate(metrics if isinstance(metrics, list) else []):
        if isinstance(metric, str) and metric and metric not in METRICS:
            problems.append((("task", "metrics", index), _unknown(METRICS, metric)))
    kind = section.get("type")
    if not isinstance(kind, str) or not kind:
        return problems
    if kind not in TASKS:
        return [*problems, (("task", "type"), _unknown(TASKS, kind))]
    task = TASKS.get(kind)
    suited = task.suited_metrics()
    for index, metric in enumerate(metrics if isinstance(metrics, list) else []):
        if isinstance(metric, str) and metric in METRICS and METRICS.canonical(metric) not in suited:
            problems.append((("task", "metrics", index), unknown_name(f"{kind} metric", metric, suited)))
    options = {name: value for name, value in section.items() if name not in ("type", "metrics")}
    try:
        task.Options.model_validate(options)
    except ValidationError as error:
        problems += explain(error, task.Options, ("task",))
    columns = draft.section("data").get("columns")
    for name in columns if isinstance(columns, dict) else ():
        if name not in task.columns:
            problems.append(
                (
                    ("data", "columns", name),
                    f"a {kind} task has no such input: {unknown_key(name, (), list(task.columns))}",
                )
            )
    if draft.section("optim").get("label_smoothing") and task.spread is Task.spread:
        problems.append(
            (("optim", "label_smoothing"), f"a {kind} task has no classes to spread labels over: set it to 0.")
        )
    if draft.section("optim").get("cache_lower_layers") and task.redraws:
        problem = (
            f"a {kind} task reads other tokens of a row in each epoch, so no layer's output stays: set it to false."
        )
        problems.append((("optim", "cache_lower_layers"), problem))
    best = draft.section("eval").get("best")
    measured = metrics or list(task.usual_metrics(options))
    if isinstance(best, str) and isinstance(measured, list):
        known = [*measured, "loss"]  # the loss on the eval rows is always there
        if _canonical(best) not in map(_canonical, known):
            near = did_you_mean(best, map(str, known))
            problems.append(
                (("eval", "best"), f"'{best}' is not measured.{near} Measured: {', '.join(map(str, known))}.")
            )
    return problems


def _canonical(metric: Any) -> Any:
    from adapterlab.tasks import METRICS

    return METRICS.canonical(metric) if isinstance(metric, str) and metric in METRICS else metric


def _unknown(registry: Any, name: str) -> str:
    try:
        registry.get(name)
    except ConfigError as error:
        return error.problems[0]
    return f"unknown {registry.kind} '{name}'."
