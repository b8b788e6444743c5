"""The rows of the table in benchmarks/README.md, alone or together.

    python -m benchmarks                 # the step rows, in at most 12 minutes on two cores
    python -m benchmarks --long          # and the training rows
    python -m benchmarks 1 7 13          # these rows
    python -m benchmarks --table         # write the README's table from the results, and measure nothing

Ours and the peers take turns in the same run; medians, and their ratios. Each row's result is kept as
benchmarks/results/row-<number>.json. A row that fails says why, the others go on, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
import traceback
import warnings
from pathlib import Path

from adapterlab.errors import ConfigError
from benchmarks import results_table
from benchmarks.harness import NotHereError, Row, Settings, select

# each has a tuple ROWS
MODULES = ("steps", "bottleneck_prefix", "folders", "growth", "training.rows", "int8")
HERE = Path(__file__).parent


def rows() -> list[Row]:
    """Return every row there is."""
    return [row for name in MODULES for row in importlib.import_module(f"benchmarks.{name}").ROWS]


def run(chosen: list[Row], settings: Settings, folder: Path) -> bool:
    """Measure rows one after the other, print and keep what they find; return whether none failed."""
    failed = []
    for row in chosen:
        print(f"\nrow {row.number}: {row.title}", flush=True)
        begun = time.perf_counter()
        try:
            result = row.measure(settings)
        except NotHereError as reason:
            print(f"can't be measured here: {reason}", flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            failed.append(row.number)
        else:
            found = results_table.record(row, result, settings, time.perf_counter() - begun)
            print(results_table.table([found]), flush=True)
            print(f"({found['seconds']:.0f} s; kept as {results_table.write(found, folder)})", flush=True)
        gc.collect()  # a model with hooks is a ring of references
    if failed:
        print(f"\nfailed: row {', '.join(failed)}", file=sys.stderr)
    return not failed


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", metavar="ROW", help="numbers of rows; the short ones if left out")
    parser.add_argument("--long", action="store_true", help="the training rows too")
    parser.add_argument("--list", action="store_true", help="list the rows and their goals")
    parser.add_argument("--table", action="store_true", help="only rewrite the README's table from the results")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="that count (default %(default)s)")
    parser.add_argument("--layers", type=int, default=Settings.layers, help="in the step rows (default %(default)s)")
    parser.add_argument("--cache", type=Path, default=Settings.cache, help="for what rows fetch (default %(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder (default %(default)s)")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1 or asked.layers < 1:
        parser.error("--rounds and --layers must be at least 1.")
    warnings.simplefilter("ignore")  # libraries' words to each other
    try:
        if asked.table:
            results_table.rewrite(HERE / "README.md", results_table.read(asked.results))
            return 0
        chosen = select(rows(), asked.numbers, asked.long or (asked.list and not asked.numbers))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.list:
        for row in chosen:
            print(
                f"{row.number:>3}  {row.title}{' (long)' if row.long else ''}: {', '.join(g.words for g in row.goals)}"
            )
        return 0
    return 0 if run(chosen, Settings(asked.rounds, asked.layers, asked.cache), asked.results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
