"""Verbs that use a trained adapter: eval, predict."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterlab.cli.console import busy, done, examples, is_main_process, note, out
from adapterlab.errors import ConfigError, DataError, RunFolderError, unknown_name

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run, e.g. runs/quickstart.")]
Adapter = Annotated[
    str, typer.Argument(metavar="RUN", help="A finished run, an adapter folder that a run wrote, or a Hub id of one.")
]


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


@examples("adapterlab eval runs/quickstart")
def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="ADDRESS", help="Rows to measure on. Default: the run's test rows."),
    ] = None,
) -> None:
    """Measure a trained adapter: the task's metrics on the run's test rows, or on others."""
    from rich.table import Table

    with busy("loading"):
        from adapterlab import predicting
    measured = predicting.evaluate(run, data)
    if not is_main_process():
        return
    table = Table("metric", "value", box=None, pad_edge=False, header_style="bold")
    for name, value in measured.items():
        if isinstance(value, int | float):
            table.add_row(f"[cyan]{name}[/cyan]", f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
    out().print(table, highlight=False)


@examples(
    'adapterlab predict runs/quickstart "What a lovely surprise, thank you!" "Three hours late. Again."',
    "echo 'My bag is lost.' > texts.txt && adapterlab predict runs/quickstart --file texts.txt --out labels.csv",
    "echo 'My bag is lost.' | adapterlab predict runs/quickstart --format csv",
)
def predict(
    run: Adapter,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to classify.")] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="Texts from a file: txt (one a line), csv, tsv, jsonl, parquet."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", help="The file's column with the text. Default: as in the run's recipe."),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write to this .csv or .jsonl, not to stdout."),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Default: by --out; a table for TEXTs, jsonl for a file or stdin."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts per forward pass.")] = 32,
) -> None:
    """Classify texts, given here, in a file or on stdin (one a line), with the probability of each label."""
    form = _format(form, destination, bool(texts))
    given = _given(run, texts, file, column)
    with busy("loading the model"):
        from adapterlab.predicting import Predictor

        predictor = Predictor(run)
    answers = predictor.predict(given, batch_size)
    if form is Format.table:
        _print_table(answers)
    elif destination is None:
        _write(answers, sys.stdout, form)
    else:
        count = _write_file(answers, destination, form)
        done(f"{count:,} predictions in {destination}")


def _format(form: Format | None, destination: Path | None, has_texts: bool) -> Format:
    """Settle the format, before anything slow, and refuse a destination that can't be written."""
    if destination is None:
        return form or (Format.table if has_texts else Format.jsonl)
    kinds = {".csv": Format.csv, ".jsonl": Format.jsonl}
    if form is None and destination.suffix not in kinds:
        raise ConfigError(f"--out {destination}: end it in .csv or .jsonl, or give --format.")
    if form is Format.table:
        raise ConfigError("--format table goes to the terminal; with --out give csv or jsonl.")
    if destination.is_dir() or not destination.parent.is_dir():
        why = "is a folder" if destination.is_dir() else f"there is no folder {destination.parent}"
        raise ConfigError(f"--out {destination}: {why}.")
    return form or kinds[destination.suffix]


def _given(run: str, texts: list[str] | None, file: str | None, column: str | None) -> Iterable[str]:
    if texts and file:
        raise ConfigError("give texts or --file, not both.")
    if column and not file:
        raise ConfigError("--column names a column of --file; give --file as well.")
    if texts:
        return texts
    if file:
        return _from_file(run, file, column)
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(f'nothing to predict: give a text (adapterlab predict {run} "…"), --file, or pipe texts in.')
    return _from_stdin()


def _from_stdin() -> list[str]:
    """Read a text a line; the bytes are decoded as a file's are, whatever the terminal's encoding."""
    from adapterlab.data.encodings import decode

    content = sys.stdin.buffer.read()
    if not content:
        raise ConfigError("nothing to predict: stdin is empty; pipe in a text a line.")
    text, notes = decode(content, Path("stdin"), None)
    for told in notes:
        note(told)
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _from_file(run: str, file: str, column: str | None) -> list[str]:
    from adapterlab.data import read_table

    rows = read_table(file)
    wanted = column or ("text" if Path(file).suffix == ".txt" else _text_column(run))
    if wanted not in rows.column_names:
        fix = "Name it with --column." if column is None else ""
        raise DataError(f"{file}: {unknown_name('column', wanted, rows.column_names, fix)}")
    return ["" if value is None else str(value) for value in rows[wanted]]


def _text_column(run: str) -> str:
    """Return what the run's recipe calls the text column."""
    from adapterlab.recipe import strict_yaml

    recipe = Path(run) / "recipe.yaml"
    if not recipe.is_file():
        return "text"
    value: Any = strict_yaml.parse(recipe.read_text("utf-8"), str(recipe)).value
    columns = (value.get("data") or {}).get("columns") or {} if isinstance(value, dict) else {}
    return str(columns.get("text", "text"))


def _print_table(answers: Iterable[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, answer in enumerate(answers):
        if index == 0:
            table.add_column("text", overflow="fold")
            table.add_column("label")
            for label in answer["probabilities"]:
                table.add_column(f"p({label})", justify="right")
        shares = (
            Text(f"{share:.3f}", style="bold" if label == answer["label"] else "dim")
            for label, share in answer["probabilities"].items()
        )
        table.add_row(Text(answer["text"]), Text(answer["label"], style="cyan"), *shares)
    out().print(table, highlight=False)


def _write(answers: Iterable[dict[str, Any]], stream: Any, form: Format) -> int:
    count = 0
    for lines in _lines(answers, form):
        stream.write(lines)
        count += 1
    stream.flush()
    return count


def _lines(answers: Iterable[dict[str, Any]], form: Format) -> Iterator[str]:
    import csv
    import json

    for index, answer in enumerate(answers):
        if form is Format.jsonl:
            yield json.dumps(answer, ensure_ascii=False) + "\n"
            continue
        row = {key: answer[key] for key in ("text", "label", "score")}
        row |= {f"p_{label}": share for label, share in answer["probabilities"].items()}
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(row), lineterminator="\n")
        if index == 0:
            writer.writeheader()
        writer.writerow(row)
        yield buffer.getvalue()


def _write_file(answers: Iterable[dict[str, Any]], destination: Path, form: Format) -> int:
    """Write beside the destination and rename at the end: a failure leaves nothing half-written."""
    part = destination.with_name(f".{destination.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            count = _write(answers, stream, form)
        part.replace(destination)
    except OSError as error:
        raise RunFolderError(f"{destination} can't be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)
    return count
