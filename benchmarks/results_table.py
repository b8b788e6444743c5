"""Results as JSON files, one a row, and the table in the README that is made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapterlab.errors import ConfigError
from benchmarks.harness import Result, Row, Settings, in_order, machine

BEGIN, END = "<!-- table of rows: python -m benchmarks --table -->", "<!-- end of the table of rows -->"
HEAD = "| row | job | floor | ours | others | ratios | goals | machine |\n|--:|---|--:|--:|--:|---|---|---|"


def record(row: Row, result: Result, settings: Settings, seconds: float) -> dict[str, Any]:
    """Return all that is kept of a row's measurement, as JSON has it."""
    return {
        "row": row.number,
        "title": row.title,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": machine() | result.versions,
        "load": round(os.getloadavg()[0], 1),  # processes that wanted a core, this one's threads among them
        "rounds": result.rounds or settings.rounds,
        "seconds": round(seconds, 1),
        "parts": [
            {
                "job": part.job,
                "unit": part.unit,
                "medians": {name: _short(value) for name, value in part.medians.items()},
                "ratios": {name: _short(value) for name, value in part.ratios.items()},
            }
            for part in result.parts
        ],
        "goals": [verdict | {"value": _short(verdict["value"])} for verdict in result.verdicts(row.goals)],
        "notes": result.notes,
    }


def write(found: dict[str, Any], folder: Path) -> Path:
    """Keep a row's record as row-<number>.json; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"row-{found['row']}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, in the order of their rows."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("row-*.json")]
    return sorted(found, key=lambda each: in_order(each["row"]))


def table(records: Iterable[dict[str, Any]]) -> str:
    """Return the records as a table, then what there is to say about each row, then the machines."""
    machines: list[str] = []
    lines, notes = [HEAD], []
    for found in records:
        words = _machine(found["machine"])
        if words not in machines:
            machines.append(words)
        letter = chr(ord("A") + machines.index(words))
        for index, part in enumerate(found["parts"]):
            number, job = (found["row"], found["title"]) if not index else ("", "")
            job = ": ".join(each for each in (job, part["job"]) if each)
            medians = dict(part["medians"])
            unit = part["unit"]
            floor, ours = (_figure(medians.pop(name, None), unit) for name in ("floor", "ours"))
            peers = ", ".join(f"{name}: {_figure(value, unit)}" for name, value in medians.items())
            ratios = ", ".join(f"{name}: {value:.2f}" for name, value in part["ratios"].items())
            # a goal for a job that wasn't measured is told with the first part
            mine = [g for g in found["goals"] if g["job"] == part["job"] or (g["met"] is None and not index)]
            goals = ", ".join(f"{goal['goal']}: {_verdict(goal['met'])}" for goal in mine)
            where = f"{letter}, {found['date'][:10]}" if not index else ""
            lines.append(f"| {number} | {job} | {floor} | {ours} | {peers} | {ratios} | {goals} | {where} |")
        said = " ".join(
            f"{note.rstrip('.')}."
            for note in [f"{found['rounds']} rounds at a load of {found['load']}", *found["notes"]]
        )
        notes.append(f"- Row {found['row']}: {said}")
    notes += [f"- Machine {chr(ord('A') + index)}: {words}." for index, words in enumerate(machines)]
    return "\n".join(lines) + "\n\n" + "\n".join(notes)


def rewrite(readme: Path, records: Iterable[dict[str, Any]]) -> None:
    """Put the table between the two comments that stand in a README.

    Raises:
        ConfigError: they don't stand there, each once and in order.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"{readme}: the table goes between the lines '{BEGIN}' and '{END}', each of them once.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{table(records)}\n\n{END}{after}", encoding="utf-8")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "**missed**", None: "not measured"}[met]


def _machine(about: dict[str, Any]) -> str:
    chip = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, {about['memory_gib']} GiB"
    bf16 = "bf16 in hardware" if about["bf16"] else "no bf16"
    gpu = f", {about['gpu']}" if about["gpu"] else ""
    libraries = ("python", "torch", "transformers", "peft")
    versions = ", ".join(f"{library} {about[library]}" for library in libraries if about.get(library))
    return f"{chip}, {about['instructions']}, {bf16}{gpu}; {versions}"
