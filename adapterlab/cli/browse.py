"""Verbs that look around: ls, methods, tasks, cp, schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterlab.cli.console import busy, done, examples, out
from adapterlab.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from adapterlab.adapters import MethodInfo
    from adapterlab.registry import Registry
    from adapterlab.tasks import Task


@examples("adapterlab ls")
def ls() -> None:
    """List the recipes that ship with adapterlab."""
    from rich.table import Table

    from adapterlab.recipe import catalog, strict_yaml

    table = Table("recipe", "what it does", box=None, pad_edge=False, header_style="bold")
    for name, path in catalog.shipped().items():
        recipe = strict_yaml.parse(path.read_text("utf-8"), name).value
        table.add_row(f"[cyan]{name}[/cyan]", recipe.get("description", ""))
    console = out()
    console.print(table)
    console.print("\n[dim]adapterlab show NAME prints one, cp NAME copies it, train NAME runs it.[/dim]")


@examples("adapterlab methods        # all of them", "adapterlab methods lora   # one, with its options")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this method's options.")] = None,
) -> None:
    """List the adapter methods, or one method's options."""
    with busy("loading the methods"):
        from adapterlab.adapters import METHODS, list_methods

        known = {info.name: info for info in list_methods()}
        one = known[METHODS.canonical(name)] if name is not None else None
    if one is not None:
        _describe(one)
        return
    _list("method", [(info.name, info.aliases, info.summary) for info in known.values()], METHODS)
    out().print("\n[dim]adapterlab methods NAME prints a method's options and paper.[/dim]")


@examples(
    "adapterlab tasks                  # all of them", "adapterlab tasks classification   # one, with its columns"
)
def tasks(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print what this task reads and its keys.")] = None,
) -> None:
    """List the tasks, or one task's columns, options and metrics."""
    from adapterlab.tasks import TASKS

    if name is None:
        _list("task", [(kind, TASKS.aliases(kind), task.summary) for kind, task in TASKS], TASKS)
        out().print("\n[dim]adapterlab tasks NAME prints what a task reads, its options and its metrics.[/dim]")
        return
    _describe_task(TASKS.canonical(name), TASKS.get(name))


def _list(kind: str, rows: list[tuple[str, tuple[str, ...], str]], registry: Registry[Any]) -> None:
    """Print names, other names and a line about each; and the plugins that failed."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(kind, "what it does", box=None, pad_edge=False, header_style="bold")
    for name, aliases, summary in rows:
        also = f" [dim]({', '.join(aliases)})[/dim]" if aliases else ""
        table.add_row(f"[cyan]{name}[/cyan]{also}", escape(summary))
    console = out()
    console.print(table)
    for plugin, why in registry.failures.items():
        console.print(f"[red]plugin {escape(plugin)} failed:[/red] {escape(why)}", highlight=False, soft_wrap=True)


def _describe_task(name: str, task: type[Task]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from adapterlab.tasks import METRICS

    console = out()
    console.print(f"[bold]{name}[/bold]: {escape(task.summary)}\n", highlight=False)
    columns = Table("column", "what it holds", box=None, pad_edge=False, header_style="bold")
    for column, about in task.columns.items():
        columns.add_row(f"[cyan]{column}[/cyan]", escape(about))
    console.print(columns)
    options = Table("option", "default", "what it does", box=None, pad_edge=False, header_style="bold")
    for option, field in task.Options.model_fields.items():
        default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
        options.add_row(f"[cyan]{option}[/cyan]", escape(default), escape(field.description or ""))
    if task.Options.model_fields:
        console.print()
        console.print(options)
    metrics = Table("metric", "what it is", box=None, pad_edge=False, header_style="bold")
    for metric in task.suited_metrics():
        chosen = " [dim](by default)[/dim]" if metric in task.default_metrics else ""
        metrics.add_row(f"[cyan]{metric}[/cyan]{chosen}", escape(METRICS.get(metric).summary))
    console.print()
    console.print(metrics)
    console.print(f"\n[dim]Columns go under data.columns, options under task:, beside type: {name}.[/dim]")


def _describe(info: MethodInfo) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("option", "type", "default", "what it does", box=None, pad_edge=False, header_style="bold")
    for option in info.options:
        default = "required" if option.required else json.dumps(option.default, default=str)
        also = f" [dim](or {', '.join(option.aliases)})[/dim]" if option.aliases else ""
        table.add_row(
            f"[cyan]{option.name}[/cyan]{also}", escape(_type(option.type)), escape(default), escape(option.help)
        )
    console = out()
    also = f" (or {', '.join(info.aliases)})" if info.aliases else ""
    console.print(f"[bold]{info.name}[/bold]{also}: {escape(info.summary)}", highlight=False)
    if info.paper:
        console.print(f"[dim]{escape(info.paper)}[/dim]", highlight=False)
    console.print()
    console.print(table)
    console.print(f"\n[dim]In a recipe under adapter:, beside method: {info.name}. In Python as keywords:[/dim]")
    console.print(f'[dim]adapterlab.attach(model, "{info.name}", …)[/dim]', highlight=False)


def _type(annotation: str) -> str:
    """Write a type as its values look: `Optional[Literal['a', 'b']]` becomes `a | b | null`."""
    text = re.sub(r"Literal\[(.*?)\]", lambda choice: " | ".join(re.findall(r"'(.*?)'", choice[1])), annotation)
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    text = re.sub(r"^Union\[(.*)\]$", lambda union: union[1].replace(", ", " | "), text)
    for python, shown in (("None", "null"), ("str", "text"), ("float", "number"), ("int", "whole number")):
        text = re.sub(rf"\b{python}\b", shown, text)
    return text.replace("bool", "true | false")


@examples("adapterlab cp quickstart my.yaml")
def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe; `adapterlab ls` lists them.")],
    dest: Annotated[
        Path | None,
        typer.Argument(metavar="DEST", help="File or folder. Default: here, under its own name."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite DEST.")] = False,
) -> None:
    """Copy a shipped recipe, to edit it."""
    from adapterlab.recipe import catalog

    source = catalog.find(name)
    target = dest or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if not target.suffix:
        target = target.with_suffix(".yaml")
    if target.exists() and not replace:
        raise RunFolderError(f"{target} exists. Give another DEST, or --replace to overwrite it.")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}; make it first: mkdir -p {target.parent}")
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise ConfigError(f"{target} can't be written: {error.strerror or error}.") from None
    done(f"{target}\nnext: adapterlab train {target}")


@examples("adapterlab schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check.

    Most editors use it where a recipe begins with `# yaml-language-server: $schema=recipe.schema.json`.
    """
    with busy("loading the methods"):
        from adapterlab.recipe.json_schema import json_schema

        text = json.dumps(json_schema(), indent=2, default=str)
    typer.echo(text)
