"""Verbs that look around: ls, methods, cp, schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterlab.cli.console import busy, done, examples, out
from adapterlab.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from adapterlab.adapters import MethodInfo


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
    from rich.markup import escape
    from rich.table import Table

    table = Table("method", "what it does", box=None, pad_edge=False, header_style="bold")
    for info in known.values():
        also = f" [dim]({', '.join(info.aliases)})[/dim]" if info.aliases else ""
        table.add_row(f"[cyan]{info.name}[/cyan]{also}", escape(info.summary))
    console = out()
    console.print(table)
    for plugin, why in METHODS.failures.items():
        console.print(f"[red]plugin {escape(plugin)} failed:[/red] {escape(why)}", highlight=False, soft_wrap=True)
    console.print("\n[dim]adapterlab methods NAME prints a method's options and paper.[/dim]")


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
