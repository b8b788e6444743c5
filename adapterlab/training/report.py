"""The report: pure functions from results to the final table and report.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterlab.tasks.metrics import METRICS

if TYPE_CHECKING:
    from rich.table import Table

    from adapterlab.tasks import ReportTable


@dataclass
class ResultRow:
    """A line of the final table; None where a figure makes no sense."""

    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    trained: int | None = None
    total: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None  # bytes
    disk: int | None = None  # bytes


def final_table(rows: Sequence[ResultRow], metrics: Sequence[str], *, split: str = "test") -> Table:
    """Return the table that a run ends with; the last row, the adapter's, stands out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Results on {split}", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True  # it fits 80 columns
    is_wide = len(metrics) > 3 or sum(map(len, metrics)) > 40
    columns = 1 + len(metrics) if is_wide else None  # then what the adapter cost is left to report.md
    header, *body = [cells[:columns] for cells in _cells(rows, metrics)]
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    for number, cells in enumerate(body):
        table.add_row(*map(Text, cells), style="bold green" if number == len(body) - 1 else None)
    if line := gain(rows, metrics):
        table.caption, table.caption_justify = Text(line), "left"
    return table


def markdown_table(rows: Sequence[ResultRow], metrics: Sequence[str]) -> str:
    """Return the same table in Markdown."""
    header, *body = _cells(rows, metrics)
    return as_markdown(header, body)


def gain(rows: Sequence[ResultRow], metrics: Sequence[str]) -> str:
    """Say what the last row's first metric gains over those before: in points, or in per cent if it is no share."""
    if len(rows) < 2 or not metrics or metrics[0] not in rows[-1].metrics:
        return ""
    name, ours = metrics[0], rows[-1].metrics[metrics[0]]
    in_points = name not in METRICS or METRICS.get(name).is_share
    parts = []
    for row in rows[:-1]:
        theirs = row.metrics.get(name)
        named = f"the {row.name.removeprefix('the ')}"
        if theirs is not None and in_points:
            parts.append(f"{100 * (ours - theirs):+.1f} points over {named}")
        elif theirs:
            parts.append(f"{100 * (ours / theirs - 1):+.1f} % against {named}")
    return f"{name}: {', '.join(parts)}" if parts else ""


def write_report(
    path: Path | str,
    *,
    title: str,
    rows: Sequence[ResultRow],
    metrics: Sequence[str],
    recipe_yaml: str,
    split: str = "test",
    tables: Sequence[ReportTable] = (),
    sizes: Mapping[str, int] | None = None,
    statistics: str = "",
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> Path:
    """Write report.md: the final table, where the model errs, the data, the recipe and the environment.

    Args:
        path: where the report goes; replaced in one step.
        title: its heading.
        rows: of the final table, the adapter's last.
        metrics: the table's metric columns, the one that counts first.
        recipe_yaml: the resolved recipe.
        split: what the metrics were measured on.
        tables: what `Task.tables` returns.
        sizes: rows per split.
        statistics: tables of the encoded rows, in Markdown (`adapterlab.data.statistics`).
        notes: what was found and done on the way (`Splits.notes`, `Task.notes`).
        environment: versions and hardware, by name.
        picture: the file name of loss.png, seen from the report.
    """
    parts = [f"# {title}", f"## Results on {split}", markdown_table(rows, metrics)]
    if line := gain(rows, metrics):
        parts.append(line)
    if picture:
        parts.append(f"![train and eval loss, {metrics[0] if metrics else 'metric'}]({picture})")
    for table in tables:
        parts += [f"## {table.title}", *([table.said] if table.said else []), as_markdown(table.header, table.body)]
    if sizes or statistics or notes:
        parts.append("## Data")
    if sizes:
        parts.append("Rows: " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()) + ".")
    if statistics:
        parts += ["Lengths in tokens, texts cut, and classes:", statistics.strip()]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts += ["## Recipe", f"```yaml\n{recipe_yaml.strip()}\n```"]
    if environment:
        parts += ["## Environment", "\n".join(f"- {name}: {value}" for name, value in environment.items())]
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def duration(seconds: float) -> str:
    """Return `42.3 s`, `2m 28s` or `1h 05m`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def size(count: int) -> str:
    """Return bytes as `812 B`, `1.4 MB`, `2.1 GB` (powers of ten, as file managers show them)."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.{0 if unit == 'B' or amount >= 99.95 else 1}f} {unit}"


def parameters(count: int) -> str:
    """Return `774`, `339 k`, `22.7 M`."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * scale:
            amount = count / scale
            return f"{amount:.{0 if amount >= 99.95 else 1}f} {unit}"
    return str(count)


def _cells(rows: Sequence[ResultRow], metrics: Sequence[str]) -> list[list[str]]:
    """Return the table as text, header first; a column that no row fills is left out."""
    columns: list[tuple[str, list[str | None]]] = [("", [row.name for row in rows])]
    for name in metrics:
        columns.append((name, [f"{row.metrics[name]:.4f}" if name in row.metrics else None for row in rows]))
    figures: list[tuple[str, str, Callable[[Any], str]]] = [
        ("trained", "trained", parameters),
        ("total", "total", parameters),
        ("time", "seconds", duration),
        ("memory", "peak_memory", size),
        ("on disk", "disk", size),
    ]
    for header, attribute, word in figures:
        values = [getattr(row, attribute) for row in rows]
        columns.append((header, [None if value is None else word(value) for value in values]))
    filled = [(header, cells) for header, cells in columns if any(cell is not None for cell in cells)]
    lines = [[header for header, _ in filled]]
    return lines + [[cells[row] or "-" for _, cells in filled] for row in range(len(rows))]


def as_markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned right if they hold numbers."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    numbers = [all(row[i][:1].isdigit() or row[i][:1] in "-*" for row in body) for i in range(len(header))]
    rule = ["--:" if number and i else "---" for i, number in enumerate(numbers)]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *map(line, body)])
