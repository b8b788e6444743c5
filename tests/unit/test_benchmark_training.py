"""What the training rows of the benchmarks conclude, and that they go on where they were stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.harness import Settings
from benchmarks.training import rows, trials
from benchmarks.training.clock import Clock
from benchmarks.training.judging import behind, per_step, seconds_to, shown, target_of, time_in_theirs
from benchmarks.training.trials import Trial, result_of

CURVE = [
    {"seconds": 10.0, "accuracy": 0.70},
    {"seconds": 20.0, "accuracy": 0.82},
    {"seconds": 30.0, "accuracy": 0.81},
    {"seconds": 40.0, "accuracy": 0.83},
]

CPU = {"cpu_seconds": 12.0}


def test_the_target_is_a_point_below_the_best_that_any_curve_ever_reached():
    assert target_of([CURVE, [{"seconds": 5.0, "accuracy": 0.79}]]) == pytest.approx(0.82)


def test_the_time_to_the_target_is_that_of_the_first_measurement_at_it():
    assert seconds_to(0.82, CURVE) == 20
    assert seconds_to(0.825, CURVE) == 40
    assert seconds_to(0.84, CURVE) is None
    assert shown(None, 3) == "never within 3 epochs"
    assert shown(39.6, 3) == "40 s"


def test_who_never_gets_there_is_charged_what_was_spent_and_we_without_bound():
    assert time_in_theirs(10, 40, 40) == 0.25
    assert time_in_theirs(10, None, 100) == 0.1
    assert time_in_theirs(None, 40, 40) == math.inf


def test_accuracies_within_two_standard_errors_or_half_a_point_are_noise():
    # the means differ by 1 point; standard errors: sqrt(2 * 0.01^2 / 3) = 0.0082 and next to nothing
    assert behind([0.82, 0.83, 0.84], [0.83, 0.84, 0.85]) == pytest.approx(0.01 / (2 * 0.01 * math.sqrt(2 / 3)))
    assert behind([0.83, 0.83, 0.83], [0.84, 0.84, 0.84]) == pytest.approx(2)
    assert behind([0.8], [0.804]) == pytest.approx(0.8), "half a point, where one seed says nothing of noise"
    assert behind([0.9, 0.91], [0.8, 0.81]) < 0
    with pytest.raises(ValueError, match="got 0 and 1"):
        behind([], [0.8])


def test_packed_steps_hold_as_many_tokens_as_the_peers_rows():
    assert per_step(64, 28.2, 256) == 7
    assert per_step(2, 10, 256) == 1


class Counting:
    """Counts what it is asked to run."""

    def __init__(self) -> None:
        self.run: list[Trial] = []

    def __call__(self, trial: Trial, cache: Path) -> dict:
        self.run.append(trial)
        return {"seconds": float(len(self.run)), "curve": ({"seconds": 1, "accuracy": 0.5},)}


def test_a_trial_that_was_run_is_read_from_the_file_and_others_are_run(tmp_path):
    file, runner = tmp_path / "results" / "trials.jsonl", Counting()
    settings = {"rows": 10, "threads": 2, "rates": (1, 2)}
    first = result_of(Trial("4", "ours", 0, settings), file, tmp_path, runner)
    assert result_of(Trial("4", "ours", 0, dict(reversed(settings.items()))), file, tmp_path, runner) == first
    assert len(runner.run) == 1
    for other in (
        Trial("4", "ours", 1, settings),
        Trial("4", "peft", 0, settings),
        Trial("4b", "ours", 0, settings),
        Trial("4", "ours", 0, settings | {"threads": 1}),
        Trial("4", "ours", 0, settings | {"target": 0.8}),
    ):
        result_of(other, file, tmp_path, runner)
    assert len(runner.run) == 6
    assert len(file.read_text().splitlines()) == 6


def test_a_line_that_was_cut_short_is_run_again_and_spoils_no_other(tmp_path):
    file, runner = tmp_path / "trials.jsonl", Counting()
    trials_of = [Trial("8", "ours", seed, {}) for seed in range(3)]
    for trial in trials_of[:2]:
        result_of(trial, file, tmp_path, runner)
    file.write_text(file.read_text()[:-20])
    for trial in trials_of:
        result_of(trial, file, tmp_path, runner)
    assert [trial.seed for trial in runner.run] == [0, 1, 1, 2]
    for trial in trials_of:
        result_of(trial, file, tmp_path, runner)
    assert len(runner.run) == 4


def test_a_result_depends_on_the_sources_the_threads_and_the_versions(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    around = trials.surroundings()
    assert around["threads"] == 3
    assert {"cpu", "torch", "transformers", "peft", "sources"} <= set(around)
    assert json.loads(json.dumps(around)) == around


def test_a_trial_that_fails_says_so(tmp_path):
    with pytest.raises(RuntimeError, match=r"row 99, ours, seed 0(.|\n)*KeyError: '99'"):
        trials.in_its_own_process(Trial("99", "ours", 0, {"threads": 1}), tmp_path)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return a function that measures a row whose trials are made up."""

    def measure(number, made_up):
        monkeypatch.setattr(rows, "TRIALS", tmp_path / f"trials-{number}.jsonl")
        monkeypatch.setattr(trials, "in_its_own_process", lambda trial, cache: made_up(trial))
        row = next(row for row in rows.ROWS if row.number == number)
        result = row.measure(Settings(cache=tmp_path))
        return result, {verdict["ratio"]: verdict for verdict in result.verdicts(row.goals)}

    return measure


def test_row_4_tells_speed_and_accuracy_over_the_seeds(measured):
    seconds = {"ours": 10, "peft": 45, "peft, best": 15}
    accuracy = {"ours": 0.83, "peft": 0.84, "peft, best": 0.832}

    def made_up(trial):
        return {
            "seconds": seconds[trial.contender] + trial.seed,
            "accuracy": accuracy[trial.contender],
            "steps": 211,
            **CPU,
        }

    result, verdicts = measured("4", made_up)
    assert result.parts[0].medians == {"ours": 11, "peft": 46, "peft, best": 16}
    assert verdicts["peft / ours"]["met"]
    assert not verdicts["peft, best / ours"]["met"]
    assert not verdicts["behind peft, of noise"]["met"], "a point on each of three seeds is no noise"
    assert verdicts["behind peft, best, of noise"]["met"]


def test_row_4b_takes_the_faster_rate_of_full_fine_tuning_and_lets_others_stop_at_the_target(measured):
    asked = []

    def made_up(trial):
        asked.append((trial.contender, trial.settings["target"]))
        factor = {"ours": 0.5, "peft": 4, "full 5e-05": 2, "full 0.0001": 1, "logistic regression": 0.1}
        curve = [point | {"seconds": factor[trial.contender] * point["seconds"]} for point in CURVE]
        return {"seconds": curve[-1]["seconds"], "accuracy": 0.8, "curve": curve}

    result, verdicts = measured("4b", made_up)
    assert ("peft", pytest.approx(0.82)) in asked
    assert ("full 5e-05", None) in asked
    assert result.parts[0].medians == {"ours": 10, "peft": 80, "full": 20}
    assert verdicts["ours / peft"] | {"value": 0.125, "met": True} == verdicts["ours / peft"]
    assert not verdicts["ours / full"]["met"]


def test_row_4b_says_never_where_the_target_is_out_of_reach(measured):
    def made_up(trial):
        curve = [point | {"accuracy": point["accuracy"] - 0.1 * (trial.contender == "ours")} for point in CURVE]
        return {"seconds": 40.0, "accuracy": 0.8, "curve": curve}

    result, verdicts = measured("4b", made_up)
    assert "ours never within 3 epochs" in " ".join(result.notes)
    assert not any(verdict["met"] for verdict in verdicts.values())


@pytest.mark.parametrize(("number", "counted"), [("8", "tokens"), ("9", "dialogues")])
def test_rows_8_and_9_compare_what_is_done_in_a_second(measured, number, counted):
    def made_up(trial):
        return {"seconds": 10.0 if trial.contender == "ours" else 21.0, "steps": 5, "tokens": 900, counted: 900, **CPU}

    result, verdicts = measured(number, made_up)
    assert result.parts[0].medians["ours"] == 90
    assert result.rounds == 3
    assert verdicts["ours / peft"]["value"] == pytest.approx(2.1)
    assert verdicts["ours / peft"]["met"]


def test_row_10_compares_the_second_epochs(measured):
    def made_up(trial):
        return {"seconds": 99.0, "later": 10.0 if trial.contender == "ours" else 19.0, "accuracy": 0.8, **CPU}

    _, verdicts = measured("10", made_up)
    assert verdicts["all layers / ours"]["value"] == pytest.approx(1.9)
    assert verdicts["all layers / ours"]["met"]


def test_the_clock_stands_still_during_evaluations_and_ends_training_at_the_target(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.training.clock._now", lambda: (now[0], now[0]))
    clock, args = Clock(target=0.8), None
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)
    state = SimpleNamespace(global_step=0, num_input_tokens_seen=0)

    def step(evaluates=None):
        clock.on_step_begin(args, state, control)
        now[0] += 2
        state.global_step += 1
        control.should_evaluate = evaluates is not None
        clock.on_step_end(args, state, control)
        if evaluates is not None:
            now[0] += 100
            clock.on_evaluate(args, state, control, metrics={"eval_accuracy": evaluates})
        else:
            now[0] += 1  # the next batch is made: that counts

    clock.on_train_begin(args, state, control)
    step()
    step(evaluates=0.7)
    assert not control.should_training_stop
    step()
    step(evaluates=0.85)
    assert control.should_training_stop
    clock.on_train_end(args, state, control)
    clock.on_evaluate(args, state, control, metrics={"eval_accuracy": 0.9})
    assert [(point["step"], point["seconds"]) for point in clock.curve] == [(2, 5), (4, 10)]
    assert clock.seconds == 10
