"""Trials of the training rows: each in a process of its own, its result kept, so that a long row can be gone on with.

    python -m benchmarks.training.trials ROW CONTENDER SEED SETTINGS CACHE

runs one, with settings as JSON and a folder for what is fetched, and prints its result as the last line.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from benchmarks.harness import machine

ROOT = Path(__file__).parents[2]
MODULES = {"4": "epoch", "4b": "target", "8": "masked", "9": "dialogues", "10": "cached"}
Runner = Callable[["Trial", Path], dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """One contender's run with one seed. `settings` hold all that its result depends on, the machine included."""

    row: str
    contender: str
    seed: int
    settings: Mapping[str, Any]


def threads() -> int:
    """Return how many threads every contender gets."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return int(given) if given.isdigit() else cores


def surroundings() -> dict[str, Any]:
    """Return what else a result depends on: threads, processors, versions, and the sources of adapterlab."""
    sources = hashlib.sha256()
    for file in sorted((ROOT / "adapterlab").rglob("*.py")):
        sources.update(file.read_bytes())
    here = machine()
    named = {name: here[name] for name in ("cpu", "gpu", "torch", "transformers", "peft")}
    return {"threads": threads(), **named, "sources": sources.hexdigest()[:12]}


def result_of(trial: Trial, file: Path, cache: Path, runner: Runner | None = None) -> dict[str, Any]:
    """Return a trial's result: from `file`, or else it is run, and the result appended there.

    Args:
        file: JSON lines, one a trial, written as each ends. A line that was cut short doesn't count.
        cache: folder for what trials fetch.
        runner: what runs it; by default a process of its own.
    """
    asked = _plain(asdict(trial))
    for old in read(file):
        if all(old.get(key) == value for key, value in asked.items()):
            return cast(dict[str, Any], old["result"])
    print(f"  {trial.contender}, seed {trial.seed} ...", end=" ", flush=True)
    result = _plain((runner or in_its_own_process)(trial, cache))
    print(f"{result['seconds']:.1f} s", flush=True)
    _append(file, asked | {"at": datetime.now(UTC).isoformat(timespec="seconds"), "result": result})
    return cast(dict[str, Any], result)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _append(file: Path, line: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_short = file.exists() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as out:
        out.write("\n" * cut_short + json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back, so that what was read equals what is asked."""
    return json.loads(json.dumps(value))


def in_its_own_process(trial: Trial, cache: Path) -> dict[str, Any]:
    """Run a trial in a fresh process: nobody inherits another's allocator, threads or warm caches.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    count = str(trial.settings.get("threads", threads()))
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.training.trials", trial.row, trial.contender, str(trial.seed)]
    command += [json.dumps(dict(trial.settings)), str(cache)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"row {trial.row}, {trial.contender}, seed {trial.seed}:\n{done.stderr[-3000:]}")
    return cast(dict[str, Any], json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Run the trial that the command line names."""
    row, contender, seed, settings, cache = sys.argv[1:]
    module = importlib.import_module(f"benchmarks.training.{MODULES[row]}")
    print("\n" + json.dumps(module.trial(contender, int(seed), json.loads(settings), Path(cache))))


if __name__ == "__main__":
    main()
