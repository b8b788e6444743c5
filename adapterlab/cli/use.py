"""Verbs that use a trained adapter: eval, predict."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterlab.cli.console import busy, done, examples, is_main_process, note, out
from adapterlab.cli.show import EXTRA
from adapterlab.errors import ConfigError, DataError, RunFolderError, unknown_name

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run, e.g. runs/quickstart.")]
Adapter = Annotated[
    str, typer.Argument(metavar="RUN", help="A finished run, an adapter folder that a run wrote, or a Hub id of one.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A task option that says how answers are found, in place of the recipe's: num_beams=4, temperature=0.7. "
        "May be given several times.",
    ),
]

Answer = tuple[dict[str, Any], dict[str, Any]]  # as the task gives it, and as a table's row


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
    changes: Set = None,
) -> None:
    """Measure a trained adapter: the task's metrics on the run's test rows, or on others."""
    from rich.table import Table

    with busy("loading"):
        from adapterlab import predicting
    measured = predicting.evaluate(run, data, options=_options(changes))
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
    'adapterlab predict runs/lora-t5-summarise "The council met on Monday." --set num_beams=4 --set max_new_tokens=32',
)
def predict(
    run: Adapter,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; JSON objects where the task reads several a row.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="Rows from a file: txt (a text a line), csv, tsv, jsonl, parquet."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option("--column", help="The file's column with the text. Default: columns as in the run's recipe."),
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
    changes: Set = None,
) -> None:
    """Answer for rows: texts given here or on stdin (one a line), or the rows of a file.

    What an answer is, the run's task says: a label with the probability of each, spans, a text.
    """
    form = _format(form, destination, bool(texts))
    options = _options(changes)
    given = _given(run, texts, file, column)
    with busy("loading the model"):
        from adapterlab.predicting import Predictor

        predictor = Predictor(run, options)
    answers = ((answer, predictor.task.flat(answer)) for answer in predictor.predict(given, batch_size))
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


def _options(changes: list[str] | None) -> dict[str, Any]:
    """Read the pairs of --set; a key may stand as in a recipe, behind `task.`."""
    from adapterlab.recipe import read_pair

    pairs = [read_pair(text, "--set", "num_beams=4") for text in changes or ()]
    return {key.removeprefix("task."): value for key, _, value in pairs}


def _given(run: str, texts: list[str] | None, file: str | None, column: str | None) -> Iterable[str | dict[str, Any]]:
    if texts and file:
        raise ConfigError("give texts or --file, not both.")
    if column and not file:
        raise ConfigError("--column names a column of --file; give --file as well.")
    if texts:
        if len(texts) == 1 and os.path.isfile(texts[0]):  # noqa: PTH113 - Path's raises on a long text
            raise ConfigError(
                f"'{texts[0]}' is a file. For its rows give --file {texts[0]}; a TEXT is read as it stands."
            )
        return _rows(run, texts)
    if file:
        return _from_file(run, file, column)
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(f'nothing to predict: give a text (adapterlab predict {run} "…"), --file, or pipe texts in.')
    return _rows(run, _from_stdin())


def _rows(run: str, texts: list[str]) -> list[str | dict[str, Any]]:
    """Read texts that are JSON objects of the task's inputs, which a task with several needs, as rows."""
    import json

    from adapterlab.tasks import TASKS

    task = TASKS.get(_task_state(run).get("type", "classification"))
    needed = [name for name in task.inputs if name not in task.optional]
    rows: list[str | dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            row = json.loads(text) if text.lstrip().startswith("{") else None
        except ValueError:
            row = None
        is_row = isinstance(row, dict) and bool(row) and row.keys() <= {*task.inputs}
        if len(needed) > 1 and not is_row:
            form = json.dumps(dict.fromkeys(needed, "..."))
            raise DataError(
                f"text {number} must be a JSON object, since a {task.type} task reads {' and '.join(needed)}: "
                f"'{form}'. Or give rows with --file."
            )
        rows.append(row if isinstance(row, dict) and is_row else text)
    return rows


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


def _from_file(run: str, file: str, column: str | None) -> list[str] | list[dict[str, Any]]:
    from adapterlab.data import read_table
    from adapterlab.data.columns import source_of
    from adapterlab.tasks import TASKS

    rows = read_table(file)
    state = _task_state(run)
    task = TASKS.get(state.get("type", "classification"))
    if column is None and Path(file).suffix == ".txt":
        column = "text"
    mapping = state.get("columns") or {}
    wanted = {name: source_of(task, name, mapping, rows.column_names) for name in task.inputs}
    needed = [name for name in task.inputs if name not in task.optional]
    if column is not None:
        needed = [task.plain_input] if task.plain_input else needed
        if len(needed) != 1:
            raise ConfigError(f"--column names one column, and a {task.type} task reads {' and '.join(needed)}.")
        wanted = {needed[0]: column}
    for name, source in list(wanted.items()):
        lacking = [one for one in _several(source) if one not in rows.column_names]
        if not lacking:
            continue
        if column is not None or name not in task.optional:
            fix = "Name it with --column." if column is None and len(needed) == 1 else ""
            raise DataError(f"{file}: {unknown_name('column', lacking[0], rows.column_names, fix)}")
        del wanted[name]
    if not wanted:
        raise DataError(
            f"{file} has none of the columns {', '.join(task.inputs)}; it has: {', '.join(rows.column_names)}. "
            "Name one with --column."
        )
    if list(wanted) == ["text"]:
        values = rows[wanted["text"]]
        if not any(isinstance(value, list) for value in values):  # lists are the words of pre-split texts
            return ["" if value is None else str(value) for value in values]
    return [
        {
            name: row[source] if isinstance(source, str) else {one: row[one] for one in source}
            for name, source in wanted.items()
        }
        for row in rows
    ]


def _several(source: str | list[str]) -> list[str]:
    return [source] if isinstance(source, str) else source


def _task_state(run: str) -> dict[str, Any]:
    """Return what the adapter says of its task, without loading the model."""
    import json

    for file in (Path(run) / "adapter" / EXTRA, Path(run) / EXTRA):
        if file.is_file():
            state = json.loads(file.read_text("utf-8")).get("task")
            return state if isinstance(state, dict) else {}
    return {}


def _print_table(answers: Iterable[Answer]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, (answer, flat) in enumerate(answers):
        if index == 0:
            for name in flat:
                shown = f"p({name[2:]})" if name.startswith("p_") else name
                table.add_column(shown, overflow="fold", justify="right" if name.startswith("p_") else "left")
        best = f"p_{answer.get('label')}"
        cells = [
            Text(f"{value:.3f}", style="bold" if name == best else "dim" if name.startswith("p_") else "")
            if isinstance(value, float)
            else Text("" if value is None else str(value), style="cyan" if name == "label" else "")
            for name, value in flat.items()
        ]
        table.add_row(*cells)
    out().print(table, highlight=False)


def _write(answers: Iterable[Answer], stream: Any, form: Format) -> int:
    count = 0
    for lines in _lines(answers, form):
        stream.write(lines)
        count += 1
    stream.flush()
    return count


def _lines(answers: Iterable[Answer], form: Format) -> Iterator[str]:
    import csv
    import json

    for index, (answer, row) in enumerate(answers):
        if form is Format.jsonl:
            yield json.dumps(answer, ensure_ascii=False) + "\n"
            continue
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(row), lineterminator="\n")
        if index == 0:
            writer.writeheader()
        writer.writerow(row)
        yield buffer.getvalue()


def _write_file(answers: Iterable[Answer], destination: Path, form: Format) -> int:
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
