"""The verb show: a recipe, a run folder or an adapter folder, told from what it holds. It loads no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterlab.cli.console import examples, note, out
from adapterlab.errors import AdapterFolderError, ConfigError, RunFolderError, unknown_name

# As in adapterlab.adapter_folder, which takes seconds to import: it loads torch and peft. A test compares them.
CONFIG, WEIGHTS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "adapterlab.json"


@examples("adapterlab show quickstart         # the recipe", "adapterlab show runs/quickstart   # what came of it")
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|RUN|ADAPTER", help="A recipe's name or file, or a folder.")],
) -> None:
    """Print a recipe, or what a run folder or an adapter folder holds."""
    from adapterlab.recipe import catalog

    folder = Path(what).expanduser()
    if (folder / CONFIG).is_file():
        _adapter(folder)
    elif (folder / "recipe.yaml").is_file():
        _run(folder)
    elif folder.is_dir() and what not in catalog.shipped():
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise RunFolderError(
            f"'{what}' is neither a run folder (no recipe.yaml) nor an adapter folder (no {CONFIG}); "
            f"it holds {present}."
        )
    elif not folder.exists() and what not in catalog.shipped() and folder.suffix not in catalog.SUFFIXES:
        near = [str(entry.parent) for entry in sorted(folder.parent.glob("*/recipe.yaml"))]
        raise ConfigError(unknown_name("recipe, run or adapter folder", what, [*catalog.shipped(), *near]))
    else:
        try:
            text = catalog.find(what).read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"{what} is no recipe: it isn't text.") from None
        _source(text, "yaml")


def _source(text: str, language: str) -> None:
    """Print a text in colour on a terminal, and as it is elsewhere, so that `show NAME > my.yaml` works."""
    console = out()
    if not console.is_terminal:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    from rich.markdown import Markdown
    from rich.syntax import Syntax

    console.print(Markdown(text) if language == "markdown" else Syntax(text, language, background_color="default"))


def _run(folder: Path) -> None:
    report = folder / "report.md"
    if report.is_file():
        _source(report.read_text("utf-8"), "markdown")
    else:
        _source((folder / "recipe.yaml").read_text("utf-8"), "yaml")
        last = _last_line(folder / "metrics.jsonl")
        note(f"{folder} holds no report: its run has not ended{f'; last: {last}' if last else ''}.")
        if any(folder.glob("checkpoints/*")):
            note(f"go on with: adapterlab train {folder / 'recipe.yaml'} --resume auto")
    if (folder / "adapter" / CONFIG).is_file():
        out().print()
        _adapter(folder / "adapter")


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return lines[-1] if lines else ""


def _adapter(folder: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _facts(folder):
        table.add_row(f"[cyan]{name}[/cyan]", escape(value))
    console = out()
    console.print(f"[bold]{escape(str(folder))}[/bold]", highlight=False)
    console.print(table, highlight=False)


def _facts(folder: Path) -> Iterator[tuple[str, str]]:
    config, extra = _json(folder / CONFIG), _json(folder / EXTRA)
    method = extra.get("method") or str(config.get("peft_type", "unknown")).lower()
    yield "method", method
    yield "backbone", str(extra.get("backbone") or config.get("base_model_name_or_path") or "not told")
    if architecture := extra.get("architecture"):
        yield "architecture", architecture
    # A plain peft folder has no options of ours; its config says the same in peft's words.
    options = extra.get("options") or {
        name: value for name, value in config.items() if name not in ("peft_type", "base_model_name_or_path")
    }
    said = [f"{name}={_short(value)}" for name, value in options.items() if value not in (None, False, [], {}, "")]
    yield "options", ", ".join(said) or "none"
    if labels := extra.get("labels"):
        yield "labels", ", ".join(labels.values())
    from adapterlab.training.report import size

    weights = folder / WEIGHTS
    if not weights.is_file():
        yield "weights", f"missing: there is no {WEIGHTS}"
        return
    shapes = _shapes(weights)
    count = sum(_product(shape) for shape in shapes.values())
    yield "weights", f"{count:,} parameters in {len(shapes)} tensors, {size(weights.stat().st_size)}"


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise AdapterFolderError(f"{path} is damaged: {error}.") from None
    return content if isinstance(content, dict) else {}


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Read the shapes off a safetensors file's header, without its tensors."""
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > weights.stat().st_size:
                raise ValueError("it is cut short")
            header = json.loads(file.read(length))
        return {name: list(told["shape"]) for name, told in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise AdapterFolderError(f"{weights} is damaged: {error}. Get the file again.") from None


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
