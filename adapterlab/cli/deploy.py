"""Verbs that make what is served: merge, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterlab.cli.console import busy, done, examples, note, out

if TYPE_CHECKING:
    from adapterlab.deploy.running import Deployed

Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run, e.g. runs/quickstart.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that doesn't exist yet, or is empty.")]
Rows = Annotated[
    int | None,
    typer.Option("--rows", min=1, help="Compare on so many of the run's test rows. Default: all of them."),
]


@examples("adapterlab merge runs/quickstart served/quickstart")
def merge(
    run: Run,
    destination: Out,
    rows: Rows = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="By how much logits may differ, as a share of the largest.")
    ] = 1e-3,
) -> None:
    """Fold an adapter into its backbone: a plain transformers folder, compared with the original on real rows."""
    with busy("merging, and comparing both"):
        from adapterlab.deploy.running import merge_run

        made = merge_run(run, destination, rows=rows, tolerance=tolerance)
    _tell(made)
    done(f"next: AutoModel….from_pretrained({str(destination)!r}), with transformers alone")


@examples(
    "adapterlab quantize runs/quickstart served/quickstart-int8",
    "adapterlab quantize runs/quickstart served/quickstart-int8 --max-drop 0.3",
    "adapterlab quantize runs/quickstart served/quickstart-int8 --skip '*.layer.0.*'",
)
def quantize(
    run: Run,
    destination: Out,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="MODULE", help="A module to leave as it is, or a pattern; several times."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            min=0,
            help="What the first metric may lose on the eval rows; what hurts most stays in fp32.",
        ),
    ] = None,
    rows: Rows = None,
) -> None:
    """Store a run's model in int8 for serving on a CPU, merged, and compare it with the original on real rows."""
    with busy("quantizing, and comparing both"):
        from adapterlab.deploy.running import quantize_run

        made = quantize_run(run, destination, skip=skip or (), max_drop=max_drop, rows=rows)
    _tell(made)
    done(f"next: adapterlab predict {destination} TEXT, or adapterlab.load_deployed({str(destination)!r})")


def _tell(made: Deployed) -> None:
    from rich.table import Table

    from adapterlab.deploy.reporting import PICTURE, REPORT, lines

    header, *body = lines(made.comparison)
    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for number in range(1, len(header)):
        table.columns[number].justify = "right"
    for row in body:
        table.add_row(*row)
    out().print(table, highlight=False)
    for line in made.notes:
        note(line)
    for name, file in (("model", made.folder), ("report", made.folder / REPORT), ("picture", made.folder / PICTURE)):
        out().print(f"{name}: {file}", highlight=False, soft_wrap=True, markup=False)
