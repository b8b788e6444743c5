"""`python -m benchmarks`: rows, turns, goals, JSON and table. That its figures are right, a machine at rest shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adapterlab.errors import ConfigError
from benchmarks import __main__ as command
from benchmarks import results_table
from benchmarks.adapters_library import environment
from benchmarks.harness import (
    Goal,
    NotHereError,
    Part,
    Result,
    Row,
    Settings,
    interleaved,
    medians_of,
    ratios_of,
    select,
)

ROOT = Path(__file__).parents[2]
FAST = Goal("at least 1.7 x faster than peft", "peft / ours", least=1.7)
LEAN = Goal("at most 1.10 x the floor", "ours / floor", most=1.10)


def step(settings: Settings) -> Result:
    """A measurement that needs no clock."""
    medians = {"floor": 100.0, "ours": 120.0, "peft": 240.0}
    return Result([Part("", medians, "ms", ratios_of(medians, "ours / floor", "peft / ours"))], ["Four layers"])


def broken(settings: Settings) -> Result:
    raise RuntimeError("no peer to be had")


def elsewhere(settings: Settings) -> Result:
    raise NotHereError("this CPU has no bf16 instructions.")


ROWS = [
    Row("10", "cached", (), step, True),
    Row("4b", "until good", (), step, True),
    Row("1", "a step", (LEAN, FAST), step),
]


def test_contenders_take_turns_and_the_first_round_does_not_count():
    turns = []
    figures = interleaved({"ours": lambda: turns.append("ours"), "peft": lambda: len(turns)}, 2)
    assert turns == ["ours"] * 3  # each once a round
    assert figures["peft"] == [2, 3]  # its own figures, of the rounds that count
    assert len(figures["ours"]) == 2
    assert all(0 <= seconds < 1 for seconds in figures["ours"])


def test_medians_and_ratios_are_of_what_was_counted():
    medians = medians_of({"ours": [0.1, 0.3, 0.2], "peft": [0.5, 0.4, 9.0]}, 1000)
    assert medians == pytest.approx({"ours": 200, "peft": 500})
    assert ratios_of(medians, "peft / ours") == pytest.approx({"peft / ours": 2.5})


def test_rows_are_chosen_by_number_or_length_and_come_in_order():
    assert [row.number for row in select(ROWS)] == ["1"]
    assert [row.number for row in select(ROWS, long=True)] == ["1", "4b", "10"]
    assert [row.number for row in select(ROWS, ["10", "1", "10"])] == ["1", "10"]


def test_an_unknown_row_is_told_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown row '4B'. Did you mean '4b'\? Known: 1, 10, 4b"):
        select(ROWS, ["1", "4B"])
    assert command.main(["13c"]) == 2


def test_two_rows_of_one_number_are_refused():
    with pytest.raises(ConfigError, match="two rows are called '1': 'a step' and 'another'"):
        select([*ROWS, Row("1", "another", (), step)])


def test_every_row_that_is_registered_has_a_number_of_its_own_and_goals():
    found = select(command.rows(), long=True)
    assert {"1", "2", "3", "5", "6", "7", "11", "13"} <= {row.number for row in found}
    assert all(row.goals for row in found)
    short = {row.number for row in found if not row.long}
    assert short == {"1", "2", "3", "5", "6", "7", "13"}


@pytest.mark.parametrize(("value", "met"), [(1.10, True), (1.11, False), (float("nan"), False)])
def test_a_goal_is_met_at_its_bound_and_not_by_nan(value, met):
    assert LEAN.met(value) is met


def test_a_goal_holds_for_every_part_that_has_its_ratio_or_for_the_one_that_it_names():
    parts = [Part(job, {}, "ms", {"largest": value}) for job, value in (("layers", 2.0), ("length", 3.0))]
    everywhere, named = Goal("linear", "largest", most=2.1), Goal("linear", "largest", most=2.1, job="layers")
    found = Result(parts).verdicts([everywhere, named, FAST])
    assert [(each["job"], each["met"]) for each in found] == [
        ("layers", True), ("length", False), ("layers", True), ("", None),
    ]  # fmt: skip


def test_a_record_is_the_same_after_its_file(tmp_path):
    found = results_table.record(ROWS[2], step(Settings()), Settings(rounds=9), 3.21)
    path = results_table.write(found, tmp_path)
    assert path.name == "row-1.json"
    assert results_table.read(tmp_path) == [found]
    assert (found["rounds"], found["seconds"], found["parts"][0]["ratios"]["ours / floor"]) == (9, 3.2, 1.2)
    assert [goal["met"] for goal in found["goals"]] == [False, True]
    assert found["machine"]["torch"]


def test_the_table_has_medians_ratios_verdicts_and_the_machine(tmp_path):
    for row in ROWS:
        results_table.write(results_table.record(row, step(Settings()), Settings(), 1.0), tmp_path)
    lines = results_table.table(results_table.read(tmp_path)).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:6] == ["1", "a step", "100 ms", "120 ms", "peft: 240 ms", "ours / floor: 1.20, peft / ours: 2.00"]
    assert cells[6] == "at most 1.10 x the floor: **missed**, at least 1.7 x faster than peft: met"
    assert cells[7].startswith("A, 20")
    assert [line.split(" | ")[0] for line in lines[3:5]] == ["| 4b", "| 10"]
    assert any(re.fullmatch(r"- Row 1: 7 rounds at a load of [\d.]+\. Four layers\.", line) for line in lines)
    assert sum(line.startswith("- Machine ") for line in lines) == 1


def test_the_table_is_put_between_its_marks_and_nothing_else_is_touched(tmp_path):
    readme, records = tmp_path / "README.md", [results_table.record(ROWS[2], step(Settings()), Settings(), 1.0)]
    readme.write_text(f"before\n{results_table.BEGIN}\nan old table\n{results_table.END}\nafter\n")
    results_table.rewrite(readme, records)
    once = readme.read_text()
    assert once.startswith(f"before\n{results_table.BEGIN}\n\n| row |")
    assert once.endswith(f"\n{results_table.END}\nafter\n")
    assert "an old table" not in once
    results_table.rewrite(readme, records)
    assert readme.read_text() == once
    readme.write_text("no marks")
    with pytest.raises(ConfigError, match="between the lines"):
        results_table.rewrite(readme, records)


def test_the_readme_has_the_table_of_the_results_that_are_kept(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    results_table.rewrite(copy, results_table.read(ROOT / "benchmarks" / "results"))
    written = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert copy.read_text(encoding="utf-8") == written, "run `python -m benchmarks --table`"


def test_a_row_that_fails_stops_no_other_and_the_command_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "rows", lambda: [Row("1", "peerless", (), broken), Row("2", "a step", (LEAN,), step)])
    assert command.main(["--results", str(tmp_path), "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "failed: RuntimeError: no peer to be had" in printed.out
    assert "failed: row 1" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["row-2.json"]
    assert json.loads((tmp_path / "row-2.json").read_text())["rounds"] == 1


def test_a_row_that_this_machine_cannot_measure_is_no_failure_and_keeps_its_old_result(tmp_path, monkeypatch, capsys):
    (tmp_path / "row-3.json").write_text("from a machine with bf16")
    monkeypatch.setattr(command, "rows", lambda: [Row("3", "bf16", (), elsewhere)])
    assert command.main(["--results", str(tmp_path)]) == 0
    assert "can't be measured here: this CPU has no bf16 instructions." in capsys.readouterr().out
    assert (tmp_path / "row-3.json").read_text() == "from a machine with bf16"


def test_the_list_names_rows_and_goals_and_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(command, "rows", lambda: [*ROWS, Row("2", "never run", (), broken)])
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "  1  a step: at most 1.10 x the floor, at least 1.7 x faster than peft" in printed
    assert " 4b  until good (long)" in printed


def test_a_peers_environment_that_cannot_be_made_says_what_failed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"-m venv .* failed:\n.*file"):
        environment(tmp_path / "file")
